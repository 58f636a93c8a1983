"""Tell what uses a host's PCI devices, so that none is taken away from its user.

It is sent to the host as one file and needs only Python's standard library, 3.9 or newer.

    python3 in_use.py BDF…      print {BDF: [what uses it, …]} as JSON

Everything is found from the device's folder in sysfs on: its disks and their partitions, what the
kernel has built on them, its network interfaces, and all its device nodes. Disks are compared by
their numbers, because one has many names. As an independent test, each disk is opened with O_EXCL,
which the kernel refuses while a file system, swap or a volume has it (block/bdev.c, bd_may_claim):
that also finds what leaves no trace in sysfs, as ZFS does.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

#: Longest that `zpool status` may take: it waits for a pool that is suspended.
ZPOOL_SECONDS = 5
#: The flag of a route that leads nowhere (include/uapi/linux/route.h).
RTF_REJECT = 0x200
#: No medium or no device behind the node: nobody can use it.
_NOTHING_THERE = (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)
#: A path of an NVMe disk that has several: the numbers of its subsystem, controller and disk.
_NVME_PATH = re.compile(r"nvme(\d+)c\d+n(\d+)")
#: The nodes of such a disk, and their classes.
_NVME_HEADS = (("block", "nvme{}n{}"), ("nvme-generic", "ng{}n{}"))
_OCTAL = re.compile(r"\\([0-7]{3})")

#: A device node: whether it is a block device's, and its number as "MAJOR:MINOR".
Node = tuple[bool, str]


class Usage:
    """What the host's sysfs, procfs and device nodes, which are below `root`, tell of uses.
    `connection` is sshd's SSH_CONNECTION: "CLIENT PORT SERVER PORT"."""

    def __init__(self, root: str = "/", connection: str = "") -> None:
        self.root = root
        self.connection = connection

    def of(self, bdf: str) -> list[str]:
        """Return what uses a device, a clause each; nothing if it is free or absent."""
        device = os.path.realpath(self._path("sys/bus/pci/devices", bdf))
        nodes, interfaces = self._inside(device)
        nodes.update(self._vfio_group(device))
        own = {name: number for (block, number), name in nodes.items() if block}
        volumes, found = self._volumes(own)
        nodes.update({(True, number): name for name, number in volumes.items()})
        disks = {number: name for name, number in volumes.items()}
        found += self._swap(disks)
        found += self._mounts(disks)
        found += self._holders(nodes)
        found += self._routes(interfaces)
        functions = sorted(name for name in _entries(device) if name.startswith("virtfn"))
        if functions:
            found.append(f"it has {len(functions)} virtual functions")
        # What opens a disk exclusively has been named in most cases.
        return found or self._exclusive(own)

    # -- what belongs to the device --------------------------------------------------------

    def _inside(self, device: str) -> tuple[dict[Node, str], list[str]]:
        """Return the device's nodes by their numbers, with their names, and the names of its
        network interfaces."""
        nodes: dict[Node, str] = {}
        interfaces = []
        waiting = [device]
        while waiting:
            for folder, folders, files in os.walk(waiting.pop()):
                name = os.path.basename(folder)
                subsystem = os.path.basename(os.path.realpath(os.path.join(folder, "subsystem")))
                if "dev" in files:
                    nodes[subsystem == "block", _number_in(folder)] = name
                if subsystem == "net":
                    interfaces.append(name)
                # The paths of a disk are hidden. Its nodes are the subsystem's, and are elsewhere.
                for path in filter(None, map(_NVME_PATH.fullmatch, folders)):
                    for of_class, head in _NVME_HEADS:
                        found = self._path("sys/class", of_class, head.format(path[1], path[2]))
                        waiting.append(os.path.realpath(found))
        return nodes, interfaces

    def _vfio_group(self, device: str) -> Iterator[tuple[Node, str]]:
        """Yield the node of the device's IOMMU group, by which it is used without iommufd."""
        group = os.path.join(device, "iommu_group")
        for prefix in ("", "noiommu-") if os.path.exists(group) else ():
            name = prefix + os.path.basename(os.path.realpath(group))
            number = _number_in(self._path("sys/class/vfio", name))
            if number:
                yield (False, number), f"vfio/{name}"

    def _volumes(self, own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
        """Return the disks by name, with their numbers, and all that the kernel has built on them
        (volumes of LVM, MD, dm-crypt and bcache, loop devices); and a clause for each of these."""
        found, said = dict(own), []
        waiting = sorted(own)
        loops = {loop: self._number(file) for loop, file in self._loops()}
        while waiting:
            name = waiting.pop(0)
            folder = self._path("sys/class/block", name)
            above = _entries(os.path.join(folder, "holders"))
            above += [loop for loop, number in loops.items() if number == found[name]]
            for volume in above:
                inside = os.path.realpath(self._path("sys/class/block", volume))
                label = _read(os.path.join(inside, "dm/name")).strip()
                said.append(f"{name} is part of {volume}" + (f" ({label})" if label else ""))
                # A volume may have partitions.
                for part, _, files in os.walk(inside):
                    if "dev" in files and os.path.basename(part) not in found:
                        found[os.path.basename(part)] = _number_in(part)
                        waiting.append(os.path.basename(part))
            if os.path.exists(os.path.join(folder, "bcache")) and name in own:
                said.append(f"{name} is part of a bcache")
        for system in _entries(self._path("sys/fs/btrfs")):
            for name in _entries(self._path("sys/fs/btrfs", system, "devices")):
                if name in found:
                    said.append(f"{name} is part of the btrfs {system}")
        return found, said

    def _loops(self) -> Iterator[tuple[str, str]]:
        for name in _entries(self._path("sys/class/block")):
            file = _read(self._path("sys/class/block", name, "loop/backing_file")).rstrip("\n")
            if file:
                yield name, file

    # -- what uses it ----------------------------------------------------------------------

    def _swap(self, disks: dict[str, str]) -> Iterator[str]:
        for line in _read(self._path("proc/swaps")).splitlines()[1:]:
            path = _unescaped(line.split()[0])
            number, kind = self._number(path), "swap space"
            if number is None:
                number, kind = self._number(path, of_file_system=True), "a swap file"
            if number in disks:
                yield f"{disks[number]} has {kind}: {path}"

    def _mounts(self, disks: dict[str, str]) -> list[str]:
        """Return the mounts of these disks, in all mount namespaces, each once."""
        found: dict[tuple[str, str], str] = {}
        namespaces = set()
        for process in self._processes(first="self"):
            with contextlib.suppress(OSError):
                namespace = os.readlink(self._path("proc", process, "ns/mnt"))
                if namespace in namespaces:
                    continue
                namespaces.add(namespace)
            whose = "" if process == "self" else f" for {self._named(process)}"
            for line in _read(self._path("proc", process, "mountinfo")).splitlines():
                fields, _, source = line.partition(" - ")
                words = fields.split(" ")
                # The number of a btrfs is not that of a disk: its source counts.
                name = disks.get(words[2]) or disks.get(
                    self._number(_unescaped((source + "  ").split(" ")[1])) or ""
                )
                if name:
                    place = _unescaped(words[4])
                    found.setdefault((name, place), f"{name} is mounted at {place}{whose}")
        return list(found.values())

    def _holders(self, nodes: dict[Node, str]) -> Iterator[str]:
        """Yield the processes that have one of these nodes open."""
        for process in self._processes():
            folder = self._path("proc", process, "fd")
            try:
                descriptors = os.listdir(folder)
            except PermissionError as refused:
                yield f"who has it open cannot be told: {refused}"
                return
            except OSError:
                continue  # the process has ended
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    path = os.path.join(folder, descriptor)
                    # To look at any file could mean to wait for a server that is gone.
                    if "/dev/" in os.readlink(path) and _node(path) in nodes:
                        yield f"held by {self._named(process)}, which has {os.readlink(path)} open"

    def _routes(self, interfaces: list[str]) -> list[str]:
        """Return what goes through these network interfaces, or through those above them."""
        below = {name: name for name in interfaces}
        waiting = list(interfaces)
        while waiting:
            name = waiting.pop()
            for entry in _entries(self._path("sys/class/net", name)):
                upper = entry[len("upper_") :] if entry.startswith("upper_") else ""
                if upper and upper not in below:
                    below[upper] = f"{upper} over {below[name]}"
                    waiting.append(upper)
        table = list(self._table())
        found = {
            f"{below[route.interface]} has the default route"
            for route in table
            if route.bits == 0 and route.interface in below
        }
        client, _, server, *_ = (self.connection + "   ").split(" ")
        # Answers may leave by another interface than that which has the server's address.
        for address in (client, server):
            interface = _way(table, address)
            if interface in below:
                found.add(f"{below[interface]} carries the SSH connection from {client}")
        return sorted(found)

    def _table(self) -> Iterator[Route]:
        """Yield the routes of the main table (net/ipv4/fib_trie.c, fib_route_seq_show;
        net/ipv6/route.c, rt6_info_route)."""
        for line in _read(self._path("proc/net/route")).splitlines()[1:]:
            name, target, _, flags, _, _, metric, mask, *_ = line.split()
            if not int(flags, 16) & RTF_REJECT:
                packed = int(target, 16).to_bytes(4, sys.byteorder)
                bits = bin(int(mask, 16)).count("1")
                yield Route(name, packed, bits, int(metric))
        for line in _read(self._path("proc/net/ipv6_route")).splitlines():
            target, length, _, _, _, metric, _, _, flags, name = line.split()
            if not int(flags, 16) & RTF_REJECT:
                yield Route(name, bytes.fromhex(target), int(length, 16), int(metric, 16))

    def _exclusive(self, disks: dict[str, str]) -> list[str]:
        """Return the disks that cannot be opened exclusively."""
        found = []
        for name, number in sorted(disks.items()):
            node = self._path("dev", name.replace("!", "/"))
            try:
                os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as problem:
                if problem.errno == errno.EBUSY:
                    user = self._pool(number) or "a file system, swap or a volume"
                    found.append(f"{name} is open exclusively by {user}")
                elif problem.errno not in _NOTHING_THERE:
                    found.append(f"whether {name} is in use cannot be told: {problem}")
        return found

    def _pool(self, number: str) -> str | None:
        """Return the ZFS pool that has a disk, or None. -L gives the names of nodes, not of links,
        and -P whole paths (zpool-status(8))."""
        if not shutil.which("zpool"):
            return None
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            asked = ["zpool", "status", "-LP"]
            pool = ""
            for line in subprocess.run(
                asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=ZPOOL_SECONDS
            ).stdout.splitlines():
                word, *more = line.decode(errors="replace").split() or [""]
                if word == "pool:" and more:
                    pool = more[0]
                elif word.startswith("/") and self._number(word) == number:
                    return f"the ZFS pool {pool}"
        return None

    # -- sources ---------------------------------------------------------------------------

    def _path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def _processes(self, first: str = "") -> list[str]:
        """Return the folders in procfs of all processes but this one; `first` may be another."""
        mine = str(os.getpid())
        others = [one for one in _entries(self._path("proc")) if one.isdigit() and one != mine]
        return [first, *others] if first else others

    def _named(self, process: str) -> str:
        name = _read(self._path("proc", process, "comm")).strip()
        return f"process {process} ({name})"

    def _number(self, path: str, *, of_file_system: bool = False) -> str | None:
        """Return the number of a block device's node, or None for anything else; or else that of
        the file system which has a file."""
        if not path.startswith("/"):
            return None
        try:
            seen = os.stat(self._path(path[1:]))
        except (OSError, ValueError):
            return None
        if of_file_system:
            return _numbers(seen.st_dev)
        return _numbers(seen.st_rdev) if stat.S_ISBLK(seen.st_mode) else None


class Route(NamedTuple):
    """A route: the interface, the target's address and its length in bits, and the metric."""

    interface: str
    target: bytes
    bits: int
    metric: int

    def leads_to(self, address: bytes) -> bool:
        if len(address) != len(self.target):
            return False
        beyond = 8 * len(address) - self.bits
        mine, other = int.from_bytes(self.target, "big"), int.from_bytes(address, "big")
        return mine >> beyond == other >> beyond


def _way(table: list[Route], address: str) -> str | None:
    """Return the interface to an address: of the longest target, the lowest metric counts."""
    plain, _, scope = address.partition("%")
    if scope:
        return scope
    packed = _packed(plain)
    ways = [route for route in table if route.leads_to(packed)]
    best = min(ways, key=lambda route: (-route.bits, route.metric), default=None)
    return best.interface if best else None


def _packed(address: str) -> bytes:
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return b""


def _node(path: str) -> Node:
    seen = os.stat(path)
    return stat.S_ISBLK(seen.st_mode), _numbers(seen.st_rdev)


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _number_in(folder: str) -> str:
    """Return the number of a device in sysfs; nothing if it has no node."""
    return _read(os.path.join(folder, "dev")).strip()


def _unescaped(text: str) -> str:
    """Return a path of procfs, which has blanks and backslashes as \\040 and so on."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: str) -> str:
    """Return the text of a file; nothing if it is not there, as for an ended process."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _printable(text: str) -> str:
    """Return a text in which bytes of a path that are not UTF-8 are question marks."""
    return text.encode(errors="replace").decode()


def main(bdfs: list[str]) -> None:
    """Print what uses these devices."""
    usage = Usage(connection=os.environ.get("SSH_CONNECTION", ""))
    found = {bdf: [_printable(use) for use in usage.of(bdf)] for bdf in bdfs}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
