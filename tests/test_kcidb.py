"""A run's results are told to KCIDB with its words: who is to blame, known defects, what was
tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kcidb_io import schema
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import HarnessError
from harness.report import defects, kcidb
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED

DEFECT = next(iter(defects.catalogue().values()))
STACK = {"host kernel": "7.2.12", "guest kernel": "7.2.12", "QEMU": "11.1.3 (Debian)"}


def result(*tests: tuple[str, str, str]) -> dict[str, Any]:
    """Return the result.json of a run with tests of these outcomes, blames and messages."""
    return {
        "environment": {"lab": "virtual", "revision": "0123456789ab"},
        "stacks": {"vgrace": STACK},
        "started": 1795870000.0,
        "tests": [
            {
                "id": f"suites/veventq/test_a.py::TestB::test_{number}[x/y, z-1]",
                "outcome": outcome,
                "blame": blame,
                "message": message,
                "seconds": 1.5,
                "covers": ["VEQ-01"],
                "host": "vgrace",
            }
            for number, (outcome, blame, message) in enumerate(tests)
        ],
    }


def checked(told: dict[str, Any]) -> dict[str, Any]:
    """Check an object with KCIDB's own schema, and return it."""
    schema.V5_3.validate(told)
    return told


def test_outcomes_have_kcidbs_words() -> None:
    told = checked(
        kcidb.report(
            "20260101-000000",
            result(
                (PASSED, "", ""),
                (FAILED, "product", "E   lost\0 \x1b[m\udcff"),
                (FAILED, "lab", "E   gone"),
                (FAILED, "harness", "E   wrong"),
                (SKIPPED, "", "it needs more"),
                (NOT_RUN, "", "given up"),
                (KNOWN, "", f"{DEFECT}"),
                (FIXED, "product", f"[XPASS(strict)] {DEFECT}"),
            ),
            "lab",
            {},
        )
    )
    tests = told["tests"]
    assert [test["status"] for test in tests] == [
        *("PASS", "FAIL", "MISS", "ERROR", "SKIP", "MISS", "FAIL", "PASS")
    ]
    assert tests[1]["path"] == "grace_smmu_hil.veventq.test_a.TestB.test_1_x.y_z-1"
    assert tests[1]["log_excerpt"] == r"E   lost\x00 \x1b[m\udcff"
    # Lone surrogates have no encoding: who reads them refuses all of it.
    assert json.loads(json.dumps(told, ensure_ascii=False).encode()) == told
    assert len({test["id"] for test in tests}) == 8
    assert [one["present"] for one in told["incidents"]] == [True, False]
    assert [one["test_id"] for one in told["incidents"]] == [test["id"] for test in tests[6:]]
    (issue,) = told["issues"]
    assert issue["id"] == f"lab:{DEFECT.id}"
    assert issue["report_subject"] == DEFECT.title


def test_each_stack_is_a_build() -> None:
    body = result((PASSED, "", ""), (PASSED, "", ""))
    body["stacks"]["other"] = {**STACK, "host kernel": "7.3.1"}
    body["tests"][1]["host"] = "other"
    given = {"git_commit_hash": "0" * 40, "tree_name": "mainline"}
    told = checked(kcidb.report("20260101-000000", body, "lab", given))
    assert [one["comment"] for one in told["checkouts"]] == [
        *("host kernel 7.2.12", "host kernel 7.3.1")
    ]
    assert all(one["tree_name"] == "mainline" for one in told["checkouts"])
    assert [one["build_id"] for one in told["tests"]] == [one["id"] for one in told["builds"]]
    again = kcidb.report("20260102-000000", body, "lab", given)
    assert [one["id"] for one in again["builds"]] == [one["id"] for one in told["builds"]]


def test_the_command_prints_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text(json.dumps(result((PASSED, "", ""))))
    ended = CliRunner().invoke(app, ["kcidb", str(tmp_path / "run"), "--origin=lab"])
    assert checked(json.loads(ended.stdout))["tests"][0]["id"].startswith("lab:run/suites/")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--origin=My lab"], "--origin: My lab is no name of an origin"),
        (["--origin=lab", "--commit=v7.2"], "--commit: v7.2 is no full hash"),
        (["--origin=lab", "--repository=git@host:x"], "--repository: git@host:x is no https"),
        (["--origin=lab"], "run run does not say what its tests ran on"),
    ],
)
def test_what_kcidb_would_refuse(tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text(json.dumps(result()))
    with pytest.raises(HarnessError) as refused:
        CliRunner().invoke(app, ["kcidb", str(tmp_path / "run"), *options], catch_exceptions=False)
    assert said in refused.value.message
