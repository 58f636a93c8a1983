"""Waiting for a named condition with a deadline: the only way anything here waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from harness.errors import HilError, LabError

T = TypeVar("T")


def wait_for(
    what: str,
    probe: Callable[[], T | None],
    *,
    deadline: float,
    interval: float = 0.05,
    error: type[HilError] = LabError,
    last_seen: Callable[[], object] | None = None,
) -> T:
    """Call `probe` until it returns something true (any object of substance); return that.

    `deadline` and `interval` are seconds. On expiry raises `error`, which says what was
    awaited, for how long, and what `last_seen` (or else the probe) last gave. An exception
    out of `probe` ends the wait at once: it is news, not patience.
    """
    started = time.monotonic()
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(lambda value: not value),
        stop=tenacity.stop_after_delay(deadline),
        wait=tenacity.wait_fixed(interval),
    )
    try:
        value = retrying(probe)
    except tenacity.RetryError as gave_up:
        seen = last_seen() if last_seen else gave_up.last_attempt.result()
        waited = time.monotonic() - started
        raise error(f"waited {waited:.1f} s for {what}; last seen: {seen}") from None
    assert value is not None
    return value
