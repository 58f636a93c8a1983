"""Of a kernel's log, suites get the events of which the words are there, and nothing else."""

from __future__ import annotations

from harness.smmu.events import EventRecord
from harness.smmu.klog import LoggedEvent, logged_events
from tests.decode_forms import CLIENT, log, texts

RECORD = EventRecord((0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0))
OTHER = EventRecord((0x2300_0000_0010, 0x200_0000_0000, 0x2000_0000, 0))
SMMU = "arm-smmu-v3.0.auto"


def test_an_event_has_its_smmu_line_and_client() -> None:
    old, new = log([RECORD]), log([OTHER], new=True)
    text = "\n".join(["Booting Linux", *old, *new, ""])
    assert logged_events(text) == [
        LoggedEvent(SMMU, RECORD, 2),
        LoggedEvent(SMMU, OTHER, 2 + len(old), CLIENT),
    ]


def test_a_character_that_no_file_can_have_hides_no_event() -> None:
    assert [one.record for one in logged_events("\udcff\n" + "\n".join(log([RECORD])))] == [RECORD]


def test_an_event_without_its_words_is_none() -> None:
    assert logged_events("\n".join(texts(RECORD))) == []
    assert logged_events("\n".join([*log([RECORD])[:3], *log([OTHER])])) == [
        LoggedEvent(SMMU, OTHER, 4)
    ]


def test_words_that_no_kernel_logged_are_no_event() -> None:
    dump = " ".join(f"{word:#018x}" for word in RECORD.words)
    assert logged_events(f"{dump}\n") == []


def test_what_a_report_printed_is_no_event() -> None:
    assert logged_events(f"{RECORD}\n") == []
