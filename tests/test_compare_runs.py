"""A comparison of two runs reports what changed, in the order that matters to its reader, and is a
gate: it says whether the later run is worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness.cli import app
from harness.commands import compare as compare_command
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
        (FAILED, SKIPPED, "newly skipped"),
        (PASSED, SKIPPED, "newly skipped"),
        (FAILED, FIXED, "otherwise changed"),
        (PASSED, NOT_RUN, "not run"),
    ],
)
def test_outcomes(before: str, after: str, kind: str) -> None:
    (change,) = compare(
        run({"t": (before, 1.0), "u": (PASSED, 1.0)}), run({"t": (after, 1.0), "u": (PASSED, 1.0)})
    )
    assert (change.kind, change.before, change.after) == (kind, before, after)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [("product", "lab", "otherwise changed"), ("lab", "product", "newly failing")],
)
def test_another_one_to_blame_is_a_change(before: str, after: str, kind: str) -> None:
    then, now = run({"t": (FAILED, 1.0)}), run({"t": (FAILED, 1.0)})
    then["tests"][0]["blame"], now["tests"][0]["blame"] = before, after
    (change,) = compare(then, now)
    assert f"{change.kind}: {change}" == f"{kind}: t: failed ({before}) -> failed ({after})"


def test_who_failed_the_product_already_does_not_fail_newly() -> None:
    then, now = run({"t": (FAILED, 1.0)}), run({"t": (FIXED, 1.0)})
    then["tests"][0]["blame"] = now["tests"][0]["blame"] = "product"
    (change,) = compare(then, now)
    assert (change.kind, change.after) == ("otherwise changed", f"{FIXED} (product)")


def test_a_version_that_came_or_went_is_a_change() -> None:
    then, now = run({}, QEMU="11.1", guest="7.2"), run({}, QEMU="11.1", host="7.3")
    changes = [str(change) for change in compare(then, now) if change.kind == "versions"]
    assert changes == ["guest: 7.2 -> -", "host: - -> 7.3"]


def test_hosts_that_were_opened_in_another_order_are_no_change() -> None:
    """Which worker ends first is chance."""
    then, now = run({}, host="a; b", QEMU="11.1; 11.2"), run({}, host="b; a", QEMU="11.2")
    changes = [str(change) for change in compare(then, now) if change.kind == "versions"]
    assert changes == ["QEMU: 11.1; 11.2 -> 11.2"]


@pytest.mark.parametrize(
    ("before", "after", "slower"),
    [
        (1.0, 1.9, False),
        (1.0, 5.9, False),
        (1.0, 6.0, False),
        (4.0, 9.5, True),
        (10.0, 19.0, False),
        (10.0, 20.0, False),
        (10.0, 21.0, True),
    ],
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
        (NEXT, {**NEXT, "u": (NOT_RUN, 1.0)}, 1, "not run:\n  u: passed -> not run"),
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
        write(tmp_path / name, run(tests))
    ended = compared(*(str(tmp_path / name) for name in ("before", "after")))
    assert said in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("after is worse: " if status else "after is no")
    assert ended.exit_code == status


def write(folder: Path, body: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(body))
    return folder


def compared(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_what_counts_is_chosen(tmp_path: Path) -> None:
    names = ("suites/a/test_1.py::t", "suites/a/test_1.py::u[x]", "suites/b/test_1.py::t")
    before = run(dict.fromkeys(names, (PASSED, 1.0)))
    after = run({names[0]: (FAILED, 9.0), names[1]: (SKIPPED, 1.0)})
    after["tests"][0]["blame"] = "lab"
    runs = [str(write(tmp_path / "before", before)), str(write(tmp_path / "after", after))]
    for options, verdict in (
        ((), "worse: 1 newly failing, 1 missing"),
        (("--only=suites/a",), "worse: 1 newly failing"),
        (("--only=suites/a/test_1.py::u", "--only=suites/c"), "worse: 1 nothing ran"),
        (("--only=suites/a/test_1.py::t",), "worse: 1 newly failing"),
        (("--only=suites/b/",), "worse: 1 nothing ran, 1 missing"),
        (("--blame=product", "--only=suites/a"), "no worse"),
        (("--blame=product", "--blame=lab", "--only=suites/a"), "worse: 1 newly failing"),
        (("--fail-on=newly-skipped",), "worse: 1 newly skipped"),
        (("--fail-on=slower", "--fail-on=missing"), "worse: 1 missing, 1 slower"),
        (("--fail-on=only-now",), "no worse"),
    ):
        ended = compared(*runs, *options)
        assert ended.stdout.splitlines()[-1] == f"after is {verdict} than before", options
        assert ended.exit_code == (verdict != "no worse")
    ended = compared(*runs, "--fail-on=weather")
    assert ended.exit_code == 2
    assert "'weather' is not one of nothing-ran, " in " ".join(
        ended.output.replace("│", "").split()
    )


def test_a_run_that_ended_early_is_worse(tmp_path: Path) -> None:
    good = run(PASSES)
    early = {**good, "broken": "interrupted"}
    good_run, early_run = (
        str(write(tmp_path / str(n), body)) for n, body in enumerate((good, early))
    )
    ended = compared(good_run, early_run)
    assert "ended early:\n  the run: - -> interrupted" in ended.stdout
    assert ended.exit_code == 1
    assert compared(early_run, good_run).exit_code == 0


def test_markdown_for_a_merge_request(tmp_path: Path) -> None:
    before = run({"a|b": (PASSED, 1.0), "c": (FAILED, 1.0), "d": (PASSED, 1)}, QEMU="11.1")
    after = run({"a|b": (FAILED, 1.0), "c": (PASSED, 1.0)}, QEMU="11.2")
    after["tests"][0] |= {"blame": "product", "message": "def test():\nE   AssertionError: 1 | 2\n"}
    runs = [str(write(tmp_path / "1", before)), str(write(tmp_path / "2", after))]
    ended = compared(*runs, "--markdown")
    assert ended.exit_code == 1
    assert (
        ended.stdout
        == r"""**Worse: 1 newly failing, 1 missing** (`1` → `2`)

<details><summary>Versions (1)</summary>

| version | before | after | |
|---|---|---|---|
| `QEMU` | `11.1` | `11.2` |  |

</details>

### Newly failing (1)

| test | before | after | |
|---|---|---|---|
| `a\|b` | `passed` | `failed (product)` | `AssertionError: 1 \| 2` |

### Missing (1)

| test | before | after | |
|---|---|---|---|
| `d` | `passed` | `-` |  |

<details><summary>Newly passing (1)</summary>

| test | before | after | |
|---|---|---|---|
| `c` | `failed` | `passed` |  |

</details>
"""
    )


def test_runs_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_command, "OUT", tmp_path)
    for name, lab, outcome in (
        ("20260101-000000", "one", PASSED),
        ("20260102-000000", "two", PASSED),
        ("20260103-000000", "one", SKIPPED),
        ("20260104-000000", "one", FAILED),
    ):
        write(tmp_path / name, {**run({"t": (outcome, 1.0)}), "lab": lab})
    (tmp_path / "20260105-000000" / "allure-results").mkdir(parents=True)
    for names, verdict in (
        (("good",), "20260104-000000 is worse: 1 newly failing than 20260101-000000"),
        (("latest~2", "latest~3"), "20260101-000000 is no worse than 20260102-000000"),
        (("20260101-000000", "latest"), "20260104-000000 is worse: 1 newly failing than 2026010"),
        (("good", "latest~1"), "20260103-000000 is worse: 1 nothing ran than 20260101-000000"),
    ):
        assert compared(*names).stdout.splitlines()[-1].startswith(verdict), names
    for wrong, said in (
        (("good", "20260102-000000"), "no run in lab two before 20260102-000000 is good"),
        (("latest~4",), f"there is no run latest~4 in {tmp_path}, which has 4"),
        (("20260103-00000",), "did you mean 20260103-000000"),
    ):
        with pytest.raises(HarnessError) as refused:
            CliRunner().invoke(app, ["compare", *wrong], catch_exceptions=False)
        assert said in str(refused.value)


def test_a_run_is_named_by_its_folder_also_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("20260101-000000", "20260102-000000"):
        write(tmp_path / name, {**run({"t": (PASSED, 1.0)}), "lab": "one"})
    monkeypatch.chdir(tmp_path / "20260102-000000")
    verdict = "20260102-000000 is no worse than 20260101-000000"
    for names in (("good", "."), ("good", "result.json"), ("../20260101-000000", ".")):
        assert compared(*names).stdout.splitlines()[-1] == verdict, names
    monkeypatch.chdir(tmp_path / "20260101-000000")
    with pytest.raises(HarnessError, match="no run in lab one before 20260101-000000 is good"):
        CliRunner().invoke(app, ["compare", "good", "."], catch_exceptions=False)


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
