"""Pages and summaries are well-formed whatever text is in them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from harness.report import behaviours_page, table
from harness.report.behaviours import catalogue
from harness.report.markup import block, cell, code, printable
from harness.report.run import Result, Run
from harness.report.timeline import Lane, Mark, draw

#: Any text, with what is special in some page more often than not.
TEXT = st.text(
    st.one_of(st.sampled_from("`|<>&\"'\n\r\x00\x1b\x7f\x85\ud800\ufffe#*\\"), st.characters())
)


@given(TEXT)
def test_a_timeline_is_xml(text: str) -> None:
    svg = draw([Lane(text, [Mark(1.0, text), Mark(2.0, text)], text)], [text])
    ElementTree.fromstring(svg.encode())


def test_a_control_character_is_shown_as_its_escape() -> None:
    assert printable("\x1b[31mred\x00\tand\n\udc80\u00e9\x85") == (
        "\\x1b[31mred\\x00\tand\n\\udc80\u00e9\\x85"
    )


class Tags(HTMLParser):
    """The tags of a page, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


@given(TEXT)
def test_no_text_adds_a_tag_to_a_page(text: str) -> None:
    known = next(iter(catalogue()))

    def behaviours(text: str) -> str:
        test = {"id": text, "outcome": text, "covers": [known]}
        return behaviours_page.html(text, {"tests": [test]})

    for page in (behaviours, lambda text: table.html(text, [text], [f"{text} "])):
        told = page(text)
        told.encode()
        tags = [one for one in Tags(told).found if one != "mark"]
        assert tags == [one for one in Tags(page("plain")).found if one != "mark"]


@given(TEXT)
def test_a_block_of_code_ends_where_it_should(text: str) -> None:
    fence, body, end = block(text)
    assert fence == end
    assert fence not in body


@given(TEXT)
def test_code_in_a_line_is_one_span(text: str) -> None:
    for shown in (code(text), cell(text)):
        assert "\n" not in shown
        (ticks,) = re.findall("^`+", shown)
        assert re.findall(rf"(?<!`){ticks}(?!`)", shown) == [ticks, ticks]
    assert not re.search(r"(?<!\\)\|", cell(text))


def test_a_summary_stays_in_its_form(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.ran_on("mine", {"QEMU": "<img src=x onerror=alert(1)>\n# big"})
    message = "before\n```\n# not a heading\n\x1b[1m"
    run.record(Result("t.py::t[a|b]", "failed", 1.0, ("VEQ-01",), message, "product", "again"))
    run.record(Result("t.py::t[`\n|]", "passed", 1.0, ()))
    run.write()
    lines = (run.folder / "summary.md").read_text().split("\n")
    assert "- QEMU: `<img src=x onerror=alert(1)> # big`" in lines
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == [
        "| `t.py::t[a\\|b]` | VEQ-01 | failed | 1.0 |",
        "| ``t.py::t[` \\|]`` |  | passed | 1.0 |",
    ]
    start = lines.index("````")
    assert lines[start + 1 : start + 6] == [*message.split("\n")[:3], "\\x1b[1m", "````"]


def test_properties_for_allure_are_a_line_each(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.ran_on("mine", {"host kernel": "7.2\nevil=1", "a=b:c": "d\\e"})
    run.write()
    written = (run.allure_results / "environment.properties").read_text()
    assert written == "host\\ kernel=7.2 evil=1\na\\=b\\:c=d\\\\e\n"
