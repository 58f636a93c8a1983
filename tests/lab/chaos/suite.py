"""The tests that a run under test takes its tests from: each is one moment of a run's life.

A test that reaches its point tells it by a file, and goes on when another file tells it to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.boundary.client import behind_boundary
from harness.fixtures.guests import with_cmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.guest import Guest
from harness.host.ability import READER
from harness.host.host import Host
from harness.lab.pool import Hosts
from harness.waiting import wait_for

HERE = Path(os.environ["HIL_CHAOS"])
PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),))
GO_ON_SECONDS = 120.0


@pytest.fixture(scope="session", autouse=True)
def _cleaning(hosts: Hosts) -> Iterator[None]:
    """Tell that the run is about to give its host back."""
    yield
    (HERE / "cleaning").touch()


def reach() -> None:
    """Tell that the point is reached, and wait until the test shall go on."""
    (HERE / "reached").touch()
    wait_for("the word to go on", (HERE / "go on").exists, deadline=GO_ON_SECONDS)


def use(host: Host) -> None:
    """Use the link, the agent and a device of the host: the last one, which no guest here has. A
    guest runs on behind its test."""
    host.assign(sorted(host.devices)[-1:])
    host.session.spawn("used", ["true"], log=f"{host.session.folder}/used.log")
    assert host.session.wait("used", 10) == 0


def test_opens(host: Host) -> None:
    use(host)


def test_ends_slowly(host: Host) -> None:
    """The agent takes a while to end the session, so that something can happen meanwhile."""
    use(host)
    host.session.on_end("slow", "touch /tmp/undoing; sleep 3; rm /tmp/undoing")


def test_holds(host: Host) -> None:
    use(host)
    reach()
    use(host)


def test_holds_and_fails(host: Host) -> None:
    reach()
    assert host.name == "another", "planted"


def test_writes(host: Host) -> None:
    reach()
    host.connection.write_file(f"{host.session.folder}/written", bytes(1 << 16))


def test_copies(host: Host) -> None:
    """The host gets a program, and runs it."""
    reach()
    program = f"{host.session.programs()}/program"
    host.connection.write_file(program, b"#!/bin/sh\necho ran\n", mode=0o755)
    assert host.connection.run([program]).text == "ran\n"


def test_fails(host: Host) -> None:
    use(host)
    assert host.name == "another", "planted"


@pytest.mark.guest(PLAIN)
def test_boots(guest: Guest) -> None:
    assert guest.run("true").status == 0


@pytest.mark.guest(PLAIN)
def test_holds_guest(guest: Guest) -> None:
    reach()
    assert guest.run("true").status == 0


@pytest.mark.guest(PLAIN)
def test_holds_then_boots(fleet: Fleet) -> None:
    reach()
    with fleet.guests([PLAIN]) as (guest,):
        assert guest.run("true").status == 0


@pytest.mark.guest(PLAIN)
def test_fails_with_guest(guest: Guest) -> None:
    assert guest.run("true").status == 1, "planted"


@pytest.mark.guest(behind_boundary(PLAIN))
def test_boots_behind_boundary(guest: Guest) -> None:
    assert guest.run("true").status == 0


@pytest.mark.guest(behind_boundary(PLAIN))
def test_holds_guest_behind_boundary(guest: Guest) -> None:
    reach()
    assert guest.run("true").status == 0


@pytest.mark.needs("cmdqv")
@pytest.mark.guest(with_cmdqv(READER))
def test_boots_with_cmdqv(guest: Guest) -> None:
    assert guest.run("true").status == 0


@pytest.mark.needs("cmdqv")
@pytest.mark.guest(with_cmdqv(READER))
def test_holds_guest_with_cmdqv(guest: Guest) -> None:
    reach()
    assert guest.run("true").status == 0


def test_after(host: Host) -> None:
    """This test comes last, and finds whatever happened before behind it."""
    use(host)
