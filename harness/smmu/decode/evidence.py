"""Read what this project prints of events: the boundary's log, as the boundary writes it and as a
report shows it, and event records in words (EventRecord.__str__).

Sources: harness/boundary/client.py (Passage), harness/boundary/on_host/relay.py (Log).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

from harness.smmu.decode.found import Explained, Found, Sighting, Stamp, Words
from harness.smmu.decode.messages import bits
from harness.smmu.events import CLASSES, EventRecord, EventType
from harness.smmu.vevents import HEADER_BYTES, QueueType, VEvent

_PASSAGE = re.compile(
    r"^(?P<queue>(?:smmu|cmdqv|ARM_SMMUV3 |TEGRA241_CMDQV )\d+) id (?P<id>\d+): (?P<did>[\w-]+): "
    r"(?P<shown>(?:#\d|nothing|\[).*)$"
)
_CALL = re.compile(
    r"^((?:smmu|cmdqv|ARM_SMMUV3 |TEGRA241_CMDQV )\d+) id (\d+|None): ([\w-]+): ([\w-]+): "
    r"((?:ok|E[A-Z0-9]+|\d+)(?:, \w+ of \d+ entries)?)$"
)
_ONE = re.compile(r"#(\d+) (LOST_EVENTS|[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]*)(?![0-9a-f])")


def passages(line: int, time: Stamp, text: str) -> list[Found]:
    """Return what a line of a report's `boundary` file tells, after its time; nothing for any other
    line."""
    text = text.strip()
    if call := _CALL.match(text):
        said = f"id {call[2]}  {call[3]}: rule {call[4]}: {call[5]}"
        return [Explained(line, "boundary: call", said, call[1], time)]
    passage = _PASSAGE.match(text)
    if passage is None:
        return []
    got, arrow, sent = passage["shown"].partition(" -> ")
    pieces = [_unpacked(number, data) for number, data in _ONE.findall(got)]
    after = [_unpacked(number, data) for number, data in _ONE.findall(sent)] if arrow else pieces
    # Of a record that was cut within its header only the size is shown.
    said = sent if sent.startswith("[") else _brief(after)
    return list(_passed(line, time, passage["queue"], passage["did"], pieces, after, said))


def entries(line: int, text: str) -> list[Found]:
    """Return what a line of the boundary's own log tells; nothing for any other line."""
    if '"queue"' not in text or '"time"' not in text:
        return []
    try:
        fields = json.loads(text)
        kind, slot = fields["queue"]
        time = float(fields["time"])
        queue = f"{QueueType(kind).name} {int(slot)}"
        if "call" in fields:
            said = f"id {fields.get('id')}  {fields['call']}: rule {fields['did']}: "
            said += str(fields["answer"])
            if "entries" in fields:
                said += f", {fields['processed']} of {fields['entries']} entries"
            return [Explained(line, "boundary: call", said, queue, time)]
        got = [_record(one) for one in _packed(fields["got"])]
        sent = [_record(one) for one in _packed(fields["sent"])] if "sent" in fields else got
        return list(_passed(line, time, queue, str(fields["did"]), got, sent, _brief(sent)))
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return []


def _packed(packed: list[object]) -> list[bytes]:
    if packed and isinstance(packed[0], int):
        data = base64.b64decode(str(packed[1]))
        size = len(data) // packed[0]
        return [data[at : at + size] for at in range(0, len(data), size)]
    return [base64.b64decode(str(one)) for one in packed]


def _record(record: bytes) -> VEvent:
    return VEvent.decode(record) if len(record) >= HEADER_BYTES else VEvent(0, record)


def _unpacked(number: str, data: str) -> VEvent:
    if data == "LOST_EVENTS":
        return VEvent(int(number), flags=1)
    return VEvent(int(number), bytes.fromhex(data) if len(data) % 2 == 0 else b"")


def _passed(
    line: int, time: Stamp, queue: str, did: str, got: list[VEvent], sent: list[VEvent], said: str
) -> Iterator[Found]:
    """Yield the records that came to the boundary, and what it sent in their place, which is also
    `said` in words."""
    same = got == sent
    for one in got:
        fate = "" if same else f"boundary: {did}, sent as {said}"
        yield told(line, time, queue, one, fate)
    if not got:
        for one in sent:
            yield told(line, time, queue, one, f"boundary: {did}: made up, it never came")


def _brief(sent: list[VEvent]) -> str:
    return ", ".join(f"#{one.sequence} {one.data.hex()}".strip() for one in sent) or "nothing"


def told(line: int, time: Stamp, queue: str | None, one: VEvent, fate: str = "") -> Found:
    """Return what a record of a vEVENTQ tells, and in words what became of it."""
    end = f"; {fate}" if fate else ""
    if one.is_lost_events:
        said = f"#{one.sequence}: the kernel dropped events up to this one{end}"
        return Explained(line, "LOST_EVENTS", said, queue, time)
    if len(one.data) == QueueType.ARM_SMMUV3.data_bytes:
        notes = (f"#{one.sequence}", fate) if fate else (f"#{one.sequence}",)
        words = EventRecord.from_bytes(one.data).words
        return Sighting(line, words, queue, None, time, notes=notes)
    if len(one.data) == QueueType.TEGRA241_CMDQV.data_bytes:
        numbers = ", ".join(map(str, bits(int.from_bytes(one.data, "little")))) or "none"
        return Explained(
            line, "CMDQV error", f"#{one.sequence}: LVCMDQ {numbers}{end}", queue, time
        )
    said = f"#{one.sequence}: {len(one.data)} bytes, which is no record{end}"
    return Explained(line, "boundary: damaged record", said, queue, time)


# -- records in words --------------------------------------------------------------------------

_NAMES = "|".join(EventType.__members__)
_PRINTED = re.compile(rf"(?<![\w-])(?P<name>{_NAMES})  (?P<fields>sid 0x[0-9a-f]+(?:  \S.*)?)$")
#: A type without a name has its words.
_RAW = re.compile(
    r"(?<![\w-])(?:RESERVED|IMPDEF)_0x([0-9a-f]{2})  (?:sid 0x[0-9a-f]+  )?"
    r"raw (0x[0-9a-f]{14}\1(?: 0x[0-9a-f]{16}){3})(?![0-9a-f])"
    r"(?:  client (?P<client>\S+))?(?:  smmu (?P<smmu>\S+))?"
)
_ACCESS = re.compile(
    r"^(?:(?P<level>un|)privileged (?P<what>data|instruction) )?(?P<rnw>read|write)$"
)


def _four(text: str) -> Words:
    word0, word1, word2, word3 = (int(word, 16) for word in text.split())
    return word0, word1, word2, word3


def printed(line: int, text: str) -> Sighting | None:
    """Return the event that a line tells in the words of EventRecord.__str__, or None."""
    if "  sid 0x" not in text and "  raw 0x" not in text:
        return None
    if raw := _RAW.search(text):
        return Sighting(line, _four(raw[2]), raw["smmu"], raw["client"])
    found = _PRINTED.search(text.rstrip())
    if found is None:
        return None
    kind = EventType[found["name"]]
    word0, word1, word2, word3 = int(kind), 0, 0, 0
    smmu = client = None
    time: Stamp = None
    for part in found["fields"].split("  "):
        label, _, value = part.strip().partition(" ")
        try:
            if label == "sid":
                word0 |= int(value, 16) << 32
            elif label == "ssid":
                word0 |= int(value, 16) << 12 | (kind != EventType.C_BAD_SUBSTREAMID) << 11
            elif label == "iova":
                word2 = int(value, 16)
            elif label in ("ipa", "fetch"):
                word3 = int(value, 16)
            elif label == "stage":
                word1 |= (value == "2") << 39
            elif label == "class":
                word1 |= CLASSES.index(value) << 40
            elif label == "descriptor":
                word1 |= (value == "read") << 44
            elif label == "reason":
                word1 |= int(value, 16)
            elif part == "GPCF":
                word1 |= 1 << 16
            elif part == "NSIPA":
                word1 |= 1 << 38
            elif label == "stalled,":
                word1 |= 1 << 31 | int(value.removeprefix("stag "), 16)
            elif label == "span":
                word1 |= int(value) << (0 if kind == EventType.F_BAD_ATS_TREQ else 44)
            elif label == "requested":
                word1 |= EventRecord.requested_bits(kind, value.split())
            elif label == "smmu":
                smmu = value
            elif label == "client":
                client = value
            elif label == "time":
                time = float(value) if re.fullmatch(r"\d+\.\d+", value) else value
            elif access := _ACCESS.match(part.strip()):
                word1 |= (access["rnw"] == "read") << 35
                word1 |= (access["what"] == "instruction") << 34
                word1 |= (access["level"] == "") << 33
        except ValueError:
            return None
    words: Words = (word0, word1, word2, word3)
    if word2 >> 64 or word3 >> 64 or word0 >> 64 or word1 >> 64:
        return None
    return Sighting(line, words, smmu, client, time, from_text=True)
