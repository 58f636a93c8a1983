"""Events and commands name a device by the StreamID that it has now, after the guest has given its
buses other numbers."""

from __future__ import annotations

import pytest

from harness.devices import source_of
from harness.faults.bus_numbers import renumber
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.root_port import RootPort
from harness.host.ability import WRITER, Ability

#: The bus of the empty root port gives its number to that of the device's.
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), empty=1),))

pytestmark = pytest.mark.guest(GUEST)


@pytest.fixture
def moved(guest: Guest) -> AssignedDevice:
    """Return the guest's device after it has got another StreamID."""
    (device,) = guest.devices
    moved = renumber(guest, device, RootPort(smmu=0, port=1))
    assert moved.vsid != device.vsid
    return moved


@pytest.mark.known_defect("VEQ-20", symptom=r"\n  F_TRANSLATION  sid 0x2100 ")
@pytest.mark.covers("VEQ-20")
def test_events_have_the_new_stream_id(guest: Guest, moved: AssignedDevice) -> None:
    writer, queue = source_of(guest, moved, Ability.WRITE), guest.event_queue()
    mark = queue.mark()
    dma = writer.burst(4)

    writer.perform(dma)

    queue.expect(writer.expected(dma), mark)


@pytest.mark.known_defect("VEQ-20", symptom="Illegal command")
@pytest.mark.covers("VEQ-20")
def test_commands_for_the_new_stream_id_are_accepted(guest: Guest, moved: AssignedDevice) -> None:
    """The guest's driver has invalidated the device's context descriptor by now (CMD_CFGI_CD)."""
    refused = guest.kernel_log("CMDQ error")
    assert not refused, refused
