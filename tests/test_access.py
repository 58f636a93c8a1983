"""Event records are compared with the accesses that raised them: to the bit where the SMMU is
exact, else as far as the specification defines them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.smmu.access import Access, fewest, mismatch
from harness.smmu.events import EventRecord, EventType

FAULTS = st.builds(
    EventRecord.stage1_fault,
    st.sampled_from([EventType.F_TRANSLATION, EventType.F_PERMISSION]),
    sid=st.sampled_from([0x2100, 0x2200]),
    input_addr=st.integers(0, 3).map(lambda number: 0x4000_0000 + 4 * number),
    rnw=st.booleans(),
)
#: What the specification leaves UNKNOWN in a stage-1 fault that is not stalled and has no SSV: the
#: SubstreamID, the stall tag and what is implementation defined above bit 47, and the IPA.
UNKNOWN = (0xFFFFF << 12, 0xFFFF_0000_0000_FFFF, 0, (1 << 64) - 1)


def accesses(records: list[EventRecord]) -> list[Access]:
    return [Access(record) for record in records]


def fault(number: int) -> EventRecord:
    return EventRecord.stage1_fault(
        EventType.F_TRANSLATION, sid=0x2100, input_addr=0x4000_0000 + 4 * number, rnw=False
    )


@st.composite
def merged(draw: st.DrawFn) -> tuple[list[EventRecord], list[EventRecord]]:
    """Draw what accesses raised where equal records may be merged in any way, in any order, with
    anything in UNKNOWN fields; and the records that they would raise on an exact SMMU."""
    made = draw(st.lists(FAULTS, min_size=1, max_size=8))
    left = [
        record
        for record, times in Counter(made).items()
        for _ in range(draw(st.integers(1, times)))
    ]
    return [draw(garbled(record)) for record in draw(st.permutations(left))], made


@st.composite
def garbled(draw: st.DrawFn, record: EventRecord) -> EventRecord:
    garbage = (draw(st.integers(0, unknown)) & unknown for unknown in UNKNOWN)
    first, second, third, fourth = (
        word | noise for word, noise in zip(record.words, garbage, strict=True)
    )
    return EventRecord((first, second, third, fourth))


@given(st.lists(FAULTS, max_size=4), st.data())
def test_exact_records_are_the_accesses_in_order(
    made: list[EventRecord], data: st.DataObject
) -> None:
    records = data.draw(st.permutations(made) | st.lists(FAULTS, max_size=4))
    assert (mismatch(records, accesses(made), exact=True) == "") == (records == made)


@given(FAULTS, st.data())
def test_an_exact_record_has_no_unknown_fields(record: EventRecord, data: st.DataObject) -> None:
    other = data.draw(garbled(record))
    assert (mismatch([other], [Access(record)], exact=True) == "") == (other == record)
    assert mismatch([other], [Access(record)], exact=False) == ""


@given(merged())
def test_equal_records_may_be_merged(drawn: tuple[list[EventRecord], list[EventRecord]]) -> None:
    records, made = drawn
    assert mismatch(records, accesses(made), exact=False) == ""
    assert fewest(accesses(made), exact=False) <= len(records)
    assert fewest(accesses(made), exact=True) == len(made)


@given(merged(), st.data())
def test_a_foreign_record_is_found(
    drawn: tuple[list[EventRecord], list[EventRecord]], data: st.DataObject
) -> None:
    records, made = drawn
    foreign = data.draw(FAULTS.filter(lambda record: record not in made).flatmap(garbled))
    at = data.draw(st.integers(0, len(records)))
    records.insert(at, foreign)
    said = mismatch(records, accesses(made), exact=False)
    assert said.startswith(f"record {at} of {len(records)} is of no access that was made")


@given(merged(), st.data())
def test_an_access_without_a_record_is_found(
    drawn: tuple[list[EventRecord], list[EventRecord]], data: st.DataObject
) -> None:
    records, made = drawn
    missing = data.draw(st.sampled_from(made))
    rest = [record for record in records if record.defined() != missing]
    said = mismatch(rest, accesses(made), exact=False)
    assert "; 0 records, not 1" in said
    assert str(missing) in said


@given(merged(), st.data())
def test_more_records_than_accesses_are_found(
    drawn: tuple[list[EventRecord], list[EventRecord]], data: st.DataObject
) -> None:
    records, made = drawn
    one = data.draw(st.sampled_from(made))
    records += [data.draw(garbled(one)) for _ in range(made.count(one))]
    said = mismatch(records, accesses(made), exact=False)
    assert f" of the access\n  {one}" in said


@given(st.integers(1, 3), st.integers(5, 256), st.data(), st.booleans())
def test_a_cut_access_raises_records_within_its_span(
    times: int, length: int, data: st.DataObject, exact: bool
) -> None:
    """Each of a cut access's pieces raises a record. There is at least one for each time that the
    access is made, except where records may be merged, and at most one for each word."""
    access = Access.cut(fault(0), length)
    assert access.most == -(-length // 4)
    least, most = times if exact else 1, times * access.most
    offsets = data.draw(st.lists(st.integers(0, length - 1), min_size=least, max_size=most))
    records = [at(access.record, offset) for offset in offsets]
    assert mismatch(records, [access] * times, exact=exact) == ""
    too_many = [access.record] * (most + 1)
    assert f"{most + 1} records, not" in mismatch(too_many, [access] * times, exact=exact)
    outside = data.draw(st.sampled_from([-1, length]))
    foreign = [*records, at(access.record, outside)]
    assert "of no access" in mismatch(foreign, [access] * times, exact=exact)


def at(record: EventRecord, offset: int) -> EventRecord:
    first, second, address, fourth = record.words
    return EventRecord((first, second, address + offset, fourth))


def test_a_cut_access_counts_the_words_that_it_touches() -> None:
    assert Access.cut(at(fault(0), 2), 4).most == 2
    assert "in 1 to 16 pieces within 64 bytes" in str(Access.cut(fault(0), 64))
    assert str(Access(fault(0))) == str(fault(0))


def test_an_access_at_the_beginning_of_memory_is_cut_as_any_other() -> None:
    zero = EventRecord.stage1_fault(EventType.F_TRANSLATION, sid=1, input_addr=0, rnw=True)
    assert [Access.cut(zero, length).most for length in (1, 4, 5)] == [1, 1, 2]
    without_address = EventRecord.configuration_fault(EventType.C_BAD_CD, sid=1)
    assert Access.cut(without_address, 5).most == 2


def test_a_whole_access_raises_its_record_and_no_other() -> None:
    whole, halves = Access(fault(0)), Access.cut(fault(0), 2)
    assert [one.raises(at(fault(0), 1)) for one in (whole, halves)] == [False, True]
    assert mismatch([at(fault(0), 1)], [halves], exact=False) == ""
    assert "of no access" in mismatch([at(fault(0), 1)], [whole], exact=False)


def test_a_number_of_records_is_said_with_what_was_expected() -> None:
    several, one = Access.cut(fault(0), 8), Access(fault(9))
    said = mismatch([fault(0)] * 3, [several], exact=True)
    assert said.startswith("3 records in all; 3 records, not 1 to 2, of the access\n")
    said = mismatch([fault(0)] * 5, [several, several], exact=True)
    assert said.startswith("5 records in all; 5 records, not 2 to 4, of the access\n")
    said = mismatch([fault(0)], [several, one], exact=True)
    assert said.startswith("1 records in all; 0 records, not 1, of the access\n")


@pytest.mark.parametrize("exact", [True, False])
def test_pieces_and_whole_accesses_are_told_apart(exact: bool) -> None:
    made = [Access.cut(fault(0), 64), Access(fault(100))]
    assert mismatch([fault(1), fault(100), fault(5)], made, exact=exact) == ""
    assert "0 records, not 1" in mismatch([fault(1), fault(5)], made, exact=exact)
