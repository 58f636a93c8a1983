"""A guest gives its buses other numbers."""

from __future__ import annotations

from harness.devices import source_of
from harness.faults.bus_numbers import renumber
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.root_port import RootPort
from harness.host.ability import WRITER, Ability
from harness.reproduce.show import Say, in_guest


def _show(guest: Guest, say: Say) -> bool:
    """Have a device fault after its bus has got another number."""
    (device,) = guest.devices
    say(f"the guest gives the bus of the device with StreamID {device.vsid:#x} another number:")
    say("it removes the device and two root ports, writes their bus numbers, and scans the bus")
    moved = renumber(guest, device, RootPort(smmu=0, port=1))
    say(f"the device has StreamID {moved.vsid:#x} now")
    writer, queue = source_of(guest, moved, Ability.WRITE), guest.event_queue()
    mark = queue.mark()
    writer.perform(writer.burst(1))
    (record, *_) = queue.wait_for(1, mark)
    say(f"its DMA faults, and should raise an event of StreamID {moved.vsid:#x}")
    say(f"it raises: {record}")
    refused = guest.kernel_log("CMDQ error")
    say("and the SMMU should have refused no command")
    say(f"the guest's kernel says: {refused.strip() or 'nothing'}")
    return record.sid != moved.vsid or bool(refused)


SHOW = in_guest(GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), empty=1),)), _show)
