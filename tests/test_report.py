"""Reports show the coverage of behaviours, each run has its own folder, and a wait that fails says
what it waited for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.commands import coverage as command
from harness.errors import HarnessError, LabError, ProductError
from harness.report import behaviours
from harness.report.behaviours import Behaviour, Row
from harness.report.blame import Blame
from harness.report.run import FIXED, KNOWN, Result, Run
from harness.waiting import wait_for

SUITES = Path(__file__).parent.parent / "suites"


def test_catalogue_has_every_group() -> None:
    groups = {behaviour.group for behaviour in behaviours.catalogue().values()}
    assert groups == {"VEQ", "LOSS", "ACC", "CQV", "HOT", "DATA", "INV", "KRN"}


def test_suites_name_known_behaviours_only() -> None:
    found = list(behaviours.carriers(SUITES, SUITES.parent))
    assert all(carrier.ids for carrier in found), "a suite's test covers nothing"
    assert {"VEQ-01", "VEQ-11", "VEQ-17"} <= {name for carrier in found for name in carrier.ids}


def test_unknown_ids_are_refused_with_their_place(tmp_path: Path) -> None:
    test = tmp_path / "suites" / "test_x.py"
    test.parent.mkdir()
    test.write_text('import pytest\n@pytest.mark.covers("VEQ-99")\ndef test_a(): pass\n')
    with pytest.raises(HarnessError, match=r"test_x\.py:3: test_a covers VEQ-99"):
        list(behaviours.carriers(test.parent, tmp_path))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"def test_a(:\n", r"test_x\.py:1: .*invalid syntax"),
        (b"a = 'gr\xfcn'\n", r"test_x\.py:1: .*utf-8"),
        (b"a = '\0'\n", r"test_x\.py:.*null bytes"),
    ],
)
def test_a_file_that_is_not_python_is_named(tmp_path: Path, source: bytes, said: str) -> None:
    test = tmp_path / "suites" / "test_x.py"
    test.parent.mkdir()
    test.write_bytes(source)
    with pytest.raises(HarnessError, match=said) as caught:
        list(behaviours.carriers(test.parent, tmp_path))
    assert "--collect-only" in str(caught.value.fix)


def test_tests_are_where_pytest_looks_for_them(tmp_path: Path) -> None:
    """By its defaults: both names of files, and no folder of a build or of packages."""
    for name in ("test_a.py", "b_test.py", "below/test_c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("def test_it(): pass\n")
    for name in ("build", "dist", "node_modules", "x.egg", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_d.py").write_text("print 'of Python 2'\n")
    found = {one.test for one in behaviours.carriers(tmp_path, tmp_path)}
    assert found == {f"{name}::test_it" for name in ("test_a.py", "b_test.py", "below/test_c.py")}
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-c", "/dev/null", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line for line in collected.stdout.splitlines() if "::" in line} == found


def test_coverage_prints_brackets_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are markup for the library that draws the table."""
    behaviour = Behaviour("VEQ-99", "records of [base, limit]", "VEQ", "events")
    row = Row(behaviour, ["suites/test_x[y].py::test_a"], [], {"mine": "exploded [/here]"})
    monkeypatch.setattr(behaviours, "coverage", lambda *_: [row])
    command.coverage(host=None, lab=None, as_json=False)
    said = capsys.readouterr().out
    for text in (behaviour.text, "test_x[y].py::test_a", "mine: exploded [/here]"):
        assert text in said


def test_runs_are_in_the_order_of_time_whatever_the_clock_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where summer time ends an hour comes twice, and a CI job's clock may be in another zone."""
    made = []
    try:
        for zone in ("AAA-14", "BBB+12"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            made.append(Run.create(tmp_path).folder)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert sorted(made) == made


def test_a_clock_that_is_set_changes_no_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose clock is wrong until it has reached a time server."""
    run, now = Run.create(tmp_path), time.time()
    for clock in (now - 3600, now + 3600):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        assert 0 <= run.body()["seconds"] < 60


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
    """Return a folder of suites with two tests that carry VEQ-11."""
    folder = tmp_path / "suites"
    folder.mkdir()
    covers = '@pytest.mark.covers("VEQ-11")\n'
    (folder / "test_x.py").write_text(
        f"import pytest\n{covers}def test_a(): pass\n{covers}def test_b(): pass\n"
    )
    return folder


A, B = "suites/test_x.py::test_a", "suites/test_x.py::test_b"


def ran(suites: Path) -> dict[str, str]:
    rows = {
        row.behaviour.id: row
        for row in behaviours.coverage(suites, suites.parent, suites.parent / "out")
    }
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
        # Another program's outcome is shown before all others.
        ([{A: "exploded", B: "failed"}], {"mine": "exploded"}),
        # Results of parameters and of tests that no longer exist do not count.
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


def test_coverage_takes_a_link_to_a_run_for_no_later_run(suites: Path) -> None:
    out = suites.parent / "out"
    first = write_run(out, {A: "failed", B: "passed"})
    write_run(out, {A: "passed"})
    (out / "last-week").symlink_to(first.folder.name)
    assert ran(suites) == {"mine": "passed"}


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
