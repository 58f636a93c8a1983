"""What an encoder of all types prints in every form, `hil decode` reads as the same records."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from harness.smmu.decode.found import Damaged, Sighting, Unknown
from harness.smmu.decode.reader import Reading
from harness.smmu.events import EventRecord, EventType
from tests.decode_forms import CLIENT, DUMPS, LOGS, log, texts

WORD = st.integers(0, (1 << 64) - 1)
FIRST = st.builds(
    lambda kind, ssv, ssid, sid: kind | ssv << 11 | ssid << 12 | sid << 32,
    st.sampled_from([int(kind) for kind in EventType] + [0xE0, 0xE5]),
    st.integers(0, 1),
    st.integers(0, 0xFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
RECORD = st.builds(lambda *words: EventRecord(words), FIRST, WORD, WORD, WORD)
RECORDS = st.lists(RECORD, min_size=1, max_size=5)
#: Each form has its own test, so that a few examples of each are many. A damaged one of ten lines
#: is found as it is: nothing is gained by making it smaller.
FEW = settings(max_examples=settings().max_examples // 16, phases=[Phase.explicit, Phase.generate])
#: Reflowed, the name of its class is cut: "CD" ends a line.
CD_CLASS = EventRecord((0x18C_09C8_D813, 0x49CC, 0x4AF, 0x2_E743_6D1A))
SIZES = st.sampled_from([1 << 16, 100, 7])


def read(data: bytes, size: int = 1 << 16) -> list[Sighting]:
    """Return the events in some bytes that come in pieces; nothing else may be in them."""
    found = list(Reading(data[at : at + size] for at in range(0, len(data), size)))
    assert [one for one in found if isinstance(one, (Damaged, Unknown))] == []
    return [one for one in found if isinstance(one, Sighting)]


@pytest.mark.parametrize("form", LOGS)
@FEW
@given(records=RECORDS, new=st.booleans(), size=SIZES)
@example(records=[CD_CLASS], new=True, size=7)
def test_forms_of_a_log(form: str, records: list[EventRecord], new: bool, size: int) -> None:
    found = read(LOGS[form](log(records, new=new)), size)
    assert [one.record for one in found] == records
    assert [one.notes for one in found] == [()] * len(records)
    assert {one.smmu for one in found} == {"arm-smmu-v3.0.auto"}
    if new:
        assert {one.client for one in found} == {CLIENT}


@pytest.mark.parametrize("form", DUMPS)
@FEW
@given(records=RECORDS, size=SIZES)
def test_forms_of_a_dump(form: str, records: list[EventRecord], size: int) -> None:
    found = read(DUMPS[form](b"".join(record.to_bytes() for record in records)), size)
    assert [one.record for one in found] == records


@pytest.mark.parametrize("slots", ["0120", "01112", "0001112222", "00111", "0000", "zz0011zz0zz"])
@pytest.mark.parametrize("options", ["-Ax -tx8", "-Ax -tx1", "-tx8", "-tx4"])
def test_od_leaves_out_records_that_are_alike(options: str, slots: str) -> None:
    """With lines as long as a slot od prints `*` in place of records; z is an empty slot."""
    records = {str(at): EventRecord((0x2200_0000_0010, 2 << 40, at << 12, 0)) for at in range(3)}
    data = b"".join(records[slot].to_bytes() if slot in records else bytes(32) for slot in slots)
    command = ["od", "-w32", *options.split()]
    printed = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    found = read(printed)
    assert [one.record for one in found] == [records[slot] for slot in slots if slot in records]


@FEW
@given(record=RECORD)
def test_text_alone_gives_what_it_says(record: EventRecord) -> None:
    lines = texts(record)
    if "UNKNOWN" in lines[0]:
        (damaged,) = Reading(["\n".join(lines).encode()])
        assert isinstance(damaged, Damaged)
        assert (damaged.kind, damaged.sid) == (None, record.words[0] >> 32)
        return
    (found,) = read("\n".join(lines).encode())
    assert (found.from_text, found.client) == (True, CLIENT)
    again = texts(found.record)
    if record.type == EventType.C_BAD_SUBSTREAMID:
        return  # Linux prints this SubstreamID only with SSV, which this type does not have
    assert again == lines


@FEW
@given(record=RECORD)
def test_what_the_reports_print_is_read_again(record: EventRecord) -> None:
    if record.sid is None:
        return
    (found,) = read(str(record).encode())
    shown = {**record.as_dict(), "raw": None, "reserved": None}
    again = {**found.record.as_dict(), "raw": None, "reserved": None}
    if not record.stall:
        shown["stag"] = again["stag"] = None
    assert again == shown
