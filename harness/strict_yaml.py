"""Read YAML files that people write as validated models, and report each fault with its place.

A fault reads `FILE:LINE: FIELD: found VALUE; allowed: DESCRIPTION`, with the description of the
model's field.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from harness.errors import HilError

T = TypeVar("T")
S = TypeVar("S", bound="Strict")

#: How deep lists and mappings may be inside of each other. An alias of a node inside of that node
#: would have no end.
DEEPEST = 20
# What YAML allows in a file (YAML 1.2.2, section 5.1), and what a value may not have, which can get
# there by an escape.
_NOT_OF_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 58


class Strict(BaseModel):
    """The base of models of mappings in such a file. A mapping has the fields of its model and no
    others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _of_a_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except (RuntimeError, ValueError) as problem:
        raise ValueError(f"found {str(path)!r}: {problem}; allowed: a path") from None


#: A path that may begin with ~ or ~USER.
HomePath = Annotated[Path, AfterValidator(_of_a_home)]


def only(model: Strict) -> Any:
    """Return the value of the only field of a mapping that is not None. Raises ValueError if there
    is not exactly one."""
    found = [value for _, value in model if value is not None]
    if len(found) != 1:
        raise ValueError(f"needed: one of {', '.join(type(model).model_fields)}")
    return found[0]


def anchored(model: S, folder: Path) -> S:
    """Return a mapping whose relative paths, also those of mappings inside of it, start at a
    folder."""
    found = {name: _anchored(value, folder) for name, value in model}
    changed = {name: value for name, value in found.items() if value != getattr(model, name)}
    return model.model_copy(update=changed)


def _anchored(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, Strict):
        return anchored(value, folder)
    if isinstance(value, tuple):
        return tuple(_anchored(one, folder) for one in value)
    if isinstance(value, dict):
        return {name: _anchored(one, folder) for name, one in value.items()}
    return value


def load(path: Path, kind: type[T], *, what: str, error: type[HilError], fix: str, none: str) -> T:
    """Return the content of a file as `parse` does; `what` says what the file is.

    Raises `error` too if the file cannot be read, with the fix `none`, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{what} {path} cannot be read: {problem.strerror}", fix=none) from None
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        raise error(
            f"{path}:{line}: not UTF-8: byte {data[wrong.start]:#04x}",
            fix="save the file in the encoding UTF-8",
        ) from None
    return parse(text, path, kind, error=error, fix=fix)


def parse(text: str, path: Path, kind: type[T], *, error: type[HilError], fix: str) -> T:
    """Return the `text` of file `path` as a value of type `kind`: a `Strict`, or a `dict` of them.

    Raises `error` with all faults of the file: each names file, line, field, what was found and
    what is allowed. `fix` says how to correct a file that is YAML, but not of this type.
    """
    try:
        tree = _tree(text)
        plain = _plain(tree, tree, (), {})
    except _NotYamlError as broken:
        raise error(
            f"{path}:{broken.line}: not valid YAML: {broken.problem}", fix=broken.fix
        ) from None
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as wrong:
        errors = wrong.errors()
        # pydantic also calls a list too short when all its entries are wrong: report only those.
        deepest = [
            one
            for one in errors
            if not any(
                other["loc"][: len(one["loc"])] == one["loc"] != other["loc"] for other in errors
            )
        ]
        faults = "\n".join(_fault(path, tree, kind, one) for one in deepest)
        raise error(faults, fix=fix) from None


class _NotYamlError(Exception):
    """The text is not YAML, or not such as these files have."""

    def __init__(self, line: int, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.line, self.problem, self.fix = line, problem, fix


def _tree(text: str) -> Any:
    """Return a text as ruamel's round-trip tree, which knows its lines."""
    strange = _NOT_OF_YAML.search(text)
    if strange:
        raise _NotYamlError(
            text.count("\n", 0, strange.start()) + 1,
            f"character U+{ord(strange[0]):04X} is not allowed",
            "remove the character",
        )
    try:
        _check_depth(text)
        return YAML(typ="rt").load(text)
    except _NotYamlError:
        raise
    except MarkedYAMLError as broken:
        mark = broken.problem_mark
        raise _NotYamlError(
            mark.line + 1 if mark else 1,
            str(broken.problem or broken.context),
            "correct the line; YAML is indented with spaces",
        ) from None
    except Exception as problem:
        # ruamel makes values of some texts, such as dates, with functions that have errors of
        # their own, and does not say where.
        raise _NotYamlError(
            1,
            f"a value cannot be read: {problem!r}",
            'put values that look like dates or numbers, and are not, in "quotes"; remove tags',
        ) from None


def _check_depth(text: str) -> None:
    """Raise _NotYamlError if lists and mappings are nested too deeply. To make a tree of them would
    take ruamel very long."""
    depth = 0
    for event in YAML(typ="rt").parse(text):
        if isinstance(event, CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise _too_deep(event.start_mark.line + 1)
        elif isinstance(event, CollectionEndEvent):
            depth -= 1


def _too_deep(line: int) -> _NotYamlError:
    return _NotYamlError(
        line, f"nested more than {DEEPEST} deep", "correct the brackets, the indentation or aliases"
    )


def _plain(node: Any, tree: Any, place: Sequence[str | int], made: dict[int, Any]) -> Any:
    """Return a node of ruamel's round-trip `tree` as plain values. `place` is where it is in the
    tree. `made` are the values of nodes, because aliases may refer to one many times."""
    if len(place) > DEEPEST:
        raise _too_deep(_line(tree, place))
    if isinstance(node, str):
        _check_text(node, tree, place)
    if not isinstance(node, (dict, list)):
        return node
    if id(node) not in made:
        if isinstance(node, dict):
            plain: Any = {}
            for key, value in node.items():
                name = _check_text(str(key), tree, place)
                plain[name] = _plain(value, tree, (*place, name), made)
        else:
            plain = [_plain(one, tree, (*place, at), made) for at, one in enumerate(node)]
        made[id(node)] = plain
    return made[id(node)]


def _check_text(text: str, tree: Any, place: Sequence[str | int]) -> str:
    control = _CONTROL.search(text)
    if control:
        raise _NotYamlError(
            _line(tree, place),
            f"{_dotted(place)} has the control character U+{ord(control[0]):04X}",
            "remove the character",
        )
    return text


def _fault(path: Path, tree: Any, kind: Any, error: Any) -> str:
    """Return the message of one of pydantic's errors."""
    location: Sequence[str | int] = error["loc"]
    place = f"{path}:{_line(tree, location)}: "
    if location:
        place += f"{_dotted(location)}: "
    if error["type"] == "extra_forbidden":
        model = _model(_part(kind, location[:-1])[1])
        allowed = "one of " + ", ".join(model.model_fields) if model else "no such field"
        close = difflib.get_close_matches(str(location[-1]), model.model_fields if model else ())
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{place}unknown field{hint}; allowed: {allowed}"
    if error["type"] == "missing":
        return f"{place}missing; needed: {_allowed(kind, location)}"
    if error["type"] == "value_error":
        return f"{place}{error['ctx']['error']}"
    found = _BRIEF.repr(error["input"])
    found = found if len(found) < 60 else found[:57] + "…"
    return f"{place}found {found}; allowed: {_allowed(kind, location)}"


def _dotted(location: Sequence[str | int]) -> str:
    out = ""
    for part in location:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _line(tree: Any, location: Sequence[str | int]) -> int:
    """Return the line of the deepest node on the way to `location` that the file has."""
    node, line = tree, 1
    for part in location:
        try:
            position = node.lc.key(part) if isinstance(part, str) else node.lc.item(part)
            line = position[0] + 1
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _part(kind: Any, location: Sequence[str | int]) -> tuple[FieldInfo | None, Any]:
    """Return the field that describes what is at `location` in a `kind`, or None, and its type."""
    field: FieldInfo | None = None
    for part in location:
        model = _model(kind)
        if get_origin(kind) in (dict, tuple):
            # An entry that is no mapping is described by the field that has the list.
            field, kind = None if model else field, model
        else:
            field = model.model_fields.get(str(part)) if model else None
            kind = field.annotation if field else None
    return field, kind


def _model(kind: Any) -> type[BaseModel] | None:
    """Return the model that a type is or holds, such as Model of `dict[str, Model]`; else None."""
    types = (one for one in (kind, *get_args(kind)) if isinstance(one, type))
    return next((one for one in types if issubclass(one, BaseModel)), None)


def _allowed(kind: Any, location: Sequence[str | int]) -> str:
    field, of_part = _part(kind, location)
    if field and field.description:
        return field.description
    if isinstance(of_part, type) and issubclass(of_part, BaseModel):
        return f"a mapping of {', '.join(of_part.model_fields)}"
    return "a mapping"
