"""A line of a dump is taken apart into numbers, and records are put together from them."""

from __future__ import annotations

import pytest

from harness.smmu.decode.dumps import (
    NotWords,
    Records,
    Units,
    plausible,
    plausible_memory,
    record_at,
    units_of,
    words_in,
)
from harness.smmu.decode.found import Damaged, Found, Sighting
from harness.smmu.events import EventRecord, EventType

W = (0x2200_0000_0010, 0x200_0000_0000, 0x1000_0000, 0)
#: A record without a byte that is 0.
FULL = (0x8877_6655_4433_F810, 0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF11, 0x1223_3445_5667_7889)
DATA = EventRecord(W).to_bytes()
WORDS = " ".join(f"{word:#018x}" for word in W)
BARE = WORDS.replace("0x", "")
#: The record as 32-bit words, as 16-bit ones, and as bytes.
WORDS32 = " ".join(f"{int.from_bytes(DATA[at : at + 4], 'little'):08x}" for at in range(0, 32, 4))
WORDS16 = " ".join(f"{int.from_bytes(DATA[at : at + 2], 'little'):04x}" for at in range(0, 32, 2))
BYTES = DATA.hex(" ")
#: As xxd prints it.
PAIRS = " ".join(DATA.hex()[at : at + 4] for at in range(0, 64, 4))


def units(text: str, *, before: Units | None = None) -> Units:
    made = units_of(text, before=before)
    assert isinstance(made, Units)
    return made


# -- lines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        *("", "  ", "- ", "* ", "| ", "`", "(", "{ ", "[", "+"),
        *("(qemu) ", "(gdb) ", "(lldb) ", "(GDB) ", "  (gdb) ", "- (gdb) "),
        *("event = ", "w: ", "data[0] = ", "raw: "),
    ],
)
def test_marks_prompts_and_names_stand_before_numbers(before: str) -> None:
    made = units(before + WORDS)
    assert made.data == DATA
    made = units(f"{before}0x48000000:\t{WORDS}")
    assert (made.data, made.addresses) == (DATA, {16: 0x4800_0000})


@pytest.mark.parametrize(
    ("text", "width", "address"),
    [
        (WORDS, 8, None),
        (BARE, 8, None),
        (WORDS.replace(" ", ", "), 8, None),
        (WORDS.replace(" ", ";"), 8, None),
        (f"{WORDS} # a remark", 8, None),
        (f"{WORDS} // a remark", 8, None),
        (f"{WORDS}  <- a remark", 8, None),
        (f"{{{WORDS.replace(' ', ', ')}}},", 8, None),
        ("0x220000000010 0x20000000000 0x10000000 0x0", 8, None),
        ("220000000010 20000000000 10000000 0", 8, None),
        (WORDS32, 4, None),
        (f"{WORDS32} /* a remark", 4, None),
        (" ".join(f"0x{one}" for one in WORDS32.split()), 4, None),
        ("00000010 2200 0 200 10000000 0 0 0", 4, None),
        (BYTES, 1, None),
        (WORDS16, 2, None),
        (f"48000000: {BARE}", 8, 0x4800_0000),
        (f"0x48000000 <evtq+16>: {BARE}", 8, 0x4800_0000),
        ("48000000: 10 20 30 40", None, None),
        (f"48000000  {BYTES}  |...|", 1, 0x4800_0000),
        (f"48000000 {BYTES}  >...|  >.<", 1, 0x4800_0000),
        (f"48000000: {BYTES}  text", 1, 0x4800_0000),
        (f"48000 {BYTES}", 1, 0x48000),
        (f"4800 {BYTES}", None, None),
        (f"48000000 {BARE}", 8, 0x4800_0000),
        (f"0000000048000000 {BARE}", 8, 0x4800_0000),
        (f"48000000 {WORDS32}", 4, 0x4800_0000),
        (f"0x48000000 {BARE}", None, None),
        ("48000000: 220000000010 20000000000 10000000 0", 8, 0x4800_0000),
        ("48000000: 220000000010 20000000000", 8, 0x4800_0000),
        ("48000000: 2200 200 1 0", None, None),
        ("prose of a kind", None, None),
        ("12:34 is a time", None, None),
        ("dead-beef", None, None),
        ("", None, None),
        ("0x1 0x2", None, None),
        ("10", None, None),
    ],
)
def test_a_line_of_numbers_is_memory(text: str, width: int | None, address: int | None) -> None:
    made = units_of(text)
    if width is None:
        assert not isinstance(made, Units) or made.data != DATA
        return
    assert isinstance(made, Units)
    assert DATA in (made.data, made.swapped) or DATA.startswith(made.data)
    assert (made.width, made.addresses.get(16)) == (width, address)


@pytest.mark.parametrize(
    "text",
    [
        "48000000:",
        "48000000: 001 002",
        "48000000: 10 2200",
        "48000000: 12345678 0",
        "48000000: 220000000010 2 3",
        "0x12345678 0x1",
        f"{WORDS} prose",
        f"{WORDS.rpartition(' ')[0]} # a remark",
        # What is after the bar is the memory as text.
        "0|10 00 00 00",
    ],
)
def test_other_numbers_are_no_memory(text: str) -> None:
    assert units_of(text) is None


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("count", [2, 4, 8, 16, 32])
def test_a_number_of_the_same_width_as_the_others_may_be_an_address(width: int, count: int) -> None:
    numbers = [f"{at:0{2 * width}x}" for at in range(1, 1 + count)]
    made = units(" ".join([f"{0x48000000:0{2 * width}x}", *numbers]))
    assert (made.addresses.get(16), len(made.data)) == (0x4800_0000, width * count)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10 00 00 00 00 22 00 00", 8),
        ("0000220000000010", 8),
        ("0010 0000 2200 0000 0000 0000", 12),
        ("10 00 00 00 00 22 00", None),
        ("10 00 00 00 00 22", None),
        ("123 123 123 123 123 123", None),
    ],
)
def test_the_last_line_of_a_dump_may_be_a_short_one(text: str, size: int | None) -> None:
    made = units_of(f"0000040 {text}")
    if size is None:
        assert isinstance(made, NotWords)
    else:
        assert isinstance(made, Units)
        assert (made.addresses[16], made.data) == (0x40, DATA[:size].ljust(size, b"\0"))


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("0x123456789", (0x1_2345_6789).to_bytes(8, "little")),
        ("48000000: 123456789 0", (0x1_2345_6789).to_bytes(16, "little")),
        ("0x00000010 0x00002200", DATA[:8]),
        ("0x10 0 0 0", b"\x10" + bytes(31)),
        (WORDS16[:39], DATA[:16]),
        (BYTES[:47], DATA[:16]),
    ],
)
def test_a_line_may_have_a_part_of_a_record(text: str, data: bytes) -> None:
    assert units(text).data == data


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0000010 2200", "needs 0x"),
        ("00000010 2200", "is four 64-bit words"),
        ("00000010 00002200", "is four 64-bit words"),
        (WORDS32[:62], "is four 64-bit words"),
        ("0x00000010 0x00002200 0x00000000", "is four 64-bit words"),
        (" ".join(["0x00000010"] * 9), "is four 64-bit words"),
        (WORDS.rpartition(" ")[0], "is four 64-bit words"),
        ("2200010 1 2 3", "needs 0x"),
        ("10 0 0 0x0", "needs 0x"),
        ("10 00 00 00", "needs 0x"),
        ("2200 200 100 0", "needs 0x"),
        ("0x220000000010 0x20000000000 0x10000000", "is four 64-bit words"),
        ("0x220000000010 0x2 0x3 0x4 0x5", "is four 64-bit words"),
        (f"{WORDS} 0x{'1' * 16}", "is four 64-bit words"),
        ("220000000010 2 3", "is four 64-bit words"),
        ("220000000077 1 2 3", "no type"),
        ("220000000110 1 2 3", "no type"),
        ("12345678 123456789 1 1 1 1 1 1", "is four 64-bit words"),
    ],
)
def test_numbers_that_are_no_words_say_why(text: str, why: str) -> None:
    made = units_of(text)
    assert isinstance(made, NotWords)
    assert why in made.why


def test_a_short_number_is_a_word_after_others() -> None:
    assert units_of("0x0") is None
    assert units("0x0", before=units(WORDS.split()[0])) == Units(bytes(8), None, {}, 8)
    assert units("0x1 0x2", before=units(WORDS.split()[0])).data == b"\1" + bytes(
        7
    ) + b"\2" + bytes(7)
    assert units("0x220000000010").data == DATA[:8]
    assert units_of("0", before=units(WORDS.split()[0])) is None


def test_some_numbers_may_be_in_the_order_of_memory() -> None:
    assert units(f"00000000: {PAIRS}").data == DATA
    assert units(f"00000000: {PAIRS}").swapped == units(f"00000000: {WORDS16}").data[:0] + bytes(
        byte for at in range(0, 32, 2) for byte in (DATA[at + 1], DATA[at])
    )
    assert units(WORDS16).data == DATA
    assert units(WORDS16).swapped is not None
    for sure in (WORDS, BARE, WORDS32, BYTES, f"48000000: {WORDS}", f"48000000: {BYTES}"):
        assert units(sure).swapped is None
    assert units(f"48000000: {BARE}").swapped is not None
    # One number with 0x says that all are values.
    assert units(f"0000040 {WORDS16}").swapped is not None
    assert units(f"0000040 0x{WORDS16}").swapped is None


@pytest.mark.parametrize(
    ("digits", "bases"),
    [
        ("0000040", (16, 8, 10)),
        ("0000047", (16, 8, 10)),
        ("0000048", (16, 10)),
        ("0000049", (16, 10)),
        ("000004a", (16,)),
        ("000040", (16,)),
        ("0000040:", (16,)),
    ],
)
def test_an_address_may_be_octal_or_decimal(digits: str, bases: tuple[int, ...]) -> None:
    found = units(f"{digits} {WORDS16}").addresses
    assert found == {base: int(digits.rstrip(":"), base) for base in bases}


@pytest.mark.parametrize("text", ["................", "ab cd ef 01 23", ".P..x  ..  .", "ff"])
@pytest.mark.parametrize("prefix", ["00000010  ", "00000010   ", "0000000000000010 "])
def test_text_after_16_bytes_needs_no_mark(prefix: str, text: str) -> None:
    """As HxD and PowerShell's Format-Hex print it."""
    made = units(f"{prefix}{BYTES[:47].upper()}  {text}")
    assert (made.data, made.addresses[16]) == (DATA[:16], 0x10)


def test_32_bytes_in_a_line_are_all_memory() -> None:
    assert units(f"00000010  {BYTES}").data == DATA


def test_a_heading_is_no_memory() -> None:
    heading = " ".join(f"{number:02X}" for number in range(16))
    assert units_of(f"           {heading}") is None
    assert units_of(f"           {heading.replace('0F', '10')}") is not None
    lines = [f"{at:016X} {BYTES[at * 3 : at * 3 + 47].upper()} ....x..." for at in (0, 16)]
    assert records(*lines)[0] == seen(1)


# -- words within other text -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("an event: 0x220000000010 0x20000000000 0x10000000 0x0 came", W),
        ("[0x220000000010, 0x20000000000; 0x10000000,0x0]", W),
        (" ".join(f"{word:#x}" for word in FULL), FULL),
        ("0x22000010 0x20000000000 0x10000000 0x0", None),
        ("x0x220000000010 0x20000000000 0x10000000 0x0", None),
        ("0x220000000010 0x20000000000 0x10000000 0x0z", None),
        ("0x220000000010 0x20000000000 0x10000000", None),
        ("0x220000000077 0x20000000000 0x10000000 0x0", None),
    ],
)
def test_four_words_may_be_in_a_text(text: str, words: tuple[int, ...] | None) -> None:
    assert words_in(text) == words


def test_a_record_has_a_type_and_no_reserved_bit() -> None:
    for kind in (*EventType, 0xE0, 0xEF):
        assert plausible(bytes([kind]) + bytes(31))
    for kind in (0x00, 0x77, 0xDF, 0xF0):
        assert not plausible(bytes([kind]) + bytes(31))
    for bits, good in ((0xF8, True), (1, False), (2, False), (4, False), (8, True)):
        assert plausible(bytes([0x10, bits]) + bytes(30)) is good


# -- records -----------------------------------------------------------------------------------


def records(*texts: str) -> tuple[list[Found], Records]:
    """Feed lines, of which `*` is one, and the end."""
    memory = Records()
    found: list[Found] = []
    for line, text in enumerate(texts, start=1):
        if text == "*":
            memory.repeat()
        else:
            found += memory.feed(line, units(text, before=memory.open))
    return [*found, *memory.end()], memory


def seen(*lines: int) -> list[Sighting]:
    return [Sighting(line, W) for line in lines]


def halves(address: int) -> list[str]:
    """Return the record as two lines of bytes."""
    return [f"{address:08x}: {BYTES[:47]}", f"{address + 16:08x}: {BYTES[48:]}"]


def test_a_record_may_be_on_one_line_or_more() -> None:
    assert records(WORDS, WORDS)[0] == seen(1, 2)
    assert records(*WORDS.split())[0] == seen(1)
    assert records(*WORDS.split(), *WORDS.split())[0] == seen(1, 5)
    assert records(WORDS32, WORDS16, BYTES)[0] == seen(1, 2, 3)
    assert records(*halves(0x100), *halves(0x120))[0] == seen(1, 3)
    assert records(f"{WORDS32[:35]}", f"{WORDS32[36:]}")[0] == seen(1)


def test_a_line_may_have_several_records() -> None:
    assert records(f"{BARE} {BARE}")[0] == seen(1, 1)
    short = [f"00000000: {BARE} {BARE[:33]}", f"00000030: {BARE[34:]} {BARE}"]
    assert records(*short)[0] == seen(1, 1, 2)
    digits = f"{BYTES} {BYTES}".split()
    odd = [f"00000000: {' '.join(digits[:33])}", f"00000021: {' '.join(digits[33:])}"]
    assert records(*odd)[0] == seen(1, 1)


@pytest.mark.parametrize("zero", ["0x0000000000000000", "0" * 16])
def test_empty_slots_are_no_records(zero: str) -> None:
    zeros = " ".join([zero] * 4)
    found, memory = records(WORDS, zeros, zeros, WORDS)
    assert (found, memory.zeros) == (seen(1, 4), 2)
    assert [*record_at(1, bytes(32))] == []
    assert [*record_at(1, DATA)] == seen(1)


def test_a_record_that_begins_may_wait_for_its_rest() -> None:
    memory = Records()
    assert not memory.holds
    assert [*memory.feed(1, units(WORDS.split()[0]))] == []
    assert memory.holds
    assert [*memory.feed(2, units(" ".join(WORDS.split()[1:3])))] == []
    assert [*memory.feed(3, units(WORDS.split()[3]))] == seen(1)
    assert not memory.holds


def damage(line: int, last: int, size: int, *words: int | None) -> Damaged:
    return Damaged(
        line,
        last,
        "incomplete records in a dump",
        f"{size} of the 32 bytes of a record ({size // 8} of its 4 words)",
        words=[*words, None, None, None, None][:4],
    )


def test_what_is_left_of_a_record_is_damage() -> None:
    one, two, _, _ = WORDS.split()
    assert records(one)[0] == [damage(1, 1, 8, W[0])]
    assert records(WORDS, one, two)[0] == [*seen(1), damage(2, 3, 16, W[0], W[1])]
    part = f"00000000: {BYTES[: 3 * 20 - 1]}"
    assert records(part)[0] == [damage(1, 1, 20, W[0], W[1])]
    full = EventRecord(FULL).to_bytes().hex(" ")
    assert records(f"00000000: {full[: 3 * 15 - 1]}")[0] == [damage(1, 1, 15, FULL[0])]
    assert records(f"00000000: {full[: 3 * 16 - 1]}")[0] == [damage(1, 1, 16, *FULL[:2])]
    # A few bytes, zeros, or what has no type can be anything.
    assert records("00000000: 10 00 00 00")[0] == []
    assert records("00000000: 10 00 00 00 00 22 00")[0] == []
    assert records("0x0000000000000000")[0] == []
    assert records("0x0000000000000077")[0] == []
    memory = Records()
    assert [*memory.end()] == []


def test_numbers_of_another_width_begin_anew() -> None:
    one = WORDS.split()[0]
    assert records(one, WORDS32)[0] == [damage(1, 1, 8, W[0]), *seen(2)]
    assert records(one, *halves(0))[0] == [damage(1, 1, 8, W[0]), *seen(2)]


def test_a_gap_between_addresses_begins_anew() -> None:
    first, second = halves(0x100)
    _, other = halves(0x200)
    assert records(first, other)[0] == [damage(1, 1, 16, W[0], W[1])]
    assert records(first, second, *halves(0x400))[0] == seen(1, 3)


def test_lines_that_are_left_out_are_repeated() -> None:
    first, second = halves(0x100)
    same = "00000100: " + " ".join(["10"] * 16)
    repeated = EventRecord((int("10" * 8, 16),) * 4)
    for at, count in ((0x110, 0), (0x120, 0.5), (0x130, 1), (0x150, 2)):
        made, _ = records(same, "*", f"{at:08x}: " + " ".join(["10"] * 16))
        words = [one.words for one in made if isinstance(one, Sighting)]
        assert words == [repeated.words] * ((at - 0x100) // 16 + 1 >> 1), count
    # Without the star nothing is repeated.
    made, _ = records(first, second, *halves(0x160))
    assert made == seen(1, 3)
    # Nor before the first line.
    assert records("*", first, second, *halves(0x160))[0] == seen(2, 4)
    # The star counts for one line.
    made, _ = records(first, second, "*", *halves(0x140), *halves(0x180))
    assert made[-1] == Sighting(6, W)


def test_records_that_are_left_out_are_repeated() -> None:
    for prefix in ("{:08x}: ", "{:06x} ", "{:08x} "):
        lines = [prefix.format(at) + BARE for at in (0x100, 0x1A0)]
        assert records(lines[0], "*", lines[1])[0] == seen(1, 3, 3, 3, 3, 3)
    # Without addresses nobody knows how many.
    assert records(WORDS, "*", WORDS)[0] == seen(1, 3)


@pytest.mark.parametrize(
    ("line", "end", "count"),
    [
        ("0001f0 ", "000270", 3),
        ("0001f0 ", "000270  ", 3),
        ("00000300 ", "0000037F", 2),
        ("0000040 ", "0000200", 2),
        ("0000040 ", "0000100", 0),
        ("0001f0 ", "0001f0", 0),
        ("0001f0 ", "00270", 0),
        ("0001f0 ", " 000270", 0),
        ("0001f0 ", "000270 x", 0),
        ("", "000270", 0),
    ],
)
def test_an_address_alone_is_the_end_of_a_dump(line: str, end: str, count: int) -> None:
    memory = Records()
    assert [*memory.feed(1, units(line + BARE))] == seen(1)
    memory.repeat()
    assert [*memory.close(3, end)] == seen(*count * [3])


def test_the_end_of_a_dump_counts_once() -> None:
    memory = Records()
    assert [*memory.feed(1, units(f"000100 {BARE}"))] == seen(1)
    assert [*memory.close(2, "000140")] == []
    memory.repeat()
    assert [*memory.close(3, "000140")] == seen(3)
    assert [*memory.close(4, "000160")] == []


@pytest.mark.parametrize("first", [4, 8])
@pytest.mark.parametrize("second", [2, 4, 8])
def test_each_dump_has_an_order_of_bytes_of_its_own(first: int, second: int) -> None:
    """xxd prints bytes in the order of memory, in groups of any size; with -e, and as hexdump does,
    as words."""
    memory = DATA.hex(" ", -first)
    words = [DATA[at : at + second][::-1].hex() for at in range(0, len(DATA), second)]
    other = " ".join(words) if second > 2 else DATA.hex(" ", -2)
    assert records(f"00000000: {memory}", f"00000000: {other}")[0] == seen(1, 2)


def test_a_record_begins_anew_where_nobody_knows_how_many_lines_are_left_out() -> None:
    zeros, (one, two) = (
        "0x0 0x0000000000000000",
        (" ".join(WORDS.split()[at : at + 2]) for at in (0, 2)),
    )
    assert records(one, two, zeros, "*", one, two)[0] == seen(1, 5)


def test_empty_slots_that_are_left_out_take_no_time() -> None:
    zeros = " ".join(["0" * 16] * 4)
    found, memory = records(f"00000100: {zeros}", "*", f"ffffff00: {BARE}")
    assert found == seen(3)
    assert memory.zeros < 5


def of_two_lines(prefix: str, *addresses: int) -> list[str]:
    """Return the record as two lines of 16-bit numbers, at each address."""
    first, second = WORDS16[:39], WORDS16[40:]
    return [
        prefix.format(at + offset) + text
        for at in addresses
        for offset, text in ((0, first), (16, second))
    ]


def test_octal_and_decimal_addresses_are_told_from_hexadecimal_ones() -> None:
    for prefix in ("{:07o} ", "{:07x} ", "{:07d} "):
        assert records(*of_two_lines(prefix, 0, 32, 64))[0] == seen(1, 3, 5)
        # A gap between records tells nothing.
        assert records(*of_two_lines(prefix, 0o100, 0o200))[0] == seen(1, 3)
        assert records(*of_two_lines(prefix, 0x100, 0x200, 0x220))[0] == seen(1, 3, 5)
    assert records(f"00000f0 {BARE}", f"0000200 {BARE}")[0] == seen(1, 2)
    # One dump may follow another.
    octal, other = of_two_lines("{:07o} ", 32, 64), of_two_lines("{:07x} ", 0xF0, 0x110)
    assert records(*octal, *other)[0] == records(*other, *octal)[0] == seen(1, 3, 5, 7)


def test_lines_that_are_left_out_are_counted_by_the_kind_of_address() -> None:
    for prefix in ("{:07o} ", "{:07x} ", "{:07d} "):
        lines = [prefix.format(at) + BARE for at in (0, 32, 128)]
        assert records(*lines[:2], "*", lines[2])[0] == seen(1, 2, 4, 4, 4)
    lines = [f"{at:07x} {BARE}" for at in (0, 32, 0x140)]
    assert len(records(*lines[:2], "*", lines[2])[0]) == 11
    # Where nothing tells, there are fewer rather than more.
    lines = [f"{at:07o} {BARE}" for at in (32, 128)]
    assert records(lines[0], "*", lines[1])[0] == seen(1, 3, 3, 3)


def test_the_order_of_bytes_stays_once_it_is_known() -> None:
    assert records(f"00000000: {WORDS16}")[0] == seen(1)
    assert records(f"00000000: {memory_order(W)}")[0] == seen(1)
    # Both orders of these can be a record.
    both = (0x1000_2200_0000_0010, 0, 0, 0)
    values = " ".join(f"{word:016x}" for word in both)
    assert records(f"00000000: {values}")[0] == [Sighting(1, both)]
    lines = [f"00000000: {memory_order(W)}", f"00000020: {memory_order(both)}"]
    assert records(*lines)[0] == [*seen(1), Sighting(2, both)]
    # Neither order of these can.
    unnamed = " ".join(f"{word:016x}" for word in (0x2200_0000_0077, 1, 2, 3))
    assert records(f"00000000: {unnamed}")[0] == [Sighting(1, (0x2200_0000_0077, 1, 2, 3))]


def memory_order(words: tuple[int, int, int, int]) -> str:
    """Print words in the order of memory."""
    data = EventRecord(words).to_bytes()
    return " ".join(data[at : at + 8].hex() for at in range(0, 32, 8))


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "is_memory"),
    [
        ([DATA], True),
        ([bytes(32)], True),
        ([bytes(32), DATA], True),
        ([b"\x77" * 32], False),
        ([DATA] * 9 + [b"\x77" * 32], True),
        ([DATA] * 8 + [b"\x77" * 32], False),
        ([DATA] * 9 + [b"\x77" * 32, bytes(32)], True),
        ([], False),
        ([DATA[:31]], False),
        ([DATA, b"\x77" * 31], True),
    ],
)
def test_queue_memory_holds_records(slots: list[bytes], is_memory: bool) -> None:
    assert plausible_memory(b"".join(slots)) is is_memory
