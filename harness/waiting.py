"""Wait for a named condition with a deadline. The harness waits in no other way."""

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
    """Call `probe` until it returns a true value; return that value.

    `deadline` and `interval` are in seconds. Raises `error` after the deadline; its message says
    what was awaited, for how long, and what `last_seen` or else `probe` returned last. An
    exception raised by `probe` is not retried; it propagates.
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
