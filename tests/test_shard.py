"""The parts of a run are together the whole run, and no test is in two of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("shard", ["3", "0/3", "4/3"])
def test_no_part_is_refused(shard: str) -> None:
    ended = collect(f"--shard={shard}")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--shard: {shard} is no part of a run; give I/N with I from 1 to N" in ended.stderr
