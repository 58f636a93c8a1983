"""Compare two runs: list the changes of outcomes, durations and versions, and tell which of them
the later run must not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED

#: A test is slower when it takes so many times as long, and so many seconds more. The limits are
#: wide because half of a test's duration on a virtual host is noise.
SLOWER_TIMES, SLOWER_SECONDS = 2.0, 5.0


@dataclass(frozen=True)
class Change:
    """One difference: its kind, the name of the test or version, and the values before and
    after."""

    kind: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


NOTHING_RAN = "nothing ran"
NEWLY_FAILING = "newly failing"
NEW_AND_FAILING = "new and failing"
MISSING = "missing"
#: All kinds, the most important first.
KINDS = (
    "versions",
    NOTHING_RAN,
    NEWLY_FAILING,
    NEW_AND_FAILING,
    MISSING,
    "newly passing",
    "otherwise changed",
    "slower",
    "only now",
)
#: The kinds by which the later run is worse, or tells less, than the earlier one.
WORSE = frozenset({NOTHING_RAN, NEWLY_FAILING, NEW_AND_FAILING, MISSING})


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the differences between the result.json of two runs, in the order of KINDS. A run in
    which nothing ran is told even if both are such runs."""
    changes = [*_versions(before["environment"], after["environment"])]
    counts = [str(_ran(run)) for run in (before, after)]
    if "0" in counts:
        changes.append(Change(NOTHING_RAN, "tests that ran", *counts))
    then, now = ({test["id"]: test for test in run["tests"]} for run in (before, after))
    changes += [
        change for name in then.keys() & now.keys() for change in _test(then[name], now[name])
    ]
    changes += [Change(MISSING, name, _outcome(then[name]), "-") for name in then.keys() - now]
    changes += [
        Change(NEW_AND_FAILING if _fails(now[name]) else "only now", name, "-", _outcome(now[name]))
        for name in now.keys() - then
    ]
    return sorted(changes, key=lambda change: (KINDS.index(change.kind), change.name))


def _versions(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    for name in then.keys() | now.keys():
        before, after = then.get(name, "-"), now.get(name, "-")
        if before != after:
            yield Change("versions", name, before, after)


def _test(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    before, after = _outcome(then), _outcome(now)
    if before != after:
        was, is_now = _fails(then), _fails(now)
        if is_now and not was:
            kind = NEWLY_FAILING
        elif now["outcome"] == NOT_RUN:
            kind = MISSING
        elif was and now["outcome"] in (PASSED, KNOWN):
            kind = "newly passing"
        else:
            kind = "otherwise changed"
        yield Change(kind, now["id"], before, after)
    took, takes = _own_seconds(then), _own_seconds(now)
    if takes > took * SLOWER_TIMES and takes > took + SLOWER_SECONDS:
        yield Change("slower", now["id"], f"{took:.1f} s", f"{takes:.1f} s")


def _fails(test: Mapping[str, Any]) -> bool:
    return test["outcome"] in (FAILED, FIXED)


def _ran(run: Mapping[str, Any]) -> int:
    """Return how many tests of a run said anything of the product."""
    return sum(test["outcome"] in (PASSED, FAILED, KNOWN, FIXED) for test in run["tests"])


def _own_seconds(test: Mapping[str, Any]) -> float:
    """Return a test's duration in seconds without its setup, which boots guests that later tests
    share."""
    return float(test["seconds"] - test.get("setup", 0.0))


def _outcome(test: Mapping[str, Any]) -> str:
    whom = test.get("blame")
    return f"{test['outcome']} ({whom})" if whom else str(test["outcome"])
