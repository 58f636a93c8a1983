"""Coverage and run folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError, LabError, ProductError
from harness.host.connection import LinkLostError
from harness.report import behaviours, evidence
from harness.report.blame import Blame
from harness.report.defects import KnownDefect
from harness.report.run import FIXED, KNOWN, Result, Run
from harness.waiting import wait_for

SUITES = Path(__file__).parent.parent / "suites"


def test_catalogue_has_every_group() -> None:
    groups = {behaviour.group for behaviour in behaviours.catalogue().values()}
    assert groups == {"VEQ", "LOSS", "ACC", "CQV", "HOT", "DATA"}


def test_suites_name_known_behaviours_only() -> None:
    found = list(behaviours.carriers(SUITES))
    assert all(carrier.ids for carrier in found), "a suite's test covers nothing"
    assert {"VEQ-01", "VEQ-11", "VEQ-17"} <= {name for carrier in found for name in carrier.ids}


def test_unknown_ids_are_refused_with_their_place(tmp_path: Path) -> None:
    test = tmp_path / "suites" / "test_x.py"
    test.parent.mkdir()
    test.write_text('import pytest\n@pytest.mark.covers("VEQ-99")\ndef test_a(): pass\n')
    with pytest.raises(HarnessError, match=r"test_x\.py:3: test_a covers VEQ-99"):
        list(behaviours.carriers(test.parent))


def write_run(out: Path, outcomes: dict[str, str]) -> Run:
    run = Run.create(out)
    run.lab = "mine"
    run.tests = [
        Result(
            name,
            outcome,
            1.0,
            ("VEQ-11",),
            "why" if outcome == "failed" else "",
            Blame.PRODUCT if outcome in ("failed", FIXED) else "",
        )
        for name, outcome in outcomes.items()
    ]
    run.write()
    return run


def test_runs_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {Run.create(tmp_path).folder for _ in range(3)}
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ({"a": "passed", "b": "skipped"}, "PASSED"),
        ({"a": "passed", "b": "failed"}, "FAILED (1 product)"),
        ({"a": "passed", "b": KNOWN}, "PASSED"),
        ({"a": "passed", "b": FIXED}, "FAILED (1 product)"),
        ({}, "FAILED (nothing ran)"),
    ],
)
def test_first_line_is_the_verdict(tmp_path: Path, outcomes: dict[str, str], verdict: str) -> None:
    run = write_run(tmp_path, outcomes)
    assert (run.folder / "summary.md").read_text().startswith(f"**{verdict}**")
    result = json.loads((run.folder / "result.json").read_text())
    assert {test["id"]: test["outcome"] for test in result["tests"]} == outcomes


@pytest.fixture
def suites(tmp_path: Path) -> Path:
    """Two tests that carry VEQ-11."""
    folder = tmp_path / "suites"
    folder.mkdir()
    covers = '@pytest.mark.covers("VEQ-11")\n'
    (folder / "test_x.py").write_text(
        f"import pytest\n{covers}def test_a(): pass\n{covers}def test_b(): pass\n"
    )
    return folder


A, B = "suites/test_x.py::test_a", "suites/test_x.py::test_b"


def ran(suites: Path) -> dict[str, str]:
    rows = {row.behaviour.id: row for row in behaviours.coverage(suites, suites.parent / "out")}
    assert rows["VEQ-11"].tests == [A, B]
    assert rows["LOSS-01"].outcomes == {}
    return rows["VEQ-11"].outcomes


@pytest.mark.parametrize(
    ("runs", "shown"),
    [
        ([], {}),
        ([{A: "passed"}, {B: "passed"}], {"mine": "passed"}),
        ([{A: "failed", B: "passed"}, {A: "passed"}], {"mine": "passed"}),
        ([{A: "passed", B: "skipped"}], {"mine": "skipped"}),
        ([{A: KNOWN, B: "passed"}], {"mine": KNOWN}),
        ([{"suites/test_x.py::TestOfMine::test_a": "failed"}], {"mine": "failed"}),
        # What is no more: a parameter, a test.
        ([{f"{A}[1]": "failed"}, {f"{A}[2]": "passed"}], {"mine": "passed"}),
        ([{"suites/test_x.py::test_old": "failed", A: "passed"}], {"mine": "passed"}),
    ],
)
def test_coverage_shows_the_worst_of_the_latest(
    suites: Path, runs: list[dict[str, str]], shown: dict[str, str]
) -> None:
    for outcomes in runs:
        write_run(suites.parent / "out", outcomes)
    assert ran(suites) == shown


# -- known defects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "qemu", "concerned"),
    [
        ("==11.1.*", "11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)", True),
        ("==11.1.*", "11.2.0", False),
        (">=11.1,<12", "11.1.50", True),
        (">=11.1,<12", "12.0.0", False),
        (">=11.1", "12.0.0rc1 (v12.0.0-rc1)", True),
        (">=11.1", "of my own", False),
        (">=11.1", "", False),
    ],
)
def test_a_defect_concerns_its_versions(versions: str, qemu: str, concerned: bool) -> None:
    assert KnownDefect("LOSS-05", "why", versions, "wrong").concerns(qemu) is concerned


def test_versions_that_are_none_are_refused() -> None:
    with pytest.raises(HarnessError, match=r"versions '11\.1' is no specifier"):
        KnownDefect("LOSS-05", "why", "11.1", "wrong")


def test_a_symptom_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"symptom '\(' is no regular expression: .*\n.*fix"):
        KnownDefect("LOSS-05", "why", "==11.1.*", "(")


def test_coverage_lists_known_defects() -> None:
    rows = {row.behaviour.id: row for row in behaviours.coverage(SUITES, Path("/none"))}
    # Two tests are marked with it.
    assert [defect.id for defect in rows["LOSS-07"].defects] == ["LOSS-07"]
    assert rows["LOSS-01"].defects == []


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('"LOSS-99", reason="why", versions=">=1", symptom="x"', r"test_a covers LOSS-99"),
        ('"LOSS-05", reason="why", symptom="x"', r"test_x\.py:2: known_defect: .*versions"),
        ('"LOSS-05", reason="why", versions=">=1"', r"test_x\.py:2: known_defect: .*symptom"),
        ('"LOSS-05", reason=WHY, versions=">=1", symptom="x"', r"test_x\.py:2: known_defect: "),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(tmp_path: Path, mark: str, said: str) -> None:
    test = tmp_path / "suites" / "test_x.py"
    test.parent.mkdir()
    test.write_text(f"import pytest\n@pytest.mark.known_defect({mark})\ndef test_a(): pass\n")
    with pytest.raises(HarnessError, match=said):
        list(behaviours.carriers(test.parent))


STAND_IN = """
import types
import pytest
from harness.errors import LabError, ProductError

pytest_plugins = ["fixtures.defects"]

@pytest.fixture(scope="session")
def host():
    return types.SimpleNamespace(facts=types.SimpleNamespace(qemu="11.1.3 (Debian)"))
"""
DEFECTS = """
import pytest
from harness.errors import LabError, ProductError

def mark(id, versions="==11.1.*", symptom="wrong"):
    return pytest.mark.known_defect(id, reason="why", versions=versions, symptom=symptom)

@mark("LOSS-05", symptom="assert 1 == 2")
def test_expected(): assert 1 == 2

@mark("LOSS-05")
def test_expected_too(): raise ProductError("all is wrong")

@mark("LOSS-05", symptom="other")
@mark("LOSS-07")
def test_one_of_two(): raise ProductError("all is wrong")

@mark("LOSS-05")
def test_something_else(): assert 1 == 2

@pytest.fixture
def broken_at_the_end():
    yield
    raise ProductError("QEMU died")

@mark("LOSS-05")
def test_end(broken_at_the_end): raise ProductError("all is wrong")

@mark("LOSS-05")
def test_fixed(): pass

@mark("LOSS-05")
def test_lab(): raise LabError("wrong link")

@mark("LOSS-05", versions=">=12")
def test_elsewhere(): assert 1 == 2

@mark("LOSS-05", versions=">=12")
def test_right(): pass
"""


def run_defects(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(STAND_IN)
    (folder / "test_defects.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = known_defect: x\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_known_defect_is_expected_strictly_and_to_fail_as_it_does(tmp_path: Path) -> None:
    said = run_defects(tmp_path, DEFECTS).stdout
    outcomes = dict(re.findall(r"test_defects\.py::(\w+) (\w+)", said.partition("short test")[0]))
    assert outcomes == {
        "test_expected": "XFAIL",
        "test_expected_too": "XFAIL",
        "test_one_of_two": "XFAIL",
        "test_something_else": "FAILED",
        "test_end": "ERROR",
        "test_fixed": "FAILED",
        "test_lab": "FAILED",
        "test_elsewhere": "FAILED",
        "test_right": "PASSED",
    }
    assert "[XPASS(strict)] LOSS-05: why (QEMU ==11.1.*)" in said
    # Of those that fail in another way, not of the lab's failure.
    assert len(re.findall(r"E +the test has a known defect, LOSS-05, which does not", said)) == 2


def test_nothing_runs_with_a_mark_that_makes_no_sense(tmp_path: Path) -> None:
    ended = run_defects(tmp_path, DEFECTS.replace("LOSS-05", "LOSS-99"))
    assert ended.returncode == 4
    assert "test_expected: known_defect: no behaviour LOSS-99" in ended.stderr


def raising(problem: Exception) -> str:
    raise problem


def test_evidence_that_fails_does_not_take_the_rest_with_it() -> None:
    asked = evidence.ask(
        [
            ("one", lambda: raising(HarnessError("no"))),
            ("two", lambda: "x" * (evidence.LONGEST + 5)),
            ("three", lambda: raising(LinkLostError("link gone"))),
            ("four", lambda: raising(AssertionError("must not be asked"))),
        ]
    )
    one, two, three, four = (piece.text for piece in asked)
    assert one == "not available: no"
    assert two.startswith("[5 characters before this are left out]\nxxx")
    assert "link gone" in three
    assert four == "not asked: link gone"


def test_a_wait_says_what_how_long_and_what_it_saw() -> None:
    with pytest.raises(ProductError, match=r"waited 0\.\d s for Godot; last seen: nobody"):
        wait_for(
            "Godot", lambda: None, deadline=0.2, error=ProductError, last_seen=lambda: "nobody"
        )


def test_a_wait_ends_at_once_on_an_error() -> None:
    def broken() -> bool:
        raise LabError("gone")

    with pytest.raises(LabError, match="gone"):
        wait_for("nothing", broken, deadline=60)
