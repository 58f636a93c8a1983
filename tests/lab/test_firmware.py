"""The firmware of a virtual host's guests finds its variables, and makes no store of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.fixtures.guests import DEFAULT
from harness.guest.guest import Guest

pytestmark = pytest.mark.lab

ERASED = "pflash_write_block_erase"


@pytest.mark.guest(replace(DEFAULT, paused=True))
def test_the_store_is_there_at_the_first_boot(guest: Guest) -> None:
    guest.monitor.execute("trace-event-set-state", name="pflash_*", enable=True)
    guest.monitor.execute("cont")
    guest.wait_ready()
    traced = guest.trace_text()
    assert "pflash_write" in traced  # it is the flash that is traced
    assert ERASED not in traced
