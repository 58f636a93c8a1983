"""Kinds of devices are found without a list of them, and sources by what they can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness import devices
from harness.devices.dma import Direction, Dma
from harness.devices.kind import PciClass, PciId
from harness.devices.nvme import Disk
from harness.errors import HarnessError, ProductError
from harness.guest.console import Output
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.hotplug import PLUG_SECONDS
from harness.host.ability import ANY, FLOODER, READER, Ability, Need
from harness.host.pci import PciDevice
from harness.virtual.topology import Topology

PLANTED = """
from harness.devices.kind import DeviceKind, Emulation, PciId

KIND = DeviceKind("{role}", PciId(0x1234, 0x5678), emulation=Emulation("planted"))
"""


@pytest.mark.parametrize(("iova", "length"), [(-1, 4), (0, 0), ((1 << 64) - 4, 8)])
def test_impossible_dma_is_refused(iova: int, length: int) -> None:
    with pytest.raises(HarnessError, match="no DMA"):
        Dma(iova, length, Direction.READ)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return an additional folder in which kinds of devices are looked for."""
    monkeypatch.setattr(devices, "__path__", [*devices.__path__, str(tmp_path)])
    devices.kinds.cache_clear()
    yield tmp_path
    devices.kinds.cache_clear()


def test_a_kind_is_one_file(folder: Path) -> None:
    """A module in the folder is all that a new kind needs: every virtual host then has one of its
    devices behind each SMMU."""
    (folder / "planted_one.py").write_text(PLANTED.format(role="planted"))
    assert devices.kind("planted").emulation
    mine = [one for one in Topology(smmus=2).devices() if one.kind.role == "planted"]
    assert [one.smmu for one in mine] == [0, 1]
    line = Topology(smmus=2).arguments(
        Path("/tree"), {one.id: Path("/disk") for one in Topology().devices()}, Path("/none")
    )
    assert "planted,bus=port.planted1.0,id=planted1.0" in line


def test_two_modules_cannot_have_a_role(folder: Path) -> None:
    (folder / "planted_twice.py").write_text(PLANTED.format(role="edu"))
    with pytest.raises(HarnessError, match=r"planted_twice: another module has the role edu"):
        devices.kinds()


def test_there_is_room_for_seven_kinds(folder: Path) -> None:
    emulated = [kind for kind in devices.kinds().values() if kind.emulation]
    for number in range(8 - len(emulated)):
        (folder / f"planted_number{number}.py").write_text(PLANTED.format(role=f"p{number}"))
    devices.kinds.cache_clear()
    with pytest.raises(HarnessError, match="8 devices do not fit"):
        Topology().devices()


def test_an_unknown_role_is_answered_with_those_there_are() -> None:
    there = ", ".join(devices.kinds())
    with pytest.raises(
        HarnessError, match=f"no kind of device has the role gpu\n  fix: choose {there}"
    ):
        devices.kind("gpu")


def pci_device(vendor: int, device: int, class_code: int) -> PciDevice:
    return PciDevice("0000:09:00.0", vendor, device, class_code, None, None)


def test_devices_are_known_by_model_or_by_class() -> None:
    drive, card = pci_device(0x144D, 0xA80A, 0x0108), pci_device(0x8086, 0x10C9, 0x0200)
    assert [PciClass(0x0108).matches(one) for one in (drive, card)] == [True, False]
    assert [PciId(0x8086, 0x10C9).matches(one) for one in (drive, card)] == [False, True]
    known = {kind.role for kind in devices.kinds().values() if kind.matches(drive)}
    assert known == {"nvme"}


class OneAnswer:
    """Answer a guest's command with one output."""

    name = "guest0"

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text

    def run(self, command: str, *, timeout: float = 30.0, check: bool = True) -> Output:
        self.asked, self.timeout = command, timeout
        return Output(command, self.status, self.text.encode())


DRIVE = AssignedDevice("dev0", ANY, "nvme", "0000:0b:00.0", smmu=0, port=0)


def test_a_disk_is_the_guests_own_namespace() -> None:
    """The drive need not be the first that the guest found."""
    answer = OneAnswer(0, f"{DRIVE.sysfs}/nvme/nvme3/nvme3n1\n")
    assert Disk(cast(Guest, answer), DRIVE).path == "/dev/nvme3n1"


def test_a_drive_has_as_long_to_become_ready_as_one_that_is_plugged() -> None:
    answer = OneAnswer(0, f"{DRIVE.sysfs}/nvme/nvme3/nvme3n1\n")
    Disk(cast(Guest, answer), DRIVE)
    assert f"[ $i = {10 * PLUG_SECONDS:.0f} ]" in answer.asked
    assert "usleep 100000" in answer.asked
    assert answer.timeout > PLUG_SECONDS


def test_a_drive_without_a_namespace_is_the_products_failure() -> None:
    answer = OneAnswer(1, "ls: /sys/…: No such file or directory\n")
    with pytest.raises(ProductError, match=r"guest0 has no namespace of the nvme at 0000:21:00\.0"):
        Disk(cast(Guest, answer), DRIVE)


# -- the choice of a source --------------------------------------------------------------------

#: A kind of device with three ways to perform DMA, and one with none.
ABLE = """
from harness.devices.kind import DeviceKind, PciId
from harness.devices.source import FaultSource
from harness.host.ability import Ability

def way(name, *can):
    return type(name, (FaultSource,), {"way": name, "can": frozenset(can), "command": None})

LINES = way("lines", Ability.READ)
WORDS = way("words", Ability.READ, Ability.WRITE)
FLOODS = way("floods", Ability.READ, Ability.WRITE, Ability.FLOOD)
KIND = DeviceKind("able", PciId(1, 2), sources=(LINES, WORDS, FLOODS))
"""
LAME = """
from harness.devices.kind import DeviceKind, PciId

KIND = DeviceKind("lame", PciId(1, 3))
"""


@pytest.fixture
def planted(folder: Path) -> None:
    (folder / "planted_able.py").write_text(ABLE)
    (folder / "planted_lame.py").write_text(LAME)


def assigned(role: str, *, port: int = 0, smmu: int = 0, need: Need = ANY) -> AssignedDevice:
    return AssignedDevice(f"dev{smmu}.{port}", need, role, "0000:09:00.0", smmu, port)


def guest_with(*chosen: AssignedDevice) -> Guest:
    return cast(Guest, SimpleNamespace(name="guest0", devices=chosen))


@pytest.mark.usefixtures("planted")
def test_the_first_way_that_can_is_taken() -> None:
    device = assigned("able")
    guest = guest_with(device)
    asked = [(), (Ability.READ,), (Ability.WRITE,), (Ability.WRITE, Ability.FLOOD)]
    ways = [devices.source_of(guest, device, *abilities).way for abilities in asked]
    assert ways == ["lines", "lines", "words", "floods"]


@pytest.mark.usefixtures("planted")
def test_a_device_that_was_chosen_for_it_comes_first() -> None:
    first, flooder = assigned("able"), assigned("able", port=1, need=FLOODER)
    other = assigned("able", smmu=1, need=READER)
    guest = guest_with(first, flooder, other)
    assert devices.source(guest, Ability.WRITE).assigned == flooder
    assert devices.source(guest, Ability.READ).assigned == other
    assert devices.source(guest, Ability.READ, smmu=0).assigned == first


@pytest.mark.usefixtures("planted")
def test_a_device_that_is_not_plugged_is_no_source() -> None:
    hot = dataclasses.replace(assigned("able", need=READER), cold=False)
    with pytest.raises(HarnessError, match="no device of guest guest0 can read"):
        devices.source(guest_with(hot), Ability.READ)
    assert devices.source_of(guest_with(hot), hot, Ability.READ).assigned == hot


@pytest.mark.usefixtures("planted")
def test_a_source_that_is_not_there_is_told() -> None:
    lame, able = assigned("lame"), assigned("able")
    with pytest.raises(HarnessError, match="no device of guest guest0 can read and flood"):
        devices.source(guest_with(lame), Ability.READ, Ability.FLOOD)
    with pytest.raises(HarnessError, match=r"lame dev0\.0 cannot perform DMA\n.*no DMA"):
        devices.source_of(guest_with(lame), lame)
    there = "lines: read, words: read write, floods: flood read write"
    with pytest.raises(HarnessError, match=rf"able dev0\.0 cannot reach\n.*{there}"):
        devices.source_of(guest_with(able), able, Ability.REACH)
