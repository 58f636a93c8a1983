"""The lines of a log are put together into events: what interrupts them, what is cut, torn or
missing, and what newer kernels print after them."""

from __future__ import annotations

import pytest

from harness.smmu.decode.assembly import Assembly
from harness.smmu.decode.found import Aside, Damaged, Explained, Found, Sighting, Unknown
from harness.smmu.events import EventRecord
from tests.decode_forms import CLIENT, SMMU, messages, texts

NAME = SMMU.split()[1][:-1]
OTHER = SMMU.replace("v3.0", "v3.1")
RECORD = EventRecord((0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0))
W = RECORD.words
HEAD, *WORDS = messages(RECORD)
TEXT, ATTRIBUTES = texts(RECORD)
#: An event without a line of attributes.
CD = EventRecord((0x2200_0000_000A, 0, 0, 0))
(CD_TEXT,) = texts(CD)
DUMP = " ".join(f"{word:#018x}" for word in W)
SKIP = (f"{SMMU} skipping command in error state:", f"{SMMU} \t{0x46:#018x}", f"{SMMU} \t{0:#018x}")
UNKNOWN = f"{SMMU} something new"
PROSE = "a line of prose"


def fed(assembly: Assembly, *lines: str) -> list[Found]:
    """Return what lines yield, but for what tells of nothing."""
    numbered = enumerate(lines, start=1)
    made = [one for number, line in numbered for one in assembly.feed(number, line)]
    return [one for one in made if not isinstance(one, Aside)]


def found(*lines: str) -> list[Found]:
    """Return what is found in a whole log without times."""
    assembly = Assembly()
    return [*fed(assembly, *lines), *assembly.end()]


def logged(*lines: str) -> list[Found]:
    """Return what is found in a whole log with times."""
    return found(*(f"[    1.500000] {line}" for line in lines))


def seen(line: int, words: tuple[int, int, int, int] = W, *notes: str) -> Sighting:
    return Sighting(line, words, NAME, notes=notes)


def with_text(line: int, words: tuple[int, int, int, int] = W, *notes: str) -> Sighting:
    return Sighting(line, words, NAME, CLIENT, notes=notes)


def damaged(line: int, last: int, reason: str, *words: int | None, kind: int = 0x10) -> Damaged:
    padded = [*words, None, None, None, None][:4]
    return Damaged(line, last, "incomplete events", reason, kind, padded, NAME)


# -- whether the next line matters ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "busy", "needs_all", "waits"),
    [
        ([], False, False, False),
        ([HEAD], True, False, False),
        ([HEAD, *WORDS], False, False, True),
        ([HEAD, *WORDS, TEXT], False, False, True),
        ([HEAD, *WORDS, TEXT, ATTRIBUTES], False, False, False),
        ([WORDS[0]], True, False, False),
        ([TEXT], True, False, False),
        ([CD_TEXT], False, False, False),
        ([HEAD[:40]], True, True, False),
        ([DUMP.split()[0]], True, True, False),
        ([DUMP], False, False, False),
    ],
)
def test_a_reader_is_told_whether_it_may_leave_out_lines(
    lines: list[str], busy: bool, needs_all: bool, waits: bool
) -> None:
    assembly = Assembly()
    fed(assembly, *lines)
    assert (assembly.busy, assembly.needs_all) == (busy, needs_all)
    assert bool(assembly.waiting) is waits


def test_the_rest_of_a_dump_in_a_log_is_not_awaited_for_long() -> None:
    assembly = Assembly()
    stamp = "[    1.500000] "
    assert [*assembly.feed(1, f"{stamp}evtq: 00000000: {' '.join(16 * ['77'])}")] == []
    assert [one for at in range(2, 34) for one in assembly.feed(at, f"{stamp}pci")] == []
    assert assembly.needs_all
    assert [*assembly.feed(34, f"{stamp}pci")] == []
    assert not assembly.needs_all


def test_a_log_is_told_from_other_text() -> None:
    for line, logged_too in ((PROSE, False), (HEAD, False), ("[    1.500000] pci", True)):
        assembly = Assembly()
        fed(assembly, line)
        assert assembly.logged is logged_too


@pytest.mark.parametrize(
    ("line", "any_too"),
    [
        (PROSE, False),
        ("10 00 00 00", False),
        (HEAD, True),
        (DUMP, True),
        (f"x: {DUMP}", True),
        (str(RECORD), True),
        ("arm_smmu_evtq_thread: 120 callbacks suppressed", True),
        ("1764030000.000001 ARM_SMMUV3 0 id 5: alloc: fail: ENOMEM", True),
        ('{"time":1.5,"queue":[1,0],"id":5,"did":"x","call":"c","answer":"ok"}', True),
    ],
)
def test_whether_anything_was_found_is_known(line: str, any_too: bool) -> None:
    assembly = Assembly()
    fed(assembly, line)
    assert assembly.any is any_too


# -- events ------------------------------------------------------------------------------------


def test_an_event_is_told_once_it_is_clear_that_no_text_follows() -> None:
    assembly = Assembly()
    assert fed(assembly, HEAD, *WORDS) == []
    assert [*assembly.settle()] == [seen(1)]
    assert [*assembly.settle()] == [*assembly.end()] == []
    assert fed(assembly, HEAD, *WORDS, HEAD, *WORDS) == [seen(1)]


@pytest.mark.parametrize("between", [0, 1, 31, 32, 33])
def test_a_text_may_come_some_lines_later(between: int) -> None:
    assembly = Assembly()
    made = fed(assembly, HEAD, *WORDS, *between * ["pci"])
    assert made == ([seen(1)] if between > 32 else [])


def test_events_of_two_smmus_may_interleave() -> None:
    others = messages(CD, OTHER)
    lines = [one for pair in zip(messages(RECORD), others, strict=True) for one in pair]
    assert found(*lines) == [seen(1), Sighting(2, CD.words, "arm-smmu-v3.1.auto")]
    # The text of one has nothing to do with the other.
    assert found(*lines, TEXT, ATTRIBUTES) == [
        with_text(1),
        Sighting(2, CD.words, "arm-smmu-v3.1.auto"),
    ]


@pytest.mark.parametrize("at", range(1, 5))
def test_a_command_may_lie_between_the_words_of_an_event(at: int) -> None:
    event = [HEAD, *WORDS]
    note = f"line {at + 1}: the dump of a command lies between its words"
    command, last = found(*event[:at], *SKIP, *event[at:])
    assert command == Explained(at + 1, "skipped command", "CMD_SYNC", NAME)
    assert last == seen(1, W, note)


def test_a_command_without_words_tells_nothing() -> None:
    assert found(SKIP[0], HEAD, *WORDS) == [seen(2)]


def test_words_may_have_lost_their_prefixes() -> None:
    bare = [line.removeprefix(SMMU) for line in WORDS]
    assert found(HEAD, *bare) == [seen(1)]
    # Not if a prefix says that they are of something else, or two SMMUs are open.
    assert found(HEAD, *(f"[    1.500000] {one}" for one in bare)) == [
        damaged(1, 1, "event 0x10 has 0 of its 4 words")
    ]
    assert len(found(HEAD, HEAD.replace(SMMU, OTHER), *bare)) == 3


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(4))
def test_of_an_event_that_is_cut_short_the_first_word_is_told(count: int) -> None:
    reason = f"event 0x10 has {count} of its 4 words"
    damage = damaged(2, 2 + count, reason, *W[: min(count, 1)])
    lines = [PROSE, HEAD, *WORDS[:count]]
    assert found(*lines) == [damage]
    assert found(*lines, HEAD, *WORDS) == [damage, seen(3 + count)]


def test_a_word_that_is_torn_leaves_the_others_in_their_places() -> None:
    torn = f"{SMMU} \t0x0000 02#0000000"
    for at in range(4):
        reason = f"event 0x10: a word is damaged (line {at + 2})"
        assert found(HEAD, *WORDS[:at], torn, *WORDS[at + 1 :]) == [
            damaged(1, 5, reason, *W[:at], None, *W[at + 1 :])
        ]
    assert found(HEAD, *4 * [torn]) == [
        damaged(1, 5, "event 0x10: a word is damaged (line 2, 3, 4, 5)")
    ]
    # Without an event before it it is a message that nobody understands.
    (unknown,) = logged(torn)
    assert isinstance(unknown, Unknown)


def test_a_word_with_a_gap_is_put_together() -> None:
    note = "line 2: a word with a gap in it was put together"
    for gap in ("0x00002200 00000010", "0X0000220000 000010"):
        assert found(HEAD, f"{SMMU} \t{gap}", *WORDS[1:]) == [seen(1, W, note)]
    for wrong in ("0x00002200 0000010", "00002200 00000010", "0x00002200 000000100"):
        (damage,) = found(HEAD, f"{SMMU} \t{wrong}", *WORDS[1:])
        assert isinstance(damage, Damaged)
        assert damage.reason == "event 0x10: a word is damaged (line 2)"


@pytest.mark.parametrize(("head", "kind"), [(0x13, 0x10), (0x10, 0x13), (0x10, 0x11)])
def test_words_that_are_another_events_are_not_told(head: int, kind: int) -> None:
    first, *others = messages(EventRecord((W[0] & ~0xFF | kind, *W[1:])))
    first = first.replace(f"{kind:#x}", f"{head:#x}")
    reason = f"the head says event {head:#x}, but the words are event {kind:#x}"
    assert found(first, *others) == [damaged(1, 5, reason, kind=head)]
    reason = f"event {head:#x} has 1 of its 4 words"
    assert found(first, others[0]) == [damaged(1, 2, reason, kind=head)]


@pytest.mark.parametrize("kind", [0x01, 0x10, 0x11, 0x13, 0x77, 0xEF])
def test_an_event_may_be_of_any_type(kind: int) -> None:
    record = EventRecord((W[0] & ~0xFF | kind, *W[1:]))
    assert found(*messages(record)) == [seen(1, record.words)]


def test_an_incomplete_command_is_damage() -> None:
    damage = Damaged(1, 2, "incomplete commands", "the skipped command has 1 of its 2 words")
    assert found(*SKIP[:2]) == [damage._replace(smmu=NAME)]
    torn = f"{SMMU} \t0x0000 02#0000000"
    for words in ((SKIP[1], torn), (torn, SKIP[2])):
        line = 2 if words[0] is torn else 3
        reason = f"the skipped command: a word is damaged (line {line})"
        assert found(SKIP[0], *words) == [damage._replace(last=3, reason=reason, smmu=NAME)]


def orphans(line: int, last: int, count: int, *words: int, sure: bool = False) -> Damaged:
    reason = f"{count} {'words' if count > 1 else 'word'} without `event … received:` before"
    return Damaged(
        line,
        last,
        "words without the head of an event",
        reason + (": the event's head is missing" if sure else ""),
        None,
        [*words] if sure else (None, None, None, None),
        NAME,
    )


def test_words_without_a_head_are_no_event() -> None:
    assert found(WORDS[0]) == [orphans(1, 1, 1)]
    assert found(PROSE, *WORDS[:3]) == [orphans(2, 4, 3)]
    assert found(*WORDS) == [orphans(1, 4, 4, *W, sure=True)]
    assert found(*WORDS, *WORDS[:2]) == [orphans(1, 4, 4, *W, sure=True), orphans(5, 6, 2)]
    of_type_1 = (W[0] & ~0xFF | 1, *W[1:])
    assert found(*messages(EventRecord(of_type_1))[1:]) == [orphans(1, 4, 4, *of_type_1, sure=True)]
    # No event begins with the second word.
    assert found(*WORDS[1:], WORDS[0]) == [orphans(1, 4, 4)]
    assert found(WORDS[0], HEAD, *WORDS) == [orphans(1, 1, 1), seen(2)]
    assert found(WORDS[0], CD_TEXT) == [
        orphans(1, 1, 1),
        Sighting(2, CD.words, NAME, CLIENT, from_text=True),
    ]


# -- text of newer kernels -------------------------------------------------------------------------


def test_a_text_belongs_to_the_event_before_it() -> None:
    assembly = Assembly()
    assert fed(assembly, HEAD, *WORDS, TEXT) == []
    assert fed(assembly, ATTRIBUTES) == [with_text(1)]
    assert fed(assembly, *messages(CD), CD_TEXT) == [with_text(1, CD.words)]


def test_a_text_that_differs_is_noted() -> None:
    text = TEXT.replace("iova: 0x1", "iova: 0x2")
    attributes = ATTRIBUTES.replace("write", "read")
    assert found(HEAD, *WORDS, text, attributes) == [
        with_text(
            1,
            W,
            "line 6: the kernel's text has another iova",
            "line 7: the kernel's text has other attributes than the words",
        )
    ]


def test_attributes_without_a_text_tell_nothing() -> None:
    assert found(ATTRIBUTES) == []
    assert found(HEAD, *WORDS, ATTRIBUTES.replace("write", "read")) == [seen(1)]


def test_a_text_without_words_is_an_event() -> None:
    told = Sighting(1, W, NAME, CLIENT, from_text=True)
    assert found(TEXT, ATTRIBUTES) == [told]
    assert logged(TEXT, ATTRIBUTES) == [told._replace(time=1.5)]
    assert logged(CD_TEXT) == [told._replace(words=CD.words, time=1.5)]


def test_a_text_without_its_attributes_is_damage() -> None:
    damage = Damaged(
        1,
        1,
        "events without their attributes",
        "the line `(un)priv …` of this event is missing",
        0x10,
        (W[0], None, W[2], None),
        NAME,
        CLIENT,
    )
    told = Sighting(2, W, NAME, CLIENT, from_text=True)
    assert found(TEXT) == [damage]
    assert logged(TEXT) == [damage._replace(time=1.5)]
    assert found(TEXT, TEXT, ATTRIBUTES) == [damage, told]
    assert found(TEXT, HEAD, *WORDS) == [damage, seen(2)]


def test_a_text_says_what_the_damaged_words_do_not() -> None:
    torn = f"{SMMU} \t0x0000 02#0000000"
    reason = "event 0x10: a word is damaged (line {})"
    for at, words in ((1, W[:1]), (2, (*W[:1], None, W[2]))):
        lines = [*WORDS[:at], torn, *WORDS[at + 1 : 3]]
        (damage,) = found(HEAD, *lines, TEXT)
        expected = damaged(1, 4, reason.format(at + 2), *words)
        merged = [W[0], None if at == 1 else W[1], W[2], W[3]]
        assert damage == expected._replace(words=merged, client=CLIENT)
    # A text of another event does not.
    assert found(HEAD, CD_TEXT) == [damaged(1, 1, "event 0x10 has 0 of its 4 words")]


def test_a_text_of_an_unknown_event_says_nothing_of_a_command() -> None:
    text = TEXT.replace("F_TRANSLATION", "UNKNOWN").partition(" iova")[0]
    event, command = found(HEAD, *SKIP[:2], text)
    assert event == damaged(1, 1, "event 0x10 has 0 of its 4 words")
    assert command == Damaged(
        2, 3, "incomplete commands", "the skipped command has 1 of its 2 words", smmu=NAME
    )


def test_a_text_is_an_event_where_only_a_command_is_open() -> None:
    text, command = found(SKIP[0], CD_TEXT, SKIP[1], SKIP[2])
    assert text == Sighting(2, CD.words, NAME, CLIENT, from_text=True)
    assert command == Explained(1, "skipped command", "CMD_SYNC", NAME)


# -- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("arm-smmu-v3 arm-smmu-v3.0.auto: CMDQ timeout", "CMDQ timeout"),
        (
            "arm-smmu-v3 arm-smmu-v3.0.auto: tegra241_cmdqv: failed to enable, STATUS=0x1",
            "CMDQV queue",
        ),
        ("arm-smmu arm-smmu-v3.0.auto: Unhandled context fault: fsr=0x402", "SMMUv2 fault"),
    ],
)
def test_a_message_of_a_device_is_explained(body: str, name: str) -> None:
    (one,) = logged(body)
    assert isinstance(one, Explained)
    assert (one.line, one.name, one.smmu, one.time) == (1, name, NAME, 1.5)


@pytest.mark.parametrize(
    "body",
    [
        "arm-smmu-v3 arm-smmu-v3.0.auto: ias 48-bit, oas 48-bit (features 0x1fff)",
        "arm-smmu arm-smmu.0.auto: probing hardware configuration...",
        "smmuv3_cmdq_opcode <--- SMMU_CMD_SYNC",
    ],
)
def test_a_message_that_tells_of_nothing_is_known(body: str) -> None:
    assembly = Assembly()
    made = [*assembly.feed(7, f"[    1.500000] {body}"), *assembly.end()]
    assert made == [Aside(7)]


def test_a_message_that_nobody_knows_is_named() -> None:
    assert logged(UNKNOWN) == [Unknown(1, "messages of an SMMU's driver", "something new")]
    eventq = "qemu: vEVENTQ(type 1 id 5): something new"
    assert found(eventq) == [Unknown(1, "messages about a vEVENTQ", eventq)]


def test_lines_of_other_devices_are_none_of_ours() -> None:
    for line in (
        "platform 1234.serial: something new",
        "acpi device:00: something new",
        "pci 0000:00:00.0: something new",
    ):
        assert logged(line) == []
    for line in (
        "platform arm-smmu-v3.0.auto: something new",
        "platform NVDA200C:00: tegra241_cmdqv: something new",
        "acpi NVDA200C:00: tegra241_cmdqv: something new",
    ):
        (one,) = logged(line)
        assert isinstance(one, Unknown)


def test_what_this_project_printed_is_read() -> None:
    (one,) = found(str(RECORD))
    assert isinstance(one, Sighting)
    assert (one.words, one.from_text) == (W, True)
    data = RECORD.to_bytes().hex()
    (one,) = found(f"1764030000.000001 ARM_SMMUV3 0 id 5: pass: #7 {data}")
    assert isinstance(one, Sighting)
    assert one.words == W
    (call,) = found('{"time":1.5,"queue":[1,0],"id":5,"did":"x","call":"c","answer":"ok"}')
    assert isinstance(call, Explained)


# -- dumps -----------------------------------------------------------------------------------------

FIRST, REST = DUMP.split()[0], DUMP.split()[1:]
PART = Damaged(
    1,
    1,
    "incomplete records in a dump",
    "8 of the 32 bytes of a record (1 of its 4 words)",
    words=[W[0], None, None, None],
)


def test_words_of_a_dump_may_be_on_several_lines() -> None:
    assert found(DUMP, FIRST, *REST) == [Sighting(1, W), Sighting(2, W)]


@pytest.mark.parametrize(
    "other", [PROSE, HEAD, f"x: {DUMP}", "arm_smmu_evtq_thread: 120 callbacks suppressed"]
)
def test_a_record_of_a_dump_ends_where_something_else_begins(other: str) -> None:
    first, *others = found(FIRST, other, *REST)
    assert first == PART
    assert Sighting(1, W) not in others


def test_empty_lines_leave_a_record_of_a_dump_whole() -> None:
    assert found(FIRST, "", "  ", *REST) == [Sighting(1, W)]


def test_a_star_stands_for_lines_that_are_left_out() -> None:
    line = "48000000: " + " ".join(["10"] * 32)
    words = EventRecord((int("10" * 8, 16),) * 4).words
    for star in ("*", "  * "):
        made = found(line, star, line.replace("48000000", "48000060"))
        assert made == [Sighting(at, words) for at in (1, 3, 3, 3)]


def test_the_last_lines_of_a_dump_may_be_left_out() -> None:
    line = f"000100 {DUMP.replace('0x', '')}"
    assert found(line, "*", "000160") == [Sighting(at, W) for at in (1, 3, 3)]
    assert found(line, "*", "000160 ", FIRST, *REST)[-1] == Sighting(4, W)
    # A number that is no address beyond the last line is none of an end.
    for other in ("000120", "000100", "00160", "000160 x"):
        assert found(line, "*", other) == [Sighting(1, W)]
    assert found(line, "000160") == [Sighting(1, W)]
    assert found("*", "000160") == []


def test_a_dump_is_read_only_where_it_is_asked_for() -> None:
    assembly = Assembly(dumps_too=False)
    assert [*fed(assembly, DUMP, f"x: {DUMP}"), *assembly.end()] == []
    assert [one.words for one in logged(DUMP) if isinstance(one, Sighting)] == [W]


def test_numbers_in_a_log_may_be_of_something_else() -> None:
    unnamed = "0x0000220000000077 0x1 0x2 0x3"
    assert found(unnamed) == [Sighting(1, (0x2200_0000_0077, 1, 2, 3))]
    assert found("[    1.500000] pci", unnamed, DUMP) == [Sighting(3, W)]
    of_type_1 = (W[0] & ~0xFF | 1, *W[1:])
    named = " ".join(f"{word:#x}" for word in of_type_1)
    assert found("[    1.500000] pci", named) == [Sighting(2, of_type_1)]
    both = f"0000220000000077 {' '.join(3 * ['0' * 16])} {DUMP.replace('0x', '')}"
    assert found("[    1.500000] pci", both) == [Sighting(2, W)]


def test_numbers_that_are_too_short_are_told_if_nothing_else_is_found() -> None:
    made = found(*4 * ["10 00 00 00"])
    assert [(one.line, isinstance(one, Damaged) and one.last) for one in made] == [
        *((1, 1), (2, 2), (3, 3))
    ]
    for one in made:
        assert isinstance(one, Damaged)
        assert one.what == "numbers that are no record"
        assert one.reason.endswith("to be taken for a word of a record: '10 00 00 00'")
    assert found("10 00 00 00", DUMP) == [Sighting(2, W)]
    # They may lie between the words of a record.
    assert found(FIRST, "10 00 00 00", *REST) == [Sighting(1, W)]


# -- lines that are cut ----------------------------------------------------------------------------


def cut(line: str, *at: int) -> list[str]:
    """Cut a line at some columns."""
    return [line[start:end] for start, end in zip((0, *at), (*at, None), strict=True)]


def wrapped(line: str, size: int) -> list[str]:
    """Cut a line after each so many characters."""
    return cut(line, *range(size, len(line), size))


@pytest.mark.parametrize("size", range(20, 60, 3))
def test_a_terminal_cuts_at_a_column(size: int) -> None:
    lines = [part for line in (HEAD, *WORDS) for part in wrapped(line, size)]
    assert found(*lines) == [seen(1)]


def test_a_line_is_cut_into_a_few_pieces_only() -> None:
    """Six pieces are kept, and the next line may make them whole."""
    for pieces, whole in ((6, True), (7, True), (8, False)):
        start = len(SMMU) + 2
        step = (len(CD_TEXT) - start) // (pieces - 1)
        lines = cut(CD_TEXT, *(start + step * number for number in range(pieces - 1)))
        assert len(lines) == pieces
        made = found(*lines)
        told = [Sighting(1, CD.words, NAME, CLIENT, from_text=True)]
        assert (made == told) is whole


def test_a_mail_program_cuts_at_a_space_and_quotes() -> None:
    words = TEXT.split()
    spaces = [" ".join(part) for part in (words[:5], words[5:9], words[9:])]
    within_words = cut(TEXT, TEXT.index(CLIENT) + 4, TEXT.index("iova") + 2)
    told = Sighting(1, W, NAME, CLIENT, from_text=True)
    last = ATTRIBUTES.replace("\t", " ")
    for first, *others in (spaces, within_words):
        for quote in ("", "> ", "| ", "+", "  "):
            assert found(first, *(quote + other for other in others), last) == [told]


def test_a_mail_program_cuts_after_the_name_of_a_device() -> None:
    """It removes the space there. No word is read twice."""
    for stamp in ("", "[    1.500000] "):
        lines = [
            part
            for line in (HEAD, *WORDS)
            for part in (f"{stamp}{SMMU}", line.removeprefix(SMMU).strip())
        ]
        (one,) = found(*lines)
        assert isinstance(one, Sighting)
        assert (one.line, one.words) == (1, W)


def test_what_follows_on_the_last_line_has_its_number() -> None:
    head, rest = cut(HEAD, 45)
    made = found(PROSE, head, f"{rest} {UNKNOWN}")
    assert made == [
        Unknown(3, "messages of an SMMU's driver", "something new"),
        damaged(2, 2, "event 0x10 has 0 of its 4 words"),
    ]


def test_several_messages_may_be_on_a_line() -> None:
    assert found(" ".join((HEAD, *WORDS))) == [seen(1)]
    first, second, *others = WORDS
    for at in (30, 40):
        assert found(f"{HEAD} {first} {second[:at]}", second[at:], *others) == [seen(1)]


def test_a_line_may_end_in_the_name_of_the_driver() -> None:
    for at in range(2, len(SMMU)):
        assert found(PROSE, f"{PROSE} {HEAD[:at]}", HEAD[at:], *WORDS) == [seen(2)]
        # After another message, too: the piece is a line's end.
        assert found(f"{HEAD} {WORDS[0][:at]}", WORDS[0][at:], *WORDS[1:]) == [seen(1)]


def test_a_name_that_is_cut_may_be_on_three_lines() -> None:
    lines = cut(f"{PROSE} {HEAD}", len(PROSE) + 7, len(PROSE) + 15)
    assert found(*lines, *WORDS) == [seen(1)]
    assert found(*lines) == [damaged(1, 1, "event 0x10 has 0 of its 4 words")]


@pytest.mark.parametrize("other", ["", "   ", "[    1.500000] pci", HEAD])
def test_a_piece_ends_where_something_else_begins(other: str) -> None:
    start, rest = cut(CD_TEXT, 50)
    unknown = Unknown(1, "messages of an SMMU's driver", start.partition(": ")[2])
    assert found(start, other, rest)[0] == unknown


def test_pieces_of_which_the_rest_does_not_come_are_read_by_themselves() -> None:
    unknown = Unknown(1, "messages of an SMMU's driver", "something new")
    assert found(UNKNOWN, PROSE) == [unknown]
    assert found(UNKNOWN, PROSE, DUMP) == [unknown, Sighting(3, W)]
    assert found(UNKNOWN, *12 * [PROSE], DUMP) == [unknown, Sighting(14, W)]


def test_a_line_that_ends_like_the_name_of_the_driver_is_not_lost() -> None:
    line = "Missed 3 kernel messages of arm"
    for after in ((), ("",), (PROSE,), (HEAD, *WORDS)):
        lost, *_ = found(line, *after)
        assert isinstance(lost, Explained)
        assert (lost.line, lost.name) == (1, "messages left out")
    # Nor does it take in the next one.
    assert found(f"{PROSE} arm ", HEAD, *WORDS) == [seen(2)]


def test_a_line_that_is_too_long_does_not_go_on() -> None:
    start, rest = cut(HEAD, 40)
    for length, joined in ((999, True), (1000, False)):
        line = f"{'x' * (length - len(start) - 1)} {start}"
        assert (found(line, rest, *WORDS) == [seen(1)]) is joined
    for length, joined in ((1000, True), (1001, False)):
        line = f"{rest} {'x' * (length - len(HEAD) - 1)}"
        assert (found(start, line, *WORDS) == [seen(1)]) is joined


def test_the_last_number_of_a_text_whose_lines_are_cut_can_go_on() -> None:
    record = EventRecord((0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0x1234_5000))
    text, attributes = texts(record)
    for at in range(1, 8):
        lines = [*cut(HEAD, 45), *WORDS[:3], f"{SMMU} \t{record.words[3]:#018x}"]
        made = found(*lines, *cut(text, -at), attributes)
        assert made == [with_text(1, record.words)]
    # Where no line is cut, digits on the next line are something else.
    (told, *_) = found(HEAD, *WORDS[:3], f"{SMMU} \t{record.words[3]:#018x}", *cut(text, -3))
    assert isinstance(told, Sighting)
    assert told.notes == ("line 6: the kernel's text has another ipa",)
    # Nor is what follows such a number lost.
    made = found(*cut(HEAD, 45), *WORDS, CD_TEXT, PROSE, DUMP)
    assert made[-1] == Sighting(9, W)
