"""Turn an inventory's entry into a host that answers, booting it if it is virtual. Tests never
ask what kind of host it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from harness.artifacts.images import FIRMWARE, FIRMWARE_VARIABLES
from harness.artifacts.store import Store
from harness.console.file import FileConsole
from harness.console.source import ConsoleSource
from harness.devices import kind
from harness.host.host import HostDescription, HostFiles, probes
from harness.host.power import HostPower
from harness.host.target import Target
from harness.kernel_image import KernelImage
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.login import login
from harness.power.virtual import VirtualControl
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
    return VirtualMachine(
        *(entry.name, topology(entry.virtual), store, progress, kernel),
        debug_kernel=entry.virtual.debug_kernel,
        snapshots=not entry.virtual.plain,
    )


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
        yield described(entry)
        return
    running = vm.up()
    try:
        yield describe_virtual(entry, vm, running)
    finally:
        vm.release()


def power(entry: HostEntry, store: Store, progress: Progress) -> HostPower | None:
    """Return the power of an entry's host; None if nothing controls it. It can be used whether the
    host is on or off, and nothing is asked yet."""
    vm = machine(entry, store, progress)
    if vm is not None:
        return VirtualControl(vm)
    return entry.power.control(entry.name) if entry.power else None


def console(entry: HostEntry, store: Store, progress: Progress) -> ConsoleSource | None:
    """Return where an entry's host prints its console; None if the inventory does not say."""
    vm = machine(entry, store, progress)
    if vm is not None:
        return FileConsole(vm.console.path)
    return entry.console.source if entry.console else None


def described(entry: HostEntry) -> HostDescription:
    """Return the description of a host that is not virtual. Raises LabError for an `ssh_config`
    that cannot be used."""
    devices = {device.bdf: kind(device.role) for device in entry.devices}
    vfio_drivers = {one.bdf: one.vfio_driver for one in entry.devices if one.vfio_driver}
    known = HostDescription(entry.name, login(entry), host_files(entry), devices, vfio_drivers)
    return replace(
        known,
        power=entry.power.control(entry.name) if entry.power else None,
        capabilities=entry.tagged,
    )


def describe_virtual(entry: HostEntry, vm: VirtualMachine, running: Running) -> HostDescription:
    target = Target("127.0.0.1", running.port, "root", vm.user_key, vm.known_hosts)
    devices = {device.bdf: device.kind for device in vm.topology.devices()}
    files = host_files(entry)
    if files.firmware == FIRMWARE:  # another one may keep its variables in another form
        files = replace(files, firmware_variables=FIRMWARE_VARIABLES)
    known = HostDescription(
        *(entry.name, target, files, devices),
        console=vm.console,
        kernel=vm.kernel,
        stay_up=vm.disown if running.owner else None,
    )
    if entry.virtual and entry.virtual.plain:
        return replace(known, capabilities=entry.tagged)
    capabilities = entry.capabilities
    return replace(
        known,
        snapshots=vm if "snapshot" in capabilities else None,
        silicon=SiliconClient(vm.control) if "cmdqv-model" in capabilities else None,
        capabilities=capabilities - probes(known.files).keys(),
    )


def host_files(entry: HostEntry) -> HostFiles:
    """Return the files on a host that guests are started from."""
    return HostFiles(
        entry.qemu,
        entry.firmware,
        entry.guest_kernel,
        entry.guest_initrd,
        entry.small_queues_kernel,
        entry.selftests,
    )
