"""QEMU refuses devices behind an accelerated SMMU with these messages (hw/arm/smmuv3-accel.c)."""

from __future__ import annotations

EMULATED = "Emulated endpoint devices are not allowed when using arm-smmuv3,accel=on"
NO_IOMMUFD = (
    "vfio-pci endpoint devices without an iommufd backend not allowed when using "
    "arm-smmuv3,accel=on"
)
