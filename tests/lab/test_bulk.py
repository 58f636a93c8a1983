"""Files come out of a real guest through its virtio port, whatever happened to the guest."""

from __future__ import annotations

import hashlib
import time

import pytest

from harness.fixtures.guests import DEFAULT
from harness.guest.description import GuestSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import Guest

pytestmark = pytest.mark.lab

SIZE = 4 << 20


def check_file(guest: Guest) -> float:
    """Read a file of random bytes; return the bytes a second."""
    made = f"head -c {SIZE} /dev/urandom >/tmp/file && sha256sum </tmp/file"
    digest = guest.run(made).text.split()[0]
    started = time.monotonic()
    data = guest.read_file("/tmp/file")
    seconds = time.monotonic() - started
    assert (len(data), hashlib.sha256(data).hexdigest()) == (SIZE, digest)
    assert guest.journal.notes == []
    return SIZE / seconds


@pytest.mark.guest(DEFAULT)
def test_a_file_comes_whole_and_fast(guest: Guest) -> None:
    fast = max(check_file(guest) for _ in range(3))
    started = time.monotonic()
    short = guest.run("head -c 65536 /tmp/file").data
    # How fast, depends on what else the machine does; how much faster does not.
    assert fast > 5 * len(short) / (time.monotonic() - started)
    assert guest.kernel_log().count("\n") > 100


@pytest.mark.guest(DEFAULT)
def test_it_works_again_after_each_restoration(fleet: Fleet) -> None:
    for _ in range(3):
        with fleet.guests([DEFAULT], Freshness.CLEAN) as (guest,):
            check_file(guest)


@pytest.mark.guest(DEFAULT)
def test_it_works_after_a_reboot(fleet: Fleet) -> None:
    with fleet.guests([DEFAULT], Freshness.COLD) as (guest,):
        check_file(guest)
        guest.console.send("reboot -f")
        guest.wait_ready()
        check_file(guest)


@pytest.mark.guest(GuestSpec(disks=("/etc/hostname",)))
def test_the_number_of_the_port_does_not_matter(guest: Guest) -> None:
    """A disk comes before the console's controller."""
    check_file(guest)


@pytest.mark.guest(GuestSpec(machine="msi=off"))
def test_it_works_without_messages(guest: Guest) -> None:
    check_file(guest)
