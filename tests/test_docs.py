"""Every path, name, target and example in the documentation exists in the project."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.devices import ways

ROOT = Path(__file__).parent.parent
CONTRIBUTING, WORDS = ROOT / "CONTRIBUTING.md", ROOT / "docs" / "words.md"
SUITES = ROOT / "docs" / "suites.md"
PAGES = [
    ROOT / "README.md",
    CONTRIBUTING,
    *ROOT.glob("CHANGELOG.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]

_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_PATH = re.compile(r"`((?:harness|suites|fixtures|lab-inventory|tests|\.ci)/[\w./-]+)`")
#: The reader replaces these words in a path.
_PLACEHOLDER = re.compile("NAME|SUBJECT")
#: Names followed by their module, such as `Edu`, `stalled(guest)` (`harness/devices/edu.py`).
_NAMED_IN = re.compile(r"((?:`\w+(?:\([^`]*\))?`(?:, )?)+) \(`(harness/[\w./]+\.py)`\)")
_NAME = re.compile(r"`(\w+)")
#: A target of the Makefile stands in code font, or on a line of an example.
_TARGET = re.compile(r"(?:`|^)make ([a-z-]+)", re.MULTILINE)
PYTHON = re.compile(r"^( *)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    linked = {page.parent / link for link in _LINK.findall(text)}
    named = {ROOT / path for path in _PATH.findall(text) if not _PLACEHOLDER.search(path)}
    assert [str(path) for path in linked | named if not path.exists()] == []


def test_modules_have_the_names_that_are_said_to_be_theirs() -> None:
    said = [
        (name, path)
        for page in PAGES
        for names, path in _NAMED_IN.findall(page.read_text())
        for name in _NAME.findall(names)
    ]
    assert len(said) > 5
    wrong = [
        (name, path)
        for name, path in said
        if not re.search(rf"^(?:def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_are_python_and_import_what_is_there(page: Path) -> None:
    missing = []
    for _, code in PYTHON.findall(page.read_text()):
        for module, name in _imports(example(textwrap.dedent(code))):
            if not hasattr(importlib.import_module(module), name):
                missing.append(f"{module}.{name}")
    assert missing == []


def example(code: str) -> ast.Module:
    """Parse an example. A decorator, or an entry of a mapping, may stand alone."""
    if code.startswith("@") and not re.search(r"^(?:def|class) ", code, re.MULTILINE):
        code += "def _(): ..."
    elif code.lstrip().startswith('"') and not code.startswith('"""'):
        code = f"{{{code}}}"
    return ast.parse(code)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield module and name of what an example imports from this project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness"):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {name for page in PAGES for name in _TARGET.findall(page.read_text())}
    assert len(called) > 5
    assert called <= targets


def test_words_in_code_font_are_in_the_code() -> None:
    code = "\n".join(
        path.read_text()
        for path in (
            *(ROOT / "harness").rglob("*.py"),
            *(ROOT / "fixtures").rglob("*.py"),
            ROOT / "pyproject.toml",
        )
    )
    rows = re.findall(r"^\| (?!---|word )(.*) \|$", WORDS.read_text(), re.MULTILINE)
    assert len(rows) > 30
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    missing = {
        name
        for name in names
        # A name that looks like a class must be a class.
        if not re.search(
            rf"\bclass {name}\b" if re.match("[A-Z][a-z]", name) else rf"\b{name}\b", code
        )
    }
    assert missing == set()


def test_every_way_to_perform_dma_is_in_the_table() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| `([\w-]+)` \| ([^|]+) \|", SUITES.read_text(), re.MULTILINE
    )
    said = {(role, way): set(can.split(", ")) for role, way, can in rows}
    assert said == {(role, way.way): set(way.can) for role, way in ways()}


def test_every_module_of_the_harness_has_a_line_in_the_layout() -> None:
    table = CONTRIBUTING.read_text().partition("## The layout")[2].partition("## Habits")[0]
    rooms = {f"{init.parent.name}/" for init in (ROOT / "harness").glob("*/__init__.py")}
    rooms |= {path.name for path in (ROOT / "harness").glob("[!_]*.py")}
    named = set(re.findall(r"`([\w./]+)`", table))
    assert rooms <= named, "CONTRIBUTING.md does not say what these are for"
