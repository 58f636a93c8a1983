"""Every way of every kind of device performs the DMA that it promises, and QEMU's models, which cut
an access that faults in words, raise a record for each word: none is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from harness.devices import kind, ways
from harness.devices.dma import UNMAPPED, Direction, Dma
from harness.devices.nvme import Disk
from harness.devices.nvme_dma import Completions, LogWords, QueueFetch
from harness.devices.source import FaultSource
from harness.devices.vfio_source import MARK, VfioSource
from harness.errors import LabError
from harness.faults.guest_tables import GuestTables, Window
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import plug
from harness.guest.vfio import unbound
from harness.host.ability import Ability, of_role
from harness.smmu.access import WORD_BYTES
from harness.smmu.events import EventType
from suites.veventq.sources import possible

pytestmark = [pytest.mark.lab, pytest.mark.long]

NVME = of_role("nvme")
DRIVE = GuestSpec(smmus=(SmmuSpec(devices=(NVME,)),))
HOT_DRIVE = GuestSpec(smmus=(SmmuSpec(hot=(NVME,)),))
#: What IOVAs are above physical addresses in the window in which GuestTables maps all memory.
WINDOW_OFFSET = GuestTables.MAPPED.iova - GuestTables.MAPPED.output
FLOOD = 10_000
#: An IOVA short of a page's end, of which every way can begin that can choose lengths.
CROSSING = UNMAPPED + 0x1000 - 8


def each_way(*abilities: Ability) -> list[ParameterSet]:
    """Return the ways that have these abilities, each with a guest that has a device of its
    kind."""
    return [
        pytest.param(
            way,
            id=f"{role}-{way.way}",
            marks=pytest.mark.guest(GuestSpec(smmus=(SmmuSpec(devices=(of_role(role),)),))),
        )
        for role, way in ways()
        if way.can.issuperset(abilities)
    ]


def words_of(source: FaultSource, dma: Dma) -> list[int]:
    """Return the addresses of the words that the model of a source accesses, in order."""
    first, last = dma.iova // WORD_BYTES, (dma.iova + dma.length - 1) // WORD_BYTES
    words = [word * WORD_BYTES for word in range(first, last + 1)]
    return [max(dma.iova, words[0]), *words[1:], *([MARK] if source.cut else [])]


def check(source: FaultSource, dma: Dma, *, times: int = 1) -> None:
    """Have a source perform a DMA, and check that the guest's queue and QEMU's trace have a record
    for each word, and nothing else."""
    guest = source.guest
    queue = guest.event_queue()
    mark, start = queue.mark(), guest.trace_size()
    source.perform(dma, times=times)
    expected = source.expected(dma) * times
    records = queue.expect(expected, mark, deadline=30 + dma.length / 1000)
    # QEMU's controller tries the first completion again and again.
    if not isinstance(source, Completions):
        assert [record.input_addr for record in records] == words_of(source, dma) * times
    forwarded = guest.wait_propagated(len(records), start)
    assert len(forwarded) == queue.count_since(mark) == len(records)
    assert guest.qemu_messages() == ""


@pytest.mark.parametrize("way", each_way())
def test_bursts_are_as_promised(guest: Guest, way: type[FaultSource]) -> None:
    source = way(guest, guest.devices[0])
    most = source.longest // source.unit
    for direction in Direction:
        if direction.ability in source.can:
            for count in sorted({1, min(33, most)}):
                dma = Dma(UNMAPPED, count * source.unit, direction)
                if possible(source, dma):
                    check(source, dma)
            check(source, source.burst(1, UNMAPPED + 0x5000, direction), times=2)


def lengths(source: FaultSource, direction: Direction) -> Iterator[Dma]:
    """Yield DMAs of chosen lengths, within a page and across its end, that the source can do."""
    for length in (4, 8, 60, 512, 4096):
        for iova in (UNMAPPED, CROSSING):
            if possible(source, dma := Dma(iova, length, direction)):
                yield dma


@pytest.mark.parametrize("way", each_way(Ability.EXACT_LENGTH))
def test_lengths_are_exact(guest: Guest, way: type[FaultSource]) -> None:
    source = way(guest, guest.devices[0])
    for direction in Direction:
        dmas = list(lengths(source, direction))
        assert bool(dmas) == (direction.ability in source.can)
        assert not dmas or len({dma.length for dma in dmas}) > 2
        for dma in dmas:
            check(source, dma)


@pytest.mark.parametrize("way", each_way(Ability.FLOOD))
def test_a_flood_is_counted_without_a_loss(guest: Guest, way: type[FaultSource]) -> None:
    source = way(guest, guest.devices[0])
    check(source, source.burst(min(FLOOD, source.longest // source.unit)))


@pytest.mark.guest(DRIVE)
def test_a_drive_works_at_its_queues_limits(guest: Guest) -> None:
    """The drive's queue takes 2047 commands at once: here are bursts of just as many, of one more,
    and of more than two queues, and turns of a short queue."""
    source = LogWords(guest, guest.devices[0])
    for words in (2047, 2048, 4096):
        check(source, source.burst(words))
    for times in range(1, 6):
        check(source, source.burst(3), times=times)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param("driven", marks=pytest.mark.guest(DRIVE)),
        pytest.param("without driver", marks=pytest.mark.guest(DRIVE)),
        pytest.param("plugged", marks=pytest.mark.guest(HOT_DRIVE)),
    ],
)
def test_a_drive_is_a_disk_before_and_after(guest: Guest, found: str) -> None:
    """Whatever has the drive, each way can have it, and what is on it stays."""
    drive = guest.devices[0]
    if found == "plugged":
        plug(guest, drive)
    digest = Disk(guest, drive).write_random(mib=1)
    if found == "without driver":
        unbound(guest, drive)
    for way in kind("nvme").sources:
        source = way(guest, drive)
        check(source, source.burst(1))
        assert Disk(guest, drive).digest(mib=1) == digest
        # The next way finds the drive as the first did.
        if found == "without driver":
            unbound(guest, drive)


def without_memory_space(source: FaultSource) -> None:
    """Have a device answer no more: reads of its registers are all ones."""
    config = f"{source.assigned.sysfs}/config"
    source.guest.run(rf"printf '\0' | dd of={config} bs=1 seek=4 conv=notrunc 2>/dev/null")


@pytest.mark.guest(DRIVE)
def test_a_controller_that_does_not_come_back_is_the_labs(guest: Guest) -> None:
    source = LogWords(guest, guest.devices[0]).in_kernels_domain(0)
    without_memory_space(source)
    with pytest.raises(LabError, match=r"nvme at 0000:21:00\.0 does not become ready") as broken:
        source.perform(source.burst(1))
    assert "last there: 0xffffffff" in broken.value.message
    # The lab's next user finds a drive that works: lending it resets it.
    again = LogWords(guest, guest.devices[0])
    check(again, again.burst(1))


@pytest.mark.guest(DRIVE)
def test_a_probe_sees_what_it_reaches(guest: Guest) -> None:
    probe, queue = LogWords(guest, guest.devices[0]), guest.event_queue()
    assert not probe.reaches()
    source = probe.in_kernels_domain(WINDOW_OFFSET)
    assert not source.reaches(WINDOW_OFFSET)
    GuestTables(guest, queue, source.vsid).install_windows()
    assert source.reaches(WINDOW_OFFSET)
    assert not source.reaches()


WINDOWS: list[tuple[type[VfioSource], Window, EventType]] = [
    (LogWords, GuestTables.READ_ONLY, EventType.F_PERMISSION),
    (LogWords, GuestTables.NOT_ACCESSED, EventType.F_ACCESS),
    (QueueFetch, GuestTables.NOT_ACCESSED, EventType.F_ACCESS),
    (QueueFetch, GuestTables.OUT_OF_RANGE, EventType.F_ADDR_SIZE),
    (QueueFetch, GuestTables.UNMAPPED, EventType.F_TRANSLATION),
]


@pytest.mark.guest(DRIVE)
def test_a_drive_meets_the_faults_of_its_kernels_domain(guest: Guest) -> None:
    drive, queue = guest.devices[0], guest.event_queue()
    sources = {way: way(guest, drive).in_kernels_domain(WINDOW_OFFSET) for way, *_ in WINDOWS}
    GuestTables(guest, queue, drive.vsid).install_windows()
    for way, window, fault in WINDOWS:
        source, mark = sources[way], queue.mark()
        dma = source.burst(1, window.iova)
        source.perform(dma)
        records = queue.expect(source.expected(dma, fault), mark)
        assert [one.type for one in records if one.input_addr != MARK] == [fault] * (
            dma.length // WORD_BYTES
        )
