"""The firmware of a virtual host's guests finds its variables: it makes no store of its own, and
does not write down which consoles there are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.fixtures.guests import DEFAULT
from harness.guest.guest import Guest

pytestmark = pytest.mark.lab

ERASED = "pflash_write_block_erase"
#: A counter of boots, which it does write, takes some 150 accesses; the consoles would take 700.
MOST_WRITES = 300


@pytest.mark.guest(replace(DEFAULT, paused=True))
def test_the_store_is_there_at_the_first_boot(guest: Guest) -> None:
    guest.monitor.execute("trace-event-set-state", name="pflash_*", enable=True)
    guest.monitor.execute("cont")
    guest.wait_ready()
    traced = guest.trace_text()
    # It is the flash that is traced.
    assert 0 < traced.count("pflash_io_write") < MOST_WRITES
    assert ERASED not in traced
