"""Compare two runs: list the changes of outcomes, durations and versions, and tell which of them
the later run must not have."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.report.blame import Blame
from harness.report.markup import cell, code
from harness.report.run import FAILED, FIXED, KNOWN, NOT_RUN, PASSED, SKIPPED, brief

#: A test is slower when it takes so many times as long, and so many seconds more. The limits are
#: wide because half of a test's duration on a virtual host is noise.
SLOWER_TIMES, SLOWER_SECONDS = 2.0, 5.0


class ChangeKind(StrEnum):
    """What may change, the most important first."""

    VERSIONS = "versions"
    NOTHING_RAN = "nothing ran"
    ENDED_EARLY = "ended early"
    NEWLY_FAILING = "newly failing"
    NEW_AND_FAILING = "new and failing"
    MISSING = "missing"
    #: The test's host was given up.
    NOT_RUN = "not run"
    NEWLY_SKIPPED = "newly skipped"
    NEWLY_PASSING = "newly passing"
    OTHERWISE = "otherwise changed"
    SLOWER = "slower"
    ONLY_NOW = "only now"


#: The kinds by which the later run is worse, or tells less, than the earlier one.
WORSE = frozenset(
    {
        ChangeKind.NOTHING_RAN,
        ChangeKind.ENDED_EARLY,
        ChangeKind.NEWLY_FAILING,
        ChangeKind.NEW_AND_FAILING,
        ChangeKind.MISSING,
        ChangeKind.NOT_RUN,
    }
)
_FAILING = (ChangeKind.NEWLY_FAILING, ChangeKind.NEW_AND_FAILING)
_ORDER = list(ChangeKind)


@dataclass(frozen=True)
class Change:
    """One difference: its kind, the name of the test or version, and the values before and after.
    Of a test that fails now, `blame` is who has to act, and `why` a line of what it said."""

    kind: ChangeKind
    name: str
    before: str
    after: str
    blame: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class Gate:
    """Which changes make the later run worse: those of `kinds`; of failures only those of which one
    of `blames` is the cause, if there are any."""

    kinds: Collection[ChangeKind] = WORSE
    blames: Collection[Blame] = ()

    def counts(self, change: Change) -> bool:
        if change.kind not in self.kinds:
            return False
        # A failure of which nobody knows the cause counts for everybody.
        return (
            change.kind not in _FAILING
            or not self.blames
            or not change.blame
            or change.blame in self.blames
        )

    def verdict(self, changes: Sequence[Change]) -> str:
        """Return what the gate says of the later run: `no worse`, or why it is worse."""
        bad = [change.kind for change in changes if self.counts(change)]
        counts = [f"{bad.count(kind)} {kind}" for kind in ChangeKind if kind in bad]
        return f"worse: {', '.join(counts)}" if counts else "no worse"


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], only: Collection[str] = ()
) -> list[Change]:
    """Return the differences between the result.json of two runs, in the order of ChangeKind; of
    the tests that `only` names, if it names some: files, folders, classes or tests, as on pytest's
    command line. A run in which nothing ran is told even if both are such runs."""
    changes = [*_versions(before["environment"], after["environment"])]
    then, now = (
        {test["id"]: test for test in run["tests"] if _chosen(test["id"], only)}
        for run in (before, after)
    )
    counts = [str(sum(map(_ran, tests.values()))) for tests in (then, now)]
    if "0" in counts:
        changes.append(Change(ChangeKind.NOTHING_RAN, "tests that ran", *counts))
    ends = [run.get("broken", "") or "-" for run in (before, after)]
    if ends[1] != "-":
        changes.append(Change(ChangeKind.ENDED_EARLY, "the run", *ends))
    changes += [
        change for name in then.keys() & now.keys() for change in _test(then[name], now[name])
    ]
    changes += [
        Change(ChangeKind.MISSING, name, _outcome(then[name]), "-")
        for name in then.keys() - now.keys()
    ]
    for name in now.keys() - then.keys():
        kind = ChangeKind.NEW_AND_FAILING if _fails(now[name]) else ChangeKind.ONLY_NOW
        changes.append(_change(kind, now[name], "-", _outcome(now[name])))
    return sorted(changes, key=lambda change: (_ORDER.index(change.kind), change.name))


def markdown(changes: Sequence[Change], gate: Gate, before: str, after: str) -> str:
    """Return the changes from the run `before` to the run `after` for a merge request: the verdict
    first, then a table for each kind. What does not count is folded away."""
    lines = [f"**{gate.verdict(changes).capitalize()}** ({code(before)} → {code(after)})"]
    for kind, group in itertools.groupby(changes, key=lambda change: change.kind):
        found = list(group)
        title = f"{kind.capitalize()} ({len(found)})"
        folded = not any(map(gate.counts, found))
        table = [
            f"| {'version' if kind is ChangeKind.VERSIONS else 'test'} | before | after | |",
            "|---|---|---|---|",
            *(
                f"| {cell(one.name)} | {cell(one.before)} | {cell(one.after)} "
                f"| {cell(one.why) if one.why else ''} |"
                for one in found
            ),
        ]
        head = f"<details><summary>{title}</summary>" if folded else f"### {title}"
        lines += ["", head, "", *table, *(["", "</details>"] if folded else [])]
    return "\n".join(lines) + "\n"


def _chosen(test: str, only: Collection[str]) -> bool:
    starts = [one.rstrip("/") for one in only]
    return not only or any(
        test == one or test.startswith((f"{one}/", f"{one}::", f"{one}[")) for one in starts
    )


def _versions(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    for name in then.keys() | now.keys():
        before, after = then.get(name, "-"), now.get(name, "-")
        # The values of several hosts are in the order in which their workers ended.
        if set(before.split("; ")) != set(after.split("; ")):
            yield Change(ChangeKind.VERSIONS, name, before, after)


def _test(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    before, after = _outcome(then), _outcome(now)
    if before != after:
        was, is_now = _fails(then), _fails(now)
        # While the lab or the harness failed a test, it said nothing of the product.
        was_silent = was and then.get("blame") in (Blame.LAB, Blame.HARNESS)
        if is_now and (not was or (was_silent and now.get("blame") == Blame.PRODUCT)):
            kind = ChangeKind.NEWLY_FAILING
        elif now["outcome"] == NOT_RUN:
            kind = ChangeKind.NOT_RUN
        elif now["outcome"] == SKIPPED:
            kind = ChangeKind.NEWLY_SKIPPED
        elif was and now["outcome"] in (PASSED, KNOWN):
            kind = ChangeKind.NEWLY_PASSING
        else:
            kind = ChangeKind.OTHERWISE
        yield _change(kind, now, before, after)
    took, takes = _own_seconds(then), _own_seconds(now)
    if takes > took * SLOWER_TIMES and takes > took + SLOWER_SECONDS:
        yield _change(ChangeKind.SLOWER, now, f"{took:.1f} s", f"{takes:.1f} s")


def _change(kind: ChangeKind, now: Mapping[str, Any], before: str, after: str) -> Change:
    blame, why = now.get("blame", ""), brief(now.get("message", ""))
    return Change(kind, now["id"], before, after, blame, "" if kind is ChangeKind.SLOWER else why)


def _fails(test: Mapping[str, Any]) -> bool:
    return test["outcome"] in (FAILED, FIXED)


def _ran(test: Mapping[str, Any]) -> bool:
    """Return whether a test said anything of the product."""
    return test["outcome"] in (PASSED, FAILED, KNOWN, FIXED)


def _own_seconds(test: Mapping[str, Any]) -> float:
    """Return a test's duration in seconds without its setup, which boots guests that later tests
    share."""
    return float(test["seconds"] - test.get("setup", 0.0))


def _outcome(test: Mapping[str, Any]) -> str:
    whom = test.get("blame")
    return f"{test['outcome']} ({whom})" if whom else str(test["outcome"])
