"""A device that is given back has what it had before; a failure says what is wrong, and how to
repair it. The command runs in a real shell; the kernel's part of sysfs is simulated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.host import give_back
from harness.host.give_back import NO_OVERRIDE, Before

BDF = "0000:01:00.0"

# What a kernel does for a write: VALUE FILE. A driver takes a device only if the override is empty
# or names it; a driver that has a file `refuses` answers with success and takes nothing, as
# drivers_probe and old kernels do; one that has a file `fails` answers with an error.
KERNEL = """\
#!/bin/sh
driver=$(basename "$(dirname "$2")")
case $2 in
*/unbind) rm "$(dirname "$2")" ;;
*/driver_override) echo "${1:-(null)}" >$2 ;;
*/bind)
  [ -e $2 ] || { echo "cannot create $2: Directory nonexistent" >&2; exit 2; }
  [ ! -e ${2%bind}refuses ] || exit 0
  [ ! -e ${2%bind}fails ] || { echo "write error: No such device" >&2; exit 1; }
  [ "$(cat DEVICE/driver_override)" = $driver ] || { echo "write error: no match" >&2; exit 1; }
  ln -sn ${2%/bind} DEVICE/driver ;;
esac
"""


class Sysfs:
    """A sysfs with one device, and the drivers nvme and vfio-pci."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.note = root / "run/device"
        self.device = root / "devices" / BDF
        for folder in ("run", "drivers/nvme", "drivers/vfio-pci", f"devices/{BDF}"):
            (root / folder).mkdir(parents=True)
        for driver in ("nvme", "vfio-pci"):
            for file in ("bind", "unbind"):
                (root / "drivers" / driver / file).touch()
        self.kernel = root / "kernel"
        self.kernel.write_text(KERNEL.replace("DEVICE", str(self.device)))
        self.kernel.chmod(0o755)

    def assigned(self, before: Before) -> str:
        """Have the device with vfio-pci, and a note of it; return the command to give it back."""
        (self.device / "driver").unlink(missing_ok=True)
        (self.device / "driver").symlink_to(self.root / "drivers/vfio-pci")
        (self.device / "driver_override").write_text("vfio-pci\n")
        note = give_back.take_note(before, "vfio-pci", str(self.note))
        subprocess.run(["sh", "-c", note], check=True)
        command = give_back.command(
            BDF,
            before,
            file=str(self.note),
            devices=str(self.root / "devices"),
            drivers=str(self.root / "drivers"),
        )
        put = '/bin/echo "$1" >"$2"'
        assert put in command
        return command.replace(put, f'{self.kernel} "$1" "$2"')

    def run(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout

    @property
    def state(self) -> tuple[str | None, str]:
        driver = self.device / "driver"
        override = (self.device / "driver_override").read_text().strip()
        return driver.readlink().name if driver.is_symlink() else None, override


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


@pytest.mark.parametrize(
    "before",
    [
        Before("nvme", NO_OVERRIDE),
        Before("nvme", "nvme"),
        pytest.param(Before("nvme", "other"), id="an-override-that-names-another-driver"),
        Before(None, NO_OVERRIDE),
        Before(None, "other"),
    ],
    ids=str,
)
def test_driver_and_override_return(sysfs: Sysfs, before: Before) -> None:
    command = sysfs.assigned(before)
    for _ in range(2):  # it may be run again by a successor
        assert sysfs.run(command) == (0, "")
        assert sysfs.state == (before.driver, before.override)
    assert not sysfs.note.exists()


def test_a_device_that_its_driver_has_taken_already_stays_with_it(sysfs: Sysfs) -> None:
    command = sysfs.assigned(Before("nvme", NO_OVERRIDE))
    (sysfs.device / "driver").unlink()
    (sysfs.device / "driver").symlink_to(sysfs.root / "drivers/nvme")
    (sysfs.root / "drivers/nvme/fails").touch()
    assert sysfs.run(command) == (0, "")


@pytest.mark.parametrize("how", ["refuses", "fails"])
def test_a_driver_that_does_not_take_it_back_is_told(sysfs: Sysfs, how: str) -> None:
    before = Before("nvme", NO_OVERRIDE)
    command = sysfs.assigned(before)
    (sysfs.root / "drivers/nvme" / how).touch()
    status, said = sysfs.run(command)
    assert status == 1
    assert (
        f"device {BDF} had driver nvme and driver_override (null); now it has driver none" in said
    )
    assert ("write error: No such device" in said) is (how == "fails")
    assert f"echo {BDF} >{sysfs.root}/drivers/nvme/bind" in said
    # The next session knows what the device had, and gives it back once the driver takes it.
    known = Before.of(None, NO_OVERRIDE, sysfs.note.read_text())
    assert known == before
    (sysfs.root / "drivers/nvme" / how).unlink()
    assert sysfs.run(command) == (0, "")
    assert sysfs.state == ("nvme", NO_OVERRIDE)


def test_a_driver_that_is_not_loaded_is_told(sysfs: Sysfs) -> None:
    command = sysfs.assigned(Before("mlx5_core", NO_OVERRIDE))
    status, said = sysfs.run(command)
    assert status == 1
    assert "Driver mlx5_core is not loaded" in said
    assert sysfs.note.exists()


def test_a_device_that_is_gone_has_nothing_to_give_back(sysfs: Sysfs) -> None:
    command = sysfs.assigned(Before("nvme", NO_OVERRIDE))
    sysfs.device.rename(sysfs.root / "gone")
    assert sysfs.run(command) == (0, "")
    assert not sysfs.note.exists()


@pytest.mark.parametrize(
    ("driver", "note", "expected"),
    [
        (None, "nvme (null) vfio-pci", Before("nvme", NO_OVERRIDE)),
        ("vfio-pci", "nvme x vfio-pci", Before("nvme", "x")),
        ("vfio-pci", "- (null) vfio-pci", Before(None, NO_OVERRIDE)),
        ("mlx5_core", "nvme (null) vfio-pci", Before("mlx5_core", "now")),
        ("vfio-pci", "", Before("vfio-pci", "now")),
        (None, "damaged", Before(None, "now")),
    ],
)
def test_a_note_counts_until_the_device_is_repaired(
    driver: str | None, note: str, expected: Before
) -> None:
    assert Before.of(driver, "now", note) == expected
