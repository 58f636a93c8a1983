"""Choose devices of a host for the guests that a test asks for. Pure.

All devices of one SMMU of a guest are behind one SMMU of the host, because a vIOMMU belongs to one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from harness.errors import LabError
from harness.host.ability import Need
from harness.host.host import Kind

#: What a guest needs of the devices behind each of its SMMUs.
Needs = tuple[tuple[Need, ...], ...]


class MissingDevicesError(LabError):
    """The host does not have the devices that a test needs. `lacking` says in words what it would
    have to have as well."""

    def __init__(self, message: str, *, fix: str, lacking: str) -> None:
        super().__init__(message, fix=fix)
        self.lacking = lacking


@dataclass(frozen=True)
class Candidate:
    """A device that a host can assign. `smmu` names the SMMU of the host that it is behind."""

    bdf: str
    kind: Kind
    smmu: str | None

    def meets(self, need: Need) -> bool:
        """Return whether the device will do."""
        return need.met_by(self.kind.role, self.kind.can)


def choose(
    host: str, guests: Sequence[Needs], candidates: Sequence[Candidate]
) -> list[list[list[str]]]:
    """Return the addresses of the devices for each SMMU of each guest, when these guests are asked
    for together. The choice is the same each time: of several devices that will do, the one with
    the lowest rank, then the earliest. `host` is the host's name, for the error. Raises
    MissingDevicesError."""
    ranked = sorted(candidates, key=lambda one: one.kind.rank)
    chosen = _together([needs for guest in guests for needs in guest], ranked)
    if chosen is not None:
        each = iter(chosen)
        return [[next(each) for _ in guest] for guest in guests]
    # The first needs for which nothing is left beside the earlier ones are named.
    taken: set[str] = set()
    return [[_take(host, needs, ranked, taken) for needs in guest] for guest in guests]


def _together(
    wanted: Sequence[Sequence[Need]], ranked: Sequence[Candidate]
) -> list[list[str]] | None:
    """Return devices for each of these needs of one SMMU; None if there are not so many. Earlier
    needs get the devices of the lowest rank, unless a later one would then have none."""
    # What most often lacks is found at once: there are many ways to try the rest.
    for need, count in Counter(need for needs in wanted for need in needs).items():
        if sum(one.meets(need) for one in ranked) < count:
            return None
    if any(_from_one_smmu(needs, _by_smmu(ranked)) is None for needs in wanted):
        return None
    hopeless: set[object] = set()

    def rest(number: int, free: Sequence[Candidate]) -> list[list[str]] | None:
        if number == len(wanted):
            return []
        # Devices of one kind behind one SMMU are as good as each other.
        state = number, frozenset(Counter((one.smmu, one.kind.role) for one in free).items())
        if state in hopeless:
            return None
        for behind in _by_smmu(free):
            for chosen in _ways(wanted[number], behind):
                others = rest(number + 1, [one for one in free if one not in chosen])
                if others is not None:
                    return [[one.bdf for one in chosen], *others]
        hopeless.add(state)
        return None

    return rest(0, ranked)


def _by_smmu(free: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return devices by the SMMU that they are behind; one without any if there are none."""
    behind: dict[str | None, list[Candidate]] = {}
    for one in free:
        behind.setdefault(one.smmu, []).append(one)
    return list(behind.values()) or [[]]


def _take(
    host: str, needs: Sequence[Need], ranked: Sequence[Candidate], taken: set[str]
) -> list[str]:
    """Choose free devices for the needs of one SMMU, add them to `taken`, and return them."""
    free = _by_smmu([one for one in ranked if one.bdf not in taken])
    chosen = _from_one_smmu(needs, free)
    if chosen is not None:
        taken.update(chosen)
        return chosen
    named = ", ".join(f"a {need}" for need in needs)
    beside = f" beside {len(taken)} devices for the rest of the test" if taken else ""
    raise MissingDevicesError(
        f"host {host} does not have, behind one SMMU{beside}: {named}",
        fix="list more devices of the host in the inventory, or run the test on another host",
        lacking=_lacking(needs, ranked, free),
    )


def _from_one_smmu(
    needs: Sequence[Need], behind: Sequence[Sequence[Candidate]]
) -> list[str] | None:
    """Return devices for these needs that are behind the same SMMU, whose devices are one sequence
    of `behind`; None if no SMMU has them."""
    for free in behind:
        for chosen in _ways(needs, free):
            return [one.bdf for one in chosen]
    return None


def _ways(needs: Sequence[Need], free: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Yield all choices of one of these devices for each need, the earliest that will do first, but
    of devices of one kind only the earliest."""
    if not needs:
        yield []
        return
    tried = set()
    for one in free:
        if one.meets(needs[0]) and one.kind.role not in tried:
            tried.add(one.kind.role)
            for rest in _ways(needs[1:], [other for other in free if other is not one]):
                yield [one, *rest]


def _lacking(
    needs: Sequence[Need], ranked: Sequence[Candidate], behind: Sequence[Sequence[Candidate]]
) -> str:
    """Return in words the fewest devices that have to be added to one SMMU for these needs."""
    met = next(
        some
        for size in range(len(needs) - 1, -1, -1)
        for some in combinations(needs, size)
        if _from_one_smmu(some, behind) is not None
    )
    words = []
    for need, count in (Counter(needs) - Counter(met)).items():
        if any(one.meets(need) for one in ranked):
            words.append(f"one more {need}" if count == 1 else f"{count} more {need.plural}")
        else:
            words.append(f"a {need}" if count == 1 else f"{count} {need.plural}")
    return " and ".join(words) + (", behind the same SMMU" if len(needs) > 1 else "")
