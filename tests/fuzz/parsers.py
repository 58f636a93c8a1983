"""Give damaged and random input to every parser, and stop at the first exception that its contract
does not name, or at one that takes longer than LONGEST.

    python -m tests.fuzz.parsers --messages 20000 --seed 1

prints one line of figures, or what failed with its input, and exits 1. A seed gives the same inputs
again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from harness.boundary.client import entries
from harness.boundary.on_host import rules
from harness.boundary.on_host.rules import Address, RecordRule
from harness.boundary.on_host.script import Script
from harness.errors import HarnessError, LabError, ProductError
from harness.guest.census import Held, note
from harness.guest.console import MessageSplitter
from harness.host import dmesg, give_back, vfio
from harness.lab import inventory
from harness.report import run
from harness.smmu import events, iort, klog, loss, trace, vevents
from harness.smmu.commands import COMMAND_BYTES, Command
from harness.smmu.decode import output
from harness.smmu.decode.closing import Closing
from harness.smmu.decode.forms import BadInputError
from harness.smmu.decode.found import Damaged, Explained, Sighting, Unknown
from harness.smmu.decode.reader import Reading
from harness.smmu.ring import Ring
from harness.smmu.trace import Trace
from harness.smmu.vevents import QueueType, VEvent
from harness.virtual import acpi
from harness.virtual.silicon.model import AbortedError, Cmdqv
from harness.virtual.silicon.registers import Parameters, Vcmdq
from harness.virtual.topology import Topology

LAB = Path(__file__).parents[2] / "lab-inventory/grace.example.yaml"
#: No input is larger than some kilobytes. In seconds.
LONGEST = 10.0


class RefusedError(Exception):
    """A parser refused its input, in the way that its contract says."""


class TooLongError(BaseException):
    """A parser did not end within LONGEST. No parser may catch it."""


@contextlib.contextmanager
def refusing(*documented: type[Exception]) -> Iterator[None]:
    """Take the exceptions that a contract names as a refusal."""
    try:
        yield
    except documented as refused:
        if not str(refused):
            raise
        raise RefusedError from refused


# -- parsers -------------------------------------------------------------------------------------


def text_of(data: bytes) -> str:
    return data.decode(errors="replace")


def values_of(data: bytes) -> object:
    """Return the JSON in some bytes. Bytes that are not JSON are no input of a parser of values."""
    with refusing(ValueError, RecursionError):
        return json.loads(data)


def read_events(data: bytes) -> None:
    with refusing(ValueError):
        records = list(events.decode_records(data))
    for record in records:
        assert events.EventRecord.from_bytes(record.to_bytes()) == record
        shown = json.loads(output.event_json(Sighting(1, record.words)))
        assert shown.items() >= record.as_dict().items()
        assert str(record)
        assert record.defined().defined() == record.defined()


def read_klog(data: bytes) -> None:
    for found in klog.logged_events(text_of(data)):
        assert str(found.record)


def read_decode(data: bytes) -> None:
    account = Closing()
    event, explained, damaged = output.JSON
    with refusing(BadInputError):
        for found in Reading([data[:50], data[50:]]):
            if isinstance(found, Sighting):
                assert json.loads(event(found)).items() >= _shown(found).items()
                assert output.event_text(found)
            elif isinstance(found, Explained):
                assert json.loads(explained(found))["line"] == found.line
            elif isinstance(found, Damaged):
                assert json.loads(damaged(found))["line"] == found.line
                account.damaged(found)
                assert output.damaged_text(found)
            elif isinstance(found, Unknown):
                account.not_understood(found)
    assert account.closing(1)


def _shown(found: Sighting) -> dict[str, object]:
    fields = found.record.as_dict()
    return {**fields, "raw": None} if found.from_text else fields


def read_vevents(data: bytes) -> None:
    for kind in QueueType:
        pieces = vevents.split(data, kind)
        assert b"".join(pieces) == data
        assert all(map(str, loss.reports(kind, pieces)))
        whole = [VEvent.decode(piece) for piece in pieces if len(piece) >= vevents.HEADER_BYTES]
        assert loss.count_lost(whole) >= 0
        assert [one.encode() for one in whole] == [p for p in pieces if len(p) >= 8]
    with refusing(ValueError):
        VEvent.decode(data)


def read_loss(data: bytes) -> None:
    with refusing(ValueError):
        assert all(str(one.report) for one in loss.messages(text_of(data)))


def read_boundary_log(data: bytes) -> None:
    with refusing(ValueError):
        found = entries(text_of(data).splitlines())
    assert all(map(str, found))


def read_rules(data: bytes) -> None:
    value = values_of(data)
    with refusing(ValueError):
        rule = rules.from_json(value)
    assert rules.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def read_address(data: bytes) -> None:
    value = values_of(data)
    with refusing(ValueError):
        Address.from_json(value)


def read_script(data: bytes) -> None:
    """Carry out the record rules in a list, on records of both lengths."""
    value = values_of(data)
    chosen = []
    for body in value if isinstance(value, list) else [value]:
        with refusing(ValueError):
            chosen.append(rules.from_json(body))
    script = Script()
    script.load([rule for rule in chosen if isinstance(rule, RecordRule)])
    for number in range(20):
        script.feed([VEvent(number, bytes(32)).encode(), vevents.lost_events(number).encode()], 0.0)
        for decision in script.decide(float(number)):
            assert all(isinstance(one, bytes) for one in decision.sent)
    assert script.load([]) is not None


def read_dmesg(data: bytes) -> None:
    text = text_of(data)
    later = dmesg.after(text, dmesg.last_time(text))
    assert set(later.splitlines()) <= set(text.splitlines())


def read_result(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        with refusing(HarnessError):
            run.load(Path(file.name))


def read_console(data: bytes) -> None:
    """Pieces make no other messages than the whole."""
    whole = MessageSplitter().feed(data)
    pieces = MessageSplitter()
    found = [pieces.feed(data[at : at + 7]) for at in range(0, len(data), 7)]
    assert b"".join(rest for rest, _ in found) == whole[0]
    assert [one for _, messages in found for one in messages] == whole[1]


class Nowhere:
    """The memory and the surroundings of a CMDQV: every fourth page has no memory."""

    def read(self, address: int, size: int) -> bytes:
        if address >> 12 & 3 == 3:
            raise AbortedError
        return bytes(at & 0xFF for at in range(size))

    def doorbell(self, queue: Vcmdq) -> None:
        assert queue.pending

    def invalidate(self, commands: Sequence[Command]) -> None:
        assert commands

    def carried_out(
        self, queue: Vcmdq, commands: Sequence[Command], issued: Sequence[Command | None]
    ) -> None:
        assert queue.allocated

    def interrupt(self) -> None: ...


def read_registers(data: bytes) -> None:
    """Access a CMDQV's registers as the words say: an offset and a value each."""
    sizes = data.ljust(4, b"\0")[:4]
    with refusing(ValueError):
        parameters = Parameters(*sizes)
    nowhere = Nowhere()
    model = Cmdqv(parameters, nowhere, nowhere)
    for at in range(4, len(data) - 11, 12):
        offset = int.from_bytes(data[at : at + 4], "little") % parameters.bytes & ~3
        value = int.from_bytes(data[at + 4 : at + 12], "little")
        model.write(offset, 8 if offset % 8 == 0 else 4, value)
        assert 0 <= model.read(offset, 8) < 1 << 64
    for queue in model.registers.vcmdqs:
        # A large ring takes as long as it has commands.
        if queue.pending < 1 << 12:
            model.process(queue)


def read_ring(data: bytes) -> None:
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, 24, 8)]
    ring = Ring.from_base(words[0], COMMAND_BYTES)
    start, end = ring.index(words[1]), ring.index(words[2])
    assert Ring.from_base(ring.base, COMMAND_BYTES) == ring
    assert ring.after(start, ring.distance(start, end)) == end
    with refusing(ValueError):
        found = ring.ranges(start, end)
    assert sum(size for _, size in found) == ring.distance(start, end) * COMMAND_BYTES
    assert all(address >= ring.address for address, _ in found)


def read_iort(data: bytes) -> None:
    with refusing(ValueError):
        iort.smmu_identifiers(data)
        iort.fixed_ranges(data)
    for identifier in (0, 0x100, 0x900, 0xFFFF):
        with contextlib.suppress(ValueError):
            assert iort.stream_id(data, 0, identifier) < 1 << 32


def read_inventory(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        Path(file.name).write_bytes(data)
        with refusing(LabError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ruamel's, of aliases that are made twice
            inventory.load(Path(file.name))


def read_trace(data: bytes) -> None:
    found = Trace.of(text_of(data))
    with refusing(ProductError):
        trace.propagated(found)
        found.event_queues(QueueType.ARM_SMMUV3)


def read_census(data: bytes) -> None:
    alive: dict[int, str] = {}
    with refusing(ProductError):
        note(trace.parse(text_of(data).splitlines()), alive, set())


def read_held(data: bytes) -> None:
    with refusing(LabError):
        Held.of(text_of(data))


def read_modules(data: bytes) -> None:
    found = vfio.aliases(text_of(data).splitlines())
    vfio.offered("pci:v0000144Dd0000A80Asv0000144Dsd0000A801bc01sc08i02", found)


def read_note(data: bytes) -> None:
    before = give_back.Before.of(None, give_back.NO_OVERRIDE, text_of(data))
    assert give_back.Before.of("vfio-pci", "", before.note("vfio-pci")) == before


# -- what they are given -------------------------------------------------------------------------

_RECORD = events.EventRecord.stage1_fault(
    events.EventType.F_TRANSLATION, sid=0x2100, input_addr=0x8000_1000, rnw=True
)
_LOG = "".join(
    f"[   12.{number:06}] arm-smmu-v3 arm-smmu-v3.0.auto: {text}\n"
    for number, text in enumerate(
        ["event 0x10 received:", *(f"\t0x{word:016x}" for word in _RECORD.words), "other"]
    )
).encode()
_RULES = [
    *({"rule": name} for name in ("pass", "drop", "hold", "merge", "depth", "busy_on_destroy")),
    {"rule": "reorder", "order": [2, 0, 1]},
    {"rule": "delay", "seconds": 0.5, "count": 2},
    {"rule": "renumber", "to": 7, "by": None, "count": 3},
    {"rule": "renumber", "to": None, "by": -3, "count": 1},
    {"rule": "duplicate", "copies": 2},
    {"rule": "short", "size": 20, "count": 1},
    {"rule": "lost_header", "sequence": 5},
    {"rule": "inject", "record": "00" * 40},
    {"rule": "fail_call", "errno": 12, "call": 0x3B93, "count": 1},
    {"rule": "refuse_invalidation", "processed": 2, "errno": 5, "count": 1},
    {"rule": "host_idr", "register": 1, "clear": 63, "set": 8, "count": 2},
    {"rule": "interrupt_read", "errno": 11, "count": 1},
]
_PASSAGES = [
    {"time": 1.5, "queue": [1, 0], "id": 7, "did": "pass", "got": [2, "AAAAAAAAAAAAAAAAAAAAAA=="]},
    {"time": 1.5, "queue": [1, 0], "id": 7, "did": "drop", "got": ["AAAAAAAAAAA="], "sent": []},
    {"time": 2, "queue": [2, 1], "call": "VEVENTQ_ALLOC", "did": "pass", "answer": "ok", "id": 3},
]
_TRACE = b"""\
2026-11-21T05:41:34.534622Z iommufd_viommu_alloc_eventq  iommufd=24 viommu_id=4 type=1 veventq_id=10 veventq_fd=35 (0)
2026-11-21T05:41:35Z smmuv3_propagate_event SMMU_EVT_F_TRANSLATION sid=0x2200
iommufd_backend_free_id iommufd=25 id=10 (0)
iommufd_backend_alloc_vdev iommufd=25 dev_id=1 viommu_id=4 virt_id=0x2200 vdev_id=8 (0)
"""  # noqa: E501
_WARNINGS = b"""\
qemu-system-aarch64: warning: vEVENTQ(type 1 id 8): lost 4 event(s)
qemu-system-aarch64: warning: vEVENTQ(type 2 id 9): overflowed
qemu-system-aarch64: warning: vEVENTQ(type 1 id 8): short read(-1/40 bytes)
qemu-system-aarch64: warning: vEVENTQ(type 1 id 8): read failed (Bad address)
"""
_HELD = b"file socket:[4711]\nVmRSS:\t  500000 kB\nSUnreclaim: 40000 kB\nvfio /sys/x\n"
_MODULES = b"alias vfio_pci:v0000144Dd*sv*sd*bc*sc*i* one\nx.alias=vfio_pci:v*d*sv*sd*bc*sc*i*\n"
_TEST = {"id": "a::b", "outcome": "passed", "seconds": 1.5, "covers": ["VEQ-07"]}
_RESULT = {"run": "r", "lab": "l", "environment": {"QEMU": "11"}, "tests": [_TEST]}


def _dumped(*values: object) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


@dataclass(frozen=True)
class Target:
    """A parser, which raises RefusedError for what its contract refuses, and good inputs."""

    name: str
    read: Callable[[bytes], None]
    samples: Sequence[bytes]
    is_json: bool = False


TARGETS = [
    Target("events", read_events, [_RECORD.to_bytes() * 3]),
    Target("klog", read_klog, [_LOG]),
    Target("decode", read_decode, [_LOG, b"0x10 0 ffff 0\n# x\n10,0,0,0\n"]),
    Target("vevents", read_vevents, [VEvent(5, bytes(32)).encode() * 2 + b"\1" + bytes(7)]),
    Target("loss", read_loss, [_WARNINGS]),
    Target("boundary log", read_boundary_log, _dumped(*_PASSAGES), is_json=True),
    Target("rules", read_rules, _dumped(*_RULES), is_json=True),
    Target("addresses", read_address, _dumped([1, 0], [2, 1]), is_json=True),
    Target("script", read_script, _dumped(_RULES, _RULES[6:9], _RULES[10:14]), is_json=True),
    Target("dmesg", read_dmesg, [_LOG]),
    Target("result.json", read_result, _dumped(_RESULT), is_json=True),
    Target("console splitter", read_console, [b"~ # ls\r\n" + _LOG + b"[ 1"]),
    Target("CMDQV registers", read_registers, [bytes((2, 3, 4, 1)) + bytes(96)]),
    Target("queue geometry", read_ring, [bytes(24), b"\x05" + bytes(23)]),
    Target("IORT", read_iort, [acpi.iort(Topology(smmus=2).smmu_nodes())]),
    Target(
        "inventory", read_inventory, [LAB.read_bytes(), LAB.with_name("virtual.yaml").read_bytes()]
    ),
    Target("trace", read_trace, [_TRACE]),
    Target("census", read_census, [_TRACE]),
    Target("what a guest holds", read_held, [_HELD]),
    Target("module aliases", read_modules, [_MODULES]),
    Target("device notes", read_note, [b"nvme (null) vfio-pci\n"]),
]

#: Pieces that parsers stumble over.
_PIECES = [
    *(bytes([byte]) * count for byte in (0, 0xFF, 0x7F, ord("9")) for count in (1, 2, 4, 8)),
    *(
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\x85",
        b"\xe2\x80\xa8",
        b"\xed\xa0\x80",
        b"\xd9\xa0",
        b"\xef\xbb\xbf",
    ),
    *(b"[" * 2000, b"{" * 50, b'{"a":' * 1500, b"9" * 5000, b"-1", b"1e999", b"NaN", b"0x", b"1_0"),
    *(b"[]", b"{}", b"null", b"true", b'""', b'"x"', b"1.0", b"[1.0, 0.0]", b"[[]]", b'"\\ud800"'),
    *(b"&a ", b"*a", b"<<: *a", b"!!int ", b"!!python/object:x ", b"? ", b"~nouser/x", b"a..b"),
    *(b"2026-13-99", b"(0)", b"=", b"..", b"]", b"}", b"'", b'"', b"\\", b"%s", b"%"),
]

#: Values that are of another type, or out of range, where a parser of JSON expects one.
_VALUES: list[object] = [
    *(None, True, 0, -1, 1, 2, 7, 1 << 31, 1 << 32, 1 << 70, 0.5, 1.0, float("nan"), float("inf")),
    *("", "x", "00", "00" * 9, "AAAA", "pass", [], [0], [1, 0], [1.0, 0.0], ["a", 0], [[[]]], {}),
    *({"rule": []}, {"rule": "drop"}, [[]] * 20),
]


def changed(value: object, chance: random.Random) -> object:
    """Return a value of JSON in which one value is another, or is missing."""
    if isinstance(value, dict) and value and chance.randrange(5):
        key = chance.choice(list(value))
        if not chance.randrange(8):
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: changed(value[key], chance)}
    if isinstance(value, list) and value and chance.randrange(5):
        at = chance.randrange(len(value))
        return [*value[:at], changed(value[at], chance), *value[at + 1 :]]
    return chance.choice(_VALUES)


def damaged(sample: bytes, chance: random.Random) -> bytes:
    """Return a good input with one to eight faults."""
    data = bytearray(sample)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(data))
        until = min(len(data), at + chance.choice((1, 2, 4, 8, 40)))
        match chance.randrange(7):
            case 0:
                data[at:until] = chance.randbytes(until - at)
            case 1:
                del data[at:until]
            case 2:
                data[at:at] = chance.choice(_PIECES)
            case 3:
                data[at:until] = chance.choice(_PIECES)
            case 4:
                data[at:at] = data[at:until] * chance.randint(1, 20)
            case 5 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case _:
                # A value of JSON or YAML becomes another.
                values = [b":", b",", b"["]
                found = data.find(chance.choice(values), at)
                if found >= 0:
                    ends = [data.find(end, found + 1) for end in (b",", b"}", b"\n", b"]")]
                    end = min((one for one in ends if one >= 0), default=len(data))
                    data[found + 1 : end] = b" " + chance.choice(_PIECES)
    return bytes(data)


def made(target: Target, chance: random.Random) -> bytes:
    """Return an input: mostly a damaged sample, sometimes a good one, or random bytes."""
    kind = chance.randrange(20)
    if kind == 0:
        return chance.choice(target.samples)
    if kind <= 2:
        return chance.randbytes(chance.randrange(300))
    if kind >= 10 and target.is_json:
        value = json.loads(chance.choice(target.samples))
        for _ in range(chance.randint(1, 3)):
            value = changed(value, chance)
        return json.dumps(value).encode()
    if kind == 3:
        return damaged(b"".join(chance.choices(target.samples, k=3)), chance)
    return damaged(chance.choice(target.samples), chance)


# -- running -------------------------------------------------------------------------------------


def give_up(number: int, frame: FrameType | None) -> None:
    raise TooLongError(f"not done within {LONGEST:.0f} s")


def fuzz(targets: Sequence[Target], messages: int, seed: int) -> str | None:
    """Give so many inputs to the targets in turn, and print figures. Return what is wrong with the
    first exception that is not documented, or None."""
    started = time.monotonic()
    figures: Counter[str] = Counter()
    slowest, by = 0.0, ""
    signal.signal(signal.SIGALRM, give_up)
    for number in range(messages):
        target = targets[number % len(targets)]
        data = made(target, random.Random(f"{seed} {number}"))
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        try:
            target.read(data)
            figures["read"] += 1
        except RefusedError:
            figures["refused"] += 1
        except (Exception, TooLongError) as problem:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return (
                f"{target.name}: {type(problem).__name__}: {str(problem)[:500]}\n"
                f"  input {number} of seed {seed}: {data!r}"
            )
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if time.monotonic() - began > slowest:
            slowest, by = time.monotonic() - began, target.name
    print(
        f"parsers: {len(targets)}, inputs: {messages} in {time.monotonic() - started:.0f} s, "
        f"seed {seed}: {figures['read']} read, {figures['refused']} refused; "
        f"slowest {slowest:.2f} s ({by})"
    )
    return None


def main(argv: Sequence[str] | None = None, targets: Sequence[Target] = TARGETS) -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.parsers", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    chosen = parser.parse_args(argv)
    wrong = fuzz(targets, chosen.messages, chosen.seed)
    if wrong:
        print(wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
