"""Read events from text in place of words: what newer kernels print after the words of an event.

A record is put together from the text; fields that the text does not have are 0.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from harness.smmu.decode import messages
from harness.smmu.decode.found import Sighting, Words
from harness.smmu.events import FETCH_MASK, IPA_MASK, TRANSLATION_FAULTS, EventType, type_name

_SSV = 1 << 11


class Text(NamedTuple):
    """The line `event: …` of an event. `client` is None for a StreamID that no device has."""

    name: str
    client: str | None
    sid: int
    ssid: int
    iova: int | None
    ipa: int | None
    fetch: int | None

    @property
    def number(self) -> int | None:
        """Return the number of the event's type; None for a type that the kernel has no name
        for."""
        return EventType[self.name].value if self.name in EventType.__members__ else None

    @property
    def tells_ssid(self) -> bool:
        """Return whether the SubstreamID can be the event's. Linux reads it if SSV is set, which
        C_BAD_SUBSTREAMID does not have: there it prints 0."""
        return self.ssid != 0 or self.number != EventType.C_BAD_SUBSTREAMID

    @property
    def has_attributes(self) -> bool:
        """Return whether the kernel prints a second line."""
        return self.number in TRANSLATION_FAULTS

    def words(self, attributes: re.Match[str] | None) -> Words:
        """Return the record's words, as far as this line and the second one tell."""
        ssid = _SSV | self.ssid << 12 if self.ssid else 0
        if self.number == EventType.C_BAD_SUBSTREAMID:
            ssid = self.ssid << 12
        word0 = (self.number or 0) | ssid | self.sid << 32
        word1 = attribute_bits(attributes) if attributes else 0
        return word0, word1, self.iova or 0, self.fetch or self.ipa or 0

    def differs_from(self, event: Sighting) -> str:
        """Return what differs between this text and an event's words; empty if they agree."""
        record = event.record
        w2, w3 = event.words[2:]
        pairs: list[tuple[str, object, object]] = [
            ("sid", self.sid, record.sid if record.sid is not None else self.sid),
            ("ssid", self.ssid, (record.words[0] >> 12 & 0xFFFFF if _has_ssid(event) else 0)),
        ]
        if self.number is not None:
            pairs.insert(0, ("type", self.name, record.name))
        if self.iova is not None:
            pairs.append(("iova", self.iova, w2))
        if self.ipa is not None:
            pairs.append(("ipa", self.ipa & _MASK52, w3 & IPA_MASK & _MASK52))
        if self.fetch is not None:
            pairs.append(("fetch", self.fetch & _MASK52, w3 & FETCH_MASK & _MASK52))
        different = [name for name, said, read in pairs if said != read]
        return f"the kernel's text has another {', '.join(different)}" if different else ""


#: Linux prints 52 bits of these addresses.
_MASK52 = (1 << 52) - 1


def _has_ssid(event: Sighting) -> bool:
    # Linux reads the SubstreamID by SSV in all types.
    return bool(event.words[0] & _SSV)


def attribute_bits(attributes: re.Match[str]) -> int:
    """Return the record's second word by the line `(un)priv …`."""
    klass = attributes["klass"]
    number = messages.CLASS_TEXTS.index(klass) if klass in messages.CLASS_TEXTS else 3
    return (
        int(attributes["stag"], 16)
        | (attributes["stall"] is not None) << 31
        | (attributes["level"] == "priv") << 33
        | (attributes["what"] == "inst") << 34
        | (attributes["rnw"] == "read") << 35
        | (attributes["stage"] == "s2") << 39
        | number << 40
        | (attributes["ttd"] == "read") << 44
    )


@functools.lru_cache(maxsize=4096)
def _printed(word0: int, word1: int) -> tuple[str, str, bool, bool, str]:
    """Return what Linux prints of the first two words: before and after the client's name, whether
    input address and IPA follow, or the fetch address, and the line of attributes."""
    name = type_name(word0 & 0xFF)
    if name not in _NAMED:
        name = "UNKNOWN"
    ssid = word0 >> 12 & 0xFFFFF if word0 & _SSV else 0
    has_address = word0 & 0xFF in TRANSLATION_FAULTS
    attributes = ""
    if has_address:
        ttd = ""
        if name == "F_PERMISSION" and word1 >> 40 & 3 == 1:
            ttd = " ttd_read" if word1 >> 44 & 1 else " ttd_write"
        attributes = (
            f"{'priv' if word1 >> 33 & 1 else 'unpriv'} {'inst' if word1 >> 34 & 1 else 'data'} "
            f"{'read' if word1 >> 35 & 1 else 'write'} {'s2' if word1 >> 39 & 1 else 's1'} "
            f'"{messages.CLASS_TEXTS[word1 >> 40 & 3]}"{ttd}{" stall" if word1 >> 31 & 1 else ""} '
            f"stag: {word1 & 0xFFFF:#x}"
        )
    return (
        f"{name} client: ",
        f" sid: {word0 >> 32:#x} ssid: {ssid:#x}",
        has_address,
        not has_address and name in messages.WITH_ADDRESS,
        attributes,
    )


_NAMED = messages.WITH_ADDRESS | {
    "C_BAD_STREAMID",
    "C_BAD_STE",
    "F_STREAM_DISABLED",
    "C_BAD_SUBSTREAMID",
    "C_BAD_CD",
}


def client_if_same(words: Words, text: str, attributes: str) -> str | None:
    """Return the client in the text that Linux prints of an event, after `event: `, and in its line
    of attributes; empty if no device has the StreamID, None if the text is not exactly what Linux
    prints of these words."""
    before, after, has_address, has_fetch, expected = _printed(words[0], words[1])
    if has_address:
        after += f" iova: {words[2]:#x} ipa: {words[3] & IPA_MASK & _MASK52:#x}"
    elif has_fetch:
        after += f" fetch_addr: {words[3] & FETCH_MASK & _MASK52:#x}"
    if attributes != expected or not (text.startswith(before) and text.endswith(after)):
        return None
    client = text[len(before) : -len(after)]
    if client == "(unassigned sid)":
        return ""
    return client if client and " " not in client else None


#: What the line of attributes tells of the second word.
_TOLD = 0xFFFF | 1 << 31 | 7 << 33 | 1 << 39 | 3 << 40


def attributes_differ(attributes: re.Match[str], event: Sighting) -> str:
    """Return what differs between a line of attributes and an event's words; empty if they
    agree."""
    same = (attribute_bits(attributes) ^ event.words[1]) & _TOLD == 0
    return "" if same else "the kernel's text has other attributes than the words"


def text_of(body: str) -> Text | None:
    """Return the text of an event in what follows a device's name, or None if it is no such line,
    or not a whole one."""
    found = messages.TEXT.match(body)
    if found is None:
        return None
    name = found["name"].upper()
    if name in messages.WITH_ADDRESS and found[5] is None and found[7] is None:
        return None
    client = None if found["client"].startswith("(") else found["client"]
    numbers = [None if group is None else int(group, 16) for group in found.groups()[4:]]
    return Text(name, client, int(found[3], 16), int(found[4], 16), *numbers)


def is_whole_body(device: re.Match[str]) -> bool:
    """Return whether a message about a device needs no other line to be whole."""
    if device["driver"] == "arm-smmu":
        return True
    body = device["body"].strip()
    # Pieces of a class's name may be joined without the space that was between them.
    attributes = messages.ATTRIBUTES.match(body)
    return bool(
        messages.HEAD.match(body)
        or messages.SKIPPED.match(body)
        or messages.WORD.match(body)
        or (attributes and attributes["klass"] in messages.CLASS_TEXTS)
        or text_of(body)
        or messages.explain(messages.OF_DEVICE, body.removeprefix("tegra241_cmdqv: "))
    )


def driver_at_end(text: str) -> str:
    """Return the end of a line from the driver's name on if the line ends in that name or a part of
    it, or in that and a part of a device's name, so that its rest is on the next line; otherwise
    an empty string."""
    words = text.rstrip()[-60:].split()[-2:]
    if not words:
        return ""
    if len(words) == 2 and words[0] == messages.DRIVER:
        return " ".join(words)
    last = words[-1]
    if last == "a":  # an article ends lines of prose, too
        return ""
    cut = messages.DRIVER.startswith(last) or ("platform".startswith(last) and len(last) > 4)
    return last if cut else ""
