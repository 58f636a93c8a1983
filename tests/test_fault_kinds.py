"""Each kind of fault can happen in the guest that its test asks for, whatever the host's SMMU
has."""

from __future__ import annotations

from harness.devices.source import FaultSource
from harness.faults.guest_tables import GuestTables
from harness.guest.description import GuestSpec
from harness.smmu.events import EventType
from suites.veventq import test_single_fault

#: The output addresses of QEMU's SMMU have 44 or 48 bits: with `oas=auto` as many as the host's.
MOST_BITS = 48


def test_an_output_address_out_of_range_has_more_bits_than_the_guests() -> None:
    marks = vars(test_single_fault.test_translation_fault_types)["pytestmark"]
    (cases,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    asked: list[tuple[type[FaultSource], GuestSpec]] = [
        (case.values[0], mark.args[0])
        for case in cases
        if case.values[1] is EventType.F_ADDR_SIZE
        for mark in case.marks
    ]
    assert asked
    for way, guest in asked:
        (smmu,) = guest.smmus
        bits = dict(smmu.properties).get("oas", f"{MOST_BITS}")
        assert GuestTables.OUT_OF_RANGE.output >= 1 << int(bits), way
