"""The parts of a run are together the whole run, and no test is in two of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite_run import run_suite

ROOT = Path(__file__).parents[1]


def collect(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "suites", "--collect-only", "-q", *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def collected(*options: str) -> set[str]:
    found = [line for line in collect(*options).stdout.splitlines() if "::" in line]
    assert len(found) == len(set(found))
    return set(found)


def test_parts_are_the_whole() -> None:
    parts = [collected(f"--shard={part}/2") for part in (1, 2)]
    assert all(parts)
    assert set.union(*parts) == collected()
    assert sum(map(len, parts)) == len(collected())
    first, second = ({name.split("::")[0] for name in part} for part in parts)
    assert not first & second


#: Files of one test each, and the seconds that each took in a run.
TOOK = {"a": 10.0, "b": 60.0, "c": 30.0, "d": 20.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    suites, run = tmp_path / "suites", tmp_path / "out" / "20261101-010101"
    suites.mkdir()
    run.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in TOOK:
        (suites / f"test_{name}.py").write_text(f"def test_{name}(): pass\n")
    tests = [
        {"id": f"suites/test_{one}.py::test_{one}", "outcome": "passed", "seconds": seconds}
        for one, seconds in TOOK.items()
    ]
    body = {"environment": {}, "tests": [{**one, "covers": []} for one in tests]}
    (run / "result.json").write_text(json.dumps(body))
    return tmp_path


def part(folder: Path, *options: str) -> str:
    """Return the letters of the files that a part has."""
    told = run_suite(folder, "--collect-only", "-q", *options).stdout
    return "".join(re.findall(r"suites/test_(.)\.py::", told))


def test_parts_take_about_the_same_time_as_a_named_run_tells(folder: Path) -> None:
    named = "--durations-from=20261101-010101"
    assert [part(folder, named, f"--shard={one}/2") for one in (1, 2)] == ["b", "acd"]
    # What is known here alone would make other parts on another machine.
    assert [part(folder, f"--shard={one}/2") for one in (1, 2)] == ["ac", "bd"]
    # Workers come to the same parts.
    ended = run_suite(folder, "-n2", "--durations-from=latest", "--shard=1/2", "-v")
    assert set(re.findall(r"suites/test_(.)\.py::", ended.stdout)) == {"b"}


def test_a_run_that_is_not_there_is_refused(folder: Path) -> None:
    ended = run_suite(folder, "--durations-from=nosuch")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert "there is no run nosuch" in ended.stderr


@pytest.mark.parametrize("shard", ["3", "0/3", "4/3"])
def test_no_part_is_refused(shard: str) -> None:
    ended = collect(f"--shard={shard}")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--shard: {shard} is no part of a run; give I/N with I from 1 to N" in ended.stderr
