"""Turn an inventory's entry into a host that answers, booting it if it is virtual. Tests never
ask what kind of host it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from harness.artifacts.store import Store
from harness.devices import kind
from harness.host.host import HostDescription, HostFiles, probes
from harness.host.target import Target
from harness.kernel_image import KernelImage
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.login import login
from harness.progress import Progress
from harness.virtual.machine import VirtualMachine
from harness.virtual.running import Running
from harness.virtual.silicon.client import SiliconClient
from harness.virtual.silicon.registers import Parameters
from harness.virtual.topology import Topology


def machine(
    entry: HostEntry, store: Store, progress: Progress, kernel: KernelImage | None = None
) -> VirtualMachine | None:
    """Return the virtual machine of an entry, running or not; None if the host is not virtual. It
    boots `kernel` in place of the lab's own."""
    if entry.virtual is None:
        return None
    return VirtualMachine(entry.name, topology(entry.virtual), store, progress, kernel)


def topology(virtual: Virtual) -> Topology:
    """Return the hardware that an inventory chooses for a virtual host."""
    model = virtual.cmdqv
    cmdqv = None
    if model is not None:
        cmdqv = Parameters(
            log2_vintfs=model.vintfs.bit_length() - 1,
            log2_vcmdqs=model.vcmdqs.bit_length() - 1,
            log2_sids=model.sids.bit_length() - 1,
            version=model.version,
        )
    sizes = virtual.memory_mib, virtual.cpus, virtual.smmus
    return Topology(*sizes, cmdqv, virtual.devices, virtual.segments, virtual.reboots)


@contextlib.contextmanager
def provided(
    entry: HostEntry, store: Store, progress: Progress, kernel: KernelImage | None = None
) -> Iterator[HostDescription]:
    """Yield the description of a host that can be reached. A virtual host that was down is up
    inside the context only; one that was up stays up. It runs `kernel` in place of its own: see
    harness.lab.software.Software.check. Raises LabError, and HostKernelError when that kernel does
    not come up."""
    vm = machine(entry, store, progress, kernel)
    if vm is None:
        yield _described(entry)
        return
    running = vm.up()
    try:
        yield describe_virtual(entry, vm, running)
    finally:
        vm.release()


def _described(entry: HostEntry) -> HostDescription:
    devices = {device.bdf: kind(device.role) for device in entry.devices}
    vfio_drivers = {one.bdf: one.vfio_driver for one in entry.devices if one.vfio_driver}
    return HostDescription(entry.name, login(entry), host_files(entry), devices, vfio_drivers)


def describe_virtual(entry: HostEntry, vm: VirtualMachine, running: Running) -> HostDescription:
    target = Target("127.0.0.1", running.port, "root", vm.user_key, vm.known_hosts)
    devices = {device.bdf: device.kind for device in vm.topology.devices()}
    described = HostDescription(
        *(entry.name, target, host_files(entry), devices),
        console=vm.console,
        kernel=vm.kernel,
        stay_up=vm.disown,
    )
    if entry.virtual and entry.virtual.plain:
        return described
    capabilities = entry.capabilities
    return replace(
        described,
        snapshots=vm if "snapshot" in capabilities else None,
        silicon=SiliconClient(vm.control) if "cmdqv-model" in capabilities else None,
        capabilities=capabilities - probes(described.files).keys(),
    )


def host_files(entry: HostEntry) -> HostFiles:
    """Return the files on a host that guests are started from."""
    return HostFiles(
        entry.qemu,
        entry.firmware,
        entry.guest_kernel,
        entry.guest_initrd,
        entry.small_queues_kernel,
    )
