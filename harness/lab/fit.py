"""Find the hosts of a lab that can run a test, by what the test needs, and the best of them first.
Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from harness.guest.choice import MissingDevicesError, Needs, choose
from harness.host.capability import base, met, words
from harness.lab.offer import Offer


@dataclass(frozen=True)
class Fit:
    """Whether a host can run a test: it can if nothing is `missing`, which is in words. Only
    probing can tell whether it has the capabilities `unprobed`."""

    missing: tuple[str, ...]
    unprobed: frozenset[str]


def fit(needed: Iterable[str], guests: Sequence[Needs], offer: Offer) -> Fit:
    """Return whether a host can run a test that needs these capabilities, and devices for these
    guests together. The guests get devices as in a run."""
    asked = {one for one in needed if not met(one, offer.capabilities)}
    unprobed = {one for one in asked if base(one) in offer.unprobed}
    missing = [f"capability {one}: {words(one)}" for one in sorted(asked - unprobed)]
    try:
        choose(offer.host, guests, offer.devices)
    except MissingDevicesError as devices:
        missing.append(devices.lacking)
    return Fit(tuple(missing), frozenset(unprobed))


def fitting(
    needed: Collection[str], guests: Sequence[Needs], offers: Sequence[Offer]
) -> tuple[str, ...]:
    """Return the names of the hosts that can run a test, the best first; the first host of all, on
    which the test says what it lacks, if none can.

    Hosts that are kept for other tests are left out, and so are, if a host has snapshots, those
    that have none: a guest that is restored is there in a fraction of the time. Better is a host
    that certainly has what is needed, and then one that has less beside it: what is special stays
    free for what needs it.
    """
    fits = [(one, fit(needed, guests, one)) for one in offers]
    able = [(one, found) for one, found in fits if not found.missing]
    own = [
        (one, found)
        for one, found in able
        if not one.kept_for or any(met(need, one.kept_for) for need in needed)
    ]
    usable = own or able
    quick = [(one, found) for one, found in usable if "snapshot" in one.capabilities]
    ranked = sorted(
        quick or usable,
        key=lambda pair: (bool(pair[1].unprobed), len(pair[0].capabilities), len(pair[0].devices)),
    )
    return tuple(one.host for one, _ in ranked) or (offers[0].host,)
