"""A guest's program drives an NVMe drive through VFIO. The drive reaches what is mapped for it,
what is not mapped faults in the guest, and afterwards the drive is a disk again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from harness.devices.dma import UNMAPPED
from harness.devices.nvme import Disk
from harness.devices.nvme_admin import (
    CAP,
    CQE_BYTES,
    IDENTIFY_BYTES,
    SQE_BYTES,
    Buffer,
    Capabilities,
    Command,
    QueuePair,
    get_log_page,
    identify,
)
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.mmio import Op, inside, read32, read64, until32
from harness.guest.vfio import BAR0, MEMORY, lent, map_memory, unmap_memory, vfio_command
from harness.host.ability import of_role
from harness.smmu.events import EventType

NVME = of_role("nvme")

pytestmark = [
    pytest.mark.lab,
    pytest.mark.needs("device:nvme"),
    pytest.mark.guest(GuestSpec(smmus=(SmmuSpec(devices=(NVME,)),))),
]

IOVA = 1 << 40
#: NVM Express base specification, 3.1.3.2.
VERSION = 8
CONTROLLER = 1


@dataclass(frozen=True)
class Program:
    """A guest's program that drives the drive with an admin queue of two entries. Its memory has
    three pages of the controller: submission queue, completion queue, data."""

    guest: Guest
    drive: AssignedDevice
    capabilities: Capabilities

    @property
    def size(self) -> int:
        return 3 * self.capabilities.page_bytes

    @property
    def data(self) -> Buffer:
        return Buffer(2 * self.capabilities.page_bytes, IOVA + 2 * self.capabilities.page_bytes)

    def command(self, *ops: Op) -> str:
        return vfio_command(self.drive.guest_bdf, self.size, *ops)

    def run(self, *ops: Op) -> list[int]:
        """Perform operations; return the values that were read."""
        return [int(word, 16) for word in self.guest.run(self.command(*ops)).text.split()]

    def carry_out(self, command: Command, *before: Op) -> tuple[int, bytes]:
        """Enable the controller, and have it carry out a command after `before`; return the status
        field of its completion, without the phase tag, and the first 64 bytes of data."""
        page = self.capabilities.page_bytes
        completion = Buffer(page, IOVA + page)
        sizes = (2, Buffer(0, IOVA), completion, BAR0, MEMORY)
        queue = QueuePair(self.capabilities, 0, *sizes)
        words = (read64(self.data.at + 8 * i) for i in range(8))
        status, *data = self.run(
            *(map_memory(IOVA, 0, 2 * page), *before, *queue.enable(), *queue.carry_out(command)),
            *(inside(MEMORY), read32(completion.at + CQE_BYTES - 4), *words),
        )
        return status >> 17, b"".join(word.to_bytes(8, "little") for word in data)

    def map_data(self, *, writable: bool = True) -> Op:
        """Return the operation that maps the page of data."""
        return map_memory(self.data.iova, self.data.at, IDENTIFY_BYTES, writable=writable)


@pytest.fixture
def program(guest: Guest) -> Program:
    drive = guest.device(NVME)
    lent(guest, drive)
    said = guest.run(vfio_command(drive.guest_bdf, SQE_BYTES, read64(CAP)))
    return Program(guest, drive, Capabilities(int(said.text, 16)))


def check_faults(program: Program, command: Command, *before: Op, kind: EventType) -> None:
    """Check that the drive's write for a command raises records of one type and no others, and
    does not reach the memory. The command's status is the controller's: a write on PCI Express is
    posted, so that the controller may not learn that it was lost."""
    queue = program.guest.event_queue()
    mark = queue.mark()

    _, data = program.carry_out(command, *before)

    records = queue.wait_for(1, mark)
    seen = {(one.type, one.sid, one.rnw) for one in records}
    assert seen == {(int(kind), program.drive.vsid, "write")}
    assert records[0].input_addr == command.prp1
    assert not any(data)


def test_what_is_mapped_is_reached(program: Program, guest: Guest) -> None:
    """The control of the tests below: the drive fetches a command, and writes its completion and
    its data. No event is raised."""
    queue = guest.event_queue()
    mark = queue.mark()
    (version,) = program.run(read32(VERSION))
    assert version >> 16 in (1, 2)

    status, data = program.carry_out(identify(program.data.iova, CONTROLLER), program.map_data())

    assert status == 0
    vendor = int(guest.run(f"cat {program.drive.sysfs}/vendor").text, 16)
    assert int.from_bytes(data[:2], "little") == vendor
    assert queue.count_since(mark) == 0


def test_what_is_not_mapped_faults(program: Program) -> None:
    command = get_log_page(UNMAPPED, 16, program.capabilities.page_bytes)
    check_faults(program, command, kind=EventType.F_TRANSLATION)


def test_what_is_unmapped_again_faults(program: Program) -> None:
    command = get_log_page(program.data.iova, 16, program.capabilities.page_bytes)
    unmap = unmap_memory(program.data.iova, IDENTIFY_BYTES)
    check_faults(program, command, program.map_data(), unmap, kind=EventType.F_TRANSLATION)


def test_what_is_mapped_to_be_read_is_not_written(program: Program) -> None:
    command = get_log_page(program.data.iova, 16, program.capabilities.page_bytes)
    before = program.map_data(writable=False)
    check_faults(program, command, before, kind=EventType.F_PERMISSION)


def test_a_program_that_is_killed_leaves_the_drive_usable(program: Program, guest: Guest) -> None:
    """The kernel closes what it held, so that the next program has the drive at once, and then the
    guest's driver."""
    forever = program.command(inside(MEMORY), until32(0, 1, 1, seconds=600))
    ended = guest.run(f"timeout -s KILL 1 {forever}", check=False)
    assert ended.status == 128 + 9

    status, _ = program.carry_out(identify(program.data.iova, CONTROLLER), program.map_data())

    assert status == 0
    disk = Disk(guest, program.drive)
    written = disk.write_random(mib=1)
    assert disk.digest(mib=1) == written
