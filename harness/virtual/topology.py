"""The hardware of the virtual Grace host, and QEMU's command line for it. This module does no
I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from harness.devices import kind, kinds
from harness.devices.kind import DeviceKind, Emulation
from harness.errors import HarnessError
from harness.virtual.acpi import (
    HostBridge,
    SmmuNode,
    cmdqv_ssdt,
    iort,
    mcfg,
    override_cpio,
    segments_ssdt,
    smmu_of_virt_board,
)
from harness.virtual.silicon.registers import Parameters
from harness.virtual.unsaved import ECAM, config_address

#: Buses from here on are behind SMMUs, eight behind each; lower ones have the host's own disk and
#: network.
FIRST_BUS = 8
BUSES_PER_SMMU = 8
#: The first bus of an SMMU is its root complex's own; each of the others has one device.
MOST_DEVICES = BUSES_PER_SMMU - 1

#: The PCI address of the CMDQV of the first SMMU, and its interrupt, a free SPI of the virt board
#: (its GSI is the SPI's number plus 32).
CMDQV_BDF, CMDQV_SPI = "0000:00:10.0", 200
_FIRST_SPI = 32


def emulated_roles() -> tuple[str, ...]:
    """Return the roles of all kinds of devices that QEMU can emulate."""
    return tuple(role for role, one in kinds().items() if one.emulation)


@dataclass(frozen=True)
class VirtualDevice:
    """An assignable device: its QEMU id, its kind, how it is emulated, and the numbers of its SMMU
    and of its root port there.

    `bdf` is its PCI address on the host. `emulated_bdf` is the one in QEMU, which differs if the
    host has PCI segments."""

    id: str
    kind: DeviceKind
    emulation: Emulation
    smmu: int
    port: int
    bdf: str
    emulated_bdf: str


@dataclass(frozen=True)
class Topology:
    """What an inventory may choose. `roles` are those of the devices behind each SMMU, in order.
    `cmdqv` belongs to the first SMMU; None means that the host has no CMDQV. If `segments` is true,
    each SMMU's devices are in a PCI segment of their own, whose buses are numbered from 0 on. If
    `reboots` is false, the machine ends instead of booting again."""

    memory_mib: int = 3072
    cpus: int = 2
    smmus: int = 2
    cmdqv: Parameters | None = None
    roles: tuple[str, ...] = field(default_factory=emulated_roles)
    segments: bool = False
    reboots: bool = False

    def smmu_nodes(self) -> list[SmmuNode]:
        # In a segment of its own, an SMMU has the buses behind its ports, and the ports are hidden.
        hidden = 1 if self.segments else 0
        return [
            smmu_of_virt_board(
                index, range(bus + hidden, bus + BUSES_PER_SMMU), self._segment(index)
            )
            for index, bus in enumerate(self._buses())
        ]

    def _segment(self, smmu: int) -> int:
        return smmu + 1 if self.segments else 0

    def _buses(self) -> list[int]:
        return [FIRST_BUS + BUSES_PER_SMMU * index for index in range(self.smmus)]

    def devices(self) -> list[VirtualDevice]:
        """Return the devices behind all SMMUs, each behind its own root port (so: its own IOMMU
        group). Raises HarnessError for a role that cannot be emulated, and for more than
        MOST_DEVICES behind an SMMU."""
        if len(self.roles) > MOST_DEVICES:
            raise HarnessError(
                f"{len(self.roles)} devices do not fit behind an SMMU of a virtual host",
                fix=f"list at most {MOST_DEVICES} roles in `devices` of the inventory",
            )
        return [
            VirtualDevice(
                f"{role}{index}.{self.roles[:port].count(role)}",
                *_emulated(role),
                index,
                port,
                *self._addresses(index, bus, port),
            )
            for index, bus in enumerate(self._buses())
            for port, role in enumerate(self.roles)
        ]

    def _addresses(self, smmu: int, bus: int, port: int) -> tuple[str, str]:
        """Return the PCI addresses, on the host and in QEMU, of the device behind a port; `bus` is
        the one on which the port is."""
        # Firmware numbers buses depth first: a pxb's ports get the buses after its own.
        emulated = f"0000:{bus + 1 + port:02x}:00.0"
        return f"{self._segment(smmu):04x}:{port:02x}:00.0" if self.segments else emulated, emulated

    def _host_bridges(self) -> list[HostBridge]:
        buses = self._buses()
        return [
            HostBridge(
                self._segment(device.smmu),
                device.port,
                config_address(f"0000:{buses[device.smmu]:02x}:{device.port:02x}.0"),
            )
            for device in self.devices()
        ]

    def acpi_cpio(self) -> bytes:
        """Return the cpio with the host's ACPI tables, for the start of its initrd."""
        nodes = self.smmu_nodes()
        tables = {"iort": iort(nodes)}
        if self.segments:
            tables["mcfg"] = mcfg(ECAM, nodes)
            tables["ssdt-segments"] = segments_ssdt(self._buses(), self._host_bridges())
        if self.cmdqv:
            where = config_address(CMDQV_BDF)
            tables["ssdt-cmdqv"] = cmdqv_ssdt(1, where, self.cmdqv.bytes, _FIRST_SPI + CMDQV_SPI)
        return override_cpio(tables)

    def kernel_options(self) -> str:
        """Return the options that the host's kernel needs for this hardware."""
        slow = {device.emulation.slow_driver for device in self.devices()} - {""}
        options = [f"driver_async_probe={','.join(sorted(slow))}"] if slow else []
        if self.cmdqv:
            # The kernel's own commands go to the SMMU's queue: the model carries out only guests'.
            options.append("arm_smmu_v3.bypass_vcmdq=1")
        return " ".join(options)

    def arguments(self, emulator: Path, disks: dict[str, Path], vfio_user: Path) -> list[str]:
        """Return QEMU's options for the machine and its devices. `disks` has a raw file for each
        device that has a disk, by id; the CMDQV, if there is one, is served on the socket
        `vfio_user`."""
        backend = ",memory-backend=memory" if self.cmdqv else ""
        out = [
            *("-machine", f"virt,virtualization=on,gic-version=3,its=on{backend}"),
            # 48-bit addresses, as on Grace's Neoverse V2: with 52 bits (LPA2) the kernel takes
            # 0.7 s to end any VM, also the one with which QEMU probes KVM.
            *("-cpu", "max,pauth-impdef=on,lpa2=off"),
            *("-accel", "tcg,thread=multi,tb-size=512"),
            *("-m", f"{self.memory_mib}M", "-smp", str(self.cpus)),
            *("-bios", str(emulator / "usr/share/qemu-efi-aarch64/QEMU_EFI.fd")),
        ]
        if self.cmdqv:
            # The model reads queues in the machine's memory, so its process must share it.
            size = f"size={self.memory_mib}M"
            out += ["-object", f"memory-backend-memfd,id=memory,{size},share=on"]
            function = {
                "driver": "vfio-user-pci",
                "socket": {"type": "unix", "path": str(vfio_user)},
                "bus": "pcie.0",
                "addr": f"{int(CMDQV_BDF[8:10], 16):#x}",
            }
            out += ["-device", json.dumps(function)]
        if not self.reboots:
            out.append("-no-reboot")
        chassis = 0
        for index, bus in enumerate(self._buses()):
            root = f"pcie.smmu{index}"
            out += ["-device", f"pxb-pcie,id={root},bus_nr={bus},bus=pcie.0"]
            # The device defaults to stage 1; a host that virtualises needs both.
            out += ["-device", f"arm-smmuv3,primary-bus={root},id=smmu{index},stage=nested"]
            for device in (one for one in self.devices() if one.smmu == index):
                chassis += 1
                port = f"port.{device.id}"
                where = f"id={port},bus={root},addr={device.port:#x},chassis={chassis}"
                out += ["-device", f"pcie-root-port,{where},slot={chassis}"]
                out += self._device(device, port, disks)
        return out

    @staticmethod
    def _device(device: VirtualDevice, port: str, disks: dict[str, Path]) -> list[str]:
        properties = {"bus": port, "id": device.id, **device.emulation.properties}
        drive = []
        if device.emulation.disk_bytes:
            name = f"drive.{device.id}"
            drive = ["-drive", f"if=none,id={name},format=raw,file={disks[device.id]}"]
            properties |= {"serial": device.id, "drive": name}
        options = "".join(f",{name}={value}" for name, value in properties.items())
        return [*drive, "-device", f"{device.emulation.driver}{options}"]


def _emulated(role: str) -> tuple[DeviceKind, Emulation]:
    chosen = kind(role)
    if chosen.emulation is None:
        raise HarnessError(
            f"QEMU cannot emulate a device of the role {role}",
            fix=f"choose {', '.join(emulated_roles())}",
        )
    return chosen, chosen.emulation
