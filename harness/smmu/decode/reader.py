"""Read a whole input: bytes in, what was found out.

Most lines of a large input are a common form's: four words on a line, or an event as Linux prints
it. One regular expression finds those of a whole block. All other lines are read one by one, and
give the same result.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterable, Iterator

from harness.smmu.decode import veventq
from harness.smmu.decode.assembly import Assembly
from harness.smmu.decode.dumps import record_at
from harness.smmu.decode.evidence import told
from harness.smmu.decode.forms import Form, blocks, opened
from harness.smmu.decode.found import Damaged, Found, Sighting, Stamp
from harness.smmu.decode.peel import time_of
from harness.smmu.decode.texts import client_if_same
from harness.smmu.events import RECORD_BYTES, TYPES
from harness.smmu.vevents import HEADER_BYTES, LOST_EVENTS, QueueType

_WORD = rb"[ \t]+(?:0[xX])?([0-9a-fA-F]{1,16})"
#: A first word of more than eight digits: these are no 32-bit words.
_WORDS = re.compile(rb"^(?:0[xX])?([0-9a-fA-F]{9,16})" + 3 * _WORD + rb"[ \t]*\r?\n", re.MULTILINE)
_LINE = rb"[^\n]*arm-smmu-v3 (?P=smmu):[ \t]+0x([0-9a-f]{16})\r?\n"
_EVENT = re.compile(
    rb"^([^\n]*?)arm-smmu-v3 (?P<smmu>[\w.@+-]+): event 0x([0-9a-f]{2}) received:\r?\n"
    + 4 * _LINE
    # Newer kernels print a text, too, and for some types its attributes.
    + rb"(?:[^\n]*arm-smmu-v3 (?P=smmu): event: ([^\n\r]*)\r?\n"
    + rb"(?:[^\n]*arm-smmu-v3 (?P=smmu): ((?:un)?priv [^\n\r]*)\r?\n)?)?",
    re.MULTILINE,
)
_HEAD = b" received:"
#: Sighting(...) without its Python code: a million of them are made.
_sighting = functools.partial(tuple.__new__, Sighting)
#: What a line has that is worth to be read by itself: a word of a message, a number at its
#: beginning, or at its end the beginning of what goes on on the next line.
_NUMBER = re.compile(
    rb"[\s>|+`*\xc2\xa0-]*+\W{0,8}(?:<[a-z][^<>]*>\W{0,8})*(?:(?:qemu|gdb|lldb)\)\s*)?"
    rb"(?:(?:u64|uint64_t|w|word|evt|event|raw|data)[\s\[\]\d]*[:=]\s*)?"
    # \xc2\xa0 is a space of a web page.
    rb"(?:0x[0-9a-f]{1,16}|[0-9a-f]{60}|[0-9a-f]{64}|[0-9a-f]{2,16})"
    rb"(?:[\s,;`)}\]<&\xc2]|$|:[\s&\xc2]| *<[^>]*>:)"
    rb"|[\s>|+]*\*\s*$",
    re.IGNORECASE,
)
#: An address and a number of a dump, which may have a name before them.
_OF_DUMP = (
    rb"\s+(?:[\w.@-]{1,30}: )?"
    rb"(?:0x)?[0-9a-f]{4,16}(?:\s<[^>]*>)?[:\s]\s*(?:0x)?[0-9a-f]{2,16}[\s-]"
)
#: A line of a dump behind a time, as a log or a console's server has it.
_STAMPED = re.compile(
    rb"(?:\s*\[[^\]]{4,40}\]|\d{4}-\d\d-\d\d[t ][\d:.,]+(?:\s?(?:z|utc|[+-]\d\d:?\d\d))?"
    rb"|\d{9,10}\.\d{3,9})" + _OF_DUMP
)
_OF_KERNEL = re.compile(rb"kernel:(?:\s+\[[^\]]{4,40}\])?" + _OF_DUMP)
_ENDS = (
    *(space + part for space in (b" ", b"]", b"\t") for part in (b"ar", b"arm", b"platform")),
    *(b"arm-", b"arm-s", b"arm-sm", b"arm-smm", b"platfo", b"platfor"),
)


def _worth(line: bytes) -> bool:
    """Return whether a line can have something, if nothing is open before it."""
    low = line.lower()
    return (
        b"smmu" in low
        or b"cmdq" in low
        or b"eventq" in low
        or b"message" in low
        or b"sid 0x" in low
        or b"entries at 0x" in low
        or b"invalid ste" in low
        or (b'"' in low and (b"time" in low or b'"ts"' in low or b'"queue"' in low))
        or low.count(b"0x") >= 4
        or _NUMBER.match(low) is not None
        or _STAMPED.match(low) is not None
        or (b"kernel:" in low and _OF_KERNEL.search(low) is not None)
        or low.rstrip().endswith(_ENDS)
    )


class Reading:
    """One input, in chunks, of which an empty one says that the input pauses. `lines` counts its
    lines, or the slots of queue memory."""

    def __init__(self, chunks: Iterable[bytes], form: Form = Form.AUTO) -> None:
        self._chunks = chunks
        self._form = form
        self.lines = 0
        #: Whether the input is queue memory, not text. It is known once something was read.
        self.raw = False

    def __iter__(self) -> Iterator[Found]:
        """Yield what was found, in order. Raises BadInputError, after what was found before it."""
        self.raw, data = opened(self._chunks, self._form)
        if self.raw:
            yield from self._memory(data)
            return
        assembly = Assembly(dumps_too=self._form is not Form.LOG)
        for block in blocks(data):
            if not block:
                yield from assembly.settle()
            elif self._form is not Form.DUMP and _HEAD in block:
                yield from self._events(assembly, block)
            elif self._form is not Form.LOG:
                yield from self._words(assembly, block)
            else:
                yield from self._slowly(assembly, block)
        yield from assembly.end()

    def _slowly(self, assembly: Assembly, block: bytes) -> Iterator[Found]:
        if not block:
            return
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, start=self.lines + 1):
            if not (_worth(line) or assembly.needs_all):
                continue
            self.lines = number
            text = line.decode(errors="replace")
            # A console writes \r\r\n, or goes back to the beginning of a line.
            for part in filter(None, text.split("\r")) if "\r" in text else (text,):
                yield from assembly.feed(number, part)
        self.lines = number

    def _words(self, assembly: Assembly, block: bytes) -> Iterator[Found]:
        at = 0
        quiet = not assembly.busy and not assembly.logged
        for found in _WORDS.finditer(block):
            start, end = found.span()
            if start != at or not quiet:
                yield from self._slowly(assembly, block[at:start])
                quiet = not assembly.busy and not assembly.logged
            at = end
            if not quiet:
                yield from self._slowly(assembly, block[start:end])
                continue
            w0, w1, w2, w3 = found.groups()
            words = (int(w0, 16), int(w1, 16), int(w2, 16), int(w3, 16))
            # An empty slot, too; and LOST_EVENTS of a vEVENTQ looks like an F_UUT.
            if words[0] & 0xFF not in TYPES or words[0] & 0xFFFFFFFF == LOST_EVENTS:
                yield from self._slowly(assembly, block[start:end])
                quiet = not assembly.busy and not assembly.logged
                continue
            assembly.any = True
            self.lines += 1
            yield _sighting((self.lines, words, None, None, None, False, ()))
        yield from self._slowly(assembly, block[at:])

    def _events(self, assembly: Assembly, block: bytes) -> Iterator[Found]:
        at = 0
        names: dict[bytes, str] = {}
        # The last event waits for the one that follows: text of its own may come in between.
        last: Sighting | None = None
        whose = b""
        quiet = not assembly.busy
        for found in _EVENT.finditer(block):
            start, end = found.span()
            if start != at or not quiet:
                if last is not None:
                    yield from assembly.hold(last, self.lines)
                    last = None
                yield from self._slowly(assembly, block[at:start])
                if assembly.busy:
                    yield from self._slowly(assembly, block[start:end])
                    at, quiet = end, False
                    continue
                quiet = True
            at = end
            prefix, smmu, kind, w0, w1, w2, w3, text, attributes = found.groups()
            if last is not None:
                if smmu == whose:
                    yield last
                else:  # its text may come after another SMMU's event
                    yield from assembly.hold(last, self.lines)
                last = None
            if w0[-2:] != kind:
                yield from self._slowly(assembly, block[start:end])
                quiet = False
                continue
            if smmu not in names:
                names[smmu] = smmu.decode()
                assembly.any = assembly.logged = True
            if assembly.waiting:
                yield from assembly.make_way(names[smmu], self.lines)
            words = (int(w0, 16), int(w1, 16), int(w2, 16), int(w3, 16))
            if text is None:
                where: tuple[str, str | None, Stamp] = (names[smmu], None, _time(prefix))
                last, whose = _sighting((self.lines + 1, words, *where, False, ())), smmu
                self.lines += 5
                continue
            said = (attributes or b"").decode(errors="replace")
            client = client_if_same(words, text.decode(errors="replace"), said)
            if client is None:
                yield from self._slowly(assembly, block[start:end])
                quiet = False
                continue
            where = (names[smmu], client or None, _time(prefix))
            yield _sighting((self.lines + 1, words, *where, False, ()))
            self.lines += 7 if attributes else 6
        if last is not None:
            yield from assembly.hold(last, self.lines)
        yield from self._slowly(assembly, block[at:])

    def _memory(self, data: Iterable[bytes]) -> Iterator[Found]:
        chunks = iter(data)
        first = b""
        while len(first) < RECORD_BYTES and (chunk := next(chunks, None)) is not None:
            first += chunk
        last = veventq.number_before(first)
        chunks = itertools.chain([first], chunks)
        return self._slots(chunks) if last is None else self._vevents(chunks, last)

    def _vevents(self, data: Iterable[bytes], last: int) -> Iterator[Found]:
        rest = b""
        for chunk in data:
            rest += chunk
            at = 0
            while len(rest) - at >= HEADER_BYTES:
                one = veventq.first_of(rest[at : at + QueueType.ARM_SMMUV3.record_bytes], last)
                if one is None:
                    yield self._not_whole(f"what follows #{last} is no record of its vEVENTQ")
                    return
                if len(rest) - at < veventq.size_of(one):
                    break
                self.lines += 1
                at += veventq.size_of(one)
                last = one.sequence
                yield told(self.lines, None, None, one)
            rest = rest[at:]
        if rest:
            whole = QueueType.ARM_SMMUV3.record_bytes
            yield self._not_whole(f"{len(rest)} of the {whole} bytes of a record")

    def _not_whole(self, reason: str) -> Damaged:
        line = self.lines + 1
        return Damaged(line, line, "incomplete records at the end of queue memory", reason)

    def _slots(self, data: Iterable[bytes]) -> Iterator[Found]:
        rest = b""
        slot = 0
        for chunk in data:
            rest += chunk
            whole = len(rest) // RECORD_BYTES * RECORD_BYTES
            for at in range(0, whole, RECORD_BYTES):
                slot += 1
                yield from record_at(slot, rest[at : at + RECORD_BYTES])
            rest = rest[whole:]
            self.lines = slot
        if rest:
            yield self._not_whole(f"{len(rest)} of the {RECORD_BYTES} bytes of a record")


def _time(prefix: bytes) -> Stamp:
    if prefix[:1] == b"[" and prefix[-2:] == b"] ":
        with contextlib.suppress(ValueError):
            return float(prefix[1:-2])
    return time_of(prefix.decode(errors="replace")) if prefix else None


def read(chunks: Iterable[bytes], form: Form = Form.AUTO) -> Iterator[Found]:
    """Yield what is found in an input, as Reading does."""
    return iter(Reading(chunks, form))


def read_text(text: str) -> Iterator[Found]:
    """Yield what is found in a text."""
    return read([text.encode(errors="replace")])
