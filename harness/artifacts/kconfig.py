"""Find out why a Linux source tree does not take an option: what its Kconfig files say of it.

Source: Documentation/kbuild/kconfig-language.rst.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

#: What has no options of the kernel.
_ELSEWHERE = frozenset({".git", "Documentation", "tools", "samples", "LICENSES"})
_BEGIN = re.compile(r"\s*(?:menu)?config\s+(\w+)\s*(?:#.*)?")
#: An entry ends where the next one begins.
_END = re.compile(
    r"\s*(?:(?:menu)?config|choice|endchoice|comment|menu|endmenu|if|endif|source|mainmenu)\b"
)
_PROMPT = re.compile(r"\s*(?:bool|tristate|string|hex|int|prompt)\s+[\"']")
_DEPENDS = re.compile(r"\s*depends\s+on\s+(.+?)\s*(?:#.*)?")
_IF = re.compile(r"\s*if\s+(.+?)\s*(?:#.*)?")
_ENDIF = re.compile(r"\s*endif\b")
_HELP = re.compile(r"\s*help\s*")
_NAME = re.compile(r"[A-Z]\w+")


@dataclass
class Definition:
    """What a tree says of an option: whether one can choose it, and on what it depends. A menu
    around it may add to that."""

    can_be_chosen: bool = False
    depends: tuple[str, ...] = ()


def why_not_taken(tree: Path, names: Collection[str], on: Collection[str] = ()) -> dict[str, str]:
    """Return, for options that were to be on and are not (such as CONFIG_IOMMUFD), why: a phrase
    that follows the name. Of what an option depends on, the options that are `on` are left out."""
    known = _definitions(tree, {name.removeprefix("CONFIG_") for name in names})
    return {name: _why(known.get(name.removeprefix("CONFIG_")), on) for name in names}


def _why(found: Definition | None, on: Collection[str]) -> str:
    if found is None:
        return "is unknown in this tree"
    if not found.can_be_chosen:
        return "cannot be chosen in this tree: other options decide it"
    unmet = [one for one in found.depends if not _is_met(one, on)]
    if unmet:
        return f"depends on {' and on '.join(unmet)}"
    return "depends on a menu that is off, or another option excludes it"


def _is_met(condition: str, on: Collection[str]) -> bool:
    """Return whether a condition is surely met: all options in it are on, and none must be off."""
    met = all(f"CONFIG_{name}" in on for name in _NAME.findall(condition))
    return met and not re.search("[!=]", condition)


def _definitions(tree: Path, names: Collection[str]) -> dict[str, Definition]:
    """Return what the tree's Kconfig files say of these options, without CONFIG_."""
    found: dict[str, Definition] = {}
    for path in _kconfig_files(tree):
        text = path.read_text(errors="replace")
        if not any(name in text for name in names):
            continue
        for name, lines in _entries(text.replace("\\\n", " ")):
            if name in names:
                _add(found.setdefault(name, Definition()), lines)
    return found


def _kconfig_files(tree: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(tree):
        here = Path(folder)
        if here == tree:
            folders[:] = [one for one in folders if one not in _ELSEWHERE]
        elif here == tree / "arch":
            folders[:] = ["arm64"]
        yield from (here / name for name in files if name.startswith("Kconfig"))


def _entries(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the lines of each option that a Kconfig file defines. An `if` around it is
    given as what the option depends on."""
    name, lines, conditions = "", list[str](), list[str]()
    for line in text.splitlines():
        if _END.match(line) and not (_in_help(lines) and line.startswith((" ", "\t"))):
            if name:
                yield name, lines
            begin = _BEGIN.fullmatch(line)
            if condition := _IF.fullmatch(line):
                conditions.append(f"depends on {condition[1]}")
            elif _ENDIF.match(line) and conditions:
                conditions.pop()
            name, lines = begin[1] if begin else "", [*conditions]
        else:
            lines.append(line)
    if name:
        yield name, lines


def _in_help(lines: list[str]) -> bool:
    return any(_HELP.fullmatch(line) for line in lines)


def _add(to: Definition, lines: list[str]) -> None:
    end = next((at for at, line in enumerate(lines) if _HELP.fullmatch(line)), len(lines))
    to.can_be_chosen |= any(_PROMPT.match(line) for line in lines[:end])
    found = [match[1] for line in lines[:end] if (match := _DEPENDS.fullmatch(line))]
    depends = [" ".join(one.split()) for one in found]
    to.depends += tuple(one for one in depends if one not in to.depends)
