"""A comparison of two runs reports what changed, in the order that matters to its reader, and is a
gate: it says whether the later run is worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import HarnessError
from harness.report.compare import compare
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED, load


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
        (PASSED, NOT_RUN, "missing"),
    ],
)
def test_outcomes(before: str, after: str, kind: str) -> None:
    (change,) = compare(
        run({"t": (before, 1.0), "u": (PASSED, 1.0)}), run({"t": (after, 1.0), "u": (PASSED, 1.0)})
    )
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
        "missing: gone: passed -> -",
        "newly passing: b: failed -> passed",
        "slower: a: 1.0 s -> 9.0 s",
        "only now: new: - -> passed",
    ]
    assert compare(before, before) == []


PASSES, NEXT = {"t": (PASSED, 1.0)}, {"t": (PASSED, 1.0), "u": (PASSED, 1.0)}


@pytest.mark.parametrize(
    ("before", "after", "status", "said"),
    [
        (PASSES, PASSES, 0, "nothing changed"),
        (PASSES, NEXT, 0, "only now:\n  u: - -> passed"),
        ({"t": (FAILED, 1.0)}, PASSES, 0, "newly passing:\n  t: failed -> passed"),
        (PASSES, {"t": (FAILED, 1.0)}, 1, "newly failing:\n  t: passed -> failed"),
        (PASSES, {**PASSES, "u": (FAILED, 1.0)}, 1, "new and failing:\n  u: - -> failed"),
        (NEXT, PASSES, 1, "missing:\n  u: passed -> -"),
        (NEXT, {**NEXT, "u": (NOT_RUN, 1.0)}, 1, "missing:\n  u: passed -> not run"),
        (PASSES, {}, 1, "nothing ran:\n  tests that ran: 1 -> 0"),
        ({}, PASSES, 1, "nothing ran:\n  tests that ran: 0 -> 1"),
        ({}, {}, 1, "nothing ran:\n  tests that ran: 0 -> 0"),
        (PASSES, {"t": (SKIPPED, 1.0)}, 1, "nothing ran:\n  tests that ran: 1 -> 0"),
    ],
)
def test_it_is_a_gate(
    tmp_path: Path,
    before: dict[str, tuple[str, float]],
    after: dict[str, tuple[str, float]],
    status: int,
    said: str,
) -> None:
    for name, tests in (("before", before), ("after", after)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(run(tests)))
    ended = CliRunner().invoke(app, ["compare", *(str(tmp_path / n) for n in ("before", "after"))])
    assert said in ended.stdout
    assert ended.exit_code == status


TEST = {"id": "t", "outcome": PASSED, "seconds": 1, "covers": []}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (b"no JSON", "Expecting value: line 1"),
        (b'{"environment": {}, "tests": [', "Expecting value: line 1"),
        (b"\xff", "'utf-8' codec can't decode byte 0xff"),
        pytest.param(b"[" * 100_000, "recursion", id="deep"),
        ([], "Input should be a dictionary"),
        ({"environment": {}}, "tests: Field required"),
        ({"tests": 1, "environment": {}}, "tests: Input should be a valid list"),
        ({"tests": [TEST], "environment": {"QEMU": 11}}, "environment.QEMU: Input should be a"),
        ({"tests": [{"id": "t"}], "environment": {}}, "tests.0.outcome: Field required"),
        ({"tests": [{**TEST, "id": 1}], "environment": {}}, "tests.0.id: Input should be a valid"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: Any, why: str) -> None:
    if content is not None:
        told = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "result.json").write_bytes(told)
    with pytest.raises(HarnessError, match=r"result\.json is no run's result") as refused:
        load(tmp_path)
    assert why in refused.value.message
    assert "\n" not in refused.value.message


def test_a_run_is_its_folder_or_its_file(tmp_path: Path) -> None:
    body = run({"t": (PASSED, 1.0)})
    (tmp_path / "result.json").write_text(json.dumps(body))
    assert load(tmp_path) == load(tmp_path / "result.json") == body
