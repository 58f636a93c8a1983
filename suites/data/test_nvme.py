"""Data written to an assigned NVMe through nested translation reads back, whether QEMU emulates
the SMMU's commands or a CMDQV executes them."""

from __future__ import annotations

import shlex

import pytest

from harness.devices.nvme import Disk
from harness.devices.source import FaultSource
from harness.fixtures.guests import WITH_CMDQV, with_cmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Freshness
from harness.guest.guest import Guest
from harness.guest.hotplug import plug, unplug
from harness.host.ability import ANY, DISK, FLOODER, Need

MIB = 4
#: The storm of events is a burst every 20 ms, which leaves the guest time for its own work.
BURST, PAUSE_MS, BURSTS = 16, 20, 200


def without_cmdqv(*devices: Need) -> GuestSpec:
    """Return a guest that has two CPUs, so that a storm and the disk have one each."""
    return GuestSpec(smmus=(SmmuSpec(devices=devices, properties=(("cmdqv", "off"),)),), cpus=2)


class Data:
    """These tests need a disk only. Another test may have used the guest before."""

    @pytest.mark.covers("DATA-01")
    def test_what_is_written_reads_back(self, guest: Guest) -> None:
        disk = Disk(guest, guest.device(DISK))
        pieces = {at: disk.write_random(mib=MIB, at_mib=at) for at in (0, 100)}
        assert {at: disk.digest(mib=MIB, at_mib=at) for at in pieces} == pieces
        assert len(set(pieces.values())) == len(pieces)


class Storm:
    """This test needs a device besides the disk whose DMA floods the event queue."""

    @pytest.mark.covers("DATA-02")
    def test_while_events_storm(self, guest: Guest, flooder: FaultSource) -> None:
        """A storm of events and a disk's data do not disturb each other."""
        disk, dma = Disk(guest, guest.device(DISK)), flooder.burst(BURST)
        queue = guest.event_queue()
        mark = queue.mark()
        storm = shlex.quote(flooder.command(dma, times=BURSTS, pause_ms=PAUSE_MS))
        guest.run(f"(taskset -c 1 sh -c {storm}; echo $? >/tmp/stormed) >/dev/null 2>&1 &")
        queue.wait_for(BURST, mark)

        before = queue.count_since(mark)
        written = disk.write_random(mib=MIB)
        assert disk.digest(mib=MIB) == written
        # Where equal events are merged, it is not known how many there must be in the end.
        assert queue.count_since(mark) > before, "no event came while data flowed"

        queue.expect(flooder.expected(dma) * BURSTS, mark, deadline=60)
        said = guest.run("until [ -s /tmp/stormed ]; do usleep 10000; done; cat /tmp/stormed")
        assert said.text == "0\n"


class Replug:
    """This test unplugs the disk."""

    @pytest.mark.covers("DATA-03")
    def test_across_unplug_and_plug(self, guest: Guest) -> None:
        nvme = guest.device(DISK)
        written = Disk(guest, nvme).write_random(mib=MIB, at_mib=50)
        unplug(guest, nvme)
        plug(guest, nvme)
        again = Disk(guest, nvme)
        assert again.digest(mib=MIB, at_mib=50) == written
        newly = again.write_random(mib=MIB, at_mib=50)
        assert again.digest(mib=MIB, at_mib=50) == newly != written


@pytest.mark.guest(without_cmdqv(DISK), freshness=Freshness.SHARED)
class TestWithoutCmdqv(Data, Replug):
    pass


@pytest.mark.guest(without_cmdqv(FLOODER, DISK), freshness=Freshness.SHARED)
class TestStormWithoutCmdqv(Storm):
    pass


@pytest.mark.needs("cmdqv")
@pytest.mark.guest(WITH_CMDQV, freshness=Freshness.SHARED)
class TestWithCmdqv(Data):
    pass


@pytest.mark.needs("cmdqv")
@pytest.mark.guest(with_cmdqv(FLOODER, DISK), freshness=Freshness.SHARED)
class TestStormWithCmdqv(Storm):
    pass


@pytest.mark.needs("cmdqv")
@pytest.mark.guest(with_cmdqv(ANY, DISK), freshness=Freshness.SHARED)
class TestReplugWithCmdqv(Replug):
    """QEMU does not unplug a CMDQV's first device, so that there is another one before the disk."""
