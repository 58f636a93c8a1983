"""Describe a guest, and make QEMU's command line from the description. Pure.

Properties and limits of arm-smmuv3,accel=on: docs/system/arm/virt.rst and hw/arm/smmuv3.c in QEMU.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.errors import LabError
from harness.host.ability import Need
from harness.host.host import HostFiles, Kind
from harness.smmu.trace import TraceEvent

#: The first bus of the first SMMU's root complex, and the step to the next complex. They differ
#: from the buses of the host's devices, so that an untranslated StreamID cannot pass for a vSID.
FIRST_BUS = 0x20
BUS_STEP = 0x10
#: The slot of the console on the first bus. Its interrupt line, if the guest has no MSI, is the
#: slot modulo 4, and no assigned device of the first two root ports has that line. On AArch64 a
#: line that is shared would lose interrupts: KVM takes a level from whoever has set it last
#: (vgic_irqfd_set_irq), QEMU for its own devices or vfio for assigned ones.
CONSOLE_SLOT = 0x1F

#: The name of the port for much output, on the console's controller: the guest's topology is the
#: same with and without it.
BULK_PORT = "hil.bulk"

#: The sockets that QEMU listens on, by name.
SOCKETS = ("qmp", "console", "monitor", "bulk")

#: QEMU copies properties that are `auto` from the host's SMMU behind an assigned device. Without an
#: assigned device each of them must have a value.
EXPLICIT = {"ats": "off", "ril": "on", "ssidsize": "0", "oas": "44"}

#: The windows behind each root port, as large as Linux needs for a hot-plugged device, and as the
#: BARs of every kind of device: an 82576 has one of 4 MiB beside smaller ones. If they are smaller,
#: Linux shrinks other ports' windows, and the devices there lose their BARs.
_WINDOWS = "io-reserve=0,mem-reserve=8M,pref64-reserve=2M"

#: The UART is for the early boot only, because it costs two traps for each character; everything
#: later is on the virtio console. Without nospcr, ACPI would keep the UART as a console. loglevel
#: comes first: the early console prints what there is as soon as its option is read. It stays
#: (keep_bootcon): the virtio console loses the last words of a kernel that dies as that one begins,
#: and what is printed at this level are such words only. A drive of
#: several ports would be a hidden part of a disk that is elsewhere (CONFIG_NVME_MULTIPATH).
_KERNEL_OPTIONS = (
    "loglevel=3 earlycon=pl011,mmio32,0x9000000 keep_bootcon console=hvc0 acpi=force acpi=nospcr "
    "rdinit=/init sysrq_always_enabled iomem=relaxed nvme_core.multipath=N"
)

#: From 7.3 on, Linux lets idle hot-plug ports sleep on AArch64, too, and a device that is plugged
#: into a port of QEMU's that sleeps is not found. HOT-08 is about that; other tests leave it out.
_PORTS_AWAKE = "pcie_port_pm=off"

#: The guest's memory is left out of the core that a dying QEMU leaves.
_CORE = "dump-guest-core=off"


@dataclass(frozen=True)
class SmmuSpec:
    """One arm-smmuv3 of a guest, and what is needed of the host devices assigned behind it.

    The guest boots with `devices`. Devices for `hot` are chosen too, and have a root port each, but
    are plugged later. `empty` root ports more follow, for which no device is chosen. `properties`
    are QEMU's own (`ats`, `ril`, `ssidsize`, `oas`, `cmdqv`), as text.
    """

    devices: tuple[Need, ...] = ()
    hot: tuple[Need, ...] = ()
    empty: int = 0
    accel: bool = True
    properties: tuple[tuple[str, str], ...] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return what is needed of the devices of all its root ports, in the ports' order."""
        return self.devices + self.hot

    def option(self, index: int) -> str:
        """Return QEMU's -device option for the guest's SMMU number `index`."""
        chosen = dict(self.properties)
        if self.accel and not self.devices:
            chosen = {**EXPLICIT, **chosen}
        more = "".join(f",{name}={value}" for name, value in chosen.items())
        accel = ",accel=on" if self.accel else ""
        return f"arm-smmuv3,primary-bus=pcie.{index + 1},id=smmu{index}{accel}{more}"


@dataclass(frozen=True)
class BoundarySpec:
    """The boundary of a guest: a program of ours that starts QEMU on the host and takes part in
    the calls between QEMU and the kernel.

    The program is packed from the folder of `package`. If `reads` is true, it supervises QEMU's
    reads of queues too. `rules` are in force from the start on, as JSON; the program's `--help`
    shows their form. `watches` are the names of calls that it supervises although they are
    frequent.
    """

    package: str
    reads: bool = False
    rules: str = "[]"
    watches: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """Return the program's command-line options."""
        reads = ["--reads"] if self.reads else []
        return [*reads, *(f"--watch={name}" for name in self.watches), f"--rules={self.rules}"]


@dataclass(frozen=True)
class GuestSpec:
    """A guest to boot.

    `append` is added to the kernel's command line. `disks` are raw files on the host, which the
    guest has as read-only /dev/vda, /dev/vdb, … `small_queues` takes the guest kernel whose SMMU
    queues are small. `huge_pages` puts the guest's memory in pages of 2 MiB, which the host must
    have set aside. `paused` stops it before its first instruction, until QMP's `cont`.
    `ports_sleep` leaves it to the guest's kernel whether idle root ports sleep (runtime D3); else
    they stay awake. `boundary` is the boundary between its QEMU and the kernel. `machine` has more
    properties of the virt machine, as QEMU takes them. `environment` has variables that QEMU has in
    its environment. `descriptors` has QEMU get iommufd, and the devices that the guest boots with,
    as open files, as libvirt starts it, in place of their names. `one_host_smmu` has the devices of
    all its SMMUs behind one SMMU of the host; else only those of each SMMU are.
    """

    smmus: tuple[SmmuSpec, ...] = (SmmuSpec(),)
    memory_mib: int = 256
    cpus: int = 1
    append: str = ""
    disks: tuple[str, ...] = ()
    small_queues: bool = False
    huge_pages: bool = False
    paused: bool = False
    ports_sleep: bool = False
    boundary: BoundarySpec | None = None
    machine: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    descriptors: bool = False
    one_host_smmu: bool = False

    @property
    def needs(self) -> tuple[tuple[Need, ...], ...]:
        """Return what the guest needs of devices: each part is of devices behind one SMMU of the
        host. The order is that of the guest's SMMUs and their root ports."""
        each = tuple(smmu.needs for smmu in self.smmus)
        return (tuple(itertools.chain(*each)),) if self.one_host_smmu else each


#: True in a device's folder of the guest's sysfs when its registers can be mapped, which is after
#: it has its IOMMU group.
REGISTERS_READY = "test -e resource0"


@dataclass(frozen=True)
class AssignedDevice:
    """A host device that was chosen for a guest, with its place on both sides.

    The guest boots with the device if `cold` is true; otherwise it is plugged later. `need` is what
    it was chosen for. `ready` is a shell condition, tried in the device's folder of the guest's
    sysfs: true when the guest has the device ready.
    """

    id: str
    need: Need
    role: str
    host_bdf: str
    smmu: int
    port: int
    cold: bool = True
    ready: str = REGISTERS_READY

    @property
    def guest_bus(self) -> int:
        """Return the device's bus in the guest.

        The firmware numbers buses depth first: the ports of a root complex get the buses that
        follow the complex's own.
        """
        return FIRST_BUS + BUS_STEP * self.smmu + 1 + self.port

    @property
    def guest_bdf(self) -> str:
        """Return the device's PCI address in the guest."""
        return f"0000:{self.guest_bus:02x}:00.0"

    @property
    def vsid(self) -> int:
        """Return the device's StreamID in the guest."""
        return self.guest_bus << 8

    @property
    def sysfs(self) -> str:
        """Return the device's folder in the guest's sysfs."""
        return f"/sys/bus/pci/devices/{self.guest_bdf}"


def place(
    guest: GuestSpec, chosen: Sequence[Sequence[str]], kinds: Mapping[str, Kind]
) -> list[AssignedDevice]:
    """Return the guest's devices. `chosen` has the host addresses chosen for each part of its
    needs; `kinds` has the kind of each host device by its address."""
    ports = [
        (smmu, port, need, port < len(wanted.devices))
        for smmu, wanted in enumerate(guest.smmus)
        for port, need in enumerate(wanted.needs)
    ]
    return [
        AssignedDevice(
            *(f"dev{smmu}.{port}", need, kinds[bdf].role, bdf, smmu, port),
            cold=cold,
            ready=kinds[bdf].ready,
        )
        for (smmu, port, need, cold), bdf in zip(ports, itertools.chain(*chosen), strict=True)
    ]


@dataclass(frozen=True)
class Identity:
    """What it takes to attach to a running guest. It can be stored beside a snapshot."""

    name: str
    spec: GuestSpec
    devices: tuple[AssignedDevice, ...]
    files: HostFiles
    boot_seconds: float
    #: Whether the host's SMMU merges no events and leaves no field of a record UNKNOWN.
    exact_events: bool = True


@dataclass(frozen=True)
class Paths:
    """The paths of one guest's sockets and logs on the host."""

    folder: str
    uart_log: str = field(init=False)
    console_log: str = field(init=False)
    trace_log: str = field(init=False)
    qemu_log: str = field(init=False)
    boundary_log: str = field(init=False)
    boundary: str = field(init=False)
    opener: str = field(init=False)
    control: str = field(init=False)
    sockets: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("uart_log", "console_log", "trace_log", "qemu_log", "boundary_log"):
            object.__setattr__(self, name, f"{self.folder}/{name.replace('_', '.')}")
        object.__setattr__(self, "boundary", f"{self.folder}/boundary.pyz")
        object.__setattr__(self, "opener", f"{self.folder}/open_files.py")
        object.__setattr__(self, "control", f"{self.folder}/control.sock")
        sockets = {name: f"{self.folder}/{name}.sock" for name in SOCKETS}
        object.__setattr__(self, "sockets", sockets)


def arguments(
    guest: GuestSpec, devices: Sequence[AssignedDevice], files: HostFiles, paths: Paths
) -> list[str]:
    """Return QEMU's argv. The names of SOCKETS in braces, such as `{qmp}`, stand for listening
    descriptors, and `{/PATH}` for that of an open file."""
    kernel_options = _KERNEL_OPTIONS if guest.ports_sleep else f"{_KERNEL_OPTIONS} {_PORTS_AWAKE}"
    machine = f"virt,accel=kvm,gic-version=3,ras=on,{_CORE}"
    machine += ",memory-backend=memory" if guest.huge_pages else ""
    machine += f",{guest.machine}" if guest.machine else ""
    out = [
        *(files.qemu, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-msg", "timestamp=on", "-D", paths.trace_log),
        *("-machine", machine, "-cpu", "host"),
        *("-m", f"{guest.memory_mib}M", "-smp", str(guest.cpus)),
        *(
            "-bios",
            files.firmware,
            "-kernel",
            guest_kernel(guest, files),
            "-initrd",
            files.guest_initrd,
        ),
        *("-append", f"{kernel_options} {guest.append}".strip()),
        *_variables(files),
        *("-chardev", f"file,id=uart,path={paths.uart_log}", "-serial", "chardev:uart"),
        *(
            "-chardev",
            f"socket,id=console,fd={{console}},server=on,wait=off,logfile={paths.console_log}",
        ),
        *("-device", f"virtio-serial-pci,bus=pcie.0,addr={CONSOLE_SLOT:#x},max_ports=2"),
        *("-device", "virtconsole,chardev=console,nr=0"),
        *("-chardev", "socket,id=bulk,fd={bulk},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=bulk,nr=1,name={BULK_PORT}"),
        *("-chardev", "socket,id=qmp,fd={qmp},server=on,wait=off"),
        *("-object", "monitor-qmp,id=mon.qmp,chardev=qmp"),
        # A second monitor, for a person who looks into a guest that was kept.
        *("-chardev", "socket,id=monitor,fd={monitor},server=on,wait=off"),
        *("-object", "monitor-hmp,id=mon.hmp,chardev=monitor"),
    ]
    if guest.paused:
        out.append("-S")
    if guest.huge_pages:
        size = f"size={guest.memory_mib}M,hugetlb=on,hugetlbsize=2M"
        out += ["-object", f"memory-backend-memfd,id=memory,{size}"]
    for event in TraceEvent:
        out += ["-trace", event.value]
    if any(smmu.accel for smmu in guest.smmus):
        file = ",fd={/dev/iommu}" if guest.descriptors else ""
        out += ["-object", f"iommufd,id=iommufd0{file}"]
    for index, path in enumerate(guest.disks):
        out += ["-drive", f"if=none,id=disk{index},format=raw,readonly=on,file={path}"]
        out += ["-device", f"virtio-blk-pci,bus=pcie.0,drive=disk{index}"]
    for index, smmu in enumerate(guest.smmus):
        bus = FIRST_BUS + BUS_STEP * index
        out += ["-device", f"pxb-pcie,id=pcie.{index + 1},bus_nr={bus},bus=pcie.0"]
        out += ["-device", smmu.option(index)]
        # Firmware that finds nothing behind a root complex looks for it on all buses that follow,
        # which takes seconds on an emulated host.
        for port in range(max(1, len(smmu.needs) + smmu.empty)):
            number = slot(index, port)
            where = f"id={port_id(index, port)},bus=pcie.{index + 1},chassis={number}"
            out += ["-device", f"pcie-root-port,{where},slot={number},{_WINDOWS}"]
    for device in (one for one in devices if one.cold):
        properties = device_properties(device)
        if guest.descriptors:
            properties["fd"] = f"{{/sys/bus/pci/devices/{properties.pop('host')}/vfio-dev}}"
        driver, *more = properties.items()
        out += ["-device", ",".join([driver[1], *(f"{name}={value}" for name, value in more)])]
    return out


def _variables(files: HostFiles) -> list[str]:
    """Return QEMU's option for the second flash, which each guest has for itself."""
    if files.firmware_variables is None:
        return []
    flash = f"if=pflash,unit=1,format=raw,snapshot=on,file={files.firmware_variables}"
    return ["-drive", flash]


def device_properties(device: AssignedDevice) -> dict[str, str]:
    """Return an assigned device as -device and device_add take it; `driver` comes first."""
    return {
        "driver": "vfio-pci",
        "host": device.host_bdf,
        "iommufd": "iommufd0",
        "bus": port_id(device.smmu, device.port),
        "id": device.id,
    }


def guest_kernel(guest: GuestSpec, files: HostFiles) -> str:
    """Return the kernel that a guest boots. Raises LabError if the host has none with small queues
    and the guest needs it."""
    if not guest.small_queues:
        return files.guest_kernel
    if files.small_queues_kernel is None:
        raise LabError(
            "the host has no guest kernel with small queues",
            fix="set `small_queues_kernel` of the host in the inventory, or mark the test "
            '`needs("small-queues")`, so that it is skipped there',
        )
    return files.small_queues_kernel


def launch(guest: GuestSpec, qemu: Sequence[str], paths: Paths) -> tuple[list[str], dict[str, str]]:
    """Return the command line that starts a guest's QEMU, behind its boundary if it has one, and
    the sockets that it listens on, by name."""
    variables = [f"{name}={value}" for name, value in guest.environment]
    start = ["env", *variables] if variables else []
    if guest.descriptors:
        qemu = ["python3", "-I", paths.opener, *qemu]
    if guest.boundary is None:
        return [*start, *qemu], {**paths.sockets}
    start += ["python3", "-I", paths.boundary, "{control}", paths.boundary_log]
    return [*start, *guest.boundary.options, "--", *qemu], {
        **paths.sockets,
        "control": paths.control,
    }


def port_id(smmu: int, port: int) -> str:
    """Return QEMU's id of a root port."""
    return f"port{smmu}.{port}"


def slot(smmu: int, port: int) -> int:
    """Return a root port's chassis number and physical slot number, by which the guest names the
    slot."""
    return BUS_STEP * smmu + port + 1
