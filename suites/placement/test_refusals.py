"""What QEMU takes and what it refuses, message by message. No guest boots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.guest import qemu
from harness.guest.fleet import Fleet
from harness.host import pci
from harness.host.host import Host

#: A root complex of its own with a root port, for an SMMU to be in front of.
COMPLEX = "-device pxb-pcie,id=pcie.1,bus_nr=32,bus=pcie.0"
PORT = "-device pcie-root-port,id=port0,bus=pcie.1,chassis=1"
PLAIN = f"{COMPLEX} {PORT} -device arm-smmuv3,id=smmu,primary-bus=pcie.1"
ACCEL = f"{PLAIN},accel=on"
#: All that would be copied from the host is said: no assigned device is needed.
EXPLICIT = f"{ACCEL},ats=off,ril=on,ssidsize=0,oas=44"

EMULATED = "Emulated endpoint devices are not allowed when using arm-smmuv3,accel=on"
NO_IOMMUFD = (
    "vfio-pci endpoint devices without an iommufd backend not allowed when using "
    "arm-smmuv3,accel=on"
)
OAS = (
    "QEMU SMMUv3 model only implements auto, 44 bit, or 48 bit OAS. Other OasMode values are not "
    "supported."
)
COLD_PLUGGED = (
    "arm-smmuv3 accel=on with 'auto' properties requires at least one cold-plugged VFIO device"
)
STAGE1 = "Only stage1 is supported for SMMUv3 with accel=on"
NO_KVM = "SMMUv3 accel=on requires KVM with kernel-irqchip=on support"
OTHER_SMMU = "virt machine already has iommu=smmuv3 set. Doesn't support incompatible iommus"
PXB_ONLY = (
    "SMMU should be attached to a default PCIe root complex(pcie.0) or a pxb-pcie based root "
    "complex"
)
BYPASSED = "Bypass option cannot be set for SMMUv3 associated PCIe RC"
#: The edu of the host, as a guest has it.
EDU = "-object iommufd,id=iommufd0 -device vfio-pci,host={bdf},bus=port0,iommufd=iommufd0"


def case(behaviour: str, name: str, options: str, message: str) -> object:
    """A line of the matrix: options, and the whole message that they are refused with."""
    return pytest.param(options, message, id=name, marks=pytest.mark.covers(behaviour))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        case("ACC-01", "edu", f"{EXPLICIT} -device edu,bus=port0", EMULATED),
        case("ACC-01", "nic", f"{EXPLICIT} -device e1000e,bus=port0", EMULATED),
        case("ACC-01", "virtio", f"{EXPLICIT} -device virtio-rng-pci,bus=port0", EMULATED),
        case(
            "ACC-01",
            "behind-a-bridge",
            f"{EXPLICIT} -device pcie-pci-bridge,bus=port0,id=br -device edu,bus=br",
            EMULATED,
        ),
        case("ACC-05", "ats", f"{PLAIN},ats=on", "ats can only be enabled if accel=on"),
        case("ACC-05", "ril", f"{PLAIN},ril=off", "ril can only be disabled if accel=on"),
        case("ACC-05", "oas", f"{PLAIN},oas=48", "oas must be 44 bits when accel=off"),
        case("ACC-05", "oas-32", f"{ACCEL},oas=32", OAS),
        case("ACC-05", "oas-52", f"{PLAIN},oas=52", OAS),
        case(
            "ACC-05",
            "ssidsize",
            f"{PLAIN},ssidsize=1",
            "ssidsize can only be greater than 0 bits if accel=on",
        ),
        case(
            "ACC-05",
            "ssidsize-21",
            f"{ACCEL},ssidsize=21",
            "Parameter 'ssidsize' does not accept value '21'",
        ),
        case("ACC-05", "cmdqv", f"{PLAIN},cmdqv=on", "cmdqv can only be enabled if accel=on"),
        case("ACC-05", "stage-2", f"{EXPLICIT},stage=2", STAGE1),
        case("ACC-05", "nested", f"{EXPLICIT},stage=nested", STAGE1),
        case("ACC-05", "automatic", ACCEL, COLD_PLUGGED),
        *(
            case(
                "ACC-05",
                f"automatic-{name}",
                EXPLICIT.replace(f"{name}={value}", f"{name}=auto"),
                COLD_PLUGGED,
            )
            for name, value in (("ats", "off"), ("ril", "on"), ("ssidsize", "0"), ("oas", "44"))
        ),
        case(
            "ACC-05",
            "identifier",
            f"{EXPLICIT},identifier=300",
            "Parameter 'identifier' expects uint8_t",
        ),
        case("ACC-05", "no-kvm", f"{EXPLICIT} -machine accel=tcg -cpu max", NO_KVM),
        case("ACC-05", "machines-smmu", f"-machine iommu=smmuv3 {EXPLICIT}", OTHER_SMMU),
        case(
            "ACC-05",
            "second-on-a-bus",
            f"{EXPLICIT} -device arm-smmuv3,primary-bus=pcie.1",
            "An iommu is already attached to this bus",
        ),
        case(
            "ACC-05", "bypassed", EXPLICIT.replace(COMPLEX, f"{COMPLEX},bypass_iommu=on"), BYPASSED
        ),
        case(
            "ACC-05",
            "on-a-port",
            EXPLICIT.replace("primary-bus=pcie.1", "primary-bus=port0"),
            PXB_ONLY,
        ),
        case("ACC-05", "nowhere", "-device arm-smmuv3", "SMMU is not attached to any PCI bus!"),
    ],
)
def test_a_refusal(host: Host, options: str, message: str) -> None:
    answer = qemu.ask(host, options)
    assert answer.refuses_with(message), answer


@pytest.mark.covers("ACC-05")
def test_device_tree_is_refused(host: Host) -> None:
    """Without firmware the virt machine describes itself by device tree."""
    answer = qemu.ask(host, EXPLICIT, firmware=False)
    assert answer.refuses_with("SMMUv3 with accel=on not supported for DT"), answer


@pytest.mark.covers("ACC-04")
@pytest.mark.parametrize(
    "devices",
    [
        pytest.param("", id="root-port"),
        pytest.param("-device pcie-pci-bridge,bus=port0", id="pci-bridge"),
        pytest.param(
            "-device x3130-upstream,bus=port0,id=up -device xio3130-downstream,bus=up,chassis=2",
            id="switch",
        ),
        pytest.param(
            "-device pxb-pcie,id=pcie.2,bus_nr=48,bus=pcie.0 "
            "-device pcie-root-port,bus=pcie.2,chassis=3 -device edu,bus=pcie.0",
            id="complex-without-smmu",
        ),
    ],
)
def test_what_may_stand_behind_it(host: Host, devices: str) -> None:
    answer = qemu.ask(host, f"{EXPLICIT} {devices}")
    assert answer == qemu.Answer(True, ())


@pytest.fixture
def edu_bdf(host: Host, fleet: Fleet) -> Iterator[str]:
    """An edu of the host that no guest has, driven by vfio-pci."""
    fleet.clear()
    bdf = next(bdf for bdf, role in host.description.devices.items() if role == "edu")
    pci.assign(host.session, [bdf])
    yield bdf
    pci.release(host.session, [bdf])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        case(
            "ACC-03", "no-iommufd", f"{ACCEL} -device vfio-pci,host={{bdf}},bus=port0", NO_IOMMUFD
        ),
        case(
            "ACC-05",
            "second-smmu-automatic",
            f"{ACCEL} {EDU} -device pxb-pcie,id=pcie.2,bus_nr=48,bus=pcie.0 "
            "-device arm-smmuv3,primary-bus=pcie.2,accel=on",
            COLD_PLUGGED,
        ),
        case(
            "ACC-10",
            "ats",
            f"{ACCEL},ats=on {EDU}",
            "Failed to set vIOMMU: Host SMMUv3 doesn't support Address Translation Services",
        ),
        case(
            "ACC-10",
            "ssidsize",
            f"{ACCEL},ssidsize=1 {EDU}",
            "Failed to set vIOMMU: Host SMMUv3 SSIDSIZE not compatible (host=0, QEMU=1)",
        ),
        case(
            "ACC-10",
            "oas",
            f"{ACCEL},oas=48 {EDU}",
            "Failed to set vIOMMU: Host SMMUv3 supports only 44-bit IPA, but the vSMMU OAS implies "
            "48-bit IPA",
        ),
    ],
)
def test_a_refusal_of_a_device(host: Host, edu_bdf: str, options: str, message: str) -> None:
    answer = qemu.ask(host, options.format(bdf=edu_bdf))
    assert answer.refuses_with(message), answer
