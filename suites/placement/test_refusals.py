"""QEMU accepts what an accelerated SMMU supports, and refuses everything else with a message that
names the reason. No guest boots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness.boundary.client import SMMUV3, behind_boundary
from harness.boundary.on_host.rules import HostIdr
from harness.guest import qemu
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import QemuRefusedError
from harness.host import pci
from harness.host.ability import ANY
from harness.host.host import Host
from suites.placement.messages import EMULATED, NO_IOMMUFD

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet  # pytest has no public name for it

#: An additional root complex and its root port. The tests attach the SMMU to this complex.
COMPLEX = "-device pxb-pcie,id=pcie.1,bus_nr=32,bus=pcie.0"
PORT = "-device pcie-root-port,id=port0,bus=pcie.1,chassis=1"
PLAIN = f"{COMPLEX} {PORT} -device arm-smmuv3,id=smmu,primary-bus=pcie.1"
ACCEL = f"{PLAIN},accel=on"
#: All properties that QEMU could copy from the host's SMMU are given, so no assigned device is
#: needed.
EXPLICIT = f"{ACCEL},ats=off,ril=on,ssidsize=0,oas=44"

ONE_DEVICE = GuestSpec(smmus=(SmmuSpec(devices=(ANY,)),))

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
NO_SSID = "ssidsize can only be greater than 0 bits if accel=on"
TAKEN = "An iommu is already attached to this bus"

HOST, LACKS = "Host SMMUv3", "Host SMMUv3 doesn't support"
ST_LEVELS = "Stream Table format mismatch (host STLEVEL=0, QEMU STLEVEL=1)"
LITTLE_ENDIAN, AARCH64 = "Little-endian translation table", "AArch64 translation table format"
SIDS = "SIDSIZE not compatible"
IPA = "supports only 44-bit IPA, but the vSMMU OAS implies 48-bit IPA"


def case(name: str, asked: str | GuestSpec, message: str) -> ParameterSet:
    """Return one case of a test: what QEMU is asked for, and the whole message that it refuses it
    with."""
    return pytest.param(asked, message, id=name)


def check_refusal(host: Host, options: str, message: str) -> None:
    """Check that QEMU refuses to start with these options, and that this is its last message."""
    answer = qemu.ask(host, options)
    assert answer.refuses_with(message), answer


@pytest.mark.covers("ACC-01")
@pytest.mark.parametrize(
    "devices",
    [
        pytest.param("-device edu,bus=port0", id="edu"),
        pytest.param("-device e1000e,bus=port0", id="nic"),
        pytest.param("-device virtio-rng-pci,bus=port0", id="virtio"),
        pytest.param(
            "-device pcie-pci-bridge,bus=port0,id=br -device edu,bus=br", id="behind-a-bridge"
        ),
    ],
)
def test_an_emulated_endpoint(host: Host, devices: str) -> None:
    check_refusal(host, f"{EXPLICIT} {devices}", EMULATED)


@pytest.mark.covers("ACC-05")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        case("ats", f"{PLAIN},ats=on", "ats can only be enabled if accel=on"),
        case("ril", f"{PLAIN},ril=off", "ril can only be disabled if accel=on"),
        case("oas", f"{PLAIN},oas=48", "oas must be 44 bits when accel=off"),
        case("oas-32", f"{ACCEL},oas=32", OAS),
        case("oas-52", f"{PLAIN},oas=52", OAS),
        case("ssidsize", f"{PLAIN},ssidsize=1", NO_SSID),
        case(
            "ssidsize-21", f"{ACCEL},ssidsize=21", "Parameter 'ssidsize' does not accept value '21'"
        ),
        case("cmdqv", f"{PLAIN},cmdqv=on", "cmdqv can only be enabled if accel=on"),
        case("stage-2", f"{EXPLICIT},stage=2", STAGE1),
        case("nested", f"{EXPLICIT},stage=nested", STAGE1),
        case("automatic", ACCEL, COLD_PLUGGED),
        case("automatic-ats", EXPLICIT.replace("ats=off", "ats=auto"), COLD_PLUGGED),
        case("automatic-ril", EXPLICIT.replace("ril=on", "ril=auto"), COLD_PLUGGED),
        case("automatic-ssidsize", EXPLICIT.replace("ssidsize=0", "ssidsize=auto"), COLD_PLUGGED),
        case("automatic-oas", EXPLICIT.replace("oas=44", "oas=auto"), COLD_PLUGGED),
        case("identifier", f"{EXPLICIT},identifier=300", "Parameter 'identifier' expects uint8_t"),
        case("no-kvm", f"{EXPLICIT} -machine accel=tcg -cpu max", NO_KVM),
        case("machines-smmu", f"-machine iommu=smmuv3 {EXPLICIT}", OTHER_SMMU),
        case("second-on-a-bus", f"{EXPLICIT} -device arm-smmuv3,primary-bus=pcie.1", TAKEN),
        case("bypassed", EXPLICIT.replace(COMPLEX, f"{COMPLEX},bypass_iommu=on"), BYPASSED),
        case("on-a-port", EXPLICIT.replace("primary-bus=pcie.1", "primary-bus=port0"), PXB_ONLY),
        case("nowhere", "-device arm-smmuv3", "SMMU is not attached to any PCI bus!"),
    ],
)
def test_properties_and_places(host: Host, options: str, message: str) -> None:
    check_refusal(host, options, message)


@pytest.mark.covers("ACC-05")
def test_device_tree_is_refused(host: Host) -> None:
    """QEMU starts without firmware here, which makes the virt machine use a device tree."""
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


def chosen(fleet: Fleet, spec: GuestSpec) -> str:
    """Return the host address of the only device that a guest of this description gets."""
    ((device,),) = fleet.choose([spec])
    return device.host_bdf


@pytest.fixture
def bdf(host: Host, fleet: Fleet) -> Iterator[str]:
    """Yield the address of a host's device that is bound to vfio-pci and that no guest has."""
    fleet.clear()
    bdf = chosen(fleet, ONE_DEVICE)
    host.assign([bdf])
    yield bdf
    pci.release(host.session, [bdf])


@pytest.mark.covers("ACC-03")
@pytest.mark.guest(ONE_DEVICE)
def test_a_device_without_iommufd(host: Host, bdf: str) -> None:
    check_refusal(host, f"{ACCEL} -device vfio-pci,host={bdf},bus=port0", NO_IOMMUFD)


@pytest.mark.covers("ACC-05")
@pytest.mark.guest(ONE_DEVICE)
def test_a_second_smmu_needs_a_device_of_its_own(host: Host, bdf: str) -> None:
    """An SMMU copies its automatic properties from the host's SMMU that its own device is behind.
    The device of another SMMU does not help."""
    check_refusal(
        host,
        f"{ACCEL} -object iommufd,id=iommufd0 "
        f"-device vfio-pci,host={bdf},bus=port0,iommufd=iommufd0 "
        "-device pxb-pcie,id=pcie.2,bus_nr=48,bus=pcie.0 "
        "-device arm-smmuv3,primary-bus=pcie.2,accel=on",
        COLD_PLUGGED,
    )


def host_with(rule: HostIdr, **properties: str) -> GuestSpec:
    """Return a guest whose SMMU has these properties, and whose QEMU reads from the boundary ID
    registers of the host's SMMU that the rule changed."""
    smmu = SmmuSpec(devices=(ANY,), properties=tuple(properties.items()))
    return behind_boundary(GuestSpec(smmus=(smmu,), memory_mib=64), {SMMUV3: [rule]})


ATS, ST_LEVEL, TTENDIAN, TTF = 1 << 10, 0b11 << 27, 0b11 << 21, 0b11 << 2
SIDSIZE, SSIDSIZE = 0b111111, 0b11111 << 6
RIL = 1 << 10
OAS_FIELD, OAS_44, GRAN4K, GRAN16K, GRAN64K = 0b111, 4, 1 << 4, 1 << 5, 1 << 6


@pytest.mark.covers("ACC-10")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        case("ats", host_with(HostIdr(0, ATS), ats="on"), f"{LACKS} Address Translation Services"),
        case("st-level", host_with(HostIdr(0, ST_LEVEL)), f"{HOST} {ST_LEVELS}"),
        case("endian", host_with(HostIdr(0, TTENDIAN, TTENDIAN)), f"{LACKS} {LITTLE_ENDIAN}"),
        case("format", host_with(HostIdr(0, TTF, 1 << 2)), f"{LACKS} {AARCH64}"),
        case("sidsize", host_with(HostIdr(1, SIDSIZE, 8)), f"{HOST} {SIDS} (host=8, QEMU=16)"),
        case(
            "ssidsize",
            host_with(HostIdr(1, SSIDSIZE), ssidsize="5"),
            f"{HOST} S{SIDS} (host=0, QEMU=5)",
        ),
        case("ril", host_with(HostIdr(3, RIL), ril="on"), f"{LACKS} Range Invalidation"),
        case("4k", host_with(HostIdr(5, GRAN4K)), f"{LACKS} 4K translation granule"),
        case("16k", host_with(HostIdr(5, GRAN16K)), f"{LACKS} 16K translation granule"),
        case("64k", host_with(HostIdr(5, GRAN64K)), f"{LACKS} 64K translation granule"),
        case("oas", host_with(HostIdr(5, OAS_FIELD, OAS_44), oas="48"), f"{HOST} {IPA}"),
    ],
)
def test_what_the_host_lacks(fleet: Fleet, spec: GuestSpec, message: str) -> None:
    """QEMU refuses a host's SMMU that lacks what the guest needs. The boundary changes the ID
    registers that QEMU reads, so the real host does not matter."""
    with pytest.raises(QemuRefusedError) as refused:
        with fleet.guests([spec], Freshness.COLD):
            pass
    said = refused.value.said
    where = f"vfio {chosen(fleet, spec)}"
    assert said.endswith(f": {where}: Failed to set vIOMMU: {message}"), said
