"""How Sphinx makes the pages of what suites use, from the docstrings: `make docs`.

Docstrings of this project are plain text, in which `…` is code, a dotted name of ours is a
reference, and an indented paragraph is an example. They become reStructuredText here.
"""

from __future__ import annotations

import pydoc
import re
import textwrap
from collections.abc import Iterator
from typing import Any

project = "grace-smmu-hil"
extensions = ["sphinx.ext.autodoc"]
html_theme = "alabaster"
html_theme_options = {"fixed_sidebar": True, "page_width": "70em"}
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
#: A reference to nothing fails the build: a name of ours in a docstring, or a type in a signature,
#: that does not exist. Those of other projects are not looked up, because this needs no internet.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!harness\.).*")]

#: Code, or the full name of something of ours.
_SPECIAL = re.compile(r"`([^`]+)`|\b(harness(?:\.\w+)+)")
_OURS = re.compile(r"harness(?:\.\w+)+")


def _markup(text: str) -> str:
    """Return a paragraph in reStructuredText."""
    out, end = "", 0
    for found in _SPECIAL.finditer(text):
        code = " ".join((found[1] or found[2]).split())
        marked = f":py:obj:`{code}`" if _OURS.fullmatch(code) else f"``{code}``"
        # Without the backslash a letter beside it would be a part of the markup.
        out += f"{_escaped(text[end : found.start()])}{marked}\\ "
        end = found.end()
    return out + _escaped(text[end:])


def _escaped(text: str) -> str:
    text = re.sub(r"([\\*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a docstring in reStructuredText."""
    example = False
    for paragraph in filter(None, re.split(r"\n\s*\n", text.strip())):
        indented = all(line.startswith("    ") for line in paragraph.splitlines())
        if indented and not example:
            yield from ("::", "")
        example = indented
        if indented:
            yield from textwrap.indent(textwrap.dedent(paragraph), "    ").splitlines()
        else:
            bullet = re.match(r"[*-] ", paragraph)
            for item in re.split(r"\n(?=[*-] )", paragraph) if bullet else [paragraph]:
                start = item[:2] if bullet else ""
                yield from f"{start}{_markup(item[len(start) :])}".splitlines()
        yield ""


def _docstring(
    app: object, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    lines[:] = _lines("\n".join(lines))


def _skipped(app: object, what: str, name: str, of: object, skip: bool, options: object) -> bool:
    """Return whether a member of a module has no place here: suites do not call pytest's hooks."""
    return skip or name.startswith("pytest_")


def _unlisted(app: object, env: object, node: Any, shown: object) -> object | None:
    """Have a name that exists, and is on none of these pages, shown without a link."""
    name = node["reftarget"]
    return shown if _OURS.fullmatch(name) and pydoc.locate(name) is not None else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-skip-member", _skipped)
    app.connect("missing-reference", _unlisted)
