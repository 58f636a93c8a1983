"""In each test of this suite something breaks down: a QEMU, a guest's kernel, the host's kernel."""

from __future__ import annotations

import pytest

from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import READER
from harness.host.host import Host

PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(READER,), properties=(("cmdqv", "off"),)),))
PROVOKE = "/sys/kernel/debug/provoke-crash/DIRECT"
MOUNT = "mount -t debugfs debugfs /sys/kernel/debug 2>&- || true"


@pytest.mark.guest(PLAIN)
def test_nothing_breaks(guest: Guest, host: Host) -> None:
    """What a person writes into the host's kernel log is no report of the kernel's."""
    host.connection.run("echo 'BUG: written by a person' >/dev/kmsg")
    assert guest.run("true").status == 0


@pytest.mark.guest(PLAIN)
def test_host_kernel_warns(guest: Guest, host: Host) -> None:
    """The host's kernel warns, and all else passes."""
    host.connection.run(f"{MOUNT}; echo WARNING >{PROVOKE}")
    assert guest.run("true").status == 0


@pytest.mark.guest(PLAIN)
@pytest.mark.kernel_report("WARNING: .*lkdtm_WARNING")
def test_expected_warnings(guest: Guest, host: Host) -> None:
    """The test says that both kernels may warn."""
    host.connection.run(f"{MOUNT}; echo WARNING >{PROVOKE}")
    guest.run(f"{MOUNT}; echo WARNING >{PROVOKE}")


@pytest.mark.guest(PLAIN)
def test_guest_kernel_warns(guest: Guest) -> None:
    """The guest's kernel warns, and all else passes."""
    guest.run(f"{MOUNT}; echo WARNING >{PROVOKE}")


@pytest.mark.guest(PLAIN)
def test_guest_kernel_dies(guest: Guest) -> None:
    """The guest's kernel oopses, which is a panic there."""
    guest.run(f"{MOUNT}; echo BUG >{PROVOKE}")


@pytest.mark.guest(PLAIN)
def test_guest_kernel_dies_unnoticed(guest: Guest) -> None:
    """The guest's kernel panics, and the test does not look."""
    guest.console.send("echo c >/proc/sysrq-trigger")


@pytest.mark.guest(PLAIN)
def test_qemu_is_killed(guest: Guest, host: Host) -> None:
    """QEMU crashes while the guest is used."""
    host.connection.run(["kill", "-SEGV", str(guest.qemu_pid())])
    guest.run("true")


@pytest.mark.guest(PLAIN)
def test_qemu_is_killed_unnoticed(guest: Guest, host: Host) -> None:
    """QEMU crashes, and the test does not notice."""
    host.connection.run(["kill", "-ABRT", str(guest.qemu_pid())])


@pytest.mark.guest(PLAIN)
def test_guest_is_missing_something(guest: Guest) -> None:
    """The guest lacks what the test looks for."""
    guest.run("ls /sys/block/nvme0n1")


@pytest.mark.guest(PLAIN)
def test_host_kernel_dies(guest: Guest, host: Host) -> None:
    """The host's kernel panics."""
    host.connection.run(f"{MOUNT}; echo PANIC >{PROVOKE}", timeout=20)
