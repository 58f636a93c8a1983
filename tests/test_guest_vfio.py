"""A guest is told how to drive a device from user space, and who is to drive it."""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
from pathlib import Path
from typing import cast

import pytest

from harness.errors import HarnessError, ProductError
from harness.guest import mmio
from harness.guest.console import Output
from harness.guest.description import AssignedDevice
from harness.guest.guest import Guest
from harness.guest.mmio import inside, until32, write32
from harness.guest.vfio import (
    BAR0,
    MEMORY,
    bind_command,
    bound,
    lent,
    map_memory,
    unbind_command,
    unbound,
    unmap_memory,
    vfio_command,
)
from harness.host.ability import ANY

DRIVE = AssignedDevice("dev0.0", ANY, "nvme", "0000:09:00.0", smmu=0, port=0)
BDF = DRIVE.guest_bdf


def test_a_command_is_one_line_of_shell() -> None:
    line = vfio_command(
        BDF,
        8192,
        map_memory(0x1_0000, 0, 4096),
        map_memory(0x2_0000, 4096, 4096, writable=False),
        *(inside(MEMORY), write32(0, 1), inside(BAR0), until32(0x1C, 1, 1, seconds=2)),
        unmap_memory(0x1_0000, 4096),
    )
    assert "\n" not in line
    assert shlex.split(line) == [
        *("hil", "vfio", "0000:21:00.0", "0x2000"),
        *("map:0x10000=0x0+0x1000", "map:0x20000=0x1000+0x1000,ro"),
        *("in:memory", "w32:0x0=0x1", "in:bar0", "until32:0x1c&0x1=0x1@2"),
        "unmap:0x10000+0x1000",
    ]
    assert mmio.writes(line)
    assert not mmio.writes(vfio_command(BDF, 8192, inside(MEMORY)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((BDF, "0x1000", "map:0=0+0x2000"), "map:0=0+0x2000: only the tool's own memory can be"),
        ((BDF, "0x1000", "map:0=0x1000+0x1000"), "map:0=0x1000+0x1000: only the tool's own"),
        ((BDF, "0x1000", "map:0=0+0x1000,rw"), "map:0=0+0x1000,rw: only ro may follow"),
        ((BDF, "0x1000", "unmap:0"), "unmap:0: a number is malformed"),
        ((BDF, "much", "r32:0"), "a number is malformed"),
    ],
)
def test_nonsense_is_refused_before_the_device_is_touched(
    tool: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = subprocess.run([tool, "vfio", *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"hil: {message}")


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Return a folder with the files of sysfs that binding uses, in which nvme has the drive."""
    folder = tmp_path / "port" / BDF
    folder.mkdir(parents=True)
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / BDF).symlink_to(f"../port/{BDF}")
    for driver in ("nvme", "vfio-pci"):
        (tmp_path / "drivers" / driver).mkdir(parents=True)
    (folder / "driver").symlink_to("../../drivers/nvme")
    return tmp_path


def shell(command: str, sysfs: Path, tool: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a guest's command on this machine, with another folder for /sys/bus/pci and /tmp, and
    with the guest's program."""
    line = command.replace("/tmp/", f"{sysfs}/").replace("/sys/bus/pci", str(sysfs))
    path = f"{tool.parent}:{os.environ['PATH']}" if tool else os.environ["PATH"]
    environment = {**os.environ, "LC_ALL": "C", "PATH": path}
    return subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, check=False
    )


def written(sysfs: Path) -> dict[str, str]:
    """Return what was written, by file."""
    files = [path for path in sysfs.rglob("*") if path.is_file() and path.name != "resource0"]
    return {str(path.relative_to(sysfs)): path.read_text() for path in files}


def test_a_device_that_its_driver_has_already_is_left_alone(sysfs: Path) -> None:
    assert shell(bind_command(DRIVE, "nvme"), sysfs).returncode == 0
    assert written(sysfs) == {}


def test_a_driver_that_does_not_take_the_device_is_told(sysfs: Path) -> None:
    """In this folder no kernel probes drivers, so the old one stays."""
    ended = shell(bind_command(DRIVE, "vfio-pci"), sysfs)
    assert ended.returncode != 0
    assert "drivers/nvme" in ended.stdout
    assert written(sysfs) == {
        "drivers/nvme/unbind": f"{BDF}\n",
        f"port/{BDF}/driver_override": "vfio-pci\n",
        "drivers_probe": f"{BDF}\n",
    }


def test_a_device_is_taken_from_its_driver(sysfs: Path) -> None:
    assert shell(unbind_command(DRIVE), sysfs).returncode == 0
    told = {f"port/{BDF}/driver_override": "\n"}
    assert written(sysfs) == {"drivers/nvme/unbind": f"{BDF}\n", **told}
    (sysfs / "devices" / BDF / "driver").unlink()
    (sysfs / "drivers/nvme/unbind").unlink()
    assert shell(unbind_command(DRIVE), sysfs).returncode == 0
    assert written(sysfs) == told


def test_a_device_that_the_guest_does_not_have(tmp_path: Path) -> None:
    class Empty:
        name = "g0"

        def run(self, command: str, *, check: bool) -> Output:
            ended = shell(command, tmp_path)
            return Output(command, ended.returncode, ended.stderr.encode())

    guest = cast(Guest, Empty())
    with pytest.raises(
        ProductError, match=f"nvme at {BDF} of guest g0 cannot be bound to nvme: .*"
    ):
        bound(guest, DRIVE, "nvme")
    with pytest.raises(ProductError, match=r"cannot be taken from its driver: .*devices"):
        unbound(guest, DRIVE)


class Lender:
    """A guest whose IORT is at 0x4000, and has a range that devices must find one to one. What it
    would write to its memory is left out."""

    name = "g0"

    def __init__(self, sysfs: Path, tool: Path) -> None:
        self.sysfs, self.tool = sysfs, tool
        self.commands: list[str] = []

    def run(self, command: str, *, check: bool) -> Output:
        self.commands.append(command)
        if command.startswith("hil acpi"):
            return Output(command, 0, b"0x4000\n" + iort_of_a_guest())
        changed = "hil mmio /dev/mem w32:0x4040=0x1 && "
        ended = shell(command.replace(changed, ""), self.sysfs, self.tool)
        return Output(command, ended.returncode, (ended.stdout + ended.stderr).encode())


def iort_of_a_guest() -> bytes:
    """Return an IORT with one reserved memory range, whose flags are at offset 0x40."""
    node = struct.pack("<BHBIIII", 6, 20, 3, 0, 0, 20, 0)
    return b"IORT" + bytes(32) + struct.pack("<III", 1, 48, 0) + node


def test_a_device_is_found_anew_and_read_before_it_is_lent(sysfs: Path, tool: Path) -> None:
    folder, cap = sysfs / "devices" / BDF, 0x0040_0082_0F01_07FF
    (folder / "resource0").write_bytes(cap.to_bytes(8, "little") + bytes(4088))
    (folder / "driver").unlink()
    (folder / "driver").symlink_to("../../drivers/vfio-pci")
    guest = Lender(sysfs, tool)
    assert lent(cast(Guest, guest), DRIVE, mmio.read64(0)) == [cap]
    assert "hil mmio /dev/mem w32:0x4040=0x1 && " in guest.commands[-1]
    assert written(sysfs) == {
        f"port/{BDF}/remove": "1\n",
        "port/rescan": "1\n",
        "drivers_autoprobe": "1\n",
        f"port/{BDF}/enable": "0\n",
        f"lent-{BDF}-r64:0x0": f"{cap:#x}\n",
    }
    # What was read is known the second time, and the guest need not find the device again.
    guest.commands.clear()
    (folder / "resource0").unlink()
    assert lent(cast(Guest, guest), DRIVE, mmio.read64(0)) == [cap]
    assert len(guest.commands) == 1


def test_a_guest_without_its_tables_lends_nothing(sysfs: Path) -> None:
    class Blind(Lender):
        def run(self, command: str, *, check: bool) -> Output:
            return Output(command, 1, b"hil: /sys/firmware/efi/systab: No such file or directory\n")

    with pytest.raises(HarnessError, match=r"g0 does not say where its ACPI tables are: hil: /sys"):
        lent(cast(Guest, Blind(sysfs, sysfs)), DRIVE)
