"""Tell a run's results as KCIDB has them, the common database of kernel CI systems.

The form is its I/O schema, version 5.3 (the package kcidb-io). What was tested is a build of it for
each stack: KCIDB is about kernels, so the checkout is named after the host's kernel.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.artifacts.store import content_key
from harness.errors import HarnessError
from harness.report import defects
from harness.report.blame import Blame
from harness.report.markup import printable
from harness.report.run import FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED
from harness.report.tested_stack import lab_of, sole_stack, stack_of

VERSION = {"major": 5, "minor": 3}
#: What an origin may be called.
ORIGIN = r"[a-z0-9_]+"
#: The root of our tests among those of all projects.
_PATH = "grace_smmu_hil"
_LONGEST_EXCERPT = 16384
#: A fixed defect is no failure of the tested code.
_STATUS = {PASSED: "PASS", FIXED: "PASS", KNOWN: "FAIL", SKIPPED: "SKIP", NOT_RUN: "MISS"}
#: A failure of the test itself leaves the code unjudged, and one of the lab the test as well.
_OF_BLAME = {Blame.PRODUCT: "FAIL", Blame.HARNESS: "ERROR", Blame.LAB: "MISS"}


def report(
    name: str, result: Mapping[str, Any], origin: str, checkout: Mapping[str, str]
) -> dict[str, Any]:
    """Return the results of a run, which has this name and result.json, as an object of JSON.
    `origin` is who submits it, and `checkout` what is known besides of the source of the host's
    kernel, by KCIDB's names.

    Tests of which the stack is not told are left out. Raises HarnessError for a name that no origin
    may have, and for a run that has nothing to tell.
    """
    if not re.fullmatch(ORIGIN, origin):
        raise HarnessError(
            f"--origin: {origin} is no name of an origin",
            fix="give small letters, digits and underscores: the name that KCIDB knows you by",
        )
    sole = sole_stack(result)
    placed = [(test, stack_of(result, test, sole)) for test in result["tests"]]
    stacks = dict.fromkeys(stack for _, stack in placed if stack)
    if not stacks:
        raise HarnessError(
            f"run {name} does not say what its tests ran on", fix="name a run that tested a host"
        )
    started = datetime.datetime.fromtimestamp(result.get("started", 0), datetime.UTC).isoformat()
    told: dict[str, Any] = {"version": VERSION, "checkouts": [], "builds": []}
    for stack in stacks:
        key = f"{origin}:{content_key(stack)}"
        common = {"id": key, "origin": origin, "start_time": started}
        told["checkouts"].append(
            {**common, "valid": True, "comment": f"host kernel {stack.parts[0]}", **checkout}
        )
        told["builds"].append(
            {**common, "checkout_id": key, "architecture": "arm64", "comment": str(stack)}
        )
    tests = [
        _test(test, f"{origin}:{content_key(stack)}", f"{origin}:{name}", result)
        for test, stack in placed
        if stack
    ]
    incidents = list(_incidents(result, origin, f"{origin}:{name}"))
    found = {one["issue_id"]: one for one in incidents}
    told |= {"tests": tests, "issues": [_issue(one, origin) for one in found]}
    return {**told, "incidents": incidents}


def _test(
    test: Mapping[str, Any], build: str, run: str, result: Mapping[str, Any]
) -> dict[str, Any]:
    outcome, blame = test["outcome"], test.get("blame", "")
    status = _STATUS.get(outcome) or _OF_BLAME.get(blame, "FAIL")
    told = {
        "id": _id(run, test),
        "origin": run.partition(":")[0],
        "build_id": build,
        "path": path(test["id"]),
        "status": status,
        "duration": test["seconds"],
        "environment": {"comment": f"lab {lab_of(result)}, host {test.get('host') or 'none'}"},
        "misc": {
            "outcome": outcome,
            "behaviours": list(test["covers"]),
            "revision": result["environment"].get("revision", "unknown"),
        },
    }
    message = printable(test.get("message", ""))
    return {**told, "log_excerpt": message[-_LONGEST_EXCERPT:]} if message else told


def _id(run: str, test: Mapping[str, Any]) -> str:
    return printable(f"{run}/{test['id']}")


def path(test: str) -> str:
    """Return a test's place in KCIDB's tree of tests: words of letters, digits, - and _ with dots
    between them."""
    words = re.split(r"/|::", test.removeprefix("suites/").replace(".py::", "::"))
    plain = (re.sub(r"[^a-zA-Z0-9_-]+", "_", word).rstrip("_") for word in words)
    return ".".join([_PATH, *filter(None, plain)])


def _incidents(result: Mapping[str, Any], origin: str, run: str) -> Iterator[dict[str, Any]]:
    """Yield an incident for each known defect that a test met, or was to meet and did not."""
    for test in result["tests"]:
        if test["outcome"] in (KNOWN, FIXED):
            for name in defects.named(test.get("message", "")):
                yield {
                    "id": f"{_id(run, test)}/{name}",
                    "origin": origin,
                    "issue_id": f"{origin}:{name}",
                    "issue_version": 1,
                    "test_id": _id(run, test),
                    "present": test["outcome"] == KNOWN,
                }


def _issue(issue: str, origin: str) -> dict[str, Any]:
    told = {
        "id": issue,
        "version": 1,
        "origin": origin,
        "culprit": {"code": True, "tool": False, "harness": False},
    }
    # The run may be older than the catalogue.
    defect = defects.catalogue().get(issue.partition(":")[2])
    return {**told, "report_subject": defect.title, "comment": str(defect)} if defect else told
