"""What hardware the virtual Grace host has, and QEMU's command line for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.virtual.acpi import SmmuNode, iort, override_cpio, smmu_of_virt_board

#: Buses from here on are behind SMMUs, eight to each; below are the host's own disk and network.
FIRST_BUS = 8
BUSES_PER_SMMU = 8

#: One of each behind every SMMU, each behind its own root port (so: its own IOMMU group).
GADGETS = ("edu", "iommu-testdev", "nvme")

NVME_BYTES = 256 << 20


@dataclass(frozen=True)
class VirtualDevice:
    """An assignable device: its QEMU id, role (`GADGETS`), and address once firmware ran."""

    id: str
    role: str
    bdf: str


@dataclass(frozen=True)
class Topology:
    """Sizes that an inventory may choose."""

    memory_mib: int = 3072
    cpus: int = 2
    smmus: int = 2

    def smmu_nodes(self) -> list[SmmuNode]:
        return [
            smmu_of_virt_board(index, range(bus, bus + BUSES_PER_SMMU))
            for index, bus in enumerate(self._buses())
        ]

    def _buses(self) -> list[int]:
        return [FIRST_BUS + BUSES_PER_SMMU * index for index in range(self.smmus)]

    def devices(self) -> list[VirtualDevice]:
        """Firmware numbers buses depth first: a pxb's ports get the buses after its own."""
        return [
            VirtualDevice(f"{role}{index}", role, f"0000:{bus + port:02x}:00.0")
            for index, bus in enumerate(self._buses())
            for port, role in enumerate(GADGETS, start=1)
        ]

    def acpi_cpio(self) -> bytes:
        return override_cpio({"iort": iort(self.smmu_nodes())})

    def arguments(self, emulator: Path, disks: dict[str, Path]) -> list[str]:
        """QEMU's options for the machine itself; `disks` has a raw file for each NVMe id."""
        out = [
            *("-machine", "virt,virtualization=on,gic-version=3,its=on"),
            *("-cpu", "max,pauth-impdef=on"),
            *("-accel", "tcg,thread=multi,tb-size=512"),
            *("-m", f"{self.memory_mib}M", "-smp", str(self.cpus)),
            *("-bios", str(emulator / "usr/share/qemu-efi-aarch64/QEMU_EFI.fd")),
        ]
        chassis = 0
        for index, bus in enumerate(self._buses()):
            root = f"pcie.smmu{index}"
            out += ["-device", f"pxb-pcie,id={root},bus_nr={bus},bus=pcie.0"]
            # The device defaults to stage 1; a host that virtualises needs both.
            out += ["-device", f"arm-smmuv3,primary-bus={root},id=smmu{index},stage=nested"]
            for device in (d for d in self.devices() if d.id.endswith(str(index))):
                chassis += 1
                port = f"port.{device.id}"
                where = f"id={port},bus={root},chassis={chassis},slot={chassis}"
                out += ["-device", f"pcie-root-port,{where}"]
                out += self._device(device, port, disks)
        return out

    @staticmethod
    def _device(device: VirtualDevice, port: str, disks: dict[str, Path]) -> list[str]:
        options = f"{device.role},bus={port},id={device.id}"
        if device.role == "edu":
            # Full reach: the default mask folds addresses into 28 bits.
            return ["-device", f"{options},dma_mask=0xffffffffffffffff"]
        if device.role == "nvme":
            drive = f"if=none,id=drive.{device.id},format=raw,file={disks[device.id]}"
            return [
                "-drive",
                drive,
                "-device",
                f"{options},serial={device.id},drive=drive.{device.id}",
            ]
        return ["-device", options]
