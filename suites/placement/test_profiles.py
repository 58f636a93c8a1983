"""A guest has what the profile of its machine says, and its devices work.

KubeVirt gives the SMMU of each GPU of a Grace a fixed profile, in which no property is `auto`, so
that QEMU copies nothing from the host.
"""

from __future__ import annotations

import pytest

from harness.boundary.client import SMMUV3, behind_boundary
from harness.boundary.on_host.rules import HostIdr
from harness.devices.source import FaultSource
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import WRITER
from harness.smmu.registers import IDR0, IDR1, IDR3, IDR5
from suites.placement.faults import check_faults

GRACE = (("ats", "on"), ("ril", "off"), ("ssidsize", "20"), ("oas", "48"))
IDR0_ATS, IDR3_RIL, IDR5_OAS, OAS_48 = 1 << 10, 1 << 10, 0b111, 0b101
SSIDSIZE_SHIFT, IDR1_SSIDSIZE = 6, 0b11111 << 6

#: On a host whose SMMU has less, QEMU is told that it has what a Grace's has.
AS_ON_GRACE = behind_boundary(
    GuestSpec(smmus=(SmmuSpec(devices=(WRITER,), properties=GRACE),)),
    {
        SMMUV3: [
            HostIdr(0, set=IDR0_ATS),
            HostIdr(1, IDR1_SSIDSIZE, 20 << SSIDSIZE_SHIFT),
            HostIdr(5, IDR5_OAS, OAS_48),
        ]
    },
)


@pytest.mark.covers("ACC-18")
@pytest.mark.guest(AS_ON_GRACE)
def test_a_grace_as_kubevirt_describes_it(guest: Guest, writer: FaultSource) -> None:
    registers = guest.event_queue().register
    assert registers(IDR0) & IDR0_ATS
    assert registers(IDR1) & IDR1_SSIDSIZE == 20 << SSIDSIZE_SHIFT
    assert not registers(IDR3) & IDR3_RIL
    assert registers(IDR5) & IDR5_OAS == OAS_48
    check_faults(writer)
    assert guest.kernel_log("CMDQ error") == ""
