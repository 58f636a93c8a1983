"""The bytes of a file become text or queue memory, however it is compressed and in whatever pieces
it comes."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator

import pytest

from harness.smmu.decode import forms
from harness.smmu.decode.forms import BadInputError, Form, blocks, decompressed, opened
from harness.smmu.events import EventRecord
from tests.decode_forms import noise, zstd

TEXT = b"[    1.500000] arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:\n" * 20
RECORD = EventRecord((0x2200_0000_0010, 2 << 40, 0x1000, 0)).to_bytes()
PACKERS: list[Callable[[bytes], bytes]] = [gzip.compress, lzma.compress, bz2.compress, zstd]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, form: Form = Form.AUTO, size: int = 1000) -> tuple[bool, bytes]:
    raw, chunks = opened(pieces(data, size), form)
    return raw, b"".join(chunks)


# -- compression -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("pack", PACKERS)
def test_compressed_data_is_what_it_was(pack: Callable[[bytes], bytes], size: int) -> None:
    data = noise(1, 3000)
    assert b"".join(decompressed(pieces(pack(data), size))) == data


@pytest.mark.parametrize("pack", PACKERS[:3])
def test_several_compressed_files_are_one(pack: Callable[[bytes], bytes]) -> None:
    parts = [noise(seed, 20_000) for seed in range(3)]
    data = b"".join(map(pack, parts))
    for size in (1000, 1 << 14, 1 << 20):
        assert b"".join(decompressed(pieces(data, size))) == b"".join(parts)
        padded = data + bytes(3000)
        assert b"".join(decompressed(pieces(padded, size))) == b"".join(parts)


def test_what_repeats_after_long_is_found_again() -> None:
    data = 2 * noise(1, 30_000)
    assert b"".join(decompressed([gzip.compress(data)])) == data


def test_a_small_file_that_becomes_a_huge_one_comes_in_pieces() -> None:
    packed = gzip.compress(bytes(50_000_000))
    assert len(packed) > 2 << 14
    assert max(map(len, decompressed([packed]))) < 20_000_000


@pytest.mark.parametrize("pack", PACKERS[:3])
def test_a_file_may_be_compressed_twice(pack: Callable[[bytes], bytes]) -> None:
    assert b"".join(decompressed([pack(gzip.compress(TEXT))])) == TEXT


def test_plain_data_is_as_it_is() -> None:
    for data in (b"", b"a", b"\x1f", b"BZ", TEXT):
        assert b"".join(decompressed(pieces(data, 3))) == data


@pytest.mark.parametrize(
    ("pack", "name"), [*zip(PACKERS, ("gzip", "xz", "bzip2", "zstd"), strict=True)]
)
def test_damaged_data_is_an_error_after_what_could_be_read(
    pack: Callable[[bytes], bytes], name: str
) -> None:
    data = noise(1, 300_000)
    packed, got = pack(data), bytearray()
    for wrong, how in (
        (packed[: len(packed) // 2], "ends too early"),
        (packed[:6] + b"\xff" * 2000, "is damaged"),
    ):
        with pytest.raises(BadInputError, match=f"the {name} data {how}"):  # noqa: PT012
            for chunk in decompressed([wrong]):
                got += chunk
    # Of bzip2 nothing is known before the end of a block.
    assert bool(got) == (name != "bzip2")
    assert len(got) < len(data)
    assert data.startswith(got)


def test_zstd_inside_another_is_left_as_it_is() -> None:
    assert b"".join(decompressed([zstd(gzip.compress(TEXT))])) == gzip.compress(TEXT)


def test_a_python_without_zstd_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(TEXT)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(BadInputError, match="which this Python cannot read") as told:
        b"".join(decompressed([packed]))
    assert told.value.fix == "pipe it: zstd -dc FILE | hil decode"


# -- text or memory ----------------------------------------------------------------------------

WORDS = "Prüfung: schön, ἀγαθόν\n" * 8


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_of_any_character_set_becomes_utf8(charset: str, size: int) -> None:
    assert read(WORDS.encode(charset), size=size) == (False, WORDS.encode())


def test_a_mark_may_be_the_other_way_round() -> None:
    assert read(b"\xfe\xff" + WORDS.encode("utf-16-be")) == (False, WORDS.encode())


def test_damaged_text_is_read_as_far_as_it_goes() -> None:
    assert read(b"\xef\xbb\xbfab\xffc") == (False, "ab\ufffdc".encode())
    assert read(b"\xff\xfea\x00b") == (False, "a\ufffd".encode())


@pytest.mark.parametrize(
    ("text", "recoded"),
    [
        ("smmu one", True),
        ("smmu on", False),
        ("ü" + "smmu smmu smmu", True),
        ("\u0394" * 2 + "smmu smmu", False),
        ("\u0394" + "smmu smmu", False),
        ("\u0394" * 1 + "smmu smmu smmu", True),
        ("\x01" * 2 + "smmu smmu", False),
        ("\x01" + "smmu smmu", False),
        ("\x01" * 1 + "smmu smmu smmu", True),
        ("\x1f" * 2 + "smmu smmu", False),
        ("\x7f" * 2 + "smmu smmu", False),
        ("\xff" * 2 + "smmu smmu", False),
        ("~" * 12, True),
        ("\t\n\r\x1b\x08\x0c" * 2, True),
    ],
)
def test_text_without_a_mark_has_zeros_in_every_second_byte(text: str, recoded: bool) -> None:
    for charset in ("utf-16-le", "utf-16-be"):
        data = text.encode(charset)
        assert read(data) == (False, text.encode() if recoded else data)


def test_a_few_zeros_make_no_other_character_set() -> None:
    for data in (
        b"a\x00" + b"smmu" * 8,
        b"\x00a" + b"smmu" * 8,
        "smmu sm".encode("utf-16-le") + b"a",
    ):
        assert read(data) == (False, data)


def test_only_the_beginning_tells_the_character_set() -> None:
    text = "a" * 256 + "\u0394" * 1000
    assert read(text.encode("utf-16-le")) == (False, text.encode())


def test_queue_memory_is_told_from_text() -> None:
    memory = RECORD * 3 + bytes(64)
    for size in (1, 1000):
        assert read(memory, size=size) == (True, memory)
    assert read(memory, Form.LOG) == (False, memory)
    assert read(memory, Form.DUMP) == (False, memory)
    assert read(TEXT) == (False, TEXT)
    assert read(TEXT, Form.RAW) == (True, TEXT)
    assert read(b"") == (False, b"")
    assert read(gzip.compress(memory)) == (True, memory)


def test_a_part_of_a_record_at_the_end_of_memory_is_kept() -> None:
    assert read(RECORD * 3 + RECORD[:31]) == (True, RECORD * 3 + RECORD[:31])


def test_a_queue_may_begin_with_many_empty_slots() -> None:
    for rest, raw in ((RECORD, True), (b"\x77" * 32, False)):
        memory = bytes((1 << 16) - 32 - 4096 + 4096) + rest
        assert read(memory) == (raw, memory)
        assert read(memory, size=1 << 20)[0] is raw


def test_what_has_many_printable_characters_is_text() -> None:
    # Its type is a space.
    record = b"\x20x" + bytes(30)
    for printable, raw in ((111, True), (112, False), (113, False)):
        data = bytearray(5 * record)
        zeros = [at for at, byte in enumerate(data) if not byte]
        for at in zeros[: printable - 10]:
            data[at] = ord("x")
        assert read(bytes(data))[0] is raw


def test_only_the_beginning_tells_memory() -> None:
    memory = bytes((1 << 16) + 8192) + 3000 * b"\x77" * 32
    assert read(memory) == (True, memory)


def test_rubbish_is_no_memory() -> None:
    data = noise(1, 10_000)
    assert read(data) == (False, data)


# -- blocks of lines ---------------------------------------------------------------------------


def test_blocks_have_whole_lines() -> None:
    data = b"one\ntwo\n\nthree"
    for size in range(1, 20):
        made = [*blocks(pieces(data, size))]
        assert b"".join(made) == data
        assert all(one.endswith(b"\n") for one in made[:-1])
        assert made[-1] == b"three"
    assert [*blocks([data])] == [b"one\ntwo\n\n", b"three"]
    assert [*blocks([b"one\n"])] == [b"one\n"]
    assert [*blocks([])] == []


def test_a_pause_is_an_empty_block() -> None:
    assert [*blocks([b"one\ntw", b"", b"o\n", b""])] == [b"one\n", b"", b"two\n", b""]
    assert [*blocks([b"a", b"b", b"", b"c"])] == [b"", b"abc"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have lines be cut that are longer than ten bytes."""
    monkeypatch.setattr(forms, "LONGEST_LINE", 10)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("data", "cut"),
    [
        (b"x" * 10, [b"x" * 10]),
        (b"x" * 11, [b"x" * 10, b"x"]),
        (b"x" * 35, [b"x" * 10, b"x" * 10, b"x" * 10, b"x" * 5]),
        (b"one\n" + b"x" * 10, [b"one\n", b"x" * 10]),
        (b"one\n" + b"x" * 11, [b"one\n", b"x" * 10, b"x"]),
        (b" 12345678901", [b" ", b"1234567890", b"1"]),
        (b"one two three", [b"one two ", b"three"]),
        (b"one,two}three", [b"one,two}", b"three"]),
        (b"123456789 1234", [b"123456789 ", b"1234"]),
        (b"1234567890 123", [b"1234567890", b" 123"]),
    ],
)
def test_a_line_that_is_too_long_is_cut_at_a_space(data: bytes, cut: list[bytes]) -> None:
    assert [*blocks([data])] == cut
    assert [*blocks([data, b"", b"\n"])][: len(cut) - 1] == cut[:-1]
    assert b"".join(blocks(pieces(data, 3))) == data


def test_the_longest_line_is_a_mebibyte() -> None:
    assert forms.LONGEST_LINE == 1 << 20
