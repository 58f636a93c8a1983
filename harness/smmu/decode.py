"""Decode events from text for `hil decode`: kernel logs, or lines of four 64-bit hexadecimal words.

It is made for millions of lines: one regular expression recognises a line of words.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator

from harness.smmu.events import FETCH_MASK, IPA_MASK, EventRecord
from harness.smmu.klog import PREFIX, Broken, KernelLogReader, LoggedEvent

_WORD = r"(?:0x)?([0-9a-f]{1,16})"
_WORDS = re.compile(rf"\s*{_WORD}[\s,]+{_WORD}[\s,]+{_WORD}[\s,]+{_WORD}[\s,]*", re.IGNORECASE)
_HEXLIKE = re.compile(r"\s*(?:0x)?[0-9a-f]+(?:[\s,]|$)", re.IGNORECASE)
_SMMU = "arm-smmu-v3"


def decode(lines: Iterable[str]) -> Iterator[tuple[int, EventRecord] | Broken]:
    """Yield each event with the number of its line (from 1), and each line that is a broken event.

    A text with time stamps or the driver's name is a kernel log: all its other lines are skipped.
    In any other text a line without four words is broken. Empty lines and those that begin with #
    are always skipped.
    """
    reader = KernelLogReader()
    is_log = False
    strange: list[int] = []
    for number, line in enumerate(lines, start=1):
        words = _WORDS.fullmatch(line)
        if words:
            w0, w1, w2, w3 = words.groups()
            yield number, EventRecord((int(w0, 16), int(w1, 16), int(w2, 16), int(w3, 16)))
            continue
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if _SMMU in line or PREFIX.search(line):
            is_log = True
            found = reader.feed(number, line)
            if isinstance(found, LoggedEvent):
                yield found.line, found.record
            elif found:
                yield found
        elif _HEXLIKE.match(line):
            yield Broken(number, "an event is four 64-bit hexadecimal words on a line")
        else:
            strange.append(number)
    yield from reader.end()
    if not is_log:
        for number in strange:
            yield Broken(number, "neither four hexadecimal words nor a line of a kernel log")


@functools.lru_cache(maxsize=4096)
def _json_head(word0: int, word1: int) -> tuple[str, tuple[bool, bool, bool]]:
    """Return the JSON of the fields in the first two words, and which of the three address fields
    the event has.

    The result is cached because the events of a flood have the same two words, and only the
    addresses differ.
    """
    fields = EventRecord((word0, word1, 0, 0)).as_dict()
    addresses = [fields.pop(name) is not None for name in ("input_addr", "ipa", "fetch_addr")]
    del fields["raw"]
    return json.dumps(fields)[:-1], (addresses[0], addresses[1], addresses[2])


def as_json(record: EventRecord) -> str:
    """Return one line of JSON with the keys and values of EventRecord.as_dict."""
    w0, w1, w2, w3 = record.words
    head, (has_input, has_ipa, has_fetch) = _json_head(w0, w1)
    return (
        f'{head}, "input_addr": {w2 if has_input else "null"}, '
        f'"ipa": {w3 & IPA_MASK if has_ipa else "null"}, '
        f'"fetch_addr": {w3 & FETCH_MASK if has_fetch else "null"}, '
        f'"raw": [{w0}, {w1}, {w2}, {w3}]}}'
    )
