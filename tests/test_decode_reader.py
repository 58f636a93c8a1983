"""A whole input is read: common forms by blocks, all else line by line, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.smmu.decode.assembly import Assembly
from harness.smmu.decode.forms import Form
from harness.smmu.decode.found import Aside, Damaged, Explained, Found, Sighting
from harness.smmu.decode.reader import Reading, read, read_text
from harness.smmu.events import EventRecord
from tests.decode_forms import CLIENT, DUMPS, messages, texts

SMMU = "arm-smmu-v3.0.auto"
W = (0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0)
RECORD = EventRecord(W)
#: Lines without anything, more than are read of the beginning before it is known what it is.
LONG = 2000 * b"pci\n"
CD = EventRecord((0x2200_0000_000A, 0, 0, 0))
DUMP = " ".join(f"{word:#x}" for word in W)


def found(text: str | bytes, form: Form = Form.AUTO, size: int = 1 << 16) -> list[Found]:
    """Return what is found, but for what tells of nothing."""
    data = text if isinstance(text, bytes) else text.encode()
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    return [one for one in read(chunks, form) if not isinstance(one, Aside)]


def log(*bodies: str, stamp: str = "[    1.500000] ") -> str:
    return "".join(f"{stamp}{body}\n" for body in bodies)


def old(record: EventRecord = RECORD) -> list[str]:
    return messages(record)


def new(record: EventRecord = RECORD) -> list[str]:
    return [*messages(record), *texts(record)]


def seen(line: int, *, client: str | None = None, words: tuple[int, int, int, int] = W) -> Sighting:
    return Sighting(line, words, SMMU, client, 1.5)


SIZES = pytest.mark.parametrize("size", [1 << 16, 100, 7])


@SIZES
def test_events_of_a_log_have_their_lines(size: int) -> None:
    text = log("pci one", *old(), *new(), *new(CD), "pci two", *old(CD), *new())
    lines = [
        seen(2),
        seen(7, client=CLIENT),
        seen(14, client=CLIENT, words=CD.words),
        seen(21, words=CD.words),
        seen(26, client=CLIENT),
    ]
    assert found(text, size=size) == lines
    assert found(text, Form.LOG, size) == lines
    assert found(text.replace("\n", "\r\n"), size=size) == lines
    assert found(text, Form.DUMP, size) == lines


@pytest.mark.parametrize("form", [Form.AUTO, Form.LOG, Form.DUMP])
def test_lines_are_counted(form: Form) -> None:
    for text, count in (
        (log("pci", *old(), *new(), *new(CD), "pci", *old(), "end"), 26),
        (f"{DUMP}\n0 0 0 0\n{DUMP}\n", 3),
        ("one\n\ntwo", 3),
        (f"one\n{DUMP}\ntwo\nthree", 4),
    ):
        reading = Reading([text.encode()], form)
        for _ in reading:
            pass
        assert (reading.lines, reading.raw) == (count, False)


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("[    1.500000] ", 1.5),
        ("[    1.500000][  T12] ", 1.5),
        ("[Sat Nov 21 07:00:00 2026] ", "Sat Nov 21 07:00:00 2026"),
        ("2026-11-21T07:00:00Z host kernel: ", "2026-11-21T07:00:00Z"),
        ("[2026-11-21 07:00:00] [    1.500000] ", 1.5),
        ("4,1234,5000000,-;", 5.0),
        ("", None),
        ("[no time] ", None),
    ],
)
def test_an_event_has_the_time_of_its_first_line(stamp: str, time: float | str | None) -> None:
    for lines in (old(), new()):
        (one,) = found(log(*lines, stamp=stamp))
        assert isinstance(one, Sighting)
        assert (one.words, one.time, one.line) == (W, time, 1)


@SIZES
def test_a_text_that_comes_later_is_of_the_event_before(size: int) -> None:
    said = texts(RECORD)
    text = log(*old(), "usb 1-1: new", *said, *old(CD))
    assert found(text, size=size) == [seen(1, client=CLIENT), seen(9, words=CD.words)]
    # In the next block, too.
    chunks = [LONG + log(*old()).encode(), log(*said).encode()]
    assert list(read(chunks)) == [seen(2001, client=CLIENT)]


@pytest.mark.parametrize("before", [0, 2000])
def test_what_is_known_is_told_when_the_input_pauses(before: int) -> None:
    def chunks() -> Iterator[bytes]:
        yield before * b"pci\n" + log(*old()).encode()
        yield b""
        pytest.fail("more is read before what is known is told")

    assert next(iter(Reading(chunks()))) == seen(before + 1)


@pytest.mark.parametrize("size", [1 << 16, 7, 1])
@pytest.mark.parametrize("charset", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_part_of_a_character_and_the_end_are_no_pause(charset: str, size: int) -> None:
    text = 1000 * "pci\n" + log(*new(), *new(CD)).rstrip("\n")
    made = found(text.encode(charset), size=size)
    assert made == [seen(1001, client=CLIENT), seen(1008, client=CLIENT, words=CD.words)]


@SIZES
def test_a_text_that_differs_from_the_words_is_noted(size: int) -> None:
    wrong = log(*new(), *(line.replace("iova: 0x1", "iova: 0x2") for line in new()), *new())
    first, second, third = found(wrong, size=size)
    assert (first, third) == (seen(1, client=CLIENT), seen(15, client=CLIENT))
    assert isinstance(second, Sighting)
    assert second.notes == ("line 13: the kernel's text has another iova",)


@SIZES
def test_a_head_that_differs_from_the_words_is_damage(size: int) -> None:
    lines = old()
    wrong = [lines[0].replace("0x10", "0x13"), *lines[1:]]
    first, damage, last = found(log(*old(), *wrong, *old()), size=size)
    assert (first, last) == (seen(1), seen(11))
    assert isinstance(damage, Damaged)
    assert (damage.line, damage.last) == (6, 10)


@SIZES
def test_an_event_that_is_cut_short_takes_nothing_from_the_next(size: int) -> None:
    first, damage, last = found(log(*old(), *old()[:3], *old()), size=size)
    assert (first, last) == (seen(1), seen(9))
    assert isinstance(damage, Damaged)
    assert (damage.line, damage.last) == (6, 8)


@SIZES
def test_events_of_two_smmus(size: int) -> None:
    other = [line.replace("v3.0.auto", "v3.1.auto") for line in old(CD)]
    mixed = [line for pair in zip(old(), other, strict=True) for line in pair]
    names = [one.smmu for one in found(log(*old(), *other, *mixed), size=size)]  # type: ignore[union-attr]
    assert names == 2 * [SMMU, "arm-smmu-v3.1.auto"]


@pytest.mark.parametrize("between", [[], ["usb 1-1: new"]])
@pytest.mark.parametrize("before", [b"", LONG])
def test_a_text_may_come_after_an_event_of_another_smmu(before: bytes, between: list[str]) -> None:
    """Each SMMU is told of by a thread of its own."""
    start, name = before.count(b"\n"), "arm-smmu-v3.1.auto"
    said = [line.replace(SMMU, name) for line in texts(CD)]
    ours, theirs = old(), [line.replace(SMMU, name) for line in old(CD)]
    for lines in (
        [*ours, *between, *theirs, *said, *texts(RECORD)],
        [*ours, *between, *theirs, *texts(RECORD), *said],
    ):
        one, other = sorted(found(before + log(*lines).encode()), key=lambda made: made.line)
        assert one == seen(start + 1, client=CLIENT)
        assert other == seen(start + 6 + len(between), client=CLIENT, words=CD.words)._replace(
            smmu=name
        )


def test_an_event_does_not_wait_for_its_text_for_ever() -> None:
    theirs = [line.replace("v3.0.auto", "v3.1.auto") for line in old(CD)]
    made = found(log(*old(), *20 * theirs))
    lines = [one.line for one in made]
    assert sorted(lines) == [1, *range(6, 106, 5)]
    assert lines.index(1) <= 8, "the text comes within so many lines, or not at all"


@SIZES
def test_words_on_lines_of_their_own_are_counted(size: int) -> None:
    head, *words = old()
    cut = "".join(f"[    1.500000] {head}\n".replace(": \t", ":\n") for head in words)
    assert found(log(head) + cut + log(*old()), size=size) == [seen(1), seen(10)]


@SIZES
def test_a_console_goes_back_to_the_beginning_of_a_line(size: int) -> None:
    text = log(*old())
    assert found(text.replace("\n", "\r\r\n"), size=size) == [seen(1)]
    assert found("spinner |\r" + text, size=size) == [seen(1)]


# -- dumps -------------------------------------------------------------------------------------


@SIZES
def test_words_of_a_dump_have_their_lines(size: int) -> None:
    text = f"{DUMP}\n0 0 0 0\n\nprose\n  {DUMP}\n{DUMP.replace('0x', '')}\r\n{DUMP}"
    expected = [Sighting(line, W) for line in (1, 5, 6, 7)]
    assert found(text, size=size) == expected
    assert found(text, Form.DUMP, size) == expected
    assert found(text, Form.LOG, size) == []


@SIZES
def test_a_dump_may_follow_a_log(size: int) -> None:
    text = log(*old()) + f"{DUMP}\n" + log(*old(CD)) + f"prose\n{DUMP}\n{DUMP}\n"
    made = found(text, size=size)
    assert sorted(one.line for one in made) == [1, 6, 7, 13, 14]
    assert [one.words for one in made if isinstance(one, Sighting)].count(W) == 4
    in_log = found(log(*old()) + "220000000077 1 2 3\n0x220000000077 1 2 3\n", size=size)
    assert in_log == [seen(1)], "numbers in a kernel's log are of something else"


@SIZES
def test_words_after_a_part_of_a_record_are_its_rest(size: int) -> None:
    halves = "\n".join((" ".join(DUMP.split()[:2]), " ".join(DUMP.split()[2:])))
    assert found(f"{halves}\n{DUMP}\n", size=size) == [Sighting(1, W), Sighting(3, W)]


@SIZES
@pytest.mark.parametrize("quote", ["", "> ", "| ", "  >> "])
def test_records_that_a_quoted_dump_leaves_out_are_there(quote: str, size: int) -> None:
    bare = " ".join(f"{word:016x}" for word in W)
    dump = "".join(f"{quote}{line}\n" for line in (f"000100 {bare}", "*", "000160"))
    assert found(dump, size=size) == [Sighting(1, W), *2 * [Sighting(3, W)]]


@SIZES
@pytest.mark.parametrize("quote", [2 * " ", "    ", "> > > ", "> | " + 20 * " ", "+", "` ", "- "])
def test_a_dump_may_be_indented_far(quote: str, size: int) -> None:
    """As crash's `rd` prints it, in a quotation."""
    dump = DUMPS["crash rd"](RECORD.to_bytes()).decode()
    assert dump.startswith(8 * " ")
    text = "".join(f"{quote}{line}\n" for line in dump.splitlines())
    assert found(text, size=size) == [Sighting(1, W)]


@SIZES
@pytest.mark.parametrize("space", ["\xa0", "&nbsp;"])
def test_spaces_of_a_web_page_are_spaces(space: str, size: int) -> None:
    bare = DUMPS["crash rd"](RECORD.to_bytes()).decode().replace("        ", "")
    assert found(bare.replace(" ", space), size=size) == [Sighting(1, W)]
    text = log(*new()).replace("\t", space).replace("  ", f"{space} ")
    assert found(text, size=size) == [seen(1, client=CLIENT)]
    text = "".join(f"{line.replace(' ', space)}\n" for line in new())
    assert found(text, size=size) == [seen(1, client=CLIENT)._replace(time=None)]


@SIZES
def test_a_word_a_line_may_have_markup_behind_it(size: int) -> None:
    for line in ("{}<br>", "<p>{}</p>", "<td>{}</td>"):
        text = "".join(f"{line.format(f'{word:#018x}')}\n" for word in W)
        assert found(text, size=size) == [Sighting(1, W)]


@SIZES
@pytest.mark.parametrize("markup", ["<pre>", "<td><code>", '<pre class="x">  '])
def test_a_dump_may_begin_after_markup(markup: str, size: int) -> None:
    first, second = (" ".join(f"{word:016x}" for word in W[at : at + 2]) for at in (0, 2))
    text = f"{markup}48000000: {first}\n48000010: {second}\n</code></pre>\n"
    assert found(text, size=size) == [Sighting(1, W)]


@SIZES
def test_a_type_without_a_name_in_a_dump(size: int) -> None:
    other = "0x2200000000e3 0x1 0x2 0x3"
    unnamed = "0x220000000077 0x1 0x2 0x3"
    made = found(f"{DUMP}\n{other}\n{unnamed}\n{DUMP}\n", size=size)
    assert [one.line for one in made] == [1, 2, 3, 4]
    (short,) = found("220000000077 1 2 3\n", size=size)
    assert isinstance(short, Damaged)
    assert "no type that the specification names" in short.reason


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 16, 64, 33, 1])
def test_queue_memory_has_slots(size: int) -> None:
    data = bytes(32) + RECORD.to_bytes() + bytes(64) + CD.to_bytes()
    reading = Reading([data[at : at + size] for at in range(0, len(data), size)], Form.RAW)
    assert [*reading] == [Sighting(2, W), Sighting(5, CD.words)]
    assert (reading.lines, reading.raw) == (5, True)


def test_queue_memory_may_end_within_a_record() -> None:
    first, last = found(RECORD.to_bytes() + bytes(7), Form.RAW)
    assert first == Sighting(1, W)
    assert last == Damaged(
        2, 2, "incomplete records at the end of queue memory", "7 of the 32 bytes of a record"
    )


# -- lines that are worth a look ---------------------------------------------------------------


def names(*lines: str) -> list[str]:
    made = found("\n".join(["nothing", *lines, "nothing", ""]))
    return [one.name for one in made if isinstance(one, Explained)]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("[  1.0] arm-smmu-v3 arm-smmu-v3.0.auto: CMDQ timeout", "CMDQ timeout"),
        ("ARM_SMMU_EVTQ_THREAD: 120 callbacks suppressed", "events left out"),
        ("tegra241_cmdqv_err_map maps: 0:0:0:1", "QEMU: CMDQV error"),
        ("VINTF 3 LVCMDQ 1: 0x46 0x0", "command"),
        ("qemu: vEVENTQ(type 1 id 5): overflowed", "vEVENTQ"),
        ("Missed 3 kernel messages", "messages left out"),
        ("128 entries at 0x48000000, PROD 0x3, CONS 0x1", "event queue"),
        ("the queue has 128 entries at 0x48000000, PROD 0x3, CONS 0x1", "event queue"),
        ("Invalid STE config for sid 0x42", "QEMU: invalid STE"),
        ('{"time":1.5,"queue":[1,0],"id":5,"did":"x","call":"c","answer":"ok"}', "boundary: call"),
    ],
)
def test_a_line_with_a_message_is_read(line: str, name: str) -> None:
    assert names(line) == [name]


def test_an_event_in_words_is_read() -> None:
    (one,) = found(f"nothing\n{RECORD}\n")
    assert isinstance(one, Sighting)
    assert (one.line, one.from_text) == (2, True)


def test_words_within_other_text_are_read() -> None:
    (one,) = found(f"nothing\nan event came: {DUMP} and then\n")
    assert (one.line, isinstance(one, Sighting) and one.words) == (2, W)


@pytest.mark.parametrize(
    "form",
    [lambda word: f"(qemu) {word}", lambda word: f"w = {word}", str],
    ids=["gdb", "w", "bare"],
)
def test_a_word_a_line_is_read(form: Callable[[str], str]) -> None:
    words = [f"{word:#018x}" for word in W]
    assert found("\n".join(["nothing", *map(form, words), ""])) == [Sighting(2, W)]


@pytest.mark.parametrize("at", range(19, 36))
def test_a_line_that_ends_in_the_name_of_the_driver_goes_on(at: int) -> None:
    lines = log(*old()).splitlines()
    cut = [part for line in lines for part in (line[:at], line[at:])]
    (one,) = found("\n".join(cut) + "\n")
    assert (one.line, isinstance(one, Sighting) and one.words) == (1, W)


def test_a_time_on_a_line_of_its_own_is_kept() -> None:
    body = old()
    entries = "".join(f'{{\n"ts" : 2.5,\n"msg" : "{line}"\n}}\n' for line in body)
    (one,) = found(entries.replace("\t", "\\t"))
    assert isinstance(one, Sighting)
    assert (one.words, one.time) == (W, 2.5)


def test_a_text_is_an_input() -> None:
    assert [*read_text(log(*old()))] == [seen(1)]
    assert [*read_text("")] == []


# -- lines that are found by the block -----------------------------------------------------------

OTHER = EventRecord((0x2200_0000_3810, 0x208_0000_000F, 0x1F00_F000, 0xF_F000))
OTHER_DUMP = " ".join(f"{word:#x}" for word in OTHER.words)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of the lines that are read one by one: that is a tenth as fast."""
    lines: list[int] = []
    feed = Assembly.feed

    def noted(self: Assembly, number: int, line: str) -> Iterator[Found]:
        lines.append(number)
        yield from feed(self, number, line)

    monkeypatch.setattr(Assembly, "feed", noted)
    return lines


def test_events_are_found_by_the_block(slow: list[int]) -> None:
    text = log("pci", *old(), *new(OTHER), *new(CD), "pci", *old(OTHER), *old())
    words = [one.words for one in found(text) if isinstance(one, Sighting)]
    assert words == [W, OTHER.words, CD.words, OTHER.words, W]
    assert slow == []
    assert len(found(text.replace("\n", "\r\n"))) == 5
    assert slow == []


@pytest.mark.parametrize(
    "wrong",
    [
        [old()[0].replace("0x10", "0x13"), *old()[1:]],
        [line.replace("iova: 0x1", "iova: 0x2") for line in new()],
        [*old()[:3], *old()[:1]],
    ],
)
def test_only_an_event_that_is_not_as_it_should_be_is_read_line_by_line(
    wrong: list[str], slow: list[int]
) -> None:
    made = found(log(*old(), *wrong, *old(OTHER), *new(), *old()))
    kinds = [one.words for one in made if isinstance(one, Sighting)]
    assert kinds[0] == kinds[-1] == W
    assert kinds[-3:] == [OTHER.words, W, W]
    assert {*range(6, 6 + len(wrong))} <= {*slow} <= {*range(6, 11 + len(wrong))}


def test_an_event_that_is_open_takes_the_lines_of_the_next_block(slow: list[int]) -> None:
    chunks = [LONG + log(*old()[:3]).encode(), log(*old()[3:], *old(OTHER), *old()).encode()]
    made = [one.words for one in read(chunks) if isinstance(one, Sighting)]
    assert made == [W, OTHER.words, W]
    assert slow == [2001, 2002, 2003, 2004, 2005]


def test_an_event_that_waits_for_its_text_is_told_first(slow: list[int]) -> None:
    chunks = [LONG + log(*old()).encode(), log(*old(OTHER), *old()).encode()]
    made = [one.words for one in read(chunks) if isinstance(one, Sighting)]
    assert made == [W, OTHER.words, W]
    assert slow == []


def test_words_are_found_by_the_block(slow: list[int]) -> None:
    text = f"{DUMP}\n{OTHER_DUMP}\nprose\n{DUMP.replace('0x', '')}\r\n{OTHER_DUMP} \n"
    assert [one.words for one in found(text) if isinstance(one, Sighting)] == [
        *(W, OTHER.words, W, OTHER.words)
    ]
    assert slow == []
    assert len(found(f"{DUMP}\n{'0' * 16} 0 0 0\n{DUMP}\n0x2200000000f0 1 2 3\n{DUMP}\n")) == 4
    assert slow == [2, 4]
    slow.clear()
    assert len(found(f"{DUMP}\n0x220000000077 1 2 3\n{DUMP}\n0x220000000111 1 2 3\n{DUMP}\n")) == 5
    assert slow == [2]


def test_words_after_a_log_are_read_line_by_line(slow: list[int]) -> None:
    chunks = [LONG + log(*old()).encode(), f"{DUMP}\n{DUMP}\n".encode()]
    assert len([*read(chunks)]) == 3
    assert slow == [2006, 2007]


def test_words_after_a_part_of_a_record_are_read_line_by_line(slow: list[int]) -> None:
    one, two, three, four = OTHER_DUMP.split()
    text = f"{DUMP}\n{one} {two}\n{three} {four}\n{DUMP}\n{DUMP}\n"
    assert [one.line for one in found(text)] == [1, 2, 4, 5]
    assert slow == [2, 3]
    slow.clear()
    made = found(f"{one} {two}\n{DUMP}\nprose\n{DUMP}\n")
    assert [type(each) for each in made][-1] is Sighting
    assert slow == [1, 2, 3]


def test_a_line_without_anything_is_left_out(slow: list[int]) -> None:
    nothing = ("usb 1-1: new device", 'a "quoted" word', "time", "of 0x1, 0x2, 0x3", "prose")
    assert found("\n".join(nothing) + "\n") == []
    assert slow == []
    assert found('"time" is "ts"\n') == []
    assert slow == [1]


def test_an_input_is_no_memory_before_it_is_read() -> None:
    assert not Reading([RECORD.to_bytes()], Form.RAW).raw


def test_numbers_that_are_too_short_are_told_if_there_is_nothing_else() -> None:
    (one,) = found("10 00 00 00\n")
    assert isinstance(one, Damaged)
    assert found(f"10 00 00 00\n{DUMP}\n") == [Sighting(2, W)]


def test_each_part_of_a_line_that_a_console_wrote_over_is_read() -> None:
    lines = log(*old()).splitlines()
    assert found("\r".join(lines) + "\n") == [seen(1)]


@pytest.mark.parametrize(
    ("stamp", "time"),
    [
        ("[1.5] ", 1.5),
        ("[12345.678901] ", 12345.678901),
        ("[    1.500000]", 1.5),
        ("<3>[    1.500000] ", 1.5),
        ("[99] ", 99.0),
        ("(    1.500000] ", None),
    ],
)
def test_a_time_is_a_number_in_brackets(stamp: str, time: float | None, slow: list[int]) -> None:
    (one,) = found(log(*old(), stamp=stamp))
    assert isinstance(one, Sighting)
    assert (one.time, slow) == (time, [])
