"""What is found in a text: events, messages, damage, and lines that nobody understood. Values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.smmu.events import EventRecord

#: A time as the text gives it: seconds as a number, or a date as it was written.
Stamp = float | str | None
Words = tuple[int, int, int, int]


#: The note of an event from a text that has no SubstreamID although its type has one.
SSID_NOT_TOLD = "the SubstreamID is not known: the kernel does not print that of this type"


class Sighting(NamedTuple):
    """An event. `line` is the number of its first line, from 1. `words` are the record's; if
    `from_text`, they were put together from the names and numbers that a kernel or this project
    printed. `notes` say what a reader should know of how it was read."""

    line: int
    words: Words
    smmu: str | None = None
    client: str | None = None
    time: Stamp = None
    from_text: bool = False
    notes: tuple[str, ...] = ()

    @property
    def record(self) -> EventRecord:
        """Return the event's record."""
        return EventRecord(self.words)

    @property
    def ssid_is_told(self) -> bool:
        """Return whether the SubstreamID in the words can be trusted."""
        return SSID_NOT_TOLD not in self.notes


class Explained(NamedTuple):
    """A message that is no event: `name` says what kind, `said` what it means."""

    line: int
    name: str
    said: str
    smmu: str | None = None
    time: Stamp = None


class Damaged(NamedTuple):
    """An event whose lines `line` to `last` are damaged or incomplete. `words` has None for each
    word that is not known, and `kind` is the event's number if its head says it. `reason` names
    the damage, and `what` is a short text that is the same for all damage of this kind. `sid` is
    the StreamID if a text says it."""

    line: int
    last: int
    what: str
    reason: str
    kind: int | None = None
    words: Sequence[int | None] = (None, None, None, None)
    smmu: str | None = None
    client: str | None = None
    time: Stamp = None
    sid: int | None = None


class Unknown(NamedTuple):
    """A line that looks like an SMMU's and is not understood."""

    line: int
    what: str
    text: str


class Aside(NamedTuple):
    """A line that is known to tell of no event and no error, such as a driver's greeting."""

    line: int


Found = Sighting | Explained | Damaged | Unknown | Aside


def known_fields(damaged: Damaged) -> dict[str, object]:
    """Return the fields that can still be read from a damaged event, by the names of
    EventRecord.as_dict."""
    words = damaged.words
    kind = damaged.kind if words[0] is None else words[0] & 0xFF
    if kind is None:
        return {} if damaged.sid is None else {"sid": damaged.sid}
    first = kind if words[0] is None else words[0]
    # Whether the fourth word is an IPA, the second one says: where it is lost, none is told.
    whole = EventRecord((first, words[1] or 0, words[2] or 0, words[3] or 0)).as_dict()
    known: dict[str, object] = {"type": kind, "name": whole["name"]}
    if words[0] is None and damaged.sid is not None:
        known["sid"] = damaged.sid
    for word, names in enumerate(_FIELDS):
        if words[word] is not None:
            known |= {name: whole[name] for name in names if whole[name] is not None}
    return known


_FIELDS = (
    ("sid", "ssid"),
    (
        "rnw",
        "ind",
        "pnu",
        "s2",
        "stall",
        "stag",
        "class",
        "ttrnw",
        "nsipa",
        "reason",
        "gpcf",
        "requested",
        "span",
    ),
    ("input_addr",),
    ("ipa", "fetch_addr"),
)
