"""Read records from dumps of queue memory as text: what debuggers, hexdump, xxd, od, HxD,
PowerShell's Format-Hex, U-Boot and drivers print, with addresses or without.

A line is first taken apart into units (hexadecimal numbers of one width), then units are put
together into records of 32 bytes. A unit of 2 digits is a byte. Longer ones are little-endian words
as values, but for those of xxd, which prints bytes in the order of memory: what makes a plausible
record decides.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

from harness.smmu.decode import veventq
from harness.smmu.decode.evidence import told
from harness.smmu.decode.found import Damaged, Found, Sighting, Unknown, Words
from harness.smmu.events import RECORD_BYTES, TYPES, EventRecord
from harness.smmu.vevents import HEADER_BYTES, QueueType

_TOKEN = re.compile(r"(?:0x)?([0-9a-f]{1,16})(?=[\s,;|)}\]`]|$)[,;]?", re.IGNORECASE)
_ADDRESS = re.compile(r"((?:0x)?[0-9a-f]{4,16})(?:\s*<[^>]*>)?:\s*", re.IGNORECASE)
#: What can stand before the numbers: marks of a list or table, a prompt, a name as in `w0 = 0x1`.
_BEFORE = (
    r"(?:[\s`{\[|*+-]|\((?!(?:qemu|gdb|lldb)\)))*(?:\((?:qemu|gdb|lldb)\)\s*)?"
    r"(?:(?:u64|uint64_t|w|word|evt|event|raw|data)\s?\[?\d?\]?\s?[:=]\s*)?"
)
_OPENING = re.compile(_BEFORE, re.IGNORECASE)
#: A line that a quick look takes for a dump's.
_LOOKS = re.compile(_BEFORE + r"(?:0x)?[0-9a-f]{1,16}\b(?![.\-])", re.IGNORECASE)
#: Bytes without a space between them.
_PLAIN = re.compile(r"(?:[0-9a-f]{2}){1,30}|[0-9a-f]{64}", re.IGNORECASE)
#: UEFI's shell prints a hyphen between the eighth and the ninth byte.
_HYPHEN = re.compile(r"((?:[0-9a-f]{2} ){7}[0-9a-f]{2})-", re.IGNORECASE)
_AS_TEXT = re.compile(r"\||  >")
#: An address and 16 bytes, and the memory as text after them, which nothing marks.
_UNMARKED_TEXT = re.compile(
    r"([0-9a-f]{8,16}(?:\s+[0-9a-f]{2}){16})\s+(?!(?:[0-9a-f]{2}\s+){15}[0-9a-f]{2}\s*$)\S",
    re.IGNORECASE,
)
#: A heading above the bytes of lines.
_RULER = [f"{number:02x}" for number in range(16)]
#: An address without numbers is the end of a dump by od or hexdump.
_END = re.compile(r"[0-9a-f]{6,16}", re.IGNORECASE)
_RECORD = struct.Struct("<4Q")
#: The most lines that one `*` of a dump stands for.
_MOST_REPEATS = 1 << 20


class Units(NamedTuple):
    """The numbers on a line, as bytes of memory. `swapped` are the bytes if the numbers were
    printed in the order of memory; None if there is no doubt. `addresses` are that of the first
    byte, in each base that its digits can be of; empty if the line has none. `width` is that of a
    number, in bytes. `loose` are those of which only what is surely a record is one."""

    data: bytes
    swapped: bytes | None
    addresses: Mapping[int, int]
    width: int
    loose: bool = False

    def after(self, size: int) -> Units:
        """Return what is left without the first bytes."""
        swapped = None if self.swapped is None else self.swapped[size:]
        return self._replace(data=self.data[size:], swapped=swapped)


class NotWords(NamedTuple):
    """A line of numbers that are too short to say what they are, or too many or few."""

    why: str


_TOO_SHORT = NotWords("a number needs 0x, or at least 8 digits, to be taken for a word of a record")
_NO_TYPE = NotWords("the first word has no type that the specification names")
_WRONG_COUNT = NotWords("a record is four 64-bit words or eight 32-bit words on a line")


def units_of(text: str, *, before: Units | None = None) -> Units | NotWords | None:
    """Return the units on a line; NotWords if they are numbers that cannot be told apart from other
    text, or None if the line is no line of numbers. `before` are the units that a record
    begins with whose rest is missing: a single short number may be its next one."""
    if (digits := _PLAIN.fullmatch(text.strip())) and (
        plain := _plain(digits[0], before is not None and before.loose)
    ):
        return plain
    if not _LOOKS.match(text):
        return None
    opening = _OPENING.match(text)
    start = opening.end() if opening else 0
    addresses: Mapping[int, int] = {}
    colon = _ADDRESS.match(text, start)
    if colon:
        addresses, start = {16: int(colon[1], 16)}, colon.end()
    body = text[start:]
    # The memory as text comes last: after |, after > (od's z), or after two spaces if the line has
    # a colon.
    body = body.lstrip().partition("  ")[0] if colon else _AS_TEXT.split(body, 1)[0]
    if colon and "-" in body:
        body = _HYPHEN.sub(r"\1 ", body, count=1)
    unmarked = None if colon else _UNMARKED_TEXT.match(body)
    tokens, given = _tokens(unmarked[1] if unmarked else body)
    if tokens is None or (len(tokens) == 16 and [token.lower() for token in tokens] == _RULER):
        return None
    if not colon and len(tokens) > 1 and _first_is_address(tokens, given):
        addresses = _in_each_base(tokens[0])
        tokens, given = tokens[1:], given[1:]
    return _units(tokens, given, addresses, colon=colon is not None, before=before)


def _plain(digits: str, goes_on: bool) -> Units | NotWords | None:
    """Return the bytes of digits without a space, as `xxd -p` prints them; None if they may be
    anything else."""
    data = bytes.fromhex(digits)
    if len(data) == RECORD_BYTES and not goes_on and any(data) and not is_sure(data):
        return _NO_TYPE  # a checksum, say
    if goes_on or len(data) >= 30:
        return Units(data, None, {}, 1, loose=True)
    return None


def _in_each_base(digits: str) -> dict[int, int]:
    """Return the address that digits are, by the bases that they can be of. od prints octal and
    decimal ones, of seven digits or more; octal ones begin with 0 only if they have seven."""
    others = [base for base in (8, 10) if len(digits) >= 7 and int(max(digits), 16) < base]
    if len(digits) > 7 and digits[0] == "0" and 8 in others:
        others.remove(8)
    return {base: int(digits, base) for base in (16, *others)}


def _tokens(body: str) -> tuple[list[str] | None, list[bool]]:
    """Return the digits of all numbers of a line, and which have 0x; None if it has anything but
    numbers."""
    tokens: list[str] = []
    given: list[bool] = []
    at, end = 0, len(body)
    while at < end:
        if body[at] in " \t\u00a0,;`)}]|*\\":
            at += 1
            continue
        found = _TOKEN.match(body, at)
        if found is None:
            return (tokens, given) if _is_remark(body, at, tokens) else (None, [])
        tokens.append(found[1])
        given.append(found[0][:2].lower() == "0x")
        at = found.end()
    return (tokens, given) if tokens else (None, [])


def _is_remark(body: str, at: int, tokens: list[str]) -> bool:
    """Return whether what follows four or eight numbers is a remark."""
    return len(tokens) in (4, 8) and body.startswith(("#", "//", "/*", "<-", "--"), at)


def _first_is_address(tokens: list[str], given: list[bool]) -> bool:
    rest = {len(token) for token in tokens[1:]}
    if given[0] or len(rest) != 1 or len(tokens[0]) < 5:
        return False
    (width,) = rest
    if width not in (2, 4, 8, 16) or width * (len(tokens) - 1) < 16:
        return False
    return len(tokens[0]) != width or len(tokens) in (3, 5, 9, 17, 33)


def _units(
    tokens: list[str],
    given: list[bool],
    addresses: Mapping[int, int],
    *,
    colon: bool,
    before: Units | None,
) -> Units | NotWords | None:
    open_width = before.width if before and all(given) else None
    width = (
        _width_at_address(tokens, open_width) if addresses else _width(tokens, given, open_width)
    )
    if not isinstance(width, int):
        return width
    numbers = [int(token, 16) for token in tokens]
    data = b"".join(number.to_bytes(width, "little") for number in numbers)
    other = b"".join(number.to_bytes(width, "big") for number in numbers)
    bare = width == 8 and len(tokens) == 4 and not addresses and not any(given)
    if bare and any(numbers) and not plausible(data):
        return _NO_TYPE  # without 0x it can be anything that has four numbers
    doubt = width > 1 and not any(given) and (colon or width == 2)
    if colon and width == 2:
        data, other = other, data  # xxd's own order
    # Many arrays of bytes in C are none of an event queue.
    loose = width == 1 and not addresses and all(given) and len(tokens) not in (16, 32)
    return Units(data, other if doubt else None, addresses, width, loose)


def _width_at_address(tokens: list[str], before: int | None) -> int | None:
    """Return how many bytes each number of a line with an address is."""
    widths = {len(token) for token in tokens}
    if before == 8 and len(tokens) <= 2:
        return 8
    if len(widths) == 1 and widths <= {2, 4, 8, 16}:
        return widths.pop() // 2
    return 8 if len(tokens) in (2, 4) and max(widths) > 8 else None


def _width(tokens: list[str], given: list[bool], before: int | None) -> int | NotWords | None:
    """Return how many bytes each number of a line without an address is."""
    count, widths = len(tokens), {len(token) for token in tokens}
    if before == 8 and count < 3:
        return 8
    if widths == {2} and all(given) and (count >= 4 or before == 1):
        return 1
    if len(widths) == 1:
        (digits,) = widths
        if digits == 16:
            return 8 if count in (1, 2, 4) or count % 4 == 0 else _WRONG_COUNT
        if digits == 8 and (count in (4, 8) or (all(given) and count < 3)):
            return 4
        if digits in (2, 4) and digits * count in (32, 64) and (all(given) or not any(given)):
            return digits // 2
    first_is_word = given[0] or len(tokens[0]) >= 8
    if count == 4 and first_is_word:
        return 8
    if count == 8 and first_is_word and max(widths) <= 8:
        return 4
    if all(given):
        if count in (1, 2) and (max(widths) > 8 or before):
            return 8
        return _WRONG_COUNT if count > 2 else None
    if count == 1:
        return None
    return _TOO_SHORT if max(widths) < 8 else _WRONG_COUNT


#: What stands between two words: perhaps the name of the next one.
_NEXT = r"[\s,;]+(?:(?P<name{0}>(?:w|word|evt|event|raw|data|arg)_?\[?\d\]?)\s?[:=]\s?)?"
#: Four words within other text, which may have names.
_INSIDE = re.compile(
    r"(?<![\w])0x([0-9a-f]{9,16})"
    + "".join(_NEXT.format(at) + rf"0x(?P<word{at}>[0-9a-f]{{1,16}})" for at in (1, 2, 3))
    + r"(?![0-9a-z])",
    re.IGNORECASE,
)


def words_in(text: str, *, sure: bool = False) -> Words | None:
    """Return the four words that stand one after the other in a text, if they can be a record.
    With `sure` they have to be like one in all bits."""
    found = _INSIDE.search(text)
    if found is None:
        return None
    w1, w2, w3 = (int(found[f"word{at}"], 16) for at in (1, 2, 3))
    data = _RECORD.pack(int(found[1], 16), w1, w2, w3)
    named = found["name1"] is not None
    return _RECORD.unpack(data) if (is_sure(data) if sure or named else plausible(data)) else None


def plausible(data: bytes) -> bool:
    """Return whether 32 bytes can be a record: its type has a name, and no reserved bit of the
    first word's low part is set."""
    return data[0] in TYPES and not data[1] & 7


def _begins(data: bytes) -> bool:
    return plausible(data) or veventq.number_before(data) is not None


def _likeness(data: bytes) -> tuple[bool, bool, bool]:
    """Return how much some bytes are like a record, of which the end may be missing: what counts
    more comes first."""
    record = EventRecord.from_bytes(data[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0"))
    return plausible(record.to_bytes()), record.reserved is None, bool(record.sid)


def is_sure(data: bytes) -> bool:
    """Return whether 32 bytes are a record of a type that the specification names, for a StreamID
    other than 0, without any reserved bit: other numbers hardly are."""
    return all(_likeness(data)) and data[0] < 0xE0


class Records:
    """Puts units together into records. Empty slots of a queue, which are zeros, are no records."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, Units]] = []
        self._size = 0
        self._swapped = False
        #: The number of the last record, if the dump is of what a vEVENTQ's reads returned.
        self._sequence: int | None = None
        #: Whether what comes next may be the rest of a record whose beginning is missing.
        self._fresh = True
        #: Where the records of this dump begin, modulo their size.
        self._phase: int | None = None
        #: The address that follows the last line, in each base that it can be of.
        self._next: dict[int, int] = {}
        #: The base of addresses, as far as two of them have told.
        self._base: int | None = None
        self._previous: Units | None = None
        self._repeats = False
        self.zeros = 0

    @property
    def holds(self) -> bool:
        """Return whether a part of a record waits for its rest."""
        return bool(self._lines)

    @property
    def open(self) -> Units | None:
        """Return the first units of a record that waits for its rest; None if none does."""
        return self._lines[0][1] if self._lines else None

    def repeat(self) -> None:
        """Take the line `*`: lines like the one before are left out up to the next address."""
        self._repeats = self._previous is not None

    def feed(self, line: int, units: Units) -> Iterator[Found]:
        """Take the units of a line and yield the records that they complete."""
        previous = self._previous
        if previous is not None and previous.width != units.width:
            yield from self.end()
        yield from self._up_to(line, units.addresses)
        self._previous = units
        self._next = {base: at + len(units.data) for base, at in units.addresses.items()}
        yield from self._add(line, units)

    def close(self, line: int, text: str) -> Iterator[Found]:
        """Take a line that is none of numbers, and yield the records of a dump whose last lines are
        left out if it has the address of the dump's end."""
        digits = text.rstrip()
        if _END.fullmatch(digits):
            yield from self._up_to(line, _in_each_base(digits))

    def _up_to(self, line: int, addresses: Mapping[int, int]) -> Iterator[Found]:
        """Yield the records that are left out before an address, if a `*` stands for them."""
        if self._repeats and not addresses:
            # How many lines are left out is not known: those of empty slots, up to a record.
            yield from self.end()
        gap = self._gap(addresses)
        if gap and self._repeats and self._previous is not None:
            previous = self._previous
            for _ in range(min(gap // len(previous.data), _MOST_REPEATS)):
                if not any(previous.data) and not self._lines:
                    break  # empty slots
                yield from self._add(line, previous)
        elif gap:
            yield from self._break()
        self._repeats = False

    def _gap(self, addresses: Mapping[int, int]) -> int:
        """Return how many bytes are left out before an address."""
        gaps = {base: at - self._next[base] for base, at in addresses.items() if base in self._next}
        if self._base not in gaps and 0 in gaps.values():
            self._base = next(base for base, gap in gaps.items() if not gap)
        # Where nothing tells, fewer lines are left out rather than more.
        return gaps[self._base] if self._base in gaps else min(gaps.values(), default=0)

    def _add(self, line: int, units: Units) -> Iterator[Found]:
        self._lines.append((line, units))
        self._size += len(units.data)
        while self._size >= (RECORD_BYTES if self._sequence is None else HEADER_BYTES):
            data = self._data()
            if self._sequence is not None:
                whole = yield from self._of_veventq(data, self._sequence)
                if not whole:
                    return
            elif self._fresh and (missing := self._missing(data)):
                yield from self._fragment(missing)
            elif (before := veventq.number_before(data)) is not None:
                self._sequence, self._fresh = before, False
            else:
                yield from self._slot(data[:RECORD_BYTES])

    def _of_veventq(self, data: bytes, last: int) -> Generator[Found, None, bool]:
        """Yield a record of a vEVENTQ, and return whether it was complete."""
        if self._fresh:
            at = veventq.beginning(data, last)
            if at is None and len(data) < 2 * QueueType.ARM_SMMUV3.record_bytes:
                return False
            if at:
                yield from self._fragment(at)
                return True
        one = veventq.first_of(data, last)
        if one is None:
            self._sequence = None  # another dump follows
            return True
        if len(data) < veventq.size_of(one):
            return False
        self._sequence, self._fresh = one.sequence, False
        yield told(self._take(veventq.size_of(one)), None, None, one)
        return True

    def _slot(self, data: bytes) -> Iterator[Found]:
        if any(data):
            self._fresh = False
            self._phase = None if (start := self._start()) is None else start % RECORD_BYTES
        if self._lines[0][1].loose and any(data) and not is_sure(data):
            yield Unknown(self._take(RECORD_BYTES), "bytes that are no record", data.hex(" "))
            return
        yield from record_at(self._take(RECORD_BYTES), data, self)

    def _data(self) -> bytes:
        """Return the bytes that wait, in the order in which they make a record."""
        data, other = self._in_both_orders()
        if not self._swapped and other is not None:
            self._swapped = _begins(other) and not _begins(data)
        return other if other is not None and self._swapped else data

    def _in_both_orders(self) -> tuple[bytes, bytes | None]:
        data = b"".join(units.data for _, units in self._lines)
        if any(units.swapped is None for _, units in self._lines):
            return data, None
        return data, b"".join(units.swapped or b"" for _, units in self._lines)

    def _take(self, size: int) -> int:
        """Take so many bytes away, and return the number of the first one's line."""
        first = self._lines[0][0]
        self._size -= size
        while size:
            line, units = self._lines[0]
            if len(units.data) > size:
                self._lines[0] = (line, units.after(size))
                break
            size -= len(units.data)
            del self._lines[0]
        return first

    def _start(self) -> int | None:
        """Return the address of the first byte that waits, if its line has one."""
        bases = self._next if self._base is None else {self._base} & self._next.keys()
        return self._next[next(iter(bases))] - self._size if len(bases) == 1 else None

    def _missing(self, data: bytes) -> int:
        """Return how many bytes belong to a record whose beginning is missing."""
        start = self._start()
        if start is None:
            return 0
        # An event queue is aligned to more than a record's size; a copy of a record need not be.
        size = ((self._phase or 0) - start) % RECORD_BYTES
        here, there = _likeness(data), _likeness(data[size:])
        if size % 8 or not any(data) or not (there[0] or not any(data[size:])):
            return 0
        return size if there > here or (there == here and self._phase is not None) else 0

    def _fragment(self, size: int) -> Iterator[Found]:
        """Yield the rest of a record, of which the beginning is missing, as damage."""
        self._fresh = False
        lost = self._data()[:size]
        line = self._take(size)
        if any(lost):
            yield Damaged(
                line,
                line,
                "incomplete records in a dump",
                f"{size} bytes of a record, of which the beginning is missing",
            )

    def end(self) -> Iterator[Found]:
        """Yield what is left of an incomplete record as damage. What follows may be another dump,
        in another order of bytes."""
        yield from self._break()
        self._sequence = self._phase = None

    def _break(self) -> Iterator[Found]:
        """Yield what is left of an incomplete record as damage, where lines are missing."""
        lines = self._lines
        values, other = self._in_both_orders()
        data = other if self._swapped and other is not None else values
        if self._sequence is not None and veventq.first_of(data, self._sequence):
            data = data[HEADER_BYTES:]
        self._lines, self._size = [], 0
        self._swapped, self._fresh, self._base = False, True, None
        if not lines:
            return
        if len(data) < 8 or not any(data) or not plausible(data):
            return  # a number on a line by itself can be anything
        words: list[int | None] = [
            int.from_bytes(data[at : at + 8], "little") if at + 8 <= len(data) else None
            for at in range(0, RECORD_BYTES, 8)
        ]
        yield Damaged(
            lines[0][0],
            lines[-1][0],
            "incomplete records in a dump",
            f"{len(data)} of the {RECORD_BYTES} bytes of a record "
            f"({len(data) // 8} of its 4 words)",
            words=words,
        )


def record_at(line: int, data: bytes, memory: Records | None = None) -> Iterator[Sighting]:
    """Yield the event in 32 bytes, or none if the slot is empty."""
    words: Words = _RECORD.unpack(data)
    if words == (0, 0, 0, 0):
        if memory is not None:
            memory.zeros += 1
        return
    yield Sighting(line, words)


def plausible_memory(data: bytes) -> bool:
    """Return whether some bytes look like an event queue's memory: nearly all slots that are not
    empty hold records of named types. A queue can begin with many empty ones."""
    slots = [data[at : at + RECORD_BYTES] for at in range(0, len(data) - 31, RECORD_BYTES)]
    used = [slot for slot in slots if any(slot)]
    return bool(slots) and sum(map(plausible, used)) >= 0.9 * len(used)
