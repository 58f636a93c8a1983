"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
_PATH = re.compile(r"`((?:harness|suites|fixtures|lab-inventory|tests|\.ci)/[\w./-]+)`")
#: `Edu`, `stalled(guest)` (`harness/devices/edu.py`)
_NAMED_IN = re.compile(r"((?:`\w+(?:\([^`]*\))?`(?:, )?)+) \(`(harness/[\w./]+\.py)`\)")
_NAME = re.compile(r"`(\w+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    linked = {page.parent / link for link in _LINK.findall(text)}
    named = {ROOT / path for path in _PATH.findall(text)}
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
