"""QEMU's command line for a guest has its cold-plugged devices, and only ports for the others."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import pytest

from harness.devices import kind
from harness.errors import LabError
from harness.guest import description
from harness.guest.description import (
    BoundarySpec,
    GuestSpec,
    Paths,
    SmmuSpec,
    arguments,
    launch,
    place,
)
from harness.guest.root_port import RootPort
from harness.host.ability import ANY, DISK, READER
from harness.host.host import HostFiles

FILES = HostFiles("qemu", "firmware", "kernel", "initrd")
GUEST = GuestSpec(smmus=(SmmuSpec(devices=(READER,), hot=(DISK,)), SmmuSpec(hot=(ANY,))))
BDFS = [["0000:09:00.0", "0000:0b:00.0"], ["0000:11:00.0"]]
KINDS = {"0000:09:00.0": kind("edu"), "0000:0b:00.0": kind("nvme"), "0000:11:00.0": kind("edu")}


def options(guest: GuestSpec, which: str, chosen: Sequence[Sequence[str]] = BDFS) -> list[str]:
    """Return the values of an option of QEMU's command line, in order."""
    argv = description.arguments(guest, place(guest, chosen, KINDS), FILES, Paths("/run"))
    return [value for option, value in itertools.pairwise(argv) if option == which]


def test_hot_devices_have_a_port_and_no_more() -> None:
    devices = options(GUEST, "-device")
    assert [one.split(",")[1] for one in devices if one.startswith("vfio-pci,")] == [
        "host=0000:09:00.0"
    ]
    ports = [one for one in devices if one.startswith("pcie-root-port,")]
    assert ["id=port0.0" in ports[0], "id=port0.1" in ports[1], "id=port1.0" in ports[2]] == [
        True
    ] * 3


def test_a_root_complex_has_a_port_even_for_nothing() -> None:
    guest = GuestSpec(smmus=(SmmuSpec(), SmmuSpec(hot=(ANY,))))
    argv = arguments(guest, [], FILES, Paths("/run"))
    ports = [one for one in argv if one.startswith("pcie-root-port,")]
    assert ["bus=pcie.1," in ports[0], "bus=pcie.2," in ports[1], len(ports)] == [True, True, 2]


def test_each_guest_has_a_copy_of_the_firmwares_variables() -> None:
    assert "pflash" not in line(GuestSpec(), [[]])
    files = dataclasses.replace(FILES, firmware_variables="/vars")
    argv = arguments(GuestSpec(), [], files, Paths("/run"))
    assert "if=pflash,unit=1,format=raw,snapshot=on,file=/vars" in argv


def test_an_82576_fits_behind_every_port() -> None:
    """A real one has registers of 128 KiB, its flash of 4 MiB and its MSI-X table of 16 KiB."""
    bars = (128 << 10) + (4 << 20) + (16 << 10)
    for port in (one for one in options(GUEST, "-device") if one.startswith("pcie-root-port,")):
        (window,) = re.findall(r",mem-reserve=(\d+)M", port)
        assert int(window) << 20 >= bars


def test_slots_tell_all_ports_apart() -> None:
    ports = [one for one in options(GUEST, "-device") if one.startswith("pcie-root-port,")]
    slots = {part for one in ports for part in one.split(",") if part.startswith("slot=")}
    assert len(slots) == len(ports) == 3


def test_an_empty_port_follows_those_of_the_devices_and_takes_none() -> None:
    guest = GuestSpec(smmus=(SmmuSpec(devices=(READER,), hot=(DISK,), empty=1),))
    assert guest.needs == ((READER, DISK),)
    placed = place(guest, BDFS[:1], KINDS)
    assert [one.guest_bus for one in placed] == [RootPort(0, n).secondary_bus for n in range(2)]
    argv = description.arguments(guest, placed, FILES, Paths("/run"))
    ports = [one for one in argv if one.startswith("pcie-root-port,id=")]
    assert [one.split(",")[1] for one in ports] == [f"id=port0.{n}" for n in range(3)]


def test_places_are_the_ports_in_order() -> None:
    placed = place(GUEST, BDFS, KINDS)
    assert [(one.need, one.role, one.cold, one.guest_bdf) for one in placed] == [
        (READER, "edu", True, "0000:21:00.0"),
        (DISK, "nvme", False, "0000:22:00.0"),
        (ANY, "edu", False, "0000:31:00.0"),
    ]
    assert [one.ready for one in placed] == [KINDS[one.host_bdf].ready for one in placed]


def test_an_smmu_without_a_cold_device_says_what_it_would_copy() -> None:
    with_device, without = (one for one in options(GUEST, "-device") if "arm-smmuv3" in one)
    assert "oas=" not in with_device
    assert without.endswith(",accel=on,ats=off,ril=on,ssidsize=0,oas=44")


def test_a_drive_of_several_ports_is_a_disk_of_its_own() -> None:
    """Where the guest's kernel has CONFIG_NVME_MULTIPATH, /dev has none by the name in the drive's
    folder of sysfs (drivers/nvme/host/core.c: nvme_alloc_ns)."""
    (append,) = options(GuestSpec(append="quiet"), "-append", chosen=[[]])
    assert "nvme_core.multipath=N" in append.split()


def test_a_paused_guest_stands_still() -> None:
    argv = description.arguments(GuestSpec(paused=True), [], FILES, Paths("/run"))
    assert "-S" in argv
    assert "-S" not in description.arguments(GuestSpec(), [], FILES, Paths("/run"))


def line(guest: GuestSpec, chosen: list[list[str]]) -> str:
    return " ".join(arguments(guest, place(guest, chosen, KINDS), FILES, Paths("/run/x")))


def test_properties_are_explicit_only_without_a_device() -> None:
    assert "accel=on,ats=off,ril=on,ssidsize=0,oas=44" in line(GuestSpec(), [[]])
    with_device = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),))
    assert "id=smmu0,accel=on " in line(with_device, [["0000:09:00.0"]])
    chosen = GuestSpec(smmus=(SmmuSpec(properties=(("oas", "48"),)),))
    assert "accel=on,ats=off,ril=on,ssidsize=0,oas=48" in line(chosen, [[]])


def test_devices_and_needs_must_match() -> None:
    with pytest.raises(ValueError, match="shorter"):
        place(GuestSpec(smmus=(SmmuSpec(devices=(READER, DISK)),)), [["0000:09:00.0"]], KINDS)


def test_memory_in_huge_pages_is_a_backend() -> None:
    assert "memory-backend" not in line(GuestSpec(), [[]])
    huge = line(GuestSpec(huge_pages=True), [[]])
    assert ",memory-backend=memory " in huge
    assert "memory-backend-memfd,id=memory,size=256M,hugetlb=on,hugetlbsize=2M" in huge


def test_small_queues_take_another_kernel() -> None:
    guest = GuestSpec(small_queues=True)
    with pytest.raises(LabError, match="no guest kernel with small queues"):
        line(guest, [[]])
    files = dataclasses.replace(FILES, small_queues_kernel="/small")
    assert "-kernel /small " in " ".join(arguments(guest, [], files, Paths("/run/x")))


def test_a_boundary_starts_qemu_and_has_a_socket_of_its_own() -> None:
    paths = Paths("/run/x")
    argv, sockets = launch(GuestSpec(), ["qemu", "-x"], paths)
    assert (argv, "control" in sockets) == (["qemu", "-x"], False)
    boundary = BoundarySpec("a.b", reads=True)
    argv, sockets = launch(GuestSpec(boundary=boundary), ["qemu", "-x"], paths)
    assert argv[-5:] == ["--reads", "--rules=[]", "--", "qemu", "-x"]
    assert argv[3:5] == ["{control}", "/run/x/boundary.log"]
    assert sockets["control"] == "/run/x/control.sock"


def test_qemus_environment_is_set_before_whatever_starts_it() -> None:
    guest = GuestSpec(environment=(("A", "1"), ("B", "x y")))
    argv, _ = launch(guest, ["qemu"], Paths("/run/x"))
    assert argv == ["env", "A=1", "B=x y", "qemu"]
    behind = dataclasses.replace(guest, boundary=BoundarySpec("a.b"))
    argv, _ = launch(behind, ["qemu"], Paths("/run/x"))
    assert (argv[:4], argv[-1]) == (["env", "A=1", "B=x y", "python3"], "qemu")


def test_the_machine_has_more_properties() -> None:
    assert ",dump-guest-core=off,msi=off " in line(GuestSpec(machine="msi=off"), [[]])


def test_open_files_take_the_place_of_names() -> None:
    guest = GuestSpec(smmus=(SmmuSpec(devices=(READER,)),), descriptors=True)
    argv = arguments(guest, place(guest, [["0000:09:00.0"]], KINDS), FILES, Paths("/run/x"))
    assert "iommufd,id=iommufd0,fd={/dev/iommu}" in argv
    (device,) = (one for one in argv if one.startswith("vfio-pci,"))
    assert "host=" not in device
    assert device.endswith(",fd={/sys/bus/pci/devices/0000:09:00.0/vfio-dev}")
    started, _ = launch(guest, argv, Paths("/run/x"))
    assert started[:4] == ["python3", "-I", "/run/x/open_files.py", "qemu"]
