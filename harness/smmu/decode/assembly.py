"""Put the lines of a log together into events.

A kernel prints an event on several lines, and an interrupt can print something else in between, on
the same SMMU even: each number on a line belongs to the message that is open. What is damaged or
missing is told, and never filled with what belongs to something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.smmu import commands
from harness.smmu.decode import dumps, evidence, messages, texts
from harness.smmu.decode.dumps import NotWords, Records, Units
from harness.smmu.decode.found import (
    SSID_NOT_TOLD,
    Aside,
    Damaged,
    Explained,
    Found,
    Sighting,
    Stamp,
    Unknown,
)
from harness.smmu.decode.peel import Peeled, Peeler
from harness.smmu.events import TYPES

#: An event waits for the text that newer kernels print after its words, over so many other lines.
_PATIENCE = 32
#: The most lines that a terminal or a mail program makes of one.
_MOST_PIECES = 6
#: No message is longer, in characters.
_LONGEST = 1000
_ENDS_IN_NUMBER = re.compile(r": 0x[0-9a-f]{1,15}$", re.IGNORECASE)
_DIGITS = re.compile(r"[0-9a-f]{1,15}", re.IGNORECASE)
_ALONE = re.compile(r"\s*0x[0-9a-f]{16}\s*", re.IGNORECASE)
#: What print_hex_dump puts before the address.
_OF_HEX_DUMP = re.compile(r"^[\w.@ -]{1,40}?:\s+(?=(?:0x)?[0-9a-f]{8,16}: )")
_LEFT_OVER = re.compile(r"^[\s>|]*[+]?")


@dataclass
class _Open:
    """A message whose numbers are not complete: an event, or the command that was skipped. `kind`
    is the event's number, or None for a command."""

    line: int
    last: int
    smmu: str
    time: Stamp
    kind: int | None
    words: list[int | None] = field(default_factory=list)
    damage: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> int:
        """Return how many words the message has when it is complete."""
        return 2 if self.kind is None else 4


@dataclass
class _Cut:
    """A line that may go on on the next ones: its pieces so far, and the number of each."""

    time: Stamp
    logged: bool
    pieces: list[str]
    lines: list[int]


class Assembly:
    """Reads lines in order. `feed` and `end` yield what was found, in order."""

    def __init__(self, *, dumps_too: bool = True) -> None:
        self._peeler = Peeler()
        self._open: dict[str, list[_Open]] = {}
        #: The events that wait for their text, by their SMMU.
        self.waiting: dict[str, Sighting] = {}
        self._since = 0
        self._orphans: dict[str, _Open] = {}
        self._text: dict[str, tuple[int, Stamp, texts.Text]] = {}
        self._cut: _Cut | None = None
        self._wraps = False
        self._memory = Records()
        #: The last line of a dump behind a time.
        self._numbers_at = 0
        self._dumps_too = dumps_too
        #: The first lines of numbers that are too short for words, to name them if nothing else is
        #: found.
        self._short: list[tuple[int, NotWords, str]] = []
        self.logged = False
        #: Whether any event or message was found.
        self.any = False

    # -- lines -----------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Return whether the next line may belong to what was read before."""
        return bool(self._open or self._cut or self._orphans or self._text or self._memory.holds)

    @property
    def needs_all(self) -> bool:
        """Return whether any line, whatever it has, may belong to what was read before."""
        return self._cut is not None or self._memory.holds

    def feed(self, number: int, line: str) -> Iterator[Found]:
        """Take a physical line and its number."""
        for peeled in self._peeler.peel(line):
            yield from self._logical(number, peeled)

    def _logical(self, number: int, line: Peeled) -> Iterator[Found]:
        if line.logged:
            self.logged = True
        if (cut := self._cut) is not None:
            if (joined := self._joined(cut, line)) is not None:
                self._cut = None
                whole = Peeled(cut.time, joined, cut.logged)
                yield from self._whole_or_cut(cut.lines[0], whole, rest_at=number)
                return
            if self._may_continue(line) and len(cut.pieces) < _MOST_PIECES:
                cut.pieces.append(line.text)
                cut.lines.append(number)
                return
            yield from self._give_up()
        yield from self._whole_or_cut(number, line)

    def _whole_or_cut(
        self, number: int, line: Peeled, *, rest_at: int | None = None
    ) -> Iterator[Found]:
        """Take a line, but keep its end if that goes on on the next line. With `rest_at`, all
        messages but the first are on that line."""
        text = line.text
        devices = _devices(text)
        if not devices:
            if texts.driver_at_end(text):
                self._cut = _Cut(line.time, line.logged, [text], [number])
            else:
                yield from self._message(number, line)
            return
        yield from self._memory.end()
        self.any = True
        cut = len(text) < _LONGEST and not (
            texts.is_whole_body(devices[-1])
            # In a text whose lines are cut, a last number can go on, too.
            and not (self._wraps and _ENDS_IN_NUMBER.search(text))
        )
        whole = devices[:-1] if cut else devices
        for device in whole:
            yield from self._of_device(number, line.time, device)
            number = rest_at or number
        if cut:
            tail = text[devices[-1].start() :]
            self._cut = _Cut(line.time, line.logged, [tail], [number])
        elif end := texts.driver_at_end(text[devices[-1].end() :]):
            self._cut = _Cut(line.time, line.logged, [end], [number])

    def _may_continue(self, line: Peeled) -> bool:
        return not line.logged and not messages.DEVICE.search(line.text) and bool(line.text.strip())

    def _joined(self, cut: _Cut, line: Peeled) -> str | None:
        """Return the message that the pieces of a line make with this one, perhaps with others
        after it, or None."""
        pieces = cut.pieces
        if line.logged:
            return None
        if (held := _devices(pieces[0])) and texts.is_whole_body(held[0]):
            # Only the digits of its last number can be missing.
            rest = _LEFT_OVER.sub("", line.text)
            return pieces[0] + rest if len(pieces) == 1 and _DIGITS.fullmatch(rest) else None
        # A terminal cuts at a column; a mail program at a space, and may put > before the rest.
        bare = [_LEFT_OVER.sub("", piece) for piece in (*pieces[1:], line.text)]
        for joined in (
            "".join((*pieces, line.text)),
            "".join((pieces[0], *bare)),
            " ".join((pieces[0], *bare)),
        ):
            devices = _devices(joined)
            if len(joined) > _LONGEST or not devices or devices[0].start() >= len(pieces[0]):
                continue
            if texts.is_whole_body(devices[0]):
                self._wraps = True
                return joined
        return None

    def _give_up(self) -> Iterator[Found]:
        """Take the pieces of a line, of which the rest does not come, as they are."""
        if (cut := self._cut) is None:
            return
        self._cut = None
        devices = _devices(cut.pieces[0])
        for device in devices:
            yield from self._of_device(cut.lines[0], cut.time, device)
        if not devices:
            yield from self._message(cut.lines[0], Peeled(cut.time, cut.pieces[0], cut.logged))
        for number, piece in zip(cut.lines[1:], cut.pieces[1:], strict=True):
            yield from self._message(number, Peeled(None, piece, logged=False))

    # -- messages --------------------------------------------------------------------------

    def _message(self, number: int, line: Peeled) -> Iterator[Found]:
        """Take one whole line of a log."""
        text = line.text
        if self.waiting and number > self._since + _PATIENCE:
            yield from self._settle()
        if messages.HINT.search(text):
            meaning = messages.explain(messages.ANYWHERE, text, start=False)
            if isinstance(meaning, messages.Meaning):
                self.any = True
                yield from self._memory.end()
                yield Explained(number, *meaning, None, line.time)
                return
            if meaning:
                yield Aside(number)
                return
            if passages := evidence.passages(number, line.time, text):
                self.any = True
                yield from passages
                return
            if "vEVENTQ(" in text:
                yield Unknown(number, "messages about a vEVENTQ", text)
                return
        elif text.startswith("{") and (passages := evidence.entries(number, text)):
            self.any = True
            yield from passages
            return
        if printed := evidence.printed(number, text):
            self.any = True
            yield printed
            return
        if len(self._open) == 1 and _ALONE.fullmatch(text) and not line.logged:
            # The words of a log whose prefixes somebody has cut off.
            (smmu,) = self._open
            yield from self._word(number, smmu, None, int(text.strip(), 16))
        elif self._dumps_too and line.logged:
            yield from self._logged_number(number, line)
        elif self._dumps_too:
            yield from self._number(number, text)

    def _number(self, number: int, text: str) -> Iterator[Found]:
        if text.strip() == "*":
            self._memory.repeat()
            return
        units = dumps.units_of(text, before=self._memory.open)
        if isinstance(units, Units):
            yield from self._of_memory(self._memory.feed(number, units))
        elif (words := dumps.words_in(text)) is not None:
            yield from self._memory.end()
            self.any = True
            yield Sighting(number, words)
        elif isinstance(units, NotWords):
            if len(self._short) < 3:
                self._short.append((number, units, text))
        elif text.strip():
            yield from self._of_memory(self._memory.close(number, text))
            yield from self._memory.end()

    def _logged_number(self, number: int, line: Peeled) -> Iterator[Found]:
        """Take numbers behind a time. A kernel's log has many of something else."""
        text = _OF_HEX_DUMP.sub("", line.text)
        units = dumps.units_of(text, before=self._memory.open)
        if isinstance(units, Units) and units.addresses:
            self._numbers_at = number
            for found in self._memory.feed(number, units):
                if isinstance(found, Sighting) and dumps.is_sure(found.record.to_bytes()):
                    self.any = True
                    yield found._replace(time=line.time)
        elif words := dumps.words_in(text, sure=True):
            self.any = True
            yield Sighting(number, words, time=line.time)
        elif self._memory.holds and number > self._numbers_at + _PATIENCE:
            yield from self._memory.end()

    def _of_memory(self, records: Iterator[Found]) -> Iterator[Found]:
        for found in records:
            if isinstance(found, Sighting) and self.logged and not _named(found):
                continue  # numbers in a log of a kernel, of something else
            self.any = True
            yield found

    # -- of a device -----------------------------------------------------------------------

    def _of_device(self, number: int, time: Stamp, device: re.Match[str]) -> Iterator[Found]:
        smmu, body = device["smmu"], device["body"]
        stripped = body.strip()
        if device["driver"] == "arm-smmu":
            meaning = messages.explain(messages.OF_SMMUV2, stripped)
            if isinstance(meaning, messages.Meaning):
                yield Explained(number, *meaning, smmu, time)
            else:
                yield Aside(number)
            return
        if head := messages.HEAD.match(stripped):
            yield from self._head(_Open(number, number, smmu, time, int(head[1], 16)))
        elif messages.SKIPPED.match(stripped):
            opened = self._open.setdefault(smmu, [])
            for one in opened:
                one.notes.append(f"line {number}: the dump of a command lies between its words")
            opened.append(_Open(number, number, smmu, time, None))
        elif word := messages.WORD.match(stripped):
            yield from self._word(number, smmu, time, int(word[1], 16))
        elif text := texts.text_of(stripped):
            yield from self._event_text(number, smmu, time, text)
        elif attributes := messages.ATTRIBUTES.match(stripped):
            yield from self._attributes(number, smmu, attributes)
        else:
            stripped = stripped.removeprefix("tegra241_cmdqv: ")
            meaning = messages.explain(messages.OF_DEVICE, stripped)
            if isinstance(meaning, messages.Meaning):
                yield Explained(number, *meaning, smmu, time)
            elif meaning:
                yield Aside(number)
            elif self._open.get(smmu) and messages.TORN.search(stripped):
                yield from self._torn(number, smmu, time, stripped)
            else:
                yield Unknown(number, "messages of an SMMU's driver", stripped)

    def _head(self, begun: _Open) -> Iterator[Found]:
        yield from self._settle(begun.smmu)
        yield from self.interrupt(begun.smmu)
        self._open.setdefault(begun.smmu, []).append(begun)

    def interrupt(self, smmu: str) -> Iterator[Found]:
        """End what is open of an SMMU, because something new has begun there."""
        opened = self._open.get(smmu, [])
        for one in opened:
            if one.kind is not None or one.words:
                yield from self._broken(one)
        self._open.pop(smmu, None)
        yield from self._lone_text(smmu)
        yield from self._lone_words(smmu)

    def _word(
        self, number: int, smmu: str, time: Stamp, word: int | None, note: str = ""
    ) -> Iterator[Found]:
        opened = self._open.get(smmu)
        if not opened:
            yield from self._orphan(number, smmu, time, word)
            return
        # The latest message is the one that interrupted the others.
        one = opened[-1]
        one.last = number
        one.words.append(word)
        if word is None:
            one.damage.append(number)
        if note:
            one.notes.append(note)
        if len(one.words) == one.whole:
            opened.remove(one)
            if not opened:
                del self._open[smmu]
            yield from self._complete(one)

    def _torn(self, number: int, smmu: str, time: Stamp, text: str) -> Iterator[Found]:
        digits = re.sub(r"[\s]+", "", text.lower().removeprefix("0x"))
        if text.lower().startswith("0x") and re.fullmatch(r"[0-9a-f]{16}", digits):
            note = f"line {number}: a word with a gap in it was put together"
            yield from self._word(number, smmu, time, int(digits, 16), note)
        else:
            yield from self._word(number, smmu, time, None)

    def _complete(self, one: _Open) -> Iterator[Found]:
        if one.kind is None:
            low, high = one.words
            if low is None or high is None:
                yield from self._broken(one)
                return
            said = commands.describe((low, high))
            yield Explained(one.line, "skipped command", said, one.smmu, one.time)
            return
        w0, w1, w2, w3 = one.words
        if w0 is None or w1 is None or w2 is None or w3 is None or w0 & 0xFF != one.kind:
            yield from self._broken(one)
            return
        notes = tuple(one.notes)
        yield from self.hold(
            Sighting(one.line, (w0, w1, w2, w3), one.smmu, None, one.time, notes=notes), one.last
        )

    def hold(self, event: Sighting, last: int) -> Iterator[Found]:
        """Keep an event until it is clear whether its text follows."""
        assert event.smmu is not None
        yield from self._settle(event.smmu)
        self.waiting[event.smmu] = event
        self._since = last

    def _settle(self, smmu: str | None = None) -> Iterator[Found]:
        """Yield the events that wait for their text, of one SMMU or of all."""
        for name in [smmu] if smmu is not None else list(self.waiting):
            if event := self.waiting.pop(name, None):
                yield event

    def make_way(self, smmu: str, number: int) -> Iterator[Found]:
        """Yield the events whose text comes no more, because another event of their SMMU begins
        after this line, or because they have waited for long."""
        yield from self._settle(None if number > self._since + _PATIENCE else smmu)

    def settle(self) -> Iterator[Found]:
        """Yield what waits, because something follows that is none of its text."""
        yield from self._settle()

    def _broken(self, one: _Open) -> Iterator[Found]:
        what = f"event {one.kind:#04x}" if one.kind is not None else "the skipped command"
        intact = sum(word is not None for word in one.words)
        first = one.words[0] if one.words else None
        if one.damage:
            where = ", ".join(map(str, one.damage))
            reason = f"{what}: a word is damaged (line {where})"
        elif intact == 4 and first is not None:
            reason = f"the head says {what}, but the words are event {first & 0xFF:#04x}"
        else:
            reason = f"{what} has {intact} of its {one.whole} words"
        if one.kind is None:
            yield Damaged(
                one.line, one.last, "incomplete commands", reason, smmu=one.smmu, time=one.time
            )
            return
        words = one.words if one.damage else one.words[:1]
        if first is not None and first & 0xFF != one.kind:
            words = []
        padded = [*words, None, None, None, None][:4]
        yield Damaged(
            one.line,
            one.last,
            "incomplete events",
            reason,
            one.kind,
            padded,
            one.smmu,
            None,
            one.time,
        )

    def _orphan(self, number: int, smmu: str, time: Stamp, word: int | None) -> Iterator[Found]:
        """Take a word whose head is missing."""
        one = self._orphans.get(smmu)
        if one is None:
            one = self._orphans[smmu] = _Open(number, number, smmu, time, 0)
        one.words.append(word)
        one.last = number
        if len(one.words) >= 4:
            yield from self._lone_words(smmu)

    def _lone_words(self, smmu: str) -> Iterator[Found]:
        one = self._orphans.pop(smmu, None)
        if one is None:
            return
        first = one.words[0]
        sure = first is not None and len(one.words) == 4 and first & 0xFF in TYPES
        count = len(one.words)
        yield Damaged(
            one.line,
            one.last,
            "words without the head of an event",
            f"{count} {'words' if count > 1 else 'word'} without `event … received:` before"
            + (": the event's head is missing" if sure else ""),
            None,
            one.words if sure else (None, None, None, None),
            smmu,
            None,
            one.time,
        )

    # -- text of newer kernels -------------------------------------------------------------

    def _event_text(self, number: int, smmu: str, time: Stamp, text: texts.Text) -> Iterator[Found]:
        yield from self._lone_text(smmu)
        waiting = self.waiting.get(smmu)
        if waiting is not None:
            if note := text.differs_from(waiting):
                waiting = waiting._replace(notes=(*waiting.notes, f"line {number}: {note}"))
            self.waiting[smmu] = waiting._replace(client=text.client)
            if not text.has_attributes:
                yield from self._settle(smmu)
            return
        opened = self._open.get(smmu, [])
        events = [one for one in opened if one.kind is not None]
        if events:
            # The event's words are incomplete, but its text follows: that says what it was.
            for one in opened:
                yield from self._broken_with_text(one, text)
            self._open.pop(smmu)
            return
        if smmu in self._orphans:
            yield from self._lone_words(smmu)
        self._text[smmu] = (number, time, text)
        if not text.has_attributes:
            yield from self._lone_text(smmu)

    def _broken_with_text(self, one: _Open, text: texts.Text) -> Iterator[Found]:
        for found in self._broken(one):
            if isinstance(found, Damaged) and one.kind is not None and one.kind == text.number:
                words = text.words(None) if text.tells_ssid else (None, 0, 0, 0)
                merged = [
                    mine if mine is not None else theirs if at != 1 else None
                    for at, (mine, theirs) in enumerate(zip(found.words, words, strict=True))
                ]
                found = found._replace(words=merged, client=text.client)
                if not text.tells_ssid:
                    found = found._replace(sid=text.sid)
            yield found

    def _attributes(self, number: int, smmu: str, attributes: re.Match[str]) -> Iterator[Found]:
        if smmu in self._text:
            line, time, text = self._text.pop(smmu)
            yield Sighting(line, text.words(attributes), smmu, text.client, time, from_text=True)
            return
        waiting = self.waiting.get(smmu)
        if waiting is not None and waiting.client is not None:
            if note := texts.attributes_differ(attributes, waiting):
                note = f"line {number}: {note}"
                self.waiting[smmu] = waiting._replace(notes=(*waiting.notes, note))
            yield from self._settle(smmu)
            return
        yield Aside(number)

    def _lone_text(self, smmu: str) -> Iterator[Found]:
        """Yield an event of which there is only a text, without the line of its attributes."""
        if smmu not in self._text:
            return
        line, time, text = self._text.pop(smmu)
        words = text.words(None)
        if text.number is None:
            yield Damaged(
                line,
                line,
                "events of a type that the kernel does not name",
                "the kernel's text does not say which type the event has: such as F_UUT, "
                "F_TRANSL_FORBIDDEN or F_WALK_EABT",
                smmu=smmu,
                client=text.client,
                time=time,
                sid=text.sid,
            )
            return
        if not text.has_attributes:
            notes = () if text.tells_ssid else (SSID_NOT_TOLD,)
            yield Sighting(line, words, smmu, text.client, time, from_text=True, notes=notes)
            return
        known = (words[0], None, words[2], None)
        yield Damaged(
            line,
            line,
            "events without their attributes",
            "the line `(un)priv …` of this event is missing",
            text.number,
            known,
            smmu,
            text.client,
            time,
        )

    # -- end -------------------------------------------------------------------------------

    def end(self) -> Iterator[Found]:
        """Yield what is left after the last line."""
        yield from self._give_up()
        yield from self._settle()
        for smmu in [*self._open, *self._orphans, *self._text]:
            yield from self.interrupt(smmu)
        yield from self._memory.end()
        if not self.any:
            for number, short, text in self._short:
                yield Damaged(
                    number, number, "numbers that are no record", f"{short.why}: {text!r}"
                )


def _devices(text: str) -> list[re.Match[str]]:
    """Return the driver, device and text of each message about an SMMU on a line: a mail program
    can have put several on one."""
    if "smmu" not in text and "cmdqv" not in text:
        return []
    return [
        found
        for found in messages.DEVICE.finditer(text)
        if found["driver"].startswith("arm-smmu")
        or "smmu" in found["smmu"]
        or found["body"].startswith("tegra241_cmdqv")
    ]


def _named(event: Sighting) -> bool:
    return event.words[0] & 0xFF in TYPES
