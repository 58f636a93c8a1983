"""Judge which behaviours can be checked on a host, from what its inventory says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.errors import HarnessError
from harness.lab.fit import fit
from harness.lab.offer import Offer
from harness.report.behaviours import Behaviour
from harness.report.requirements import Requirement


@dataclass(frozen=True)
class Verdict:
    """Whether a test can run on a host: it can if nothing is `missing`, which is in words. Only
    probing can tell whether the host has the capabilities `unprobed`."""

    test: str
    missing: tuple[str, ...]
    unprobed: frozenset[str]

    @property
    def runs(self) -> bool:
        """Return whether the test can run, if the host has what is unprobed."""
        return not self.missing


def judge(test: Requirement, offer: Offer) -> Verdict:
    """Return whether a test can run on a host. Its guests get devices as in a run."""
    found = fit(test.capabilities, test.guests, offer)
    return Verdict(test.test, found.missing, found.unprobed)


@dataclass
class HostRow:
    """A behaviour, and whether its tests can run on a host."""

    behaviour: Behaviour
    tests: list[Verdict] = field(default_factory=list)

    @property
    def running(self) -> list[Verdict]:
        """Return the verdicts of the tests that can run."""
        return [one for one in self.tests if one.runs]

    @property
    def unprobed(self) -> frozenset[str]:
        """Return the capabilities without which no test of the behaviour can run, and which only
        probing can tell."""
        needed = [one.unprobed for one in self.running]
        return frozenset.intersection(*needed) if needed else frozenset()

    @property
    def missing(self) -> list[tuple[str, ...]]:
        """Return what the host lacks for the tests that cannot run, each set once. A set is left
        out if a smaller one would do for another test."""
        sets = {one.missing: set(one.missing) for one in self.tests if not one.runs}
        return [one for one, all_of in sets.items() if not any(s < all_of for s in sets.values())]

    def __str__(self) -> str:
        if not self.tests:
            return "no test"
        if not self.running:
            return "; or ".join(" and ".join(one) for one in self.missing)
        found = f", if probing finds {', '.join(sorted(self.unprobed))}" if self.unprobed else ""
        return f"runs ({len(self.running)} of {len(self.tests)} tests){found}"


def host_coverage(
    behaviours: Iterable[Behaviour], tests: Iterable[Requirement], offer: Offer
) -> list[HostRow]:
    """Return a row for each behaviour. Raises HarnessError for a test that covers another one."""
    rows = {one.id: HostRow(one) for one in behaviours}
    for test in tests:
        verdict = judge(test, offer)
        for name in test.covers:
            if name not in rows:
                raise HarnessError(
                    f"{test.test} covers {name}, which is not in the catalogue of behaviours",
                    fix="use an id of suites/behaviours.yaml, or add it there",
                )
            rows[name].tests.append(verdict)
    return list(rows.values())
