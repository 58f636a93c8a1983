"""Read YAML files that people write as validated models, and report each fault with its place.

A fault reads `FILE:LINE: FIELD: found VALUE; allowed: DESCRIPTION`, with the description of the
model's field.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from harness.errors import HilError

T = TypeVar("T")


class Strict(BaseModel):
    """The base of models of mappings in such a file. A mapping has the fields of its model and no
    others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse(text: str, path: Path, kind: type[T], *, error: type[HilError], fix: str) -> T:
    """Return the `text` of file `path` as a value of type `kind`: a `Strict`, or a `dict` of them.

    Raises `error` with all faults of the file: each names file, line, field, what was found and
    what is allowed. `fix` says how to correct a file that is YAML, but not of this type.
    """
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as broken:
        mark = broken.problem_mark
        line = mark.line + 1 if mark else 1
        raise error(
            f"{path}:{line}: not valid YAML: {broken.problem or broken.context}",
            fix="correct the line; YAML is indented with spaces",
        ) from None
    try:
        return TypeAdapter(kind).validate_python(_plain(tree))
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


def _plain(node: Any) -> Any:
    """Return ruamel's round-trip tree as plain values."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _fault(path: Path, tree: Any, kind: Any, error: Any) -> str:
    """Return the message of one of pydantic's errors."""
    location: Sequence[str | int] = error["loc"]
    place = f"{path}:{_line(tree, location)}: "
    if location:
        place += f"{_dotted(location)}: "
    if error["type"] == "extra_forbidden":
        model = _model(_part(kind, location[:-1])[1])
        allowed = "one of " + ", ".join(model.model_fields) if model else "no such field"
        return f"{place}unknown field; allowed: {allowed}"
    if error["type"] == "missing":
        return f"{place}missing; needed: {_allowed(kind, location)}"
    if error["type"] == "value_error":
        return f"{place}{error['ctx']['error']}"
    found = repr(error["input"])
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
