"""Turn the bytes of a file into text or into queue memory: compression, character sets, binaries.

Nothing is held but the piece that is read: a file can be larger than memory.
"""

from __future__ import annotations

import bz2
import codecs
import enum
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from harness.errors import HarnessError
from harness.smmu.decode import veventq
from harness.smmu.decode.dumps import plausible_memory

#: A line that is longer is cut, in bytes: no log has such lines, and rubbish must not fill memory.
LONGEST_LINE = 1 << 20
_START = 1 << 16


class Form(enum.StrEnum):
    """What a file can be said to be with `--format`."""

    AUTO = "auto"
    LOG = "log"
    DUMP = "dump"
    RAW = "raw"


class BadInputError(HarnessError):
    """The input cannot be read as what it is, or is said to be."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd() -> _Decompressor:
    try:
        import zstandard
    except ImportError:
        raise BadInputError(
            "the input is compressed by zstd, which this Python cannot read",
            fix="pipe it: zstd -dc FILE | hil decode",
        ) from None
    made: _Decompressor = zstandard.ZstdDecompressor().decompressobj()
    return made


_MAGIC: tuple[tuple[bytes, str, Callable[[], _Decompressor]], ...] = (
    (b"\x1f\x8b", "gzip", lambda: zlib.decompressobj(31)),
    (b"\xfd7zXZ\x00", "xz", lzma.LZMADecompressor),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)


def decompressed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file as they were before compression, if it is compressed. Raises
    BadInputError for damaged data, after what could be read."""
    first, rest = _beginning(chunks, 8)
    for magic, name, make in _MAGIC:
        if first.startswith(magic):
            inner = _inflate(_chain(first, rest), name, make)
            yield from decompressed(inner) if name != "zstd" else inner
            return
    yield from _chain(first, rest)


def _inflate(
    chunks: Iterable[bytes], name: str, make: Callable[[], _Decompressor]
) -> Iterator[bytes]:
    one = make()
    try:
        for chunk in chunks:
            while chunk:
                if one.eof:  # several compressed files, one after the other
                    chunk = chunk.lstrip(b"\x00")
                    if not chunk:
                        break
                    one = make()
                # In pieces: a small file can become a huge one.
                for at in range(0, len(chunk), 1 << 14):
                    piece = one.decompress(chunk[at : at + (1 << 14)])
                    if piece:
                        yield piece
                    if one.eof:
                        chunk = one.unused_data + chunk[at + (1 << 14) :]
                        break
                else:
                    chunk = b""
    except Exception as problem:
        if isinstance(problem, BadInputError):
            raise
        raise BadInputError(f"the {name} data is damaged: {problem}") from None
    if not one.eof:
        raise BadInputError(f"the {name} data ends too early")


def _beginning(chunks: Iterable[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return at least so many bytes, if there are as many before the input pauses, and an iterator
    of the rest: it begins with the pause."""
    rest = iter(chunks)
    first = b""
    while len(first) < size:
        chunk = next(rest, None)
        if chunk is None:
            break
        if first and not chunk:
            return first, itertools.chain([chunk], rest)
        first += chunk
    return first, rest


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def opened(chunks: Iterable[bytes], form: Form) -> tuple[bool, Iterator[bytes]]:
    """Return whether the input is queue memory, and its bytes: as they are if it is, else as UTF-8
    text. Raises BadInputError while it is read."""
    plain = decompressed(chunks)
    first, rest = _beginning(plain, 4096)
    if form is Form.RAW:
        return True, _chain(first, rest)
    charset = _charset(first)
    if charset is not None:
        return False, _recoded(_chain(first, rest), charset)
    if form is Form.AUTO and _is_binary(first):
        more, rest = _beginning(rest, _START)
        first += more
        if plausible_memory(first) or veventq.is_read(first):
            return True, _chain(first, rest)
    return False, _chain(first, rest)


def _charset(first: bytes) -> str | None:
    """Return the character set of a text in which a character has several bytes, or None."""
    for mark, name in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF8, "utf-8-sig"),
    ):
        if first.startswith(mark):
            return name
    head = first[:512]
    if len(head) >= 16:
        # Text without a mark: every second byte is 0, and the others are not.
        even, odd = head[::2], head[1::2]
        for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
            if zeros.count(0) > 0.9 * len(zeros) and _printable(others) > 0.9:
                return name
    return None


_TEXT = bytes({*range(0x20, 0x7F), *b"\t\n\r\x1b\x08\x0c"})


def _printable(data: bytes) -> float:
    return len(data.translate(None, bytes(set(range(256)) - set(_TEXT)))) / len(data)


def _is_binary(data: bytes) -> bool:
    return bool(data) and b"\x00" in data and _printable(data) < 0.7


def _recoded(chunks: Iterable[bytes], charset: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(charset)(errors="replace")
    for chunk in chunks:
        text = decoder.decode(chunk)
        if text or not chunk:  # a part of a character is no pause
            yield text.encode(errors="replace")
    if text := decoder.decode(b"", final=True):
        yield text.encode(errors="replace")


_CUT = re.compile(rb".*[\s}]", re.DOTALL)


def blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a text in blocks of whole lines; the last may lack its newline. A line of
    more than LONGEST_LINE bytes is cut at a space, where it has one. An empty block says that the
    input pauses, as an empty chunk does."""
    kept: list[bytes] = []
    size = 0
    for chunk in chunks:
        if not chunk:
            yield b""
        end = chunk.rfind(b"\n") + 1
        if end:
            yield b"".join((*kept, chunk[:end]))
            kept, size = [], 0
            chunk = chunk[end:]
        if chunk:
            kept.append(chunk)
            size += len(chunk)
        while size > LONGEST_LINE:
            line = b"".join(kept)
            cut = _CUT.match(line, 0, LONGEST_LINE)
            at = cut.end() if cut else LONGEST_LINE
            yield line[:at]
            kept, size = [line[at:]], size - at
    if kept:
        yield b"".join(kept)
