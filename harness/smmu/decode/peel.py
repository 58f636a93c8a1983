"""Take a line of a file out of what it is wrapped in: colours, markup, JSON, quotes, prefixes.

A physical line can have several lines of a log in it, as the rows of an HTML page or the messages
of a JSON document have.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from harness.smmu.decode.found import Stamp


class Peeled(NamedTuple):
    """One line of a log: its time, the text after all prefixes, and whether it had the prefix of a
    kernel's or a system's log. A line without one may continue the line before it."""

    time: Stamp
    text: str
    logged: bool


_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_BREAK = re.compile(r"</?(?:br|p|div|li|tr|pre|td|h\d)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:a|b|i|u|s|em|strong|code|tt|span|font|kbd|samp|mark|blockquote|table|tbody|thead|th|ul"
    r"|ol|html|body|head|article|section|small|big|sub|sup|ins|del|img|title)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
#: An entity without its semicolon would turn the `&` of any text into something else.
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|\w+);", re.IGNORECASE)
_OCTAL = re.compile(r"#(0[0-3][0-7])")  # rsyslog writes control characters so
_HEX_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")  # and /dev/kmsg so
_QUOTE = re.compile(r"^(?:\s*(?:>|&gt;|\|(?!\|))\s?)+")
_JSON = re.compile(
    r'"(?:msg|MESSAGE|message|log|text|line)"\s*:\s*(?:("(?:[^"\\]|\\.)*")|(\[[\s\d,]*\]))'
)
#: Where an object begins: on a line of its own, or after another one.
_OBJECT = re.compile(r"(?:^\s*\[?|\}\s*,)\s*\{")
_JSON_TIME = re.compile(
    r'"(time|timestamp|@timestamp|__REALTIME_TIMESTAMP|_SOURCE_MONOTONIC_TIMESTAMP'
    r'|__MONOTONIC_TIMESTAMP|ts)"\s*:\s*"?([^",}\s][^",}]*)"?'
)
#: Times in microseconds.
_MICROSECONDS = frozenset(
    {"__REALTIME_TIMESTAMP", "_SOURCE_MONOTONIC_TIMESTAMP", "__MONOTONIC_TIMESTAMP"}
)

_KMSG = re.compile(r"^\d+,\d+,(\d+),[^;]*;")
_MONOTONIC = re.compile(
    # `dmesg -d` adds the time since the line before, a kernel perhaps who printed it.
    r"\[\s*(\d+\.\d+)\s*(?:<\s*\d+\.\d+>\s*)?\](?:\s*\[\s*(?:[CT]\d+|pid:[^\]]*)\s*\])?"
)
#: Before a stamp this is the rest of a message: a mail program put the next one on its line.
_OF_A_MESSAGE = re.compile(r"0x|received|\"|stag|sid|client|smmu|event")
_CTIME = re.compile(
    r"\[?((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\s+[A-Z][a-z]{2}\s+\d+\s+[\d:.]+(?:\s+\d{4})?)\]?"
)
_ISO = re.compile(
    r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:\s?(?:Z|UTC|[+-]\d\d:?\d\d))?)\]?"
)
_SYSLOG = re.compile(r"^(?:<\d+>)?([A-Z][a-z]{2}\s+\d+\s\d\d:\d\d:\d\d(?:\.\d+)?)\s")
_KERNEL = re.compile(r"\bkernel(?:\[\d+\])?:\s")
_EPOCH = re.compile(r"^(\d{9,10}\.\d{3,9})\s")


class Peeler:
    """Peels lines. It remembers the time that the lines before gave, for JSON over many lines."""

    def __init__(self) -> None:
        self._time: Stamp = None

    def peel(self, line: str) -> Iterator[Peeled]:
        """Yield the lines of a log that a physical line has."""
        if '"' in line and (found := list(self._json(line))):
            for time, text in found:
                for one in text.splitlines() or [""]:
                    yield self._prefixes(one, time, logged=True)
            return
        for one in self._markup(line):
            yield self._prefixes(one, None, logged=False)

    def _json(self, line: str) -> Iterator[tuple[Stamp, str]]:
        end = 0
        for found in _JSON.finditer(line):
            begun = None
            for begun in _OBJECT.finditer(line, end, found.start()):
                end = begun.end()
            times = _JSON_TIME.findall(line, end, found.start())
            for key, value in times:
                self._time = _number(value, microseconds=key in _MICROSECONDS)
            end = found.end()
            try:
                value = json.loads(found[1] or found[2])
            except (ValueError, RecursionError):
                continue
            if isinstance(value, list):  # journald writes a message so that is not clean text
                value = bytes(one for one in value if 0 <= one < 256).decode(errors="replace")
            time = self._time
            close = line.find("}", end)
            # What was remembered is an earlier object's if this one begins on this line.
            known = bool(times) or (begun is None and time is not None)
            if not known and (later := _JSON_TIME.search(line, end, max(close, end))):
                time = _number(later[2], microseconds=later[1] in _MICROSECONDS)
            yield time, value
        if not end and (alone := _JSON_TIME.search(line)):
            self._time = _number(alone[2], microseconds=alone[1] in _MICROSECONDS)

    @staticmethod
    def _markup(line: str) -> Iterator[str]:
        if "<" in line and ">" in line:
            for piece in _BREAK.split(line):
                text = _TAG.sub("", piece)
                if text.strip():
                    yield html.unescape(text) if "&" in text and _ENTITY.search(text) else text
            return
        yield html.unescape(line) if "&" in line and _ENTITY.search(line) else line

    @staticmethod
    def _prefixes(text: str, time: Stamp, *, logged: bool) -> Peeled:
        if "\x1b" in text:
            text = _ANSI.sub("", text)
        if "\x08" in text or "\x00" in text:
            text = text.replace("\x00", "").replace("\x08", "")
        if "\xa0" in text:  # web pages and mails have it in place of spaces
            text = text.replace("\xa0", " ")
        text = _QUOTE.sub("", text)
        if "#0" in text:
            text = _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
        if "\\" in text:
            text = _HEX_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).replace("\\t", "\t")
        if kmsg := _KMSG.match(text):
            return Peeled(int(kmsg[1]) / 1e6, text[kmsg.end() :], logged=True)
        head = text[:160]
        if kernel := _KERNEL.search(head):
            stamp = time_of(head[: kernel.start()]) or time
            text, logged = text[kernel.end() :], True
            head = text[:160]
            time = stamp
        # A serial console's server may put its own time before the kernel's, which is kept.
        monotonic = _MONOTONIC.search(head)
        if monotonic and not _OF_A_MESSAGE.search(head, 0, monotonic.start()):
            return Peeled(float(monotonic[1]), text[monotonic.end() :], logged=True)
        if logged:
            return Peeled(time, text, logged=True)
        for pattern in (_CTIME, _ISO, _SYSLOG, _EPOCH):
            if found := pattern.search(head):
                stamp = _number(found[1]) if pattern is _EPOCH else found[1]
                return Peeled(stamp, text[found.end() :], logged=True)
        return Peeled(time, text, logged=False)


def time_of(prefix: str) -> Stamp:
    """Return the time in a prefix of a line, or None."""
    if found := _MONOTONIC.search(prefix):
        return float(found[1])
    if kmsg := _KMSG.match(prefix):
        return int(kmsg[1]) / 1e6
    return _stamp(prefix)


def _stamp(prefix: str) -> Stamp:
    for pattern in (_CTIME, _ISO, _SYSLOG):
        if found := pattern.search(prefix):
            return found[1]
    if epoch := _EPOCH.match(prefix):
        return float(epoch[1])
    return None


def _number(text: str, *, microseconds: bool = False) -> Stamp:
    try:
        return float(text) / (1e6 if microseconds else 1)
    except ValueError:
        return text
