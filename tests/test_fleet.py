"""The fleet gives each guest devices that can do what it needs, or says what the host lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.devices import kind
from harness.guest.choice import MissingDevicesError
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.host.ability import (
    ANY,
    DISK,
    FLOODER,
    PROBE,
    READER,
    READER_AND_WRITER,
    WRITER,
    Need,
    of_role,
)
from harness.host.host import Host, HostFiles
from harness.host.pci import PciDevice
from harness.progress import Progress
from harness.virtual.topology import Topology


def fleet_of(*smmus: Mapping[str, str]) -> Fleet:
    """Return the fleet of a host with these devices behind each SMMU: roles by address."""
    roles = {bdf: role for devices in smmus for bdf, role in devices.items()}
    devices = {
        bdf: PciDevice(bdf, 1, 2, 3, None, f"smmu3.{number}")
        for number, behind in enumerate(smmus)
        for bdf in behind
    }
    description = SimpleNamespace(devices={bdf: kind(role) for bdf, role in roles.items()})
    host = SimpleNamespace(name="one", console=None, devices=devices, description=description)
    return Fleet(cast(Host, host), Progress(enabled=False))


def chosen(fleet: Fleet, *smmus: tuple[Need, ...]) -> list[str]:
    """Return the host addresses of the devices for a guest with these needs behind each SMMU."""
    (devices,) = fleet.choose([GuestSpec(smmus=tuple(SmmuSpec(hot=needs) for needs in smmus))])
    return [device.host_bdf for device in devices]


def test_the_lowest_rank_comes_first() -> None:
    fleet = fleet_of({"a": "igb", "b": "nvme", "c": "iommu-testdev", "d": "edu"})
    assert chosen(fleet, (ANY, ANY, ANY, ANY)) == ["c", "d", "b", "a"]


def test_an_earlier_need_leaves_a_device_for_a_later_one() -> None:
    """The first device that will do is not taken if a later need would then have none."""
    edu, nvme = of_role("edu"), of_role("nvme")
    fleet = fleet_of({"a": "edu", "b": "nvme", "c": "igb"})
    assert chosen(fleet, (ANY, edu)) == ["b", "a"]
    assert chosen(fleet, (ANY, edu, nvme)) == ["c", "a", "b"]
    assert chosen(fleet, (ANY, ANY, edu)) == ["b", "c", "a"]


def test_the_devices_of_an_smmu_are_behind_one_of_the_host() -> None:
    fleet = fleet_of({"a": "edu"}, {"b": "edu", "c": "nvme"})
    assert chosen(fleet, (ANY, ANY)) == ["b", "c"]
    assert chosen(fleet, (ANY,), (ANY, ANY)) == ["a", "b", "c"]


def test_a_guest_may_have_all_its_devices_behind_one_smmu_of_the_host() -> None:
    fleet = fleet_of({"a": "edu"}, {"b": "edu", "c": "nvme"})
    guest = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)), SmmuSpec(hot=(ANY,))), one_host_smmu=True)
    (devices,) = fleet.choose([guest])
    assert [(one.host_bdf, one.smmu, one.port, one.cold) for one in devices] == [
        ("b", 0, 0, True),
        ("c", 1, 0, False),
    ]
    with pytest.raises(MissingDevicesError, match="behind one SMMU"):
        fleet_of({"a": "edu"}, {"b": "edu"}).choose([guest])


def test_an_earlier_smmu_leaves_devices_for_a_later_one() -> None:
    """The first devices that will do are not taken if a later SMMU would then have none."""
    edu = of_role("edu")
    fleet = fleet_of({"a": "edu", "b": "nvme"}, {"c": "nvme"})
    assert chosen(fleet, (ANY,), (ANY, ANY)) == ["c", "a", "b"]
    assert chosen(fleet, (ANY,), (edu,)) == ["b", "a"]
    assert chosen(fleet, (DISK,), (ANY,), (ANY,)) == ["b", "a", "c"]
    one, two = (
        GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),)),
        GuestSpec(smmus=(SmmuSpec(devices=(ANY, edu)),)),
    )
    both = fleet.choose([one, two])
    assert [[device.host_bdf for device in devices] for devices in both] == [["c"], ["b", "a"]]


def test_what_no_choice_gives_is_known_soon() -> None:
    drives = [{f"{smmu}{port}": "nvme" for port in range(7)} for smmu in "abcdefgh"]
    fleet = fleet_of(*drives, {"z": "edu"})
    with pytest.raises(MissingDevicesError, match="beside 7 devices for the rest of the test"):
        chosen(fleet, *[(ANY, ANY)] * 3, (of_role("edu"),), (of_role("edu"),))


def test_no_two_guests_get_one_device() -> None:
    fleet = fleet_of({"a": "edu", "b": "edu", "c": "nvme"})
    one = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))
    both = fleet.choose([one, one])
    assert [[device.host_bdf for device in devices] for devices in both] == [["a"], ["b"]]
    assert fleet.choose([one, one]) == both, "another choice for the same question"


def test_what_is_missing_is_named() -> None:
    fleet = fleet_of({"a": "nvme"}, {"b": "nvme"})
    with pytest.raises(MissingDevicesError) as missing:
        chosen(fleet, (READER, DISK))
    assert missing.value.message == (
        "host one does not have, behind one SMMU: a device that can read, a device that can be a "
        "disk"
    )
    assert "inventory" in str(missing.value.fix)
    with pytest.raises(
        MissingDevicesError, match="behind one SMMU beside 2 devices for the rest of the test: a de"
    ):
        chosen(fleet, (ANY,), (ANY,), (ANY,))


# -- hosts that the suites are for -------------------------------------------------------------

VIRTUAL = fleet_of(
    *(
        {one.bdf: one.kind.role for one in Topology().devices() if one.smmu == smmu}
        for smmu in range(Topology().smmus)
    )
)


@pytest.mark.parametrize(
    ("needs", "roles"),
    [
        ((READER, FLOODER), ["edu", "iommu-testdev"]),
        ((READER_AND_WRITER,), ["edu"]),
        ((WRITER, WRITER), ["edu", "iommu-testdev"]),
        ((PROBE,), ["edu"]),
        ((DISK,), ["nvme"]),
        ((ANY, ANY, DISK), ["edu", "iommu-testdev", "nvme"]),
        ((ANY, of_role("edu")), ["iommu-testdev", "edu"]),
    ],
)
def test_the_virtual_host_has_a_device_for_every_need(
    needs: tuple[Need, ...], roles: list[str]
) -> None:
    (devices,) = VIRTUAL.choose([GuestSpec(smmus=(SmmuSpec(devices=needs),))])
    assert [device.role for device in devices] == roles
    assert [device.need for device in devices] == list(needs)


def test_five_guest_smmus_have_a_device_each_on_two_of_the_host() -> None:
    roles = [VIRTUAL.host.description.devices[bdf].role for bdf in chosen(VIRTUAL, *[(ANY,)] * 5)]
    assert roles == ["edu", "iommu-testdev", "edu", "iommu-testdev", "nvme"]
    drives = [{f"{smmu}{port}": "nvme" for port in range(3)} for smmu in "ab"]
    real = fleet_of(*({**behind, f"{smmu}3": "igb"} for smmu, behind in enumerate(drives)))
    assert len(set(chosen(real, *[(ANY,)] * 5))) == 5


# -- the names of snapshots ----------------------------------------------------------------------


def name_of_snapshot(**versions: str) -> str:
    """Return the name of a guest with a reader and a flooder, on a host with these files."""
    fleet = fleet_of({"a": "iommu-testdev", "b": "edu"})
    files = HostFiles("/qemu", "/firmware", "/Image", "/initrd")
    fleet.host.files = files
    told = {**asdict(files), **versions}
    vars(fleet.host)["versions_of_files"] = {name: one for name, one in told.items() if one}
    spec = GuestSpec(smmus=(SmmuSpec(devices=(READER, FLOODER)),))
    return fleet._key([(spec, fleet.choose([spec])[0])])


def test_a_snapshot_has_the_same_name_in_each_process() -> None:
    script = "from tests.test_fleet import name_of_snapshot; print(name_of_snapshot())"
    names = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for seed in range(6)
    }
    assert names == {f"{name_of_snapshot()}\n"}


def test_a_snapshot_has_another_name_if_any_file_of_its_host_is_another_one() -> None:
    """Also one that these guests do not have: a restored host has the files that it was saved
    with."""
    names = {
        name_of_snapshot(),
        name_of_snapshot(qemu="of another build"),
        name_of_snapshot(guest_kernel="of another build"),
        name_of_snapshot(small_queues_kernel="of another build"),
    }
    assert len(names) == 4
