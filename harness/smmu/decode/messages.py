"""The messages that tell of an SMMU, in one table: what each looks like, and what it means.

Sources: Linux, drivers/iommu/arm/arm-smmu-v3/ (arm-smmu-v3.c, tegra241-cmdqv.c) and arm-smmu.c;
QEMU, hw/arm/smmuv3*.c and the trace-events beside them; and what this project prints into the
files of a failed test (harness/report/evidence.py).

To explain another message, add a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from harness.smmu import cmdqv, commands, loss
from harness.smmu.registers import CMDQ_CONS_ERR_SHIFT, CMDQ_CONS_RD, GERRORS
from harness.smmu.vevents import INT_MAX

#: The beginning of what Linux's dev_err() and its kind print: driver, device, text. A name does not
#: begin with a hyphen: `arm-smmu -v3.0.auto:` is another device's name that was cut.
DEVICE = re.compile(
    r"\b(?P<driver>arm-smmu-v3|arm-smmu|platform|acpi)\s+"
    r"(?P<smmu>\w[\w.@+-]*(?::\d\d(?=:))?):\s*(?=(?P<body>.{0,600}))",
)
#: The names that such a text can begin with; a line that is cut may end in a part of one.
DRIVER = "arm-smmu-v3"

HEAD = re.compile(r"event 0x([0-9a-f]{1,2}) received:", re.IGNORECASE)
SKIPPED = re.compile(r"skipping command in error state:")
WORD = re.compile(r"0x([0-9a-f]{16})(?![0-9a-f])", re.IGNORECASE)
#: What was a word once: digits with a gap, too few or too many of them.
TORN = re.compile(r"0x[0-9a-f]|^[0-9a-f\s]{8,}$", re.IGNORECASE)

_HEX = r"0x([0-9a-f]+)"
_WORDS = "[0-9a-f]+(?::[0-9a-f]+)*(?![0-9a-f:])"
TEXT = re.compile(
    rf"event: (?P<name>\w+) client: (?P<client>\(unassigned sid\)|\S+) sid: {_HEX} ssid: {_HEX}"
    rf"(?: iova: {_HEX} ipa: {_HEX}| fetch_addr: {_HEX})?",
    re.IGNORECASE,
)
#: The types whose text has more than the StreamID and SubstreamID.
WITH_ADDRESS = frozenset(
    {
        "F_TRANSLATION",
        "F_ADDR_SIZE",
        "F_ACCESS",
        "F_PERMISSION",
        "F_STE_FETCH",
        "F_CD_FETCH",
        "F_VMS_FETCH",
    }
)
ATTRIBUTES = re.compile(
    r"(?P<level>priv|unpriv) (?P<what>inst|data) (?P<rnw>read|write) (?P<stage>s1|s2) "
    r'"(?P<klass>[^"]*)"(?: ttd_(?P<ttd>read|write))?(?P<stall> stall)? '
    r"stag: 0x(?P<stag>[0-9a-f]+)"
)
#: Linux's words for CLASS, in the order of its numbers.
CLASS_TEXTS = (
    "CD fetch",
    "Stage 1 translation table fetch",
    "Input address caused fault",
    "Reserved",
)


class Meaning(NamedTuple):
    """What a message means: its `name`, and in words what it `said`."""

    name: str
    said: str


Explain = Callable[[re.Match[str]], str]


class MessageKind(NamedTuple):
    """One kind of message. `name` is printed; None is for what tells of no event and no error."""

    name: str | None
    pattern: re.Pattern[str]
    explain: Explain | str


def gerror(value: int, errors: Mapping[int, tuple[str, str]] = GERRORS) -> str:
    """Return the names and meanings of the errors in a value of GERROR: an SMMU's, or those of
    what has other `errors`."""
    names = [
        errors[bit][0] if bit in errors else f"bit {bit}" for bit in range(32) if value >> bit & 1
    ]
    meanings = [errors[bit][1] for bit in errors if value >> bit & 1]
    return f"{value:#x} = {', '.join(names) or 'no error'}" + "".join(
        f"; {one}" for one in meanings
    )


def cons(value: int) -> str:
    """Return the error and the index in a value of CMDQ_CONS."""
    error = value >> CMDQ_CONS_ERR_SHIFT & 0x7F
    name, meaning = commands.CERRORS.get(error, (f"reserved code {error:#x}", "a reserved code"))
    return f"CONS index {value & CMDQ_CONS_RD:#x}, error {error} = {name}; {meaning}"


def bits(value: int) -> list[int]:
    """Return the numbers of the bits that are set."""
    return [bit for bit in range(value.bit_length()) if value >> bit & 1]


def _listed(what: str, numbers: list[int]) -> str:
    if not numbers:
        return f"no {what}"
    return f"{what} {', '.join(map(str, numbers))}"


def _sync(found: re.Match[str]) -> str:
    at, prod, register = (int(found[number], 16) for number in (1, 2, 3))
    done = register & CMDQ_CONS_RD
    said = f"no answer to the CMD_SYNC at {at:#x}: PROD {prod:#x}, CONS {done:#x}"
    if register >> CMDQ_CONS_ERR_SHIFT & 0x7F:
        return f"{said}; the SMMU has stopped at an error: {cons(register)}"
    if prod == done:
        return f"{said}; the queue is empty, so the answer itself was lost"
    if prod < done:
        return f"{said}; commands wait (the queue has wrapped)"
    return f"{said}; {prod - done} commands wait. The SMMU has stopped, or is slow: see GERROR"


def _cmdqv(found: re.Match[str]) -> str:
    vintfs, queues = int(found[1], 16), int(found[2].replace(":", ""), 16)
    return f"in error: {_listed('VINTF', bits(vintfs))}, {_listed('VCMDQ', bits(queues))}"


def _lvcmdqs(found: re.Match[str]) -> str:
    # QEMU prints 16 bits of the four words, the most significant first.
    parts = found[1].split(":")
    width = 4 * max(map(len, parts))
    value = sum(int(part, 16) << width * at for at, part in enumerate(reversed(parts)))
    return f"QEMU tells the guest of errors: {_listed('LVCMDQ', bits(value))}"


def _queue_registers(found: re.Match[str]) -> str:
    acknowledged, raised, done = (int(found[number], 16) for number in (3, 4, 5))
    return (
        f"VINTF {found[1]} VCMDQ {found[2]}: active "
        f"{gerror(raised ^ acknowledged, cmdqv.GERRORS)}; {cons(done)}"
    )


def _veventq(found: re.Match[str]) -> str:
    (warning,) = loss.messages(found[0])
    queue = f"the vEVENTQ of type {warning.type}, id {warning.id}"
    match warning.report:
        case loss.Lost(count) if count and not count & INT_MAX:
            return f"no event of {queue} is lost: its numbers began anew at 0, which QEMU miscounts"
        case loss.Lost(count):
            lost = count & INT_MAX
            return f"{lost} events of {queue} never reached QEMU: a gap in the sequence numbers"
        case loss.Overflowed():
            return f"{queue} overflowed: an unknown number of events is lost"
        case loss.ShortRead(got, whole):
            return f"QEMU read {got} of {whole} bytes of a record of {queue}, and dropped it"
        case failed:
            return f"QEMU cannot read {queue}: {failed.reason}. It gets no more events"


def _state(found: re.Match[str]) -> str:
    entries, prod, done = int(found[1]), int(found[3], 16), int(found[4], 16)
    both = 2 * entries - 1
    waiting = (prod - done) & both
    said = f"{entries} entries at {found[2]}, {waiting} of them wait to be read"
    overflow = (prod ^ done) >> 31 & 1
    return f"{said}; it has overflowed: events are lost" if overflow else said


def _command(found: re.Match[str]) -> str:
    words = (int(found[3], 16), int(found[4], 16))
    return f"VINTF {found[1]} LVCMDQ {found[2]}: {commands.describe(words)}"


def _opcode(number: int) -> str:
    try:
        return f"CMD_{commands.Opcode(number).name}"
    except ValueError:
        return f"opcode {number:#04x}"


def _page_request(found: re.Match[str]) -> str:
    return (
        f"sid {int(found[1], 16):#x}  ssid {int(found[2], 16):#x}  group {found[3]}  "
        f"{found[4] or ''}privileged {found[5] or 'no'} access  iova {int(found[6], 16):#x}; "
        "a device asked for a page and was refused"
    )


def _row(name: str | None, pattern: str, explain: Explain | str = "") -> MessageKind:
    return MessageKind(name, re.compile(pattern, re.IGNORECASE), explain)


#: After the device's name, in a kernel's log.
OF_DEVICE = (
    _row(
        "GERROR",
        r"unexpected global error reported \(0x([0-9a-f]{8})\)",
        lambda found: gerror(int(found[1], 16)),
    ),
    _row(
        "CMDQ error",
        r"CMDQ error \(cons 0x([0-9a-f]{8})\)",
        lambda found: cons(int(found[1], 16)),
    ),
    _row(
        "CMD_SYNC timeout",
        r"CMD_SYNC timeout at 0x([0-9a-f]{8}) \[hwprod 0x([0-9a-f]{8}), hwcons 0x([0-9a-f]{8})\]",
        _sync,
    ),
    _row(
        "CMD_SYNC timeout",
        r"CMD_SYNC timeout$",
        "no answer to a CMD_SYNC: the SMMU has stopped, or is slow",
    ),
    _row("CMDQ timeout", r"CMDQ timeout", "the command queue stayed full: the SMMU takes none"),
    _row("CMDQ retry", r"retrying command fetch", "the kernel lets the SMMU fetch it again"),
    _row(
        "event queue overflow",
        r"EVTQ overflow detected",
        "the SMMU had no room for events: an unknown number is lost",
    ),
    _row("PRI queue overflow", r"PRIQ overflow detected", "the SMMU had no room for page requests"),
    _row(
        "write aborted",
        r"((?:EVTQ|PRIQ) write aborted)",
        "the queue was full or its memory refused the write: what it was to hold is lost",
    ),
    _row(
        "MSI aborted",
        r"((?:EVTQ|PRIQ|CMDQ|GERROR) MSI write aborted)",
        lambda found: f"{found[1]}: the interrupt could not be written to its address",
    ),
    _row(
        "Service Failure Mode",
        r"device has entered Service Failure Mode",
        "the SMMU translates nothing any more until it is reset",
    ),
    _row("page request", r"unexpected PRI request received", "its next line says of whom"),
    _row(
        "page request",
        r"sid 0x([0-9a-f]{8})\.0x([0-9a-f]{5}): \[(\d+L?)\] (un)?privileged ([RWX]*) access "
        r"at iova 0x([0-9a-f]{16})",
        _page_request,
    ),
    _row(
        "CMDQV error",
        r"(?:tegra241_cmdqv: )?unexpected error reported\. vintf_map:? ?([0-9a-f]+), "
        rf"vcmdq_map:? ?({_WORDS})",
        _cmdqv,
    ),
    _row(
        "CMDQV queue",
        r"(?:tegra241_cmdqv: )?VINTF(\d+): VCMDQ(\d+)/LVCMDQ\d+: "
        r"GERRORN=0x([0-9a-f]+), GERROR=0x([0-9a-f]+), CONS=0x([0-9a-f]+)",
        _queue_registers,
    ),
    _row(
        "CMDQV queue",
        r"((?:CMDQV: |VINTF\d+: )?(?:VCMDQ\d+/LVCMDQ\d+: )?failed to (?:en|dis)able), "
        r"STATUS=0x([0-9a-f]+)",
        lambda found: f"{found[1]}, STATUS {int(found[2], 16):#x}: the hardware did not follow",
    ),
    _row(
        "CMDQV queue",
        r"(VINTF\d+: VCMDQ\d+/LVCMDQ\d+): uncleared error detected, resetting",
        lambda found: f"{found[1]}: an error of the queue's last user was left, and is cleared",
    ),
    _row(
        "StreamID aliasing",
        r"Aliasing StreamID 0x([0-9a-f]+) \(from (\S+)\) unsupported",
        lambda found: f"two devices share StreamID 0x{found[1]}, the other is {found[2]}",
    ),
    _row(
        "events unreported",
        r"no (evtq|gerr|priq) irq|failed to enable (evtq|gerror|priq) irq",
        lambda found: f"no interrupt of the {found[1] or found[2]}: the kernel does not look there",
    ),
    _row(
        "probe failed",
        r"((?:failed to|no translation support|AArch64 table format not|embedded impl|unknown/uns"
        r"|command queue size <=|MMIO region too small|GBPA not responding|no memory resource"
        r"|missing #iommu|invalid #iommu|RMR SID|no more available|SMMU doesn't support ATS"
        r"|probe (?:of|with driver)).*)",
        lambda found: f"{found[1].strip()}: this SMMU, or a part of it, does not work",
    ),
    _row(
        None,
        r"(?:ias |oas |option |allocated \d|msi_domain absent|SMMU currently enabled|IDR0\.|"
        r"2-level strtab|unknown output|found companion|Falling back to standard|Detected disable|"
        r"no interrupt\. errors|tegra241_cmdqv: (?:Falling|Detected|no interrupt|found|allocated)|"
        r"SVA devices|Adding to iommu|supported page sizes|preserved|Looking up|(?:non-)?coherent|"
        r"stage[- ]?\d|VMID|\d+ VCMDQ|VINTF\d+: (?:VCMDQ\d+/LVCMDQ\d+: )?(?:(?:de)?inited|"
        r"allocated|deallocated|enabled|disabled)|Removing from|iommu: Default|probing hardware)",
    ),
)

#: Anywhere in a line, without a device.
ANYWHERE = (
    _row(
        "events left out",
        r"(arm_smmu_(?:dump_event|\w*evt\w*)): (\d+) callbacks suppressed",
        lambda found: (
            f"the kernel did not print {found[2]} events, as it limits their rate: this log does "
            "not have all"
        ),
    ),
    _row(
        "probe failed",
        r"arm-smmu-v3: (probe of \S+ failed with error -?\d+)",
        lambda found: f"{found[1]}: this SMMU does not work",
    ),
    _row(
        "messages left out",
        r"((?:arm_smmu|tegra241_cmdqv)\w*): (\d+) callbacks suppressed",
        lambda found: (
            f"the kernel left out {found[2]} messages of {found[1]}: it limits their rate"
        ),
    ),
    _row(
        "messages left out",
        r"(?:Missed (\d+) kernel messages|Suppressed (\d+) messages from kernel"
        r"|(\d+) printk messages dropped|some messages lost)",
        lambda found: (
            f"{next(filter(None, found.groups()), 'some')} lines of the kernel's log are lost: "
            "events may be among them"
        ),
    ),
    _row(
        "vEVENTQ",
        # Without what may follow: a mark of markup, say.
        r"(?-i:vEVENTQ\(type \d+ id \d+\): (?:lost \d+ event\(s\)|overflowed|short read\(-?\d+/"
        r"\d+ bytes\)|read failed \([^)]*\)))",
        _veventq,
    ),
    _row(
        "QEMU: fault",
        r"(smmuv3-iommu-memory-region-\S+) translation failed for iova=(0x[0-9a-f]+) ?"
        r"\((?:SMMU_EVT_)?(\w+)\)",
        lambda found: f"{found[3]}  iova {found[2]}  by the emulated SMMU, region {found[1]}",
    ),
    _row(
        "QEMU: event forwarded",
        r"smmuv3_propagate_event (?:SMMU_EVT_)?(\w+) sid=(0x[0-9a-f]+)",
        lambda found: (
            f"{found[1]}  sid {found[2]}  QEMU wrote the host's event to the guest's queue"
        ),
    ),
    _row(
        "QEMU: event recorded",
        r"smmuv3_record_event (?:SMMU_EVT_)?(\w+) sid=(0x[0-9a-f]+)",
        lambda found: (
            f"{found[1]}  sid {found[2]}  the emulated SMMU wrote it to the guest's queue"
        ),
    ),
    _row(
        "QEMU: GERROR raised",
        r"smmuv3_write_gerror toggled=(0x[0-9a-f]+), (?:new )?GERROR=(0x[0-9a-f]+)",
        lambda found: gerror(int(found[1], 16)),
    ),
    _row(
        "QEMU: GERROR acknowledged",
        r"smmuv3_write_gerrorn acked=(0x[0-9a-f]+), (?:new )?GERRORN=(0x[0-9a-f]+)",
        lambda found: gerror(int(found[1], 16)),
    ),
    _row(
        "QEMU: CMDQ error",
        r"smmuv3_cmdq_consume_error (?:Error on )?(\w+) (?:command execution|error): (\d+)",
        lambda found: f"command {found[1]}: {commands.CERRORS.get(int(found[2]), ('?', '?'))[0]}",
    ),
    _row(
        "QEMU: command ignored",
        r"smmuv3_unhandled_cmd Unhandled command type=(\d+)",
        lambda found: f"{_opcode(int(found[1]))}: the emulated SMMU does nothing for it",
    ),
    _row(
        "QEMU: aborted",
        r"smmuv3_translate_abort (\S+) sid=(0x[0-9a-f]+) abort on iova:(0x[0-9a-f]+) "
        r"is_write=(\d)",
        lambda found: (
            f"sid {found[2]}  {'write' if int(found[4]) else 'read'}  iova {found[3]}  the "
            f"emulated SMMU aborted it without an event, region {found[1]}"
        ),
    ),
    _row("QEMU: CMDQV error", rf"tegra241_cmdqv_err_map .*maps: ({_WORDS})", _lvcmdqs),
    _row(
        "QEMU: invalid STE",
        r"Invalid STE config for sid (0x[0-9a-f]+)",
        lambda found: f"sid {found[1]}  the guest's stream table entry is not one QEMU can install",
    ),
    _row(None, r"\b(?:smmuv3_|smmu_|tegra241_cmdqv_|iommufd_\w+_alloc|iommufd_backend_)\w+ ?\S*"),
    _row(
        "event queue",
        r"(\d+) entries at (0x[0-9a-f]+), PROD (0x[0-9a-f]+), CONS (0x[0-9a-f]+)",
        _state,
    ),
    _row(
        "command",
        r"VINTF (\d+) LVCMDQ (\d+): 0x([0-9a-f]+) 0x([0-9a-f]+)",
        _command,
    ),
)

#: SMMUv2's driver has other messages, and its faults no records.
OF_SMMUV2 = (
    _row(
        "SMMUv2 fault",
        r"Unhandled (?:arm-smmu )?context fault: (.*)",
        lambda found: (
            f"{found[1].strip()}; this is an SMMUv2, whose faults have no event records: see FSR "
            "and FSYNR in Arm IHI 0062"
        ),
    ),
    _row(
        "SMMUv2 fault",
        r"(Unexpected global fault|Blocked unknown Stream ID \S+)",
        lambda found: f"{found[1]}; this is an SMMUv2: see GFSR in Arm IHI 0062",
    ),
    _row(
        "SMMUv2 registers",
        r"((?:FSR|FSYNR\d|GFSR)\s.*)",
        lambda found: f"{found[1].strip()}; of an SMMUv2",
    ),
    _row(None, r".*"),
)


def explain(rows: tuple[MessageKind, ...], text: str, *, start: bool = True) -> Meaning | bool:
    """Return what a text means by one of these rows, True if it tells of nothing, False if no row
    fits. With `start` the text has to begin so."""
    for name, pattern, meaning in rows:
        found = pattern.match(text) if start else pattern.search(text)
        if found is None:
            continue
        if name is None:
            return True
        return Meaning(name, meaning if isinstance(meaning, str) else meaning(found))
    return False


#: One quick look tells that a line has nothing for this table: most lines of a log.
HINT = re.compile(
    r"smmu|vEVENTQ|cmdqv|messages|entries at|LVCMDQ|Invalid STE|iommufd", re.IGNORECASE
)
