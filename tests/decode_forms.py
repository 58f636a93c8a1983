"""Print event records as kernels, loggers, mail programs and debuggers do: for tests of what reads
them again."""

from __future__ import annotations

import bz2
import gzip
import html
import json
import lzma
import random
import struct
import textwrap
from collections.abc import Callable, Sequence

from harness.smmu.events import EventRecord, EventType

SMMU = "arm-smmu-v3 arm-smmu-v3.0.auto:"
CLIENT = "0000:42:00.0"
_CLASSES = (
    "CD fetch",
    "Stage 1 translation table fetch",
    "Input address caused fault",
    "Reserved",
)
#: The types that Linux has names for.
_NAMED = {
    EventType.C_BAD_STREAMID,
    EventType.F_STE_FETCH,
    EventType.C_BAD_STE,
    EventType.F_STREAM_DISABLED,
    EventType.C_BAD_SUBSTREAMID,
    EventType.F_CD_FETCH,
    EventType.C_BAD_CD,
    EventType.F_TRANSLATION,
    EventType.F_ADDR_SIZE,
    EventType.F_ACCESS,
    EventType.F_PERMISSION,
    EventType.F_VMS_FETCH,
}


def messages(record: EventRecord, device: str = SMMU) -> list[str]:
    """Return what Linux logs of a record, without time stamps."""
    head = f"{device} event {record.type:#04x} received:"
    return [head, *(f"{device} \t{word:#018x}" for word in record.words)]


def texts(record: EventRecord, device: str = SMMU, client: str = CLIENT) -> list[str]:
    """Return what newer kernels log of a record after its words."""
    w0, w1, w2, w3 = record.words
    name = record.name if record.type in _NAMED else "UNKNOWN"
    ssid = w0 >> 12 & 0xFFFFF if w0 >> 11 & 1 else 0
    said = f"{device} event: {name} client: {client} sid: {w0 >> 32:#x} ssid: {ssid:#x}"
    if 0x10 <= record.type <= 0x13:
        ipa = w3 & ((1 << 52) - 1) & ~0xFFF
        ttd = ""
        if record.type == EventType.F_PERMISSION and w1 >> 40 & 3 == 1:
            ttd = " ttd_read" if w1 >> 44 & 1 else " ttd_write"
        second = (
            f"{device} {'priv' if w1 >> 33 & 1 else 'unpriv'} {'inst' if w1 >> 34 & 1 else 'data'} "
            f"{'read' if w1 >> 35 & 1 else 'write'} {'s2' if w1 >> 39 & 1 else 's1'} "
            f'"{_CLASSES[w1 >> 40 & 3]}"{ttd}{" stall" if w1 >> 31 & 1 else ""} '
            f"stag: {w1 & 0xFFFF:#x}"
        )
        return [f"{said} iova: {w2:#x} ipa: {ipa:#x}", second]
    if record.type in (EventType.F_STE_FETCH, EventType.F_CD_FETCH, EventType.F_VMS_FETCH):
        return [f"{said} fetch_addr: {w3 & ((1 << 52) - 1) & ~7:#x}"]
    return [said]


def log(records: Sequence[EventRecord], *, new: bool = False) -> list[str]:
    """Return the lines of a kernel log with these records."""
    return [
        line for record in records for line in (*messages(record), *(texts(record) if new else []))
    ]


# -- forms of a log: lines without a time in, bytes out ------------------------------------------

Lines = list[str]


def _stamped(lines: Lines) -> Lines:
    return [f"[{100 + at / 1e6:12.6f}] {line}" for at, line in enumerate(lines)]


def _text(lines: Lines) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _coloured(line: str) -> str:
    driver, device, said = line.split(" ", 2)
    return f"\x1b[32m[  100.000000] \x1b[0m\x1b[33m{driver} {device} \x1b[0m\x1b[31m{said}\x1b[0m"


def _kmsg(lines: Lines) -> bytes:
    escaped = (line.replace("\t", "\\x09") for line in lines)
    return _text(
        [
            one
            for at, line in enumerate(escaped)
            for one in (
                f"3,{900 + at},{100000000 + at},-;{line}",
                " SUBSYSTEM=platform",
                " DEVICE=+platform:arm-smmu-v3.0.auto",
            )
        ]
    )


def _dmesg_json(lines: Lines) -> bytes:
    said = [{"pri": 3, "time": 100.0 + at, "msg": line} for at, line in enumerate(lines)]
    return json.dumps({"dmesg": said}, indent=3).encode() + b"\n"


def _journal_json(lines: Lines) -> bytes:
    return _text(
        [
            json.dumps({"__REALTIME_TIMESTAMP": "1764030000000001", "MESSAGE": line})
            for line in lines
        ]
    )


def _journal_bytes(lines: Lines) -> bytes:
    return _text([json.dumps({"MESSAGE": list(line.encode()), "PRIORITY": "3"}) for line in lines])


def _wrapped(width: int) -> Callable[[Lines], bytes]:
    def wrap(lines: Lines) -> bytes:
        return _text(
            [line[at : at + width] for line in _stamped(lines) for at in range(0, len(line), width)]
        )

    return wrap


def _reflowed(lines: Lines) -> bytes:
    """Wrap a quoted mail at spaces, as programs do that take it for text."""
    text = " ".join(_stamped(lines)).replace("\t", " ")
    return _text([f"> > {line}" for line in textwrap.wrap(text, 74, break_on_hyphens=False)])


def _mailed(width: int) -> Callable[[Lines], bytes]:
    """Wrap each line at spaces, which are removed, as a mail program does."""

    def wrap(lines: Lines) -> bytes:
        return _text(
            [
                part
                for line in _stamped(lines)
                for part in textwrap.wrap(line, width, break_on_hyphens=False)
            ]
        )

    return wrap


def _prefixed(prefix: str) -> Callable[[Lines], bytes]:
    return lambda lines: _text([prefix + line for line in _stamped(lines)])


LOGS: dict[str, Callable[[Lines], bytes]] = {
    "bare": _text,
    "dmesg": lambda lines: _text(_stamped(lines)),
    "raw priority": _prefixed("<3>"),
    "printk caller": lambda lines: _text([f"[  100.000001][   T12] {line}" for line in lines]),
    "vendor": lambda lines: _text([f"[    7.1] [pid:1,cpu0,irq/13-smmu]{one}" for one in lines]),
    "dmesg -T": lambda lines: _text([f"[Tue Mar  4 05:06:07 2025] {line}" for line in lines]),
    "dmesg iso": lambda lines: _text([f"2025-03-04T05:06:07,000001+01:00 {one}" for one in lines]),
    "colour": lambda lines: _text([_coloured(line) for line in lines]),
    "dmesg -x": lambda lines: _text([f"kern  :err   : {line}" for line in _stamped(lines)]),
    "dmesg --json": _dmesg_json,
    "compact json": lambda lines: json.dumps([{"msg": line} for line in lines]).encode(),
    "journal json": _journal_json,
    "journal bytes": _journal_bytes,
    "journal short": lambda lines: _text(
        [f"Mar 04 05:06:07 host kernel: {line}" for line in lines]
    ),
    "journal iso": lambda lines: _text(
        [f"2025-03-04T05:06:07+0100 host kernel: {line}" for line in lines]
    ),
    "syslog": lambda lines: _text(
        [f"Mar  4 05:06:07 host kernel: {one}".replace("\t", "#011") for one in _stamped(lines)]
    ),
    "kmsg": _kmsg,
    "serial": _prefixed("[2025-03-04 05:06:07] "),
    "minicom": _prefixed("05:06:07.123 "),
    "quoted": _prefixed("> > "),
    "patch": _prefixed("+"),
    "indented": _prefixed("    "),
    "table": lambda lines: _text([f"| {line} |" for line in _stamped(lines)]),
    "ticks": lambda lines: _text([f"`{line}`" for line in _stamped(lines)]),
    "ending": lambda lines: _text([f"{line}   <-- here" for line in _stamped(lines)]),
    "spaces": lambda lines: _text([one.replace("\t", "        ") for one in _stamped(lines)]),
    "html": lambda lines: _text(
        [f"<code>{html.escape(line)}</code><br/>" for line in _stamped(lines)]
    ),
    "html in a line": lambda lines: (
        "<pre>" + "<br>".join(map(html.escape, _stamped(lines))) + "</pre>"
    ).encode(),
    "wrapped at 40": _wrapped(40),
    "wrapped at 60": _wrapped(60),
    "wrapped at 72": _wrapped(72),
    "wrapped at 80": _wrapped(80),
    "mailed at 50": _mailed(50),
    "mailed at 60": _mailed(60),
    "reflowed": _reflowed,
    "crlf": lambda lines: _text(_stamped(lines)).replace(b"\n", b"\r\n"),
    "crcrlf": lambda lines: _text(_stamped(lines)).replace(b"\n", b"\r\r\n"),
    "utf-16": lambda lines: _text(_stamped(lines)).decode().encode("utf-16"),
    "utf-16-le": lambda lines: _text(_stamped(lines)).decode().encode("utf-16-le"),
    "utf-8 mark": lambda lines: b"\xef\xbb\xbf" + _text(_stamped(lines)),
    "latin-1": lambda lines: "Prüfung: schön\n".encode("latin-1") + _text(_stamped(lines)),
    "gzip": lambda lines: gzip.compress(_text(_stamped(lines))),
    "xz": lambda lines: lzma.compress(_text(_stamped(lines))),
    "bzip2": lambda lines: bz2.compress(_text(_stamped(lines))),
    "other lines between": lambda lines: _text(
        [one for line in _stamped(lines) for one in (line, "[  100.0] audit: type=1400 a 0x10 b")]
    ),
    "no newline at the end": lambda lines: _text(_stamped(lines))[:-1],
    "nul bytes": lambda lines: b"\x00\x00" + _text(_stamped(lines)),
}


# -- dumps of memory -----------------------------------------------------------------------------


def _lines_of(data: bytes, size: int) -> list[tuple[int, bytes]]:
    return [(at, data[at : at + size]) for at in range(0, len(data), size)]


def _ascii(data: bytes) -> str:
    return "".join(chr(one) if 0x20 <= one < 0x7F else "." for one in data)


def _numbers(data: bytes, width: int, order: str = "<") -> list[int]:
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    return list(struct.unpack(f"{order}{len(data) // width}{code}", data))


def _dump(
    prefix: str, size: int, width: int, *, order: str = "<", between: str = " ", mark: str = ""
) -> Callable[[bytes], bytes]:
    """Print memory in lines of `size` bytes and numbers of `width` bytes."""

    def dump(data: bytes) -> bytes:
        return _text(
            [
                prefix.format(at=0x48000000 + at)
                + between.join(f"{mark}{one:0{2 * width}x}" for one in _numbers(part, width, order))
                for at, part in _lines_of(data, size)
            ]
        )

    return dump


def _hexdump(data: bytes) -> bytes:
    lines = []
    for at, part in _lines_of(data, 16):
        digits = [f"{one:02x}" for one in part]
        lines.append(f"{at:08x}  {' '.join(digits[:8])}  {' '.join(digits[8:])}  |{_ascii(part)}|")
    return _text([*lines, f"{len(data):08x}"])


def _xxd(data: bytes) -> bytes:
    return _text(
        [
            f"{at:08x}: {' '.join(part.hex()[i : i + 4] for i in range(0, 32, 4))}  {_ascii(part)}"
            for at, part in _lines_of(data, 16)
        ]
    )


def _with_text(prefix: str, width: int, gap: str) -> Callable[[bytes], bytes]:
    def dump(data: bytes) -> bytes:
        return _text(
            [
                prefix.format(at=0x48000000 + at)
                + " ".join(f"{one:0{2 * width}x}" for one in _numbers(part, width))
                + gap
                + _ascii(part)
                for at, part in _lines_of(data, 16)
            ]
        )

    return dump


DUMPS: dict[str, Callable[[bytes], bytes]] = {
    "words": _dump("", 32, 8, mark="0x"),
    "bare words": _dump("", 32, 8),
    "words with commas": _dump("", 32, 8, mark="0x", between=", "),
    "a word a line": _dump("", 8, 8, mark="0x"),
    "short words": lambda data: _text(
        [" ".join(f"{one:#x}" for one in _numbers(part, 8)) for _, part in _lines_of(data, 32)]
    ),
    "32-bit words": _dump("", 32, 4),
    "32-bit words with 0x": _dump("", 32, 4, mark="0x"),
    "devmem": _dump("", 4, 4, mark="0x"),
    "bytes": _dump("", 16, 1),
    "hexdump": _dump("{at:07x} ", 16, 2),
    "hexdump -C": _hexdump,
    "xxd": _xxd,
    "xxd -e": _with_text("{at:08x}: ", 4, "  "),
    "xxd -g1": _dump("{at:08x}: ", 16, 1),
    "od -x": _dump("{at:07o} ", 16, 2),
    "od -t x1": _dump("{at:07o} ", 16, 1),
    "od -t x4": _dump("{at:07o} ", 16, 4),
    "od -t x8": _dump("{at:07o} ", 16, 8),
    "od -A x -t x8 -w32": _dump("{at:06x} ", 32, 8),
    "gdb x/gx": _dump("{at:#x}:\t", 16, 8, between="\t", mark="0x"),
    "gdb with symbols": _dump("{at:#x} <evtq+16>:\t", 16, 8, between="\t", mark="0x"),
    "gdb x/wx": _dump("{at:#x}:\t", 16, 4, between="\t", mark="0x"),
    "xp": _dump("{at:016x}: ", 16, 8, mark="0x"),
    "xp words": _dump("{at:016x}: ", 16, 4, mark="0x"),
    "crash rd": _with_text("{at:16x}:  ", 8, "   "),
    "md.q": _with_text("{at:08x}: ", 8, "  "),
    "md.l": _with_text("{at:08x}: ", 4, "  "),
    "raw": lambda data: data,
}


def zstd(data: bytes) -> bytes:
    """Return data compressed by zstd."""
    import zstandard

    packed: bytes = zstandard.ZstdCompressor().compress(data)
    return packed


def noise(seed: int, size: int) -> bytes:
    """Return random bytes."""
    return random.Random(seed).randbytes(size)
