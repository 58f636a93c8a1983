"""What uses a device is found: with real loop devices, swap, mounts and processes of this machine;
and in a simulated sysfs where that takes a kernel or hardware that this machine may not have."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.host import in_use
from harness.host.in_use import Usage
from tests.interpreters import INTERPRETERS

BDF = "0000:01:00.0"
PROGRAM = Path(in_use.__file__)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")


def on_this_machine(bdf: str, interpreter: str = sys.executable, ssh: str = "") -> list[str]:
    """Return what the program says of a device of this machine, run as it is on a host."""
    done = subprocess.run(
        [interpreter, "-I", "-", bdf],
        input=PROGRAM.read_bytes(),
        stdout=subprocess.PIPE,
        env=os.environ | {"SSH_CONNECTION": ssh},
        check=True,
        timeout=30,
    )
    found: list[str] = json.loads(done.stdout)[bdf]
    return found


def pci_device(path: Path) -> str | None:
    """Return the address of the PCI device that has a device in sysfs, or None."""
    found = re.findall(r"/([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?=/)", str(path.resolve()))
    return found[-1] if found else None


class Rig:
    """A root with one PCI device, whose disks have the numbers of real ones. Its /dev and /proc are
    this machine's, unless a test makes others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.device = root / "sys/devices/pci0000:00" / BDF
        self.device.mkdir(parents=True)
        (root / "sys/bus/pci/devices").mkdir(parents=True)
        (root / "sys/bus/pci/devices" / BDF).symlink_to(self.device)
        # The last is for swap files, which a test has in its own folder.
        for real in ("dev", "proc", root.parts[1]):
            (root / real).symlink_to(f"/{real}")

    def add(self, place: str, subsystem: str, number: str = "", *, under: str = "") -> Path:
        """Add a device of a subsystem: below the PCI device, or in another folder of sysfs."""
        folder = (self.root / "sys" / under if under else self.device) / place
        folder.mkdir(parents=True)
        of_class = self.root / "sys/class" / subsystem
        of_class.mkdir(parents=True, exist_ok=True)
        (folder / "subsystem").symlink_to(of_class)
        (of_class / folder.name).symlink_to(folder)
        if number:
            (folder / "dev").write_text(f"{number}\n")
        return folder

    def disk(self, name: str, number: str, *, under: str = "devices/virtual/block") -> Path:
        folder = self.add(name, "block", number, under=under)
        (folder / "holders").mkdir()
        return folder

    def hold(self, disk: Path, holder: Path) -> None:
        (disk / "holders" / holder.name).symlink_to(holder)

    def procfs(self, **files: str) -> Path:
        """Have a procfs of these files, whose names have -- for a slash."""
        proc = self.root / "proc"
        proc.unlink(missing_ok=True)
        for name, content in {"self--mountinfo": "", **files}.items():
            file = proc / name.replace("--", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        (proc / "self/ns").mkdir()
        (proc / "self/ns/mnt").symlink_to("mnt:[1]")
        return proc

    def uses(self, ssh: str = "") -> list[str]:
        return Usage(str(self.root), ssh).of(BDF)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "root")


# -- this machine --------------------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_the_disk_of_this_machine_is_in_use(interpreter: str) -> None:
    device = Path("/").stat().st_dev
    bdf = pci_device(Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    if bdf is None:
        pytest.skip("the root of this machine is on no PCI device")
    assert any(one.endswith(" is mounted at /") for one in on_this_machine(bdf, interpreter))


def test_the_network_card_of_this_machine_is_in_use() -> None:
    rows = [row.split() for row in Path("/proc/net/route").read_text().splitlines()[1:]]
    for name, target, gateway, *_ in rows:
        bdf = pci_device(Path("/sys/class/net", name))
        if target == "00000000" and bdf:
            client = socket.inet_ntoa(int(gateway, 16).to_bytes(4, sys.byteorder))
            assert on_this_machine(bdf, ssh=f"{client} 50000 192.0.2.200 22") == [
                f"{name} carries the SSH connection from {client}",
                f"{name} has the default route",
            ]
            return
    pytest.skip("the default route of this machine is through no PCI device")


def test_an_absent_device_is_used_by_nothing() -> None:
    assert on_this_machine("ffff:ff:1f.7") == []


# -- real disks ----------------------------------------------------------------------------------


def call(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


class Loops:
    """Loop devices of this machine, which the rig's PCI device has as its disks."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.folder, self.rig = folder, rig
        self.made: list[str] = []

    def attach(self, file: Path | str) -> Path:
        made = subprocess.run(
            ["losetup", "--find", "--show", file], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"this machine makes no loop devices: {made.stderr}")
        self.made.append(made.stdout.strip())
        return Path(self.made[-1])

    def disk(self, mib: int = 4) -> Path:
        """Return a new loop device, which is a disk of the PCI device."""
        file = self.folder / f"disk{len(self.made)}"
        # Without holes, for swapon(2).
        file.write_bytes(bytes(mib << 20))
        file.chmod(0o600)
        node = self.attach(file)
        self.rig.disk(node.name, number(node), under=f"devices/pci0000:00/{BDF}/block")
        return node


def number(node: Path) -> str:
    return f"{os.major(node.stat().st_rdev)}:{os.minor(node.stat().st_rdev)}"


@pytest.fixture
def loops(tmp_path: Path, rig: Rig) -> Iterator[Loops]:
    made = Loops(tmp_path, rig)
    yield made
    for node in reversed(made.made):
        call("losetup", "-d", node)


@contextmanager
def running(*argv: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run a shell script that prints a line when it is ready and then waits for its input."""
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=20)


@needs_root
def test_a_disk_that_nothing_uses_is_free(rig: Rig, loops: Loops) -> None:
    loops.disk()
    assert rig.uses() == []


@needs_root
def test_swap_is_found(rig: Rig, loops: Loops) -> None:
    disk = loops.disk()
    call("mkswap", disk)
    call("swapon", disk)
    try:
        assert rig.uses() == [f"{disk.name} has swap space: {disk}"]
    finally:
        call("swapoff", disk)
    assert rig.uses() == []


@contextmanager
def mounted(disk: Path, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    call("mount", *options, disk, place)
    try:
        yield place
    finally:
        call("umount", place)


def formatted(loops: Loops) -> Path:
    disk = loops.disk(mib=16)
    call("mkfs.ext4", "-q", disk)
    return disk


@needs_root
def test_mounts_are_found_by_number(rig: Rig, loops: Loops, tmp_path: Path) -> None:
    """A mount may have been made by another name of the node; and blanks in paths are escaped."""
    disk = formatted(loops)
    alias = tmp_path / "by-another-name"
    alias.symlink_to(disk)
    with mounted(alias, tmp_path / "a b") as place:
        with mounted(place, tmp_path / "bound", "--bind"):
            assert rig.uses() == [
                f"{disk.name} is mounted at {tmp_path}/a b",
                f"{disk.name} is mounted at {tmp_path}/bound",
            ]
        swap = place / "swap"
        swap.write_bytes(bytes(1 << 20))
        swap.chmod(0o600)
        call("mkswap", swap)
        call("swapon", swap)
        try:
            assert f"{disk.name} has a swap file: {swap}" in rig.uses()
        finally:
            call("swapoff", swap)
    assert rig.uses() == []


@needs_root
def test_a_mount_of_another_namespace_is_found(rig: Rig, loops: Loops, tmp_path: Path) -> None:
    disk = formatted(loops)
    place = tmp_path / "private"
    place.mkdir()
    script = f"mount {disk} {place} && echo ready && read line"
    with running("unshare", "--mount", "sh", "-c", script) as process:
        said = f"{disk.name} is mounted at {place} for process {process.pid} (sh)"
        assert rig.uses() == [said]
    assert rig.uses() == []


@needs_root
def test_a_mount_may_have_another_number_than_its_disk(rig: Rig, loops: Loops) -> None:
    """As a btrfs has. The list of mounts is simulated."""
    disk = loops.disk()
    rig.procfs(**{"self--mountinfo": f"30 1 0:42 /sub /data rw shared:1 - btrfs {disk} rw\n"})
    assert rig.uses() == [f"{disk.name} is mounted at /data"]


@needs_root
def test_a_process_that_has_the_disk_open_is_named(rig: Rig, loops: Loops) -> None:
    disk = loops.disk()
    with running("sh", "-c", f"exec 3<{disk}; echo ready; read line") as process:
        assert rig.uses() == [f"held by process {process.pid} (sh), which has {disk} open"]


@needs_root
def test_a_loop_device_on_the_disk_is_found_and_what_it_has(
    rig: Rig, loops: Loops, tmp_path: Path
) -> None:
    """A loop device has its file open inside the kernel, and not exclusively."""
    disk = formatted(loops)
    upper = loops.attach(disk)
    rig.disk(upper.name, number(upper))
    backing = rig.root / "sys/class/block" / upper.name / "loop/backing_file"
    backing.parent.mkdir()
    backing.write_text(Path("/sys/class/block", upper.name, "loop/backing_file").read_text())
    assert rig.uses() == [f"{disk.name} is part of {upper.name}"]
    with mounted(upper, tmp_path / "upper") as place:
        assert rig.uses()[1:] == [f"{upper.name} is mounted at {place}"]
    with running("sh", "-c", f"exec 3<{upper}; echo ready; read line") as process:
        assert rig.uses()[1:] == [f"held by process {process.pid} (sh), which has {upper} open"]


@needs_root
def test_what_leaves_no_trace_is_found_by_the_kernels_own_test(
    rig: Rig, loops: Loops, tmp_path: Path
) -> None:
    """A file system that was unmounted lazily is in no list of mounts while a file is open."""
    disk = formatted(loops)
    place = tmp_path / "lazy"
    place.mkdir()
    script = (
        f"mount {disk} {place} && exec 3>{place}/file && umount -l {place} && echo ready; read l"
    )
    with running("sh", "-c", script):
        said = f"{disk.name} is open exclusively by a file system, swap or a volume"
        assert rig.uses() == [said]
    assert rig.uses() == []


@needs_root
def test_a_zfs_pool_is_named(
    rig: Rig, loops: Loops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZFS opens its disks exclusively, and is in no folder `holders`. The answer of zpool-status(8)
    is simulated; a process has the disk open as ZFS has."""
    disk = loops.disk()
    tool = tmp_path / "bin/zpool"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\n[ "$*" = "status -LP" ] && printf "%s\\n" "  pool: tank" " state: ONLINE" '
        f'"config:" "	NAME  STATE" "	tank  ONLINE" "	  {disk}  ONLINE  0  0  0"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    descriptor = os.open(disk, os.O_RDONLY | os.O_EXCL)  # this process itself is not listed
    try:
        assert rig.uses() == [f"{disk.name} is open exclusively by the ZFS pool tank"]
    finally:
        os.close(descriptor)


@needs_root
def test_a_disk_that_cannot_be_looked_at_is_not_taken(rig: Rig, loops: Loops) -> None:
    disk = loops.disk()
    (rig.root / "dev").unlink()
    (use,) = rig.uses()
    assert use.startswith(f"whether {disk.name} is in use cannot be told: ")


# -- simulated volumes ---------------------------------------------------------------------------

LABELS = {"LVM": "vg-root", "dm-crypt": "luks-1234"}


@pytest.mark.parametrize("what", LABELS)
def test_volumes_of_the_device_mapper_are_found(rig: Rig, what: str) -> None:
    rig.procfs(**{"self--mountinfo": "30 1 254:0 / / rw - ext4 /dev/mapper/vg-root rw\n"})
    partition = rig.disk("nvme0n1/nvme0n1p2", "259:2", under=f"devices/pci0000:00/{BDF}/nvme/nvme0")
    volume = rig.disk("dm-0", "254:0")
    (volume / "dm").mkdir()
    (volume / "dm/name").write_text(f"{LABELS[what]}\n")
    rig.hold(partition, volume)
    assert rig.uses() == [
        f"nvme0n1p2 is part of dm-0 ({LABELS[what]})",
        "dm-0 is mounted at /",
    ]


def test_volumes_on_volumes_are_found(rig: Rig) -> None:
    """LVM on a partition of an MD."""
    rig.procfs(swaps="Filename Type\n/dev/dm-0\tpartition\t1\t0\t-2\n")
    (rig.root / "dev").unlink()
    disk = rig.disk("sda", "8:0", under=f"devices/pci0000:00/{BDF}/ata1/block")
    array = rig.disk("md0", "9:0")
    part = rig.disk("md0/md0p1", "259:7")
    volume = rig.disk("dm-0", "254:0")
    rig.hold(disk, array)
    rig.hold(part, volume)
    assert rig.uses() == ["sda is part of md0", "md0p1 is part of dm-0"]


def test_a_disk_of_bcache_is_found(rig: Rig) -> None:
    rig.procfs()
    (rig.disk("sda", "8:0", under=f"devices/pci0000:00/{BDF}/block") / "bcache").mkdir()
    assert rig.uses() == ["sda is part of a bcache"]


def test_a_disk_of_a_btrfs_is_found(rig: Rig) -> None:
    """Only the first of its disks is in a list of mounts."""
    rig.procfs()
    rig.disk("sda", "8:0", under=f"devices/pci0000:00/{BDF}/block")
    (rig.root / "sys/fs/btrfs/0f-ee/devices/sda").mkdir(parents=True)
    assert rig.uses() == ["sda is part of the btrfs 0f-ee"]


def test_a_disk_with_several_paths_is_found(rig: Rig) -> None:
    """The node of an NVMe with several paths is its subsystem's, and not below the PCI device."""
    rig.procfs(**{"self--mountinfo": "30 1 259:1 / /data rw - xfs /dev/nvme2n1p1 rw\n"})
    rig.add("nvme/nvme0/nvme2c0n1", "block")
    rig.disk("nvme2n1", "259:0", under="devices/virtual/nvme-subsystem/nvme-subsys2")
    rig.disk("nvme2n1/nvme2n1p1", "259:1", under="devices/virtual/nvme-subsystem/nvme-subsys2")
    assert rig.uses() == ["nvme2n1p1 is mounted at /data"]


def test_the_other_node_of_such_a_disk_counts(rig: Rig) -> None:
    rig.add("nvme/nvme0/nvme2c0n1", "block")
    rig.add("nvme-subsystem/nvme-subsys2/ng2n1", "nvme-generic", "1:7", under="devices/virtual")
    with running("sh", "-c", "exec 3>/dev/full; echo ready; read line") as process:
        said = f"held by process {process.pid} (sh), which has /dev/full open"
        assert said in rig.uses()


def test_a_virtual_function_is_a_use(rig: Rig) -> None:
    (rig.device / "virtfn0").mkdir()
    assert rig.uses() == ["it has 1 virtual functions"]


# -- processes and vfio --------------------------------------------------------------------------


def group(rig: Rig, name: str) -> None:
    """Have the device in an IOMMU group with the node /dev/full, which a process can open here."""
    (rig.root / "sys/kernel/iommu_groups/7").mkdir(parents=True)
    (rig.device / "iommu_group").symlink_to(rig.root / "sys/kernel/iommu_groups/7")
    rig.add(name, "vfio", "1:7", under="devices/virtual/vfio")


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda rig: rig.add("vfio-dev/vfio3", "vfio-dev", "1:7"), id="iommufd"),
        pytest.param(lambda rig: group(rig, "7"), id="group"),
        pytest.param(lambda rig: group(rig, "noiommu-7"), id="no-iommu"),
        pytest.param(lambda rig: rig.add("uio/uio0", "uio", "1:7"), id="uio"),
    ],
)
def test_the_user_of_a_node_is_named(rig: Rig, make: Callable[[Rig], object]) -> None:
    make(rig)
    with running("sh", "-c", "exec 3>/dev/full; echo ready; read line") as process:
        held = f"held by process {process.pid} (sh), which has /dev/full open"
        assert held in rig.uses()
    assert held not in rig.uses()


def test_a_block_device_of_the_same_number_is_another_node(rig: Rig) -> None:
    """Block and character devices are numbered apart."""
    rig.procfs()
    rig.add("uio/uio0", "uio", "1:7")
    proc = rig.root / "proc"
    (proc / "12/fd").mkdir(parents=True)
    (proc / "12/comm").write_text("dd\n")
    (proc / "12/fd/3").symlink_to("/dev/full")
    assert rig.uses() == ["held by process 12 (dd), which has /dev/full open"]
    (rig.device / "uio/uio0/subsystem").unlink()
    (rig.device / "uio/uio0/subsystem").symlink_to(rig.root / "sys/class/block")
    assert not any("held by" in use for use in rig.uses())


# -- networks ------------------------------------------------------------------------------------

ROUTES = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
#: 10.0.0.0/8 by eth0, and of it 10.1.0.0/16 by eth1; the default is eth2's.
IPV4 = [("eth0", "10.0.0.0", 8), ("eth1", "10.1.0.0", 16), ("eth2", "0.0.0.0", 0)]


def route(name: str, target: str, bits: int, flags: str = "0001") -> str:
    def word(packed: bytes) -> str:
        return f"{int.from_bytes(packed, sys.byteorder):08X}"

    mask = word((((1 << bits) - 1) << (32 - bits)).to_bytes(4, "big"))
    return f"{name} {word(socket.inet_aton(target))} 00000000 {flags} 0 0 100 {mask} 0 0 0\n"


def with_interface(rig: Rig, name: str, routes: Sequence[tuple[str, str, int]] = IPV4) -> None:
    rig.procfs(**{"net--route": ROUTES + "".join(route(*one) for one in routes)})
    rig.add(f"net/{name}", "net")


@pytest.mark.parametrize(
    ("name", "ssh", "said"),
    [
        ("eth2", "", ["eth2 has the default route"]),
        ("eth1", "10.1.2.3 5 10.1.0.1 22", ["eth1 carries the SSH connection from 10.1.2.3"]),
        ("eth0", "10.1.2.3 5 10.1.0.1 22", []),
        ("eth0", "10.2.0.1 5 10.1.0.1 22", ["eth0 carries the SSH connection from 10.2.0.1"]),
        # Answers leave by the default route, but the server's address is eth1's.
        ("eth1", "192.0.2.1 5 10.1.0.1 22", ["eth1 carries the SSH connection from 192.0.2.1"]),
        ("eth1", "fe80::1%eth1 5 fe80::2%eth1 22", ["eth1 carries the SSH connection from fe80"]),
        ("eth1", "nonsense", []),
        ("eth1", "", []),
    ],
)
def test_the_interface_of_the_connection_is_found(
    rig: Rig, name: str, ssh: str, said: list[str]
) -> None:
    with_interface(rig, name)
    found = rig.uses(ssh)
    assert len(found) == len(said)
    assert all(map(str.startswith, found, said))


def test_routes_of_ipv6_count(rig: Rig) -> None:
    zero = "0" * 32
    row = f"{zero} 00 {zero} 00 {zero} {{}} 00000001 00000000 {{}} {{}}\n"
    reject = row.format("ffffffff", "00200200", "eth1")
    rig.procfs(**{"net--ipv6_route": row.format("00000400", "00000003", "eth0") + reject})
    rig.add("net/eth0", "net")
    rig.add("net/eth1", "net")
    assert rig.uses("2001:db8::1 5 2001:db8::2 22") == [
        "eth0 carries the SSH connection from 2001:db8::1",
        "eth0 has the default route",
    ]


def test_interfaces_above_count(rig: Rig) -> None:
    """A VLAN of a bond has the default route."""
    with_interface(rig, "eth5", [("vlan7", "0.0.0.0", 0)])
    for name in ("bond0", "vlan7"):
        rig.add(name, "net", under="devices/virtual/net")
    (rig.device / "net/eth5/upper_bond0").mkdir()
    (rig.root / "sys/devices/virtual/net/bond0/upper_vlan7").mkdir()
    assert rig.uses() == ["vlan7 over bond0 over eth5 has the default route"]
