"""The rules of a boundary: what it does to records of a vEVENTQ, and to calls, between the kernel
and QEMU.

A queue's *record rules* are a script: the first rule that is not used up decides on the next
record. If no rule is left, records pass. `Hold`, `LostHeader` and `Inject` need no record: they act
as soon as it is their turn. *Call rules* are outside the script and wait for their call; a *read
rule* waits for QEMU's read. A *standing rule* imitates other hardware: it is in force from the
boundary's start to its end, and acts on records before the script does.

A record rule or a standing rule is one class here, which returns what is delivered: no other module
names it. A call rule is carried out by calls.py.

Rules are pure values, checked when they are made: a rule that cannot be used raises ValueError.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import dataclasses
import enum
import errno as errors
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from harness.smmu.vevents import (
    HEADER_BYTES,
    INT_MAX,
    U32_MAX,
    QueueType,
    VEvent,
    lost_events,
    successor,
)

#: In seconds.
LONGEST_DELAY = 60.0
#: The most entries that the kernel takes in one HWPT_INVALIDATE.
INVALIDATION_MOST = 1 << 19

# Errors show any JSON, which may be long or deep.
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80

#: All rules by their names. Each class adds itself.
RULES: dict[str, type[Rule]] = {}


class Address(NamedTuple):
    """The address of a queue at the boundary: its type, and its place among the existing queues of
    that type, the first being 0."""

    kind: QueueType
    slot: int = 0

    @classmethod
    def from_json(cls, value: Any) -> Address:
        """Read an address from [TYPE, SLOT]. Raises ValueError for anything else."""
        if isinstance(value, list) and len(value) == 2:
            number, slot = value
            if _is_number(number, 0) and number in list(QueueType) and _is_number(slot, 0):
                return cls(QueueType(number), slot)
        types = ", ".join(f"{one.value} ({one.name})" for one in QueueType)
        shown = _BRIEF.repr(value)
        raise ValueError(f"not a queue: {shown}; allowed: [TYPE, SLOT], types {types}")

    def __str__(self) -> str:
        return f"{self.kind.name} {self.slot}"


def _check(condition: bool, rule: str, field: str, found: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{rule}: {field} is {_BRIEF.repr(found)}; allowed: {allowed}")


def _is_number(value: object, lowest: int, highest: int = U32_MAX) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _check_first_smmu(rule: str, queue: Address) -> None:
    first = Address(QueueType.ARM_SMMUV3)
    _check(queue == first, rule, "queue", str(queue), str(first))


def _check_errno(rule: str, number: object) -> None:
    known = _is_number(number, 1) and number in errors.errorcode
    _check(known, rule, "errno", number, "a number of the module errno")


@dataclass(frozen=True)
class Rule:
    """One step of a boundary's script. `name` is its name in JSON and in the log. A rule with a
    `count` is for that many records, calls or reads."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if cls.name:
            assert cls.name not in RULES, f"two rules are named {cls.name}"
            RULES[cls.name] = cls

    def __post_init__(self) -> None:
        count = getattr(self, "count", 1)
        _check(_is_number(count, 1), self.name, "count", count, "1 or more")

    def check_fits(self, queue: Address) -> None:
        """Raise ValueError if the rule can never act at this queue."""

    def rest(self, used: int) -> Rule:
        """Return what is left of a rule with a count after so much of it was used."""
        fields = self.to_json()
        return from_json({**fields, "count": fields["count"] - used})

    def to_json(self) -> dict[str, Any]:
        """Return the rule as `from_json` reads it."""
        fields = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            fields[field.name] = value.hex() if isinstance(value, bytes) else value
        return {"rule": self.name, **fields}

    def __str__(self) -> str:
        fields = ", ".join(f"{k}={v}" for k, v in self.to_json().items() if k != "rule")
        return f"{self.name}({fields})"


# -- records ---------------------------------------------------------------------------------


class Turn(NamedTuple):
    """What a rule knows when it decides: how often it was `used` before, and the sequence number of
    the `last` record that QEMU was sent."""

    used: int
    last: int


@dataclass(frozen=True)
class RecordRule(Rule):
    """A rule that decides what QEMU is sent for records. One that `holds` lets no record through
    until it is released."""

    holds: ClassVar[bool] = False

    @property
    def needs(self) -> int:
        """Return how many records the rule takes at a time."""
        return 1

    @property
    def wait(self) -> float:
        """Return the seconds from the arrival of the records to their delivery."""
        return 0.0

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        """Return what QEMU is sent for the records that the rule has taken."""
        return got


@dataclass(frozen=True)
class Pass(RecordRule):
    """Deliver records as they are."""

    name = "pass"
    count: int = 1


@dataclass(frozen=True)
class Drop(RecordRule):
    """Deliver nothing, which leaves a gap in the sequence numbers."""

    name = "drop"
    count: int = 1

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        return ()


@dataclass(frozen=True)
class Duplicate(RecordRule):
    """Deliver the next record, and then `copies` copies of it."""

    name = "duplicate"
    copies: int = 1

    def __post_init__(self) -> None:
        _check(_is_number(self.copies, 1, 1000), self.name, "copies", self.copies, "1 to 1000")

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        return got * (1 + self.copies)


@dataclass(frozen=True)
class Reorder(RecordRule):
    """Wait for as many records as `order` has numbers, then deliver them in that order: (1, 0)
    delivers the second record first."""

    name = "reorder"
    order: tuple[int, ...] = (1, 0)

    def __post_init__(self) -> None:
        order, allowed = self.order, "the numbers 0 to n-1, each once, n > 1"
        right = isinstance(order, (list, tuple)) and all(_is_number(one, 0) for one in order)
        _check(right, self.name, "order", order, allowed)
        right = len(order) > 1 and sorted(order) == list(range(len(order)))
        _check(right, self.name, "order", order, allowed)
        object.__setattr__(self, "order", tuple(order))

    @property
    def needs(self) -> int:
        return len(self.order)

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        return tuple(got[index] for index in self.order)


@dataclass(frozen=True)
class Delay(RecordRule):
    """Deliver each record `seconds` after it arrived. Later records wait too: the order stays."""

    name = "delay"
    seconds: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.seconds, (int, float)) and not isinstance(self.seconds, bool)
        right = number and 0 < self.seconds <= LONGEST_DELAY
        _check(right, self.name, "seconds", self.seconds, f"above 0, {LONGEST_DELAY:.0f} at most")

    @property
    def wait(self) -> float:
        return self.seconds


@dataclass(frozen=True)
class Renumber(RecordRule):
    """Deliver records with other sequence numbers: numbers from `to` on, or their own changed `by`
    an offset. Both count as the kernel does, modulo 2^31; `to` itself may be any 32-bit number."""

    name = "renumber"
    to: int | None = None
    by: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        one = (self.to is None) != (self.by is None)
        _check(one, self.name, "to, by", (self.to, self.by), "exactly one of the two")
        if self.to is not None:
            _check(_is_number(self.to, 0), self.name, "to", self.to, "0 to 2^32-1")
        else:
            _check(_is_number(self.by, -INT_MAX, INT_MAX), self.name, "by", self.by, "31 bits")

    def rest(self, used: int) -> Renumber:
        to = None if self.to is None else self._number(self.to, used)
        return dataclasses.replace(self, to=to, count=self.count - used)

    @staticmethod
    def _number(first: int, used: int) -> int:
        return successor(first + used - 1) if used else first

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        event = VEvent.decode(got[0])
        if self.by is not None:
            number = successor(event.sequence + self.by - 1)
        else:
            assert self.to is not None
            number = self._number(self.to, turn.used)
        return (dataclasses.replace(event, sequence=number).encode(),)


@dataclass(frozen=True)
class Short(RecordRule):
    """Deliver only the first `size` bytes of each record."""

    name = "short"
    size: int = 20
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = QueueType.ARM_SMMUV3.record_bytes - 1
        _check(_is_number(self.size, 1, longest), self.name, "size", self.size, f"1 to {longest}")

    def check_fits(self, queue: Address) -> None:
        most, kind = queue.kind.record_bytes - 1, queue.kind.name
        _check(self.size <= most, self.name, "size", self.size, f"1 to {most} for {kind}")

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        return (got[0][: self.size],)


@dataclass(frozen=True)
class Hold(RecordRule):
    """Keep all records back until they are released."""

    name = "hold"
    holds = True


@dataclass(frozen=True)
class LostHeader(RecordRule):
    """Deliver a LOST_EVENTS header, as the kernel does after an overflow. Without `sequence` it
    has the number that follows the last one delivered."""

    name = "lost_header"
    sequence: int | None = None

    def __post_init__(self) -> None:
        right = self.sequence is None or _is_number(self.sequence, 0)
        _check(right, self.name, "sequence", self.sequence, "0 to 2^32-1, or none")

    @property
    def needs(self) -> int:
        return 0

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        number = successor(turn.last) if self.sequence is None else self.sequence
        return (lost_events(number).encode(),)


@dataclass(frozen=True)
class Inject(RecordRule):
    """Deliver a record that the kernel never sent: `record` is its header and data."""

    name = "inject"
    record: bytes = b""

    def __post_init__(self) -> None:
        record, allowed = self.record, "a header of 8 bytes and its data"
        if isinstance(record, str):
            try:
                record = bytes.fromhex(record)
            except ValueError:
                _check(False, self.name, "record", record, f"{allowed}, in hexadecimal digits")
        _check(isinstance(record, bytes), self.name, "record", record, allowed)
        right = HEADER_BYTES <= len(record) <= QueueType.ARM_SMMUV3.record_bytes
        _check(right, self.name, "record", record.hex(), allowed)
        object.__setattr__(self, "record", record)

    def check_fits(self, queue: Address) -> None:
        fits = len(self.record) <= queue.kind.record_bytes
        allowed = f"{queue.kind.record_bytes} bytes at most for {queue.kind.name}"
        _check(fits, self.name, "record", self.record.hex(), allowed)

    @property
    def needs(self) -> int:
        return 0

    def sent(self, got: tuple[bytes, ...], turn: Turn) -> tuple[bytes, ...]:
        return (self.record,)


# -- records, before the script --------------------------------------------------------------


class Sifted(NamedTuple):
    """What a standing rule makes of records: those that it has `kept`, with their new sequence
    numbers, and those that it has `removed`, as they came."""

    kept: list[bytes]
    removed: list[bytes]


@dataclass(frozen=True)
class StandingRule(Rule):
    """A rule that is in force from the boundary's start to its end, for every queue that exists at
    its address in that time. The script gets the records that it keeps."""

    def sift(self, records: Sequence[bytes], removed: int) -> Sifted:
        """Return what becomes of the records that one read returned, of which at least one is kept.
        The rule has `removed` so many of this queue before."""
        return Sifted(list(records), [])


@dataclass(frozen=True)
class Merge(StandingRule):
    """Merge equal events, as an SMMU may that finds an earlier one still in its queue (STE.MEV;
    IHI 0070, sections 3.5.5 and 7.3.1): of the records that came together, one whose data equals
    that of an earlier one is removed.

    The SMMU merges before the kernel numbers, so the records that follow are numbered as if the
    removed ones had never been: no gap is made, and a gap or a LOST_EVENTS header of the kernel's
    stays. An SMMU does not merge records of stalled transactions; the kernel reports none to a
    vEVENTQ (drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, arm_smmu_handle_event).
    """

    name = "merge"

    def check_fits(self, queue: Address) -> None:
        fits = queue.kind is QueueType.ARM_SMMUV3
        _check(fits, self.name, "queue", queue.kind.name, QueueType.ARM_SMMUV3.name)

    def sift(self, records: Sequence[bytes], removed: int) -> Sifted:
        kept: list[bytes] = []
        merged: list[bytes] = []
        seen: set[bytes] = set()
        for record in records:
            event = VEvent.decode(record)
            if event.data in seen:
                merged.append(record)
                continue
            if not event.is_lost_events:
                seen.add(event.data)
            number = (event.sequence - removed - len(merged)) & INT_MAX
            kept.append(dataclasses.replace(event, sequence=number).encode())
        return Sifted(kept, merged)


# -- calls and reads -------------------------------------------------------------------------


class Call(enum.IntEnum):
    """The calls of QEMU's that a FailCall can answer: ioctls by their numbers, of an iommufd
    (include/uapi/linux/iommufd.h) and of a VFIO device (include/uapi/linux/vfio.h), and mmap(2).
    What the number does not tell apart, the upper half of a value does.

    A rule for a call stands at the queue of a type in `kinds`. Only a vEVENTQ has a slot: all other
    calls are answered by the rules at slot 0, whichever of a guest's SMMUs they are for.
    """

    #: mmap of an iommufd: page 0 of a vIOMMU's VINTF. A system call of its own, not an ioctl.
    MMAP = 0x2_0000
    #: struct vfio_device_attach_iommufd_pt: a device is attached to any HWPT, on its own file. When
    #: a device is assigned it is first the stage-2 parent, then the HWPT that GBPA selects.
    ATTACH_PT = 0x3B77
    #: struct vfio_device_detach_iommufd_pt.
    DETACH_PT = 0x3B78
    #: struct iommu_hwpt_alloc with the data of an SMMUv3: a nested HWPT, for an STE. The first two
    #: of a vIOMMU are those that abort and bypass.
    HWPT_ALLOC = 0x3B89
    #: struct iommu_hwpt_alloc with the flag of this name: the stage-2 parent of nested HWPTs.
    HWPT_ALLOC_NEST_PARENT = 0x1_3B89
    #: struct iommu_hw_info.
    GET_HW_INFO = 0x3B8A
    #: struct iommu_hwpt_invalidate: a batch of the guest's invalidation commands.
    HWPT_INVALIDATE = 0x3B8D
    #: struct iommu_viommu_alloc, which says the type.
    VIOMMU_ALLOC = 0x3B90
    #: struct iommu_vdevice_alloc: a device gets its vSID.
    VDEVICE_ALLOC = 0x3B91
    #: struct iommu_veventq_alloc, which says the type.
    VEVENTQ_ALLOC = 0x3B93
    #: struct iommu_hw_queue_alloc: a VCMDQ, the only kind of hardware queue that there is.
    HW_QUEUE_ALLOC = 0x3B94

    @property
    def request(self) -> int:
        """Return the number of the ioctl, or 0 for a call that is none."""
        return self & 0xFFFF

    @property
    def kinds(self) -> tuple[QueueType, ...]:
        """Return the types of the queues at which a rule for the call can stand."""
        if self in (Call.VIOMMU_ALLOC, Call.VEVENTQ_ALLOC):
            return tuple(QueueType)
        if self in (Call.HW_QUEUE_ALLOC, Call.MMAP):
            return (QueueType.TEGRA241_CMDQV,)
        return (QueueType.ARM_SMMUV3,)


#: The calls that QEMU makes often, or that cannot be told from others without a look at each. They
#: are supervised only if that is asked for from the start, because it makes them slower.
FREQUENT = (Call.HWPT_INVALIDATE, Call.MMAP)


@dataclass(frozen=True)
class CallRule(Rule):
    """A rule that answers a call of QEMU's, or changes it."""


@dataclass(frozen=True)
class ReadRule(Rule):
    """A rule that answers QEMU's reads of a queue. The boundary must supervise reads."""


@dataclass(frozen=True)
class FailCall(CallRule):
    """Answer a call with an error, without asking the kernel."""

    name = "fail_call"
    errno: int = errors.ENOMEM
    call: Call = Call.VEVENTQ_ALLOC
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_errno(self.name, self.errno)
        right = _is_number(self.call, 0) and self.call in list(Call)
        _check(right, self.name, "call", self.call, ", ".join(one.name for one in Call))
        object.__setattr__(self, "call", Call(self.call))

    def check_fits(self, queue: Address) -> None:
        slots = queue.slot == 0 or self.call is Call.VEVENTQ_ALLOC
        allowed = " or ".join(str(Address(kind)) for kind in self.call.kinds)
        right = slots and queue.kind in self.call.kinds
        _check(right, self.name, f"queue for {self.call.name}", str(queue), allowed)


@dataclass(frozen=True)
class RefuseInvalidation(CallRule):
    """Give the kernel only the first `processed` entries of the next HWPT_INVALIDATE that has more;
    answer it with an error, and with entry_num = `processed`, as the kernel does when the entry
    after them is wrong (drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_invalidate)."""

    name = "refuse_invalidation"
    processed: int = 0
    errno: int = errors.EIO
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        most = INVALIDATION_MOST - 1
        right = _is_number(self.processed, 0, most)
        _check(right, self.name, "processed", self.processed, f"0 to {most}")
        _check_errno(self.name, self.errno)

    def check_fits(self, queue: Address) -> None:
        _check_first_smmu(self.name, queue)


@dataclass(frozen=True)
class Depth(CallRule):
    """Make the kernel's queue `events` deep, whatever QEMU asks for, so that few events make it
    overflow."""

    name = "depth"
    events: int = 64
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        right = _is_number(self.events, 1, 1 << 19)
        _check(right, self.name, "events", self.events, "1 to 2^19")


@dataclass(frozen=True)
class BusyOnDestroy(CallRule):
    """Make the kernel answer IOMMU_DESTROY of the queue with EBUSY, by keeping its file open."""

    name = "busy_on_destroy"
    count: int = 1


@dataclass(frozen=True)
class InterruptRead(ReadRule):
    """Answer QEMU's next reads of the queue with EAGAIN or EINTR, whether it has records or not; or
    with ENOMEM, as the kernel does if it has no memory to tell of lost events (iommufd's eventq.c).
    """

    name = "interrupt_read"
    errno: int = errors.EAGAIN
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = (errors.EAGAIN, errors.EINTR, errors.ENOMEM)
        right = _is_number(self.errno, 1) and self.errno in allowed
        _check(right, self.name, "errno", self.errno, "EAGAIN, EINTR or ENOMEM")


@dataclass(frozen=True)
class HostIdr(CallRule):
    """Make the host's SMMU look different to QEMU: in the answer to GET_HW_INFO, clear and then set
    bits of its identification register IDR`register` (IHI 0070, sections 6.3.1 to 6.3.6). There may
    be a rule for each register."""

    name = "host_idr"
    register: int = 0
    clear: int = 0
    set: int = 0
    count: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(_is_number(self.register, 0, 5), self.name, "register", self.register, "0 to 5")
        for field in ("clear", "set"):
            value = getattr(self, field)
            _check(_is_number(value, 0), self.name, field, value, "32 bits")

    def check_fits(self, queue: Address) -> None:
        _check_first_smmu(self.name, queue)


def watched(rule: Rule) -> Call | None:
    """Return the call in FREQUENT that a boundary must supervise for a rule; None if there is
    none."""
    if isinstance(rule, RefuseInvalidation):
        return Call.HWPT_INVALIDATE
    return rule.call if isinstance(rule, FailCall) and rule.call in FREQUENT else None


def from_json(value: Any) -> Rule:
    """Read a rule from the fields that `to_json` writes. Raises ValueError that says what is
    wrong."""
    name = value.get("rule") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in RULES:
        raise ValueError(f"not a rule: {_BRIEF.repr(value)}; allowed: {', '.join(RULES)}")
    kind = RULES[name]
    fields = {key: part for key, part in value.items() if key != "rule"}
    unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(kind)})
    if unknown:
        allowed = ", ".join(field.name for field in dataclasses.fields(kind)) or "none"
        raise ValueError(f"{kind.name}: unknown field {', '.join(unknown)}; allowed: {allowed}")
    return kind(**fields)
