"""Show what was found: as text for people, or as JSON, a line each.

The events of a flood have the same two first words, and only addresses differ: what depends on the
two is made once.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable

from harness.smmu.decode.found import Damaged, Explained, Sighting, Stamp, known_fields
from harness.smmu.decode.meanings import meaning
from harness.smmu.events import EventRecord, EventType

_BDF = re.compile(r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$", re.IGNORECASE)
_ADDRESSES = ("input_addr", "ipa", "fetch_addr", "reserved")


def bdf(sid: int, client: str | None) -> str | None:
    """Return bus, device and function of a PCI StreamID, whose low 16 bits they are; None beside a
    client that is no PCI function. Without a client it is what a StreamID of PCI would be."""
    if client is not None and not _BDF.match(client):
        return None
    return f"{sid >> 8 & 0xFF:02x}:{sid >> 3 & 0x1F:02x}.{sid & 7}"


def stamp_text(time: Stamp) -> str:
    """Return a time as text: seconds with six digits, or a date as it is."""
    return f"{time:.6f}" if isinstance(time, float) else str(time)


# -- text --------------------------------------------------------------------------------------

#: Two parts of an event's text, around its addresses; the masks of the addresses it has, else 0;
#: and the bits of the last two words that are RES0.
_Template = tuple[str, int, int, int, str, int, int]


@functools.lru_cache(maxsize=4096)
def _template(word0: int, word1: int, client: str | None) -> _Template:
    record = EventRecord((word0, word1, 0, 0))
    if record.type not in EventType._value2member_map_:
        return ("", 0, 0, 0, "", 0, 0)  # all words of such a record are shown
    filled = EventRecord((word0, word1, (1 << 64) - 1, (1 << 64) - 1))
    reserved = filled.reserved or (0, 0, 0, 0)
    parts = str(record).split("  ")
    if record.sid is not None and (place := bdf(record.sid, client)):
        parts.insert(2, f"bdf {place}")
    first = next((at for at, part in enumerate(parts) if part.startswith(_LABELS)), len(parts))
    after = first
    while after < len(parts) and parts[after].startswith(_LABELS):
        after += 1
    return (
        "  ".join(parts[:first]),
        filled.input_addr or 0,
        filled.ipa or 0,
        filled.fetch_addr or 0,
        "".join(f"  {part}" for part in parts[after:]),
        reserved[2],
        reserved[3],
    )


_LABELS = ("iova ", "ipa ", "fetch ")


def event_text(event: Sighting) -> str:
    """Return an event as a line of text, in the words of EventRecord.__str__ and then where, whose
    and when it was."""
    line, (w0, w1, w2, w3), smmu, client, time, from_text, notes = event
    before, iova, ipa, fetch, after, more2, more3 = _template(w0, w1, client)
    if iova and not ipa and not fetch:
        said = f"{before}  iova {w2 & iova:#x}{after}"
    else:
        said = f"{before}  iova {w2 & iova:#x}" if iova else before or str(event.record)
        if ipa:
            said += f"  ipa {w3 & ipa:#x}"
        if fetch:
            said += f"  fetch {w3 & fetch:#x}"
        said += after
    if w2 & more2:
        said += f"  reserved w2 {w2 & more2:#x}"
    if w3 & more3:
        said += f"  reserved w3 {w3 & more3:#x}"
    if notes and not event.ssid_is_told:
        said = said.replace("  ssid 0x0", "", 1)
    if time is not None or smmu or client or from_text or notes:
        said += where(line, smmu, client, time, from_text)
        return said + "".join(f"  ({note})" for note in notes) if notes else said
    return f"{said}  line {line}"


def where(
    line: int, smmu: str | None, client: str | None, time: Stamp, from_text: bool = False
) -> str:
    """Return the end of a line of text: which client and SMMU, when, and on which line."""
    when = ""
    if time is not None:
        when = f"  time {time:.6f}" if isinstance(time, float) else f"  time {time}"
    return f"{_whose(smmu, client)}{when}  line {line}{', from text' if from_text else ''}"


@functools.lru_cache(maxsize=4096)
def _whose(smmu: str | None, client: str | None) -> str:
    return f"{f'  client {client}' if client else ''}{f'  smmu {smmu}' if smmu else ''}"


def explained_text(found: Explained) -> str:
    """Return a message as a line of text."""
    return f"{found.name}: {found.said}{where(found.line, found.smmu, None, found.time)}"


def known_text(found: Damaged) -> str:
    """Return in words what is known of a damaged event; empty if nothing is."""
    known = known_fields(found)
    if not known:
        return ""
    parts = [str(known.get("name", "an event"))]
    for label, name in (
        ("sid", "sid"),
        ("ssid", "ssid"),
        ("", "rnw"),
        ("iova", "input_addr"),
        ("ipa", "ipa"),
        ("fetch", "fetch_addr"),
    ):
        value = known.get(name)
        if value is not None:
            text = f"{value:#x}" if isinstance(value, int) else str(value)
            parts.append(f"{label} {text}".strip())
    return "  ".join(parts)


def damaged_text(found: Damaged) -> str:
    """Return a damaged event as a line of text."""
    known = known_text(found)
    lines = f"lines {found.line} to {found.last}" if found.last > found.line else ""
    end = where(found.line, found.smmu, found.client, found.time)
    return f"{known}  damaged: {found.reason}{f', {lines}' if lines else ''}{end}"


# -- JSON --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _head(
    word0: int, word1: int, client: str | None
) -> tuple[str, int, int, int, int, int, str, str]:
    """Return the JSON of the fields in the first two words, the masks of the addresses, the bits of
    the last two words that are RES0, and the JSON of what comes last and of reserved bits."""
    record = EventRecord((word0, word1, 0, 0))
    filled = EventRecord((word0, word1, (1 << 64) - 1, (1 << 64) - 1))
    fields = record.as_dict()
    for name in (*_ADDRESSES, "raw"):
        del fields[name]
    reserved = filled.reserved or (0, 0, 0, 0)
    last = {
        "bdf": None if record.sid is None else bdf(record.sid, client),
        "meaning": meaning(record.type, stage2=bool(record.s2)),
        "client": client,
    }
    return (
        json.dumps({"kind": "event", **fields})[:-1],
        filled.input_addr or 0,
        filled.ipa or 0,
        filled.fetch_addr or 0,
        reserved[2],
        reserved[3],
        json.dumps(last)[1:-1],
        json.dumps(record.reserved),
    )


@functools.lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return json.dumps(text)


def event_json(event: Sighting) -> str:
    """Return an event as a line of JSON: the keys and values of EventRecord.as_dict, and where,
    whose and when it was. An event from text has no `raw` words."""
    line, (w0, w1, w2, w3), smmu, client, time, from_text, notes = event
    head, iova, ipa, fetch, more2, more3, last, rest = _head(w0, w1, client)
    if notes and not event.ssid_is_told:
        head = head.replace('"ssid": 0,', '"ssid": null,', 1)
    if w2 & more2 or w3 & more3:
        rest = json.dumps(EventRecord(event.words).reserved)
    when = "null" if time is None else repr(time) if isinstance(time, float) else json.dumps(time)
    return (
        f'{head}, "input_addr": {w2 & iova if iova else "null"}, '
        f'"ipa": {w3 & ipa if ipa else "null"}, '
        f'"fetch_addr": {w3 & fetch if fetch else "null"}, "reserved": {rest}, '
        f'"raw": {"null" if from_text else f"[{w0}, {w1}, {w2}, {w3}]"}, '
        f'"source": "{"text" if from_text else "words"}", {last}, '
        f'"smmu": {_quoted(smmu) if smmu else "null"}, "time": {when}, "line": {line}, '
        f'"notes": {json.dumps(notes) if notes else "[]"}}}'
    )


def explained_json(found: Explained) -> str:
    """Return a message as a line of JSON."""
    fields = {"kind": "message", "name": found.name, "text": found.said, "smmu": found.smmu}
    return json.dumps({**fields, "time": found.time, "line": found.line})


def damaged_json(found: Damaged) -> str:
    """Return a damaged event as a line of JSON: the fields that are known, and `damage`."""
    fields = {"kind": "damaged", **known_fields(found), "damage": found.reason}
    place = {"smmu": found.smmu, "client": found.client, "time": found.time}
    return json.dumps({**fields, **place, "line": found.line, "last_line": found.last})


Writers = tuple[Callable[[Sighting], str], Callable[[Explained], str], Callable[[Damaged], str]]
TEXT: Writers = (event_text, explained_text, damaged_text)
JSON: Writers = (event_json, explained_json, damaged_json)
