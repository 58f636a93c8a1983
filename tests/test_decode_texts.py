"""The text that newer kernels print of an event gives a record, or is compared with its words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.smmu.decode import messages
from harness.smmu.decode.found import Sighting, Words
from harness.smmu.decode.texts import (
    Text,
    attribute_bits,
    attributes_differ,
    client_if_same,
    driver_at_end,
    is_whole_body,
    text_of,
)
from harness.smmu.events import EventRecord, EventType
from tests.decode_forms import CLIENT, texts

ALL = (1 << 64) - 1
#: The bits of the second word that the attributes show.
STALL, PRIV, INST, READ, S2, TTRNW = 1 << 31, 1 << 33, 1 << 34, 1 << 35, 1 << 39, 1 << 44
CD, TTD, IN, RESERVED = (number << 40 for number in range(4))


def fault(
    kind: int = EventType.F_TRANSLATION,
    *,
    first: int = 0x2200 << 32,
    second: int = IN,
    address: int = 0x1000,
    fourth: int = 0,
) -> Words:
    return (first | kind, second, address, fourth)


def printed(words: Words) -> list[str]:
    """Return the lines that Linux prints of an event after its words, without the device's name:
    the text without `event: `, and perhaps the attributes."""
    said = texts(EventRecord(words), device="")
    return [line.strip().removeprefix("event: ") for line in said]


def attributes(line: str) -> re.Match[str]:
    found = messages.ATTRIBUTES.match(line)
    assert found is not None
    return found


def text(**changed: Any) -> Text:
    made = Text("F_TRANSLATION", CLIENT, 0x2200, 0, 0x1000, 0, None)
    return made._replace(**changed)


# -- text alone --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (
            f"event: F_TRANSLATION client: {CLIENT} sid: 0x2200 ssid: 0x13 iova: 0x1000 ipa: 0x0",
            Text("F_TRANSLATION", CLIENT, 0x2200, 0x13, 0x1000, 0, None),
        ),
        (
            "event: F_CD_FETCH client: (unassigned sid) sid: 0x22 ssid: 0x0 fetch_addr: 0x80",
            Text("F_CD_FETCH", None, 0x22, 0, None, None, 0x80),
        ),
        (
            "event: c_bad_ste client: (null) sid: 0x22 ssid: 0x0",
            Text("C_BAD_STE", None, 0x22, 0, None, None, None),
        ),
        # Of these types the kernel prints an address, too.
        ("event: F_TRANSLATION client: a sid: 0x22 ssid: 0x0", None),
        ("event: F_STE_FETCH client: a sid: 0x22 ssid: 0x0 fetch_", None),
        ("event: C_BAD_STE client: a sid: 0x22", None),
        ("an event: C_BAD_STE client: a sid: 0x22 ssid: 0x0", None),
    ],
)
def test_a_text_is_read_if_it_is_whole(body: str, read: Text | None) -> None:
    assert text_of(body) == read


def test_a_text_gives_the_words_that_it_tells_of() -> None:
    plain = text(ssid=0)
    assert plain.words(None) == (0x2200 << 32 | 0x10, 0, 0x1000, 0)
    assert text(ssid=3, ipa=0x5000).words(None) == (0x2200 << 32 | 0x3810, 0, 0x1000, 0x5000)
    assert text(iova=None, ipa=None).words(None) == (0x2200 << 32 | 0x10, 0, 0, 0)
    fetch = text(name="F_CD_FETCH", iova=None, ipa=None, fetch=0x80)
    assert fetch.words(None) == (0x2200 << 32 | 9, 0, 0, 0x80)
    # This type has no SSV.
    bad = text(name="C_BAD_SUBSTREAMID", ssid=3, iova=None, ipa=None)
    assert bad.words(None) == (0x2200 << 32 | 0x3008, 0, 0, 0)
    assert text(name="UNKNOWN", iova=None, ipa=None).words(None) == (0x2200 << 32, 0, 0, 0)
    said = attributes('unpriv data read s1 "CD fetch" stag: 0x7')
    assert plain.words(said)[1] == READ | 7


def test_a_text_knows_its_type() -> None:
    assert (text().number, text().has_attributes) == (0x10, True)
    assert (text(name="C_BAD_STE").number, text(name="C_BAD_STE").has_attributes) == (4, False)
    assert (text(name="UNKNOWN").number, text(name="UNKNOWN").has_attributes) == (None, False)


@pytest.mark.parametrize(
    ("line", "bits"),
    [
        ('unpriv data write s1 "CD fetch" stag: 0x0', 0),
        ('priv data write s1 "CD fetch" stag: 0x0', PRIV),
        ('unpriv inst write s1 "CD fetch" stag: 0x0', INST),
        ('unpriv data read s1 "CD fetch" stag: 0x0', READ),
        ('unpriv data write s2 "CD fetch" stag: 0x0', S2),
        ('unpriv data write s1 "CD fetch" stall stag: 0xabc', STALL | 0xABC),
        ('unpriv data write s1 "Stage 1 translation table fetch" stag: 0x0', TTD),
        ('unpriv data write s1 "Input address caused fault" stag: 0x0', IN),
        ('unpriv data write s1 "Reserved" stag: 0x0', RESERVED),
        ('unpriv data write s1 "what nobody knows" stag: 0x0', RESERVED),
        ('unpriv data write s2 "Stage 1 translation table fetch" ttd_write stag: 0x0', S2 | TTD),
        (
            'unpriv data write s2 "Stage 1 translation table fetch" ttd_read stag: 0x0',
            S2 | TTD | TTRNW,
        ),
    ],
)
def test_attributes_are_bits_of_the_second_word(line: str, bits: int) -> None:
    assert attribute_bits(attributes(line)) == bits


# -- text and words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words", "what"),
    [
        ({}, fault(), ""),
        ({"sid": 0x2201}, fault(), "sid"),
        ({"ssid": 1}, fault(), "ssid"),
        ({"ssid": 3}, fault(first=0x2200 << 32 | 0x3800), ""),
        ({"ssid": 0xFFFFF}, fault(first=0x2200 << 32 | 0xFFFF_F800), ""),
        # Without SSV a kernel prints 0, whatever the SubstreamID is.
        ({"ssid": 0}, fault(first=0x2200 << 32 | 0x3000), ""),
        ({"ssid": 0}, fault(first=0x2200 << 32 | 0x3800), "ssid"),
        ({"name": "F_ACCESS"}, fault(), "type"),
        ({"name": "UNKNOWN"}, fault(), ""),
        ({"iova": 0x1001}, fault(), "iova"),
        ({"iova": None}, fault(), ""),
        ({"ipa": 0x5000}, fault(fourth=0x5FFF), ""),
        ({"ipa": 0x5000}, fault(fourth=0x6000), "ipa"),
        ({"ipa": 0x5001}, fault(fourth=0x5001), "ipa"),
        ({"ipa": None}, fault(fourth=0x6000), ""),
        # Linux prints 52 bits.
        ({"ipa": 0x5000}, fault(fourth=1 << 52 | 0x5000), ""),
        ({"ipa": 0x5000}, fault(fourth=1 << 51 | 0x5000), "ipa"),
        ({"ipa": 1 << 52 | 0x5000}, fault(fourth=0x5000), ""),
        ({"ipa": None, "fetch": 0x88}, fault(fourth=1 << 52 | 0x8F), ""),
        ({"ipa": None, "fetch": 1 << 52 | 0x88}, fault(fourth=0x88), ""),
        ({"ipa": None, "fetch": 0x88}, fault(fourth=0x80), "fetch"),
        ({"name": "F_ACCESS", "sid": 1, "iova": 2}, fault(), "type, sid, iova"),
        # Implementation defined types have no StreamID that anybody knows.
        ({"name": "UNKNOWN", "iova": None}, fault(0xE3), ""),
    ],
)
def test_what_differs_is_named(changed: dict[str, object], words: Words, what: str) -> None:
    said = text(**changed).differs_from(Sighting(1, words))
    assert said == (f"the kernel's text has another {what}" if what else "")


@pytest.mark.parametrize(
    "bits", [0, *(STALL, PRIV, INST, READ, S2, TTD, IN, RESERVED), S2 | TTD, 1, 1 << 15]
)
def test_attributes_that_differ_are_said(bits: int) -> None:
    (_, line) = printed(fault(second=bits))
    said = attributes(line)
    assert attributes_differ(said, Sighting(1, fault(second=bits))) == ""
    # What the attributes do not tell cannot differ.
    for other in (1 << 16, 1 << 30, 1 << 32, 1 << 36, 1 << 38, TTRNW, 1 << 63):
        assert attributes_differ(said, Sighting(1, fault(second=bits ^ other))) == ""
    for other in (1, 1 << 15, STALL, PRIV, INST, READ, S2, 1 << 40, 1 << 41):
        different = attributes_differ(said, Sighting(1, fault(second=bits ^ other)))
        assert different == "the kernel's text has other attributes than the words"


WORDS = [
    *(fault(kind, second=IN | READ) for kind in EventType),
    *(fault(kind, second=IN, first=ALL << 32 & ALL | 0xABCD_F800) for kind in (0x04, 0x08, 0x10)),
    fault(first=0xABCD_E000, fourth=ALL),
    *(fault(kind, fourth=ALL) for kind in (0x03, 0x09, 0x13, 0x25)),
    *(
        fault(second=bits)
        for bits in (PRIV, INST, READ, S2, STALL, CD, TTD, IN, RESERVED, TTD | TTRNW, 0xFFFF)
    ),
    *(fault(EventType.F_PERMISSION, second=bits) for bits in (TTD, TTD | TTRNW, IN, IN | TTRNW)),
    fault(EventType.F_PERMISSION, second=RESERVED | TTRNW),
    fault(0xE3),
    fault(0x77),
]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: f"{words[0]:x}-{words[1]:x}")
def test_the_client_is_read_from_exactly_what_linux_prints(words: Words) -> None:
    said, *rest = printed(words)
    attributes = rest[0] if rest else ""
    assert client_if_same(words, said, attributes) == CLIENT
    for other in ("0000:42:00.1", "(unassigned sid)"):
        client = "" if other.startswith("(") else other
        assert client_if_same(words, said.replace(CLIENT, other), attributes) == client
    for wrong in ("", "two words"):
        assert client_if_same(words, said.replace(CLIENT, wrong), attributes) is None
    assert client_if_same(words, said + "0", attributes) is None
    assert client_if_same(words, "x" + said, attributes) is None
    assert client_if_same(words, said, attributes + " ") is None


def test_a_text_of_another_event_gives_no_client() -> None:
    said, attributes = printed(fault())
    for words in (
        fault(address=0x1001),
        fault(first=0x2201 << 32),
        fault(fourth=0x1000),
        fault(EventType.F_ACCESS),
        fault(second=IN | READ),
    ):
        assert client_if_same(words, said, attributes) is None
    (said,) = printed(fault(EventType.F_CD_FETCH, fourth=0x80))
    assert client_if_same(fault(EventType.F_CD_FETCH, fourth=0x88), said, "") is None


# -- whole lines and cut ones ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        ("event 0x10 received:", True),
        ("event 0x10 rec", False),
        ("skipping command in error state:", True),
        ("\t0x0000220000000010", True),
        ("\t0x000022000000001", False),
        ('unpriv data write s1 "CD fetch" stag: 0x0', True),
        ('unpriv data write s1 "CDfetch" stag: 0x0', False),
        ("event: C_BAD_STE client: a sid: 0x22 ssid: 0x0", True),
        ("event: F_TRANSLATION client: a sid: 0x22 ssid: 0x0", False),
        ("EVTQ overflow detected -- events lost", True),
        ("tegra241_cmdqv: VINTF0: allocated", True),
        ("ias 48-bit, oas 48-bit", True),
        ("something else", False),
    ],
)
def test_a_message_is_whole_or_goes_on(body: str, whole: bool) -> None:
    device = messages.DEVICE.search(f"arm-smmu-v3 arm-smmu-v3.0.auto: {body}")
    assert device is not None
    assert is_whole_body(device) is whole


def test_a_message_of_smmuv2s_driver_is_whole() -> None:
    device = messages.DEVICE.search("arm-smmu 5000000.iommu: something else")
    assert device is not None
    assert is_whole_body(device)


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("[    1.500000] arm-smmu-v3", "arm-smmu-v3"),
        ("[    1.500000] arm-smmu-v3  ", "arm-smmu-v3"),
        ("[    1.500000] arm-smmu-v3 arm-smmu-v3.0", "arm-smmu-v3 arm-smmu-v3.0"),
        ("[    1.500000] arm-smmu-v3 a", "arm-smmu-v3 a"),
        ("[    1.500000] arm-smmu", "arm-smmu"),
        ("[    1.500000] ar", "ar"),
        ("arm-", "arm-"),
        ("[    1.500000] platform", "platform"),
        ("[    1.500000] platf", "platf"),
        ("[    1.500000] plat", ""),
        ("it is a", ""),
        ("a", ""),
        ("arm-smmu-v3.0.auto", ""),
        ("arm-smmu-v3 arm-smmu-v3.0.auto: event", ""),
        ("", ""),
        ("   ", ""),
        ("nothing of the kind", ""),
        ("(arm-smmu", ""),
        # The beginning of a long line tells nothing.
        ("x " + "y" * 50 + " arm-smmu", "arm-smmu"),
        ("arm-smmu-v3 " + "y" * 50, ""),
        ("arm-smmu-v3 " + "y" * 48, "arm-smmu-v3 " + "y" * 48),
        ("arm-smmu-v3 " + "y" * 49, ""),
    ],
)
def test_a_line_may_end_in_the_drivers_name(line: str, end: str) -> None:
    assert driver_at_end(line) == end
