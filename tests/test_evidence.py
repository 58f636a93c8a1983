"""Evidence has a folder for each test, and the host sends only the end of a log."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.fixtures.evidence import folder_name
from harness.host.connection import Completed, Connection, LinkLostError
from harness.report import evidence
from harness.report.notes import Notes

FILE = "suites/data/test_nvme.py"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{FILE}::TestWithCmdqv::test_x", f"{FILE}::TestWithoutCmdqv::test_x"),
        ("suites/a/test_x.py::test_x", "suites/b/test_x.py::test_x"),
        (f"{FILE}::test_x[a/b]", f"{FILE}::test_x[a:b]"),
        (f"{FILE}::test_x[{'a' * 300}1]", f"{FILE}::test_x[{'a' * 300}2]"),
        (f"{FILE}::test_x[ä]", f"{FILE}::test_x[ö]"),
    ],
)
def test_two_tests_have_two_folders(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other):
        (tmp_path / folder_name(name)).mkdir()


def test_a_folder_is_known_by_its_test() -> None:
    name = folder_name(f"{FILE}::TestWithCmdqv::test_x[one-2]")
    assert re.fullmatch(r"data-test_nvme\.py-TestWithCmdqv-test_x\[one-2\]-[0-9a-f]{10}", name)


@given(st.text())
def test_any_name_is_one_of_a_file(name: str) -> None:
    folder = folder_name(name)
    assert len(folder.encode()) <= 255
    assert "/" not in folder
    assert "\0" not in folder
    assert folder not in ("", ".", "..")


class Here(Connection):
    """A connection to this machine. `received` counts the bytes that commands printed."""

    def __init__(self) -> None:
        self.received = 0

    def run(self, command: str | Sequence[str], **_: Any) -> Completed:
        assert isinstance(command, str)
        ended = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
        self.received += len(ended.stdout)
        return Completed(command, 0, ended.stdout, ended.stderr)


def test_only_the_end_of_a_log_is_fetched(tmp_path: Path) -> None:
    log = tmp_path / "it's a log"
    log.write_bytes(b"old\n" * 1_000_000 + b"the end\n")
    here = Here()
    text = evidence.log(here, str(log))
    assert text.startswith(f"[{4_000_008 - evidence.LONGEST} bytes before this are left out]\n")
    assert text.endswith("old\nthe end\n")
    assert here.received < evidence.LONGEST + 100


def test_a_short_log_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\r\ntwo \xff\n")
    assert evidence.log(Here(), str(log)) == "one\r\ntwo \ufffd\n"
    log.write_bytes(b"")
    assert evidence.log(Here(), str(log)) == ""


def raising(problem: BaseException) -> str:
    raise problem


def test_a_witness_that_fails_does_not_take_the_rest_with_it() -> None:
    asked = list(
        evidence.ask(
            [
                ("one", lambda: raising(HarnessError("no"))),
                ("two", lambda: [""][1]),
                ("three", lambda: raising(pytest.fail.Exception("Timeout (>1.0s)"))),
                ("four", lambda: "x" * (evidence.LONGEST + 5)),
                ("five", lambda: raising(LinkLostError("link gone"))),
                ("six", lambda: raising(AssertionError("must not be asked"))),
            ]
        )
    )
    assert [piece.missing for piece in asked] == [
        "no",
        "IndexError: list index out of range",
        "Failed: Timeout (>1.0s)",
        "",
        "link gone",
        "",
    ]
    assert asked[1].text == "not available: IndexError: list index out of range"
    assert asked[3].text.startswith("[5 characters before this are left out]\nxxx")
    assert asked[5].text == "not asked: link gone"


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes(end: type[BaseException]) -> None:
    with pytest.raises(end):
        list(evidence.ask([("one", lambda: raising(end()))]))
    with pytest.raises(end), Notes().guard("one"):
        raise end


def test_notes_name_each_reason_once() -> None:
    notes = Notes()
    for what in ("a", "b", "a"):
        notes.add(what, "no space")
    with notes.guard("c"):
        raise ValueError("two\nlines")
    assert notes.lines == ("a, b: no space", "c: ValueError: two lines")
