"""A comparison of two runs reports what changed, in the order that matters to its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.report.compare import compare
from harness.report.run import FAILED, FIXED, KNOWN, PASSED, SKIPPED, load


def run(tests: dict[str, tuple[str, float]], **environment: str) -> dict[str, Any]:
    return {
        "environment": environment,
        "tests": [
            {"id": name, "outcome": outcome, "seconds": seconds, "covers": [], "message": ""}
            for name, (outcome, seconds) in tests.items()
        ],
    }


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (PASSED, FAILED, "newly failing"),
        (KNOWN, FIXED, "newly failing"),
        (SKIPPED, FAILED, "newly failing"),
        (FAILED, PASSED, "newly passing"),
        (FAILED, KNOWN, "newly passing"),
        (FAILED, SKIPPED, "otherwise changed"),
        (PASSED, SKIPPED, "otherwise changed"),
        (FAILED, FIXED, "otherwise changed"),
    ],
)
def test_outcomes(before: str, after: str, kind: str) -> None:
    (change,) = compare(run({"t": (before, 1.0)}), run({"t": (after, 1.0)}))
    assert (change.kind, change.before, change.after) == (kind, before, after)


def test_another_one_to_blame_is_a_change() -> None:
    before, after = run({"t": (FAILED, 1.0)}), run({"t": (FAILED, 1.0)})
    before["tests"][0]["blame"], after["tests"][0]["blame"] = "lab", "product"
    (change,) = compare(before, after)
    assert str(change) == "t: failed (lab) -> failed (product)"


@pytest.mark.parametrize(
    ("before", "after", "slower"),
    [(1.0, 1.9, False), (1.0, 5.9, False), (10.0, 19.0, False), (10.0, 21.0, True)],
)
def test_slower(before: float, after: float, slower: bool) -> None:
    changes = compare(run({"t": (PASSED, before)}), run({"t": (PASSED, after)}))
    assert [change.kind for change in changes] == ["slower"] * slower


def test_a_boot_does_not_make_a_test_slower() -> None:
    before, after = run({"t": (PASSED, 1.5)}), run({"t": (PASSED, 21.5)})
    after["tests"][0]["setup"] = 20.0
    assert compare(before, after) == []
    before["tests"][0]["setup"], after["tests"][0]["setup"] = 1.0, 0.5
    assert [change.kind for change in compare(before, after)] == ["slower"]


def test_the_order_is_the_readers() -> None:
    before = run({"a": (PASSED, 1), "b": (FAILED, 1), "gone": (PASSED, 1)}, QEMU="11.1.3")
    after = run({"a": (FAILED, 9), "b": (PASSED, 1), "new": (PASSED, 1)}, QEMU="11.2.0")
    assert [f"{change.kind}: {change}" for change in compare(before, after)] == [
        "versions: QEMU: 11.1.3 -> 11.2.0",
        "newly failing: a: passed -> failed",
        "newly passing: b: failed -> passed",
        "slower: a: 1.0 s -> 9.0 s",
        "only before: gone: passed -> -",
        "only now: new: - -> passed",
    ]
    assert compare(before, before) == []


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"tests": 1, "environment": {}}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(HarnessError, match=r"result\.json is no run's result"):
        load(tmp_path)


def test_a_run_is_its_folder_or_its_file(tmp_path: Path) -> None:
    body = run({"t": (PASSED, 1.0)})
    (tmp_path / "result.json").write_text(json.dumps(body))
    assert load(tmp_path) == load(tmp_path / "result.json") == body
