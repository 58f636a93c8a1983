"""An NVMe controller that behaves as the specification says does what its sources promise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.devices import kind
from harness.devices.dma import UNMAPPED, Direction, Dma
from harness.devices.nvme_admin import (
    ACQ,
    AQA,
    ASQ,
    CC,
    FIRMWARE_BYTES,
    INTMS,
    Buffer,
    Capabilities,
    Command,
    QueuePair,
    compare,
    get_log_page,
    set_timestamp,
)
from harness.devices.nvme_data import CommandData
from harness.devices.nvme_dma import LogPage, LogWords, NvmeSource
from harness.devices.vfio_source import OWN
from harness.errors import HarnessError, LabError, ProductError
from harness.guest.choice import MissingDevicesError
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.host.ability import ANY, Ability
from harness.smmu.access import mismatch
from suites.veventq import test_sources
from tests.fake_nvme import PLAIN, SID, Drive, GuestWithDrive, Program, cap

DEVICE = AssignedDevice("dev0.0", ANY, "nvme", "0000:09:00.0", smmu=0, port=0)
WAYS = [cast(type[NvmeSource], way) for way in kind("nvme").sources]
CAPS = [cap(dstrd=stride) for stride in range(5)] + [
    cap(mpsmin=1),
    cap(mpsmin=4, dstrd=2),
    cap(only_all_sets=True),
]


Way = TypeVar("Way", bound=NvmeSource)


def source_of(way: type[Way], drive: Drive) -> Way:
    return way(cast(Guest, GuestWithDrive(drive)), DEVICE)


# -- registers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", range(5))
def test_doorbells_are_where_the_stride_puts_them(stride: int) -> None:
    capabilities, step = Capabilities(cap(dstrd=stride)), 4 << stride
    for queue in range(4):
        assert capabilities.doorbell(queue) == 0x1000 + 2 * queue * step
        assert capabilities.doorbell(queue, completion=True) == 0x1000 + (2 * queue + 1) * step


def test_a_configuration_is_one_that_the_controller_has() -> None:
    assert Capabilities(PLAIN).configuration == 0x0046_0001
    assert Capabilities(cap(mpsmin=4)).configuration == 0x0046_0001 | 4 << 7
    assert Capabilities(cap(only_all_sets=True)).configuration == 0x0046_0001 | 6 << 4
    assert [Capabilities(cap(mpsmin=size)).page_bytes for size in (0, 1, 4)] == [4096, 8192, 65536]


@pytest.mark.parametrize(("unit", "seconds"), [(0, 0.5), (1, 0.5), (15, 7.5), (255, 127.5)])
def test_a_controller_has_the_time_that_it_promises(unit: int, seconds: float) -> None:
    assert Capabilities(unit << 24).seconds == seconds


def pair_of(drive: Drive, entries: int, number: int = 0) -> QueuePair:
    """Return a pair of queues at the start of a drive's memory, which is all mapped."""
    page = Capabilities(drive.cap).page_bytes
    completion = -(-entries * 64 // page) * page
    size = completion + -(-entries * 16 // page) * page
    drive.memory, drive.maps = bytearray(size), [(OWN, 0, size)]
    buffers = Buffer(0, OWN), Buffer(completion, OWN + completion)
    return QueuePair(Capabilities(drive.cap), number, entries, *buffers, "bar0", "memory")


@pytest.mark.parametrize("entries", [2, 4096])
def test_a_controller_is_enabled_when_all_is_set(entries: int) -> None:
    drive = Drive()
    pair = pair_of(drive, entries)
    Program(drive).run([*pair.enable(), *pair.disable()])
    size = entries - 1
    assert drive.log == [
        (CC, 0),
        (INTMS, 0xFFFF_FFFF),
        (AQA, size << 16 | size),
        (ASQ, OWN),
        (ACQ, pair.completion.iova),
        (CC, 0x0046_0001),
        (CC, 0),
    ]


def test_queues_may_be_elsewhere_for_the_controller() -> None:
    drive = Drive()
    Program(drive).run(pair_of(drive, 4).enable(submission=0x5000, completion=0x6000))
    assert [value for at, value in drive.log if at in (ASQ, ACQ)] == [0x5000, 0x6000]


# -- queues ------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Return a queue's size, and the numbers of commands that it gets one after the other."""
    entries = draw(st.integers(2, 40))
    return entries, draw(st.lists(st.integers(1, entries - 1), min_size=1, max_size=40))


@given(batches(), st.sampled_from(CAPS))
def test_every_command_is_carried_out_once_and_in_order(
    sizes: tuple[int, list[int]], value: int
) -> None:
    """However the commands fall on the turns of the queue, each is in an entry that is free (the
    fake controller asserts it), and the host waits for the completion of the last."""
    entries, counts = sizes
    drive = Drive(value)
    pair = pair_of(drive, entries)
    program, at, expected = Program(drive), UNMAPPED, []
    program.run(pair.enable())
    for count in counts:
        program.run_on(pair.carry_out(get_log_page(at, 4, 4096), count, step=4))
        expected += [(0, 0x02, at + 4 * i) for i in range(count)]
        at += 4 * count
        assert drive.commands == expected
        assert drive.pairs[0].done == drive.pairs[0].taken == len(expected)
    assert pair.fresh == (len(expected) % (2 * entries) == 0)


@pytest.mark.parametrize("entries", [2, 4096])
def test_the_smallest_and_the_largest_queue_turn(entries: int) -> None:
    drive = Drive()
    pair = pair_of(drive, entries)
    program = Program(drive)
    program.run(pair.enable())
    for turn in range(5):
        drive.commands.clear()
        program.run_on(pair.carry_out(get_log_page(turn << 20, 4, 4096), entries - 1, step=4))
        assert drive.commands == [(0, 0x02, (turn << 20) + 4 * i) for i in range(entries - 1)]


@given(st.integers(2, 64), st.integers(0, 300))
def test_a_completion_is_told_by_the_phase_of_its_turn(entries: int, before: int) -> None:
    """What is waited for is not there before the last command is completed, and is there then."""
    drive = Drive()
    pair = pair_of(drive, entries)
    program = Program(drive)
    program.run(pair.enable())
    command = get_log_page(UNMAPPED, 4, 4096)
    for _ in range(before):
        program.run_on(pair.carry_out(command))
    program.run_on(pair.put(command))
    at, mask, value = pair.completed()

    def there() -> bool:
        return int.from_bytes(drive.memory[at : at + 4], "little") & mask == value

    assert not there()
    program.run_on(pair.ring())
    assert not there()
    drive.work()
    assert there()


@pytest.mark.parametrize(
    ("iova", "length", "page", "second"),
    [
        (0x5000, 4096, 4096, 0),
        (0x5FFC, 4, 4096, 0),
        (0x5FFC, 8, 4096, 0x6000),
        (0x5E04, 512, 4096, 0x6000),
        (0x5E00, 512, 4096, 0),
        (0x5004, 4096, 4096, 0x6000),
        (0x5004, 4096, 8192, 0x6000),
        (0x4004, 4096, 8192, 0),
        (0xFFFF_F000_0000_0FFC, 8, 4096, 0xFFFF_F000_0000_1000),
    ],
)
def test_data_beyond_a_page_has_a_second_entry(
    iova: int, length: int, page: int, second: int
) -> None:
    commands: list[Command] = [get_log_page(iova, length, page)]
    if length == 8:
        commands.append(set_timestamp(iova, page))
    if length % 512 == 0:
        commands.append(compare(iova, length, page, 1, 512))
    assert {(one.prp1, one.prp2) for one in commands} == {(iova, second)}


def test_words_are_of_a_log_for_which_a_drive_measures_nothing() -> None:
    logs = [get_log_page(0, length, 4096).dwords10_11 & 0xFF for length in (4, 512, 516)]
    assert logs == [0x03, 0x03, 0x05]


# -- sources -----------------------------------------------------------------------------------


def check(source: NvmeSource, drive: Drive, dma: Dma, times: int = 1) -> None:
    """Have a source perform a DMA, and check that the drive makes the accesses that it predicts."""
    drive.records.clear()
    source.perform(dma, times=times)
    assert mismatch(drive.records, source.expected(dma) * times, exact=True) == ""
    assert drive.read(CC) == 0, "the program left the controller enabled"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("emulated", [True, False], ids=["emulated", "real"])
@pytest.mark.parametrize("value", CAPS, ids=hex)
def test_a_way_makes_the_accesses_that_it_predicts(
    way: type[NvmeSource], emulated: bool, value: int
) -> None:
    drive = Drive(value, emulated=emulated)
    source = source_of(way, drive)
    assert source.vsid == SID
    for times in (1, 2, 5):
        check(source, drive, source.burst(1), times)
    if Ability.FLOOD in way.can:
        check(source, drive, source.burst(100, UNMAPPED + 0x1_0000), 3)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 9))
def test_words_are_repeated(words: int, times: int) -> None:
    drive = Drive()
    source = source_of(LogWords, drive)
    check(source, drive, source.burst(words, UNMAPPED + 0xFF8), times)


@pytest.mark.parametrize("words", [2047, 2048, 4096, 4095, 10_000])
def test_words_may_be_more_than_a_queue_takes(words: int) -> None:
    drive = Drive()
    source = source_of(LogWords, drive)
    check(source, drive, source.burst(words))


def test_each_repetition_has_time() -> None:
    """Most ways reset the drive each time, which takes a real one up to a second."""
    drive = Drive()
    source = source_of(LogPage, drive)
    for times in (1, 50):
        source.perform(source.burst(1), times=times)
        assert cast(GuestWithDrive, source.guest).timeout > 60 + 2 * times


def test_repetitions_end_at_the_first_that_fails(tmp_path: Path) -> None:
    """The guest's program says what was not done by its status."""
    (tmp_path / "hil").write_text("#!/bin/sh\necho once\nexit 1\n")
    (tmp_path / "hil").chmod(0o755)
    (tmp_path / "usleep").symlink_to("/bin/true")
    source = source_of(LogWords, Drive())
    command = source.command(source.burst(10_000), times=3)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", command], env=path, stdout=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "once\n")


LENGTHS = st.integers(1, FIRMWARE_BYTES // 4).map(lambda words: 4 * words)


@given(st.integers(0, 2047), LENGTHS, st.booleans(), st.sampled_from(CAPS))
def test_a_log_page_has_any_length_at_any_word(
    word: int, length: int, emulated: bool, value: int
) -> None:
    drive = Drive(value, emulated=emulated)
    source = source_of(LogPage, drive)
    check(source, drive, Dma(UNMAPPED + 4 * word, length, Direction.WRITE))


@given(
    st.integers(0, 2047),
    st.one_of(st.just(8), st.integers(1, 8).map(lambda blocks: blocks * 512)),
    st.booleans(),
    st.sampled_from(CAPS),
)
def test_command_data_is_read_at_any_word(
    word: int, length: int, emulated: bool, value: int
) -> None:
    drive = Drive(value, emulated=emulated)
    source = source_of(CommandData, drive)
    check(source, drive, Dma(UNMAPPED + 4 * word, length, Direction.READ), times=2)


COMPARE, TIMESTAMP = 1 << 0, 1 << 6
SMALL, LARGE = 9 << 16, 12 << 16


@pytest.mark.parametrize(
    ("oncs", "form", "possible", "refused", "fix"),
    [
        (COMPARE | TIMESTAMP, SMALL, (8, 512, 4096), (4, 16, 520, 8192), "8, or a multiple of 512"),
        (COMPARE | TIMESTAMP, LARGE, (8, 4096), (512, 4, 8192), "8, or a multiple of 4096"),
        (COMPARE, SMALL, (512, 1024), (8, 4, 100), "choose a multiple of 512, up to 4096"),
        (TIMESTAMP, SMALL, (8,), (4, 16, 512), "choose 8$"),
        (COMPARE | TIMESTAMP, SMALL | 8, (8,), (512,), "choose 8$"),
    ],
)
def test_command_data_has_the_lengths_of_its_commands(
    oncs: int, form: int, possible: tuple[int, ...], refused: tuple[int, ...], fix: str
) -> None:
    drive = Drive(oncs=oncs, format=form)
    source = source_of(CommandData, drive)
    assert source.burst(1).length == possible[0]
    for length in possible:
        check(source, drive, Dma(UNMAPPED, length, Direction.READ))
    for length in refused:
        with pytest.raises(HarnessError, match=rf"cannot move {length} bytes [^\n]*\n.*{fix}"):
            source.check(Dma(UNMAPPED, length, Direction.READ))


@pytest.mark.parametrize(
    ("oncs", "form"),
    [
        *((oncs, form) for oncs in (COMPARE, COMPARE | TIMESTAMP) for form in (SMALL, LARGE)),
        (TIMESTAMP, SMALL),
        (COMPARE | TIMESTAMP, SMALL | 8),
    ],
)
def test_the_suites_ask_any_drive_for_what_it_can(oncs: int, form: int) -> None:
    drive = Drive(oncs=oncs, format=form)
    source = source_of(CommandData, drive)
    for dma in test_sources.dmas(source):
        check(source, drive, dma)


@pytest.mark.parametrize(("oncs", "form"), [(0, SMALL), (COMPARE, SMALL | 8)])
def test_a_drive_without_such_commands_is_a_missing_device(oncs: int, form: int) -> None:
    with pytest.raises(MissingDevicesError, match="neither the feature Timestamp nor") as missing:
        source_of(CommandData, Drive(oncs=oncs, format=form))
    assert missing.value.lacking == "an NVMe drive with Timestamp or Compare"


@pytest.mark.parametrize("way", [LogWords, LogPage])
def test_a_length_that_is_no_multiple_of_a_word_is_refused(way: type[NvmeSource]) -> None:
    with pytest.raises(HarnessError, match="cannot move 6 bytes"):
        source_of(way, Drive()).check(Dma(UNMAPPED, 6, Direction.WRITE))


# -- failures ----------------------------------------------------------------------------------


def test_a_controller_that_does_not_become_ready_is_the_labs() -> None:
    source = source_of(LogWords, Drive(stuck=True))
    with pytest.raises(LabError, match=r"nvme at 0000:21:00\.0 does not become ready") as broken:
        source.perform(source.burst(1))
    assert "power the host off and on" in (broken.value.fix or "")


def test_a_command_that_is_not_completed_is_the_products() -> None:
    source = source_of(LogWords, Drive(idle=True))
    with pytest.raises(ProductError, match="did not do what it was told"):
        source.perform(source.burst(1))


def test_a_drive_is_read_before_it_is_driven() -> None:
    """The capabilities come with the lending: no program is run for them."""
    drive = Drive(cap(dstrd=3))
    source = source_of(LogWords, drive)
    assert source.capabilities == Capabilities(cap(dstrd=3))
    assert cast(GuestWithDrive, source.guest).programs == 0
