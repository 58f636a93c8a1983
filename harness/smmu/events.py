"""Decode and encode SMMUv3 event records, each of which is 32 bytes in an event queue.

A record is four little-endian 64-bit words. Fields have the specification's names; a field that the
record's type does not have reads as None. Source: Arm IHI 0070 (SMMUv3), section 7.3.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

RECORD_BYTES = 32
_RECORD = struct.Struct("<4Q")
_U64 = (1 << 64) - 1


class EventType(enum.IntEnum):
    """The numbers of events, from section 7.3. Not all numbers have a name; 0xE0 to 0xEF are
    implementation defined."""

    F_UUT = 0x01
    C_BAD_STREAMID = 0x02
    F_STE_FETCH = 0x03
    C_BAD_STE = 0x04
    F_BAD_ATS_TREQ = 0x05
    F_STREAM_DISABLED = 0x06
    F_TRANSL_FORBIDDEN = 0x07
    C_BAD_SUBSTREAMID = 0x08
    F_CD_FETCH = 0x09
    C_BAD_CD = 0x0A
    F_WALK_EABT = 0x0B
    F_TRANSLATION = 0x10
    F_ADDR_SIZE = 0x11
    F_ACCESS = 0x12
    F_PERMISSION = 0x13
    F_TLB_CONFLICT = 0x20
    F_CFG_CONFLICT = 0x21
    E_PAGE_REQUEST = 0x24
    F_VMS_FETCH = 0x25


#: The numbers that an event can have.
TYPES = frozenset(EventType) | frozenset(range(0xE0, 0xF0))

_E = EventType
#: Faults of a transaction in translation. Records have all its attributes and a syndrome tag.
TRANSLATION_FAULTS = frozenset({_E.F_TRANSLATION, _E.F_ADDR_SIZE, _E.F_ACCESS, _E.F_PERMISSION})
_HAS_ADDRESS = TRANSLATION_FAULTS | {
    _E.F_UUT,
    _E.F_BAD_ATS_TREQ,
    _E.F_TRANSL_FORBIDDEN,
    _E.F_WALK_EABT,
    _E.F_TLB_CONFLICT,
    _E.E_PAGE_REQUEST,
}
_HAS_RNW = TRANSLATION_FAULTS | {
    _E.F_UUT,
    _E.F_TRANSL_FORBIDDEN,
    _E.F_WALK_EABT,
    _E.F_TLB_CONFLICT,
}
_HAS_IND_PNU = TRANSLATION_FAULTS | {_E.F_UUT, _E.F_WALK_EABT, _E.F_TLB_CONFLICT}
_HAS_S2 = TRANSLATION_FAULTS | {_E.F_WALK_EABT, _E.F_TLB_CONFLICT}
_HAS_CLASS = TRANSLATION_FAULTS | {_E.F_WALK_EABT}
_HAS_FETCH = frozenset({_E.F_STE_FETCH, _E.F_CD_FETCH, _E.F_WALK_EABT, _E.F_VMS_FETCH})

_HAS_IPA = TRANSLATION_FAULTS | {_E.F_TLB_CONFLICT}
_HAS_GPCF = _HAS_FETCH
_HAS_REASON = _HAS_FETCH | {_E.F_UUT, _E.F_TLB_CONFLICT, _E.F_CFG_CONFLICT}
#: Of the addresses in these records only whole pages are given.
_HAS_PAGE = frozenset({_E.F_BAD_ATS_TREQ, _E.E_PAGE_REQUEST})

_SSV = 1 << 11
_SSID = 0xFFFFF << 12
_STAG = _REASON = 0xFFFF
#: The architected bits of a translation fault's second word; above them is IMPDEF.
_ARCHITECTED = (1 << 48) - 1
_GPCF, _STALL, _PNU, _IND, _RNW = 1 << 16, 1 << 31, 1 << 33, 1 << 34, 1 << 35
_NSIPA, _S2, _TTRNW = 1 << 38, 1 << 39, 1 << 44
_CLASS_SHIFT = 40
_CLASS, _CLASS_TTD = 3 << _CLASS_SHIFT, 1
IPA_MASK = ((1 << 56) - 1) & ~0xFFF
FETCH_MASK = ((1 << 56) - 1) & ~0x7
PAGE_MASK = _U64 & ~0xFFF
CLASSES = ("CD", "TTD", "IN", "RESERVED")

#: What was asked for, and for how much: in F_BAD_ATS_TREQ (in units of STU) and in E_PAGE_REQUEST
#: (in pages of 4 KiB; p is privileged, u is unprivileged).
_REQUESTED = {
    _E.F_BAD_ATS_TREQ: (("R", 1 << 30), ("W", 1 << 29), ("X", 1 << 28), ("PRIV", 1 << 31)),
    _E.E_PAGE_REQUEST: (
        ("pR", 1 << 39),
        ("pW", 1 << 38),
        ("pX", 1 << 37),
        ("uR", 1 << 35),
        ("uW", 1 << 34),
        ("uX", 1 << 33),
    ),
}
_SPAN = {_E.F_BAD_ATS_TREQ: (0, 0xF), _E.E_PAGE_REQUEST: (44, 0xFF)}


def _defined_bits(kind: EventType) -> tuple[int, int, int, int]:
    """Return the bits of each word that the specification gives a meaning, or leaves to the
    implementation; all others are RES0."""
    word0 = _U64 & ~(0x700 if kind != _E.C_BAD_SUBSTREAMID else 0xF00)
    word1 = 0
    for types, bits in (
        (TRANSLATION_FAULTS, _STAG | _STALL | _NSIPA | _CLASS | _U64 & ~_ARCHITECTED),
        ({_E.F_PERMISSION}, _TTRNW),
        (_HAS_REASON, _REASON),
        (_HAS_GPCF, _GPCF),
        (_HAS_RNW, _RNW),
        (_HAS_IND_PNU, _IND | _PNU),
        (_HAS_S2, _S2 | _NSIPA),
        (_HAS_CLASS, _CLASS),
    ):
        word1 |= bits if kind in types else 0
    for _, bit in _REQUESTED.get(kind, ()):
        word1 |= bit
    if kind in _SPAN:
        shift, mask = _SPAN[kind]
        word1 |= mask << shift
    word2 = PAGE_MASK if kind in _HAS_PAGE else _U64 if kind in _HAS_ADDRESS else 0
    word3 = IPA_MASK if kind in _HAS_IPA else FETCH_MASK if kind in _HAS_FETCH else 0
    return word0, word1, word2, word3


_DEFINED_BITS = {int(kind): _defined_bits(kind) for kind in EventType}


def type_name(number: int) -> str:
    """Return the specification's name of a type, or one like `IMPDEF_0xe3` or `RESERVED_0x77`."""
    try:
        return EventType(number).name
    except ValueError:
        kind = "IMPDEF" if 0xE0 <= number <= 0xEF else "RESERVED"
        return f"{kind}_{number:#04x}"


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event record. `words` is all of its data; the properties read fields from it. Raises
    ValueError unless `words` are four 64-bit words."""

    words: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        if len(self.words) != 4 or not all(0 <= word <= _U64 for word in self.words):
            raise ValueError(f"an event record is four 64-bit words, not {self.words!r}")

    # -- bytes both ways -------------------------------------------------------------------

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode exactly 32 bytes. Raises ValueError for any other length."""
        if len(data) != RECORD_BYTES:
            raise ValueError(f"an event record has {RECORD_BYTES} bytes, not {len(data)}")
        return cls(_RECORD.unpack(data))

    def to_bytes(self) -> bytes:
        """Return the 32 bytes of the record, as they are in an event queue."""
        return _RECORD.pack(*self.words)

    @classmethod
    def stage1_fault(
        cls,
        kind: EventType,
        *,
        sid: int,
        input_addr: int,
        rnw: bool,
        klass: str = "IN",
        stag: int = 0,
        pnu: bool = False,
        ind: bool = False,
    ) -> Self:
        """Return the record of a stage-1 translation fault (types 0x10 to 0x13) without a
        SubstreamID. Raises ValueError for another type."""
        if kind not in TRANSLATION_FAULTS:
            raise ValueError(f"{kind.name} is not a translation fault")
        flags = (_RNW if rnw else 0) | (_PNU if pnu else 0) | (_IND if ind else 0)
        word1 = stag | flags | CLASSES.index(klass) << _CLASS_SHIFT
        return cls((kind | sid << 32, word1, input_addr, 0))

    @classmethod
    def configuration_fault(cls, kind: EventType, *, sid: int) -> Self:
        """Return the record of a configuration error that has a StreamID only (C_BAD_CD, …)."""
        return cls((kind | sid << 32, 0, 0, 0))

    # -- fields ----------------------------------------------------------------------------

    @property
    def type(self) -> int:
        """Return the event number."""
        return self.words[0] & 0xFF

    @property
    def name(self) -> str:
        """Return the type's name, as `type_name` says."""
        return type_name(self.type)

    @property
    def sid(self) -> int | None:
        """Return the StreamID. It is read for reserved types too, as Linux does; it is None for
        implementation defined types, of which only the number is architected."""
        return None if 0xE0 <= self.type <= 0xEF else self.words[0] >> 32

    @property
    def ssid(self) -> int | None:
        """Return the SubstreamID, or None unless SSV says that it is valid. C_BAD_SUBSTREAMID has
        no SSV: there it is always valid."""
        if self.type == EventType.C_BAD_SUBSTREAMID:
            return self.words[0] >> 12 & 0xFFFFF
        if self.sid is None or not self.words[0] & _SSV:
            return None
        return self.words[0] >> 12 & 0xFFFFF

    def _flag(self, types: frozenset[EventType], mask: int) -> bool | None:
        return bool(self.words[1] & mask) if self.type in types else None

    @property
    def rnw(self) -> str | None:
        """Return "read" or "write": what the transaction was."""
        flag = self._flag(_HAS_RNW, _RNW)
        return None if flag is None else ("read" if flag else "write")

    @property
    def ind(self) -> bool | None:
        """Return whether the transaction was an instruction fetch, not a data access."""
        return self._flag(_HAS_IND_PNU, _IND)

    @property
    def pnu(self) -> bool | None:
        """Return whether the transaction was privileged."""
        return self._flag(_HAS_IND_PNU, _PNU)

    @property
    def s2(self) -> bool | None:
        """Return whether the fault is one of stage 2. Such a fault is the host's, never a
        guest's."""
        return self._flag(_HAS_S2, _S2)

    @property
    def stall(self) -> bool | None:
        """Return whether the transaction is stalled."""
        return self._flag(TRANSLATION_FAULTS, _STALL)

    @property
    def stag(self) -> int | None:
        """Return the stall tag."""
        return self.words[1] & 0xFFFF if self.type in TRANSLATION_FAULTS else None

    @property
    def klass(self) -> str | None:
        """Return what the faulting access was for: "CD", "TTD", "IN" (the input address) or
        "RESERVED"."""
        return CLASSES[self.words[1] >> _CLASS_SHIFT & 3] if self.type in _HAS_CLASS else None

    @property
    def ttrnw(self) -> str | None:
        """Return "read" or "write": what a walk of stage 1 did to its descriptor, for which stage 2
        gave no permission. Only an F_PERMISSION of class TTD says it."""
        if self.type != EventType.F_PERMISSION or self.klass != CLASSES[_CLASS_TTD]:
            return None
        return "read" if self.words[1] & _TTRNW else "write"

    @property
    def nsipa(self) -> bool | None:
        """Return whether the IPA is a Non-secure one, in the record of a Secure stream."""
        return self._flag(_HAS_S2, _NSIPA)

    @property
    def reason(self) -> int | None:
        """Return the Reason, whose meaning is implementation defined."""
        return self.words[1] & _REASON if self.type in _HAS_REASON else None

    @property
    def gpcf(self) -> bool | None:
        """Return whether a granule protection check caused the abort of a fetch."""
        return self._flag(_HAS_GPCF, _GPCF)

    @property
    def requested(self) -> tuple[str, ...] | None:
        """Return which accesses were asked for, by the specification's names: R, W, X and PRIV of
        an ATS request; pR, pW, pX, uR, uW and uX of a page request."""
        if self.type not in _REQUESTED:
            return None
        flags = _REQUESTED[EventType(self.type)]
        return tuple(name for name, bit in flags if self.words[1] & bit)

    @staticmethod
    def requested_bits(kind: EventType, names: Sequence[str]) -> int:
        """Return the bits of the second word for what `requested` names."""
        return sum(bit for name, bit in _REQUESTED.get(kind, ()) if name in names)

    @property
    def span(self) -> int | None:
        """Return how much was asked for: STUs of an ATS request, 4 KiB pages of a page request."""
        if self.type not in _SPAN:
            return None
        shift, mask = _SPAN[EventType(self.type)]
        return self.words[1] >> shift & mask

    @property
    def input_addr(self) -> int | None:
        """Return the input address (IOVA), which is a page's in records of requests."""
        if self.type not in _HAS_ADDRESS:
            return None
        return self.words[2] & PAGE_MASK if self.type in _HAS_PAGE else self.words[2]

    @property
    def ipa(self) -> int | None:
        """Return the intermediate physical address. Only stage-2 faults have one."""
        return self.words[3] & IPA_MASK if self.s2 and self.type in _HAS_IPA else None

    @property
    def reserved(self) -> tuple[int, int, int, int] | None:
        """Return the bits of each word that are set although they are RES0, or None if no such bit
        is. Of types without a name no bits are known."""
        bits = _DEFINED_BITS.get(self.type)
        if bits is None:
            return None
        w0, w1, w2, w3 = self.words
        if w3 and self.type in _HAS_IPA and not self.s2:
            w3 = 0  # UNKNOWN, not RES0
        found = (w0 & ~bits[0], w1 & ~bits[1], w2 & ~bits[2], w3 & ~bits[3])
        return found if any(found) else None

    @property
    def fetch_addr(self) -> int | None:
        """Return the address that the SMMU could not fetch from."""
        return self.words[3] & FETCH_MASK if self.type in _HAS_FETCH else None

    def defined(self) -> Self:
        """Return the record with every field that is UNKNOWN in it set to 0: the stall tag of a
        transaction that is not stalled, the SubstreamID without SSV, the IPA of a stage-1 fault,
        and what is implementation defined."""
        if self.sid is None:
            return self
        word0, word1, address, word3 = self.words
        if self.ssid is None:
            word0 &= ~_SSID
        if self.type in TRANSLATION_FAULTS:
            word1 &= _ARCHITECTED
            if not self.stall:
                word1 &= ~_STAG
            if not self.s2:
                word3 = 0
        return type(self)((word0, word1, address, word3))

    # -- for people and programs -----------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by the keys of `hil decode --json`."""
        return {
            "type": self.type,
            "name": self.name,
            "sid": self.sid,
            "ssid": self.ssid,
            "rnw": self.rnw,
            "ind": self.ind,
            "pnu": self.pnu,
            "s2": self.s2,
            "stall": self.stall,
            "stag": self.stag,
            "class": self.klass,
            "ttrnw": self.ttrnw,
            "nsipa": self.nsipa,
            "reason": self.reason,
            "gpcf": self.gpcf,
            "requested": None if self.requested is None else list(self.requested),
            "span": self.span,
            "input_addr": self.input_addr,
            "ipa": self.ipa,
            "fetch_addr": self.fetch_addr,
            "reserved": None if self.reserved is None else list(self.reserved),
            "raw": list(self.words),
        }

    def __str__(self) -> str:
        parts = [self.name]
        for label, value in (("sid", self.sid), ("ssid", self.ssid)):
            if value is not None:
                parts.append(f"{label} {value:#x}")
        if self.rnw:
            what = "instruction" if self.ind else "data"
            level = {True: "privileged ", False: "unprivileged ", None: ""}[self.pnu]
            parts.append(f"{level}{what} {self.rnw}" if self.ind is not None else self.rnw)
        if self.requested is not None:
            parts.append(f"requested {' '.join(self.requested) or 'nothing'}")
            parts.append(f"span {self.span}")
        for label, value in (
            ("iova", self.input_addr),
            ("ipa", self.ipa),
            ("fetch", self.fetch_addr),
        ):
            if value is not None:
                parts.append(f"{label} {value:#x}")
        if self.s2 is not None:
            parts.append("stage 2" if self.s2 else "stage 1")
        if self.klass:
            parts.append(f"class {self.klass}")
        if self.ttrnw:
            parts.append(f"descriptor {self.ttrnw}")
        if self.reason:
            parts.append(f"reason {self.reason:#x}")
        if self.gpcf:
            parts.append("GPCF")
        if self.nsipa:
            parts.append("NSIPA")
        if self.stall:
            parts.append(f"stalled, stag {self.stag:#x}")
        if self.reserved:
            parts += [
                f"reserved w{number} {bits:#x}" for number, bits in enumerate(self.reserved) if bits
            ]
        if self.type not in EventType._value2member_map_:
            parts.append("raw " + " ".join(f"{word:#018x}" for word in self.words))
        return "  ".join(parts)


def decode_records(data: bytes) -> Iterator[EventRecord]:
    """Yield the records in a piece of queue memory. Raises ValueError unless its size is a multiple
    of a record's."""
    if len(data) % RECORD_BYTES:
        raise ValueError(f"{len(data)} bytes is not a multiple of {RECORD_BYTES}, a record's size")
    for words in _RECORD.iter_unpack(data):
        yield EventRecord(words)
