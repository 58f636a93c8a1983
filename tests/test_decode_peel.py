"""A line is taken out of what it is wrapped in, and has the time that its wrapping gives."""

from __future__ import annotations

import json

import pytest

from harness.smmu.decode.peel import Peeled, Peeler, time_of


def peel(*lines: str) -> list[Peeled]:
    peeler = Peeler()
    return [one for line in lines for one in peeler.peel(line)]


@pytest.mark.parametrize(
    ("line", "time", "text", "logged"),
    [
        ("plain text", None, "plain text", False),
        ("[   12.345678] arm-smmu-v3", 12.345678, " arm-smmu-v3", True),
        ("[   12.345678][  T123] smmu", 12.345678, " smmu", True),
        ("[   12.345678 <    0.000012>] smmu", 12.345678, " smmu", True),
        ("4,1234,5000000,-;smmu", 5.0, "smmu", True),
        ("1700000000.250 smmu", 1700000000.25, "smmu", True),
        ("2026-11-21T07:00:00.5Z smmu", "2026-11-21T07:00:00.5Z", " smmu", True),
        ("[Sat Nov 21 07:00:00 2026] smmu", "Sat Nov 21 07:00:00 2026", " smmu", True),
        ("Nov 21 07:00:00 host smmu", "Nov 21 07:00:00", "host smmu", True),
        ("Nov 21 07:00:00 host kernel: smmu", "Nov 21 07:00:00", "smmu", True),
        ("Nov 21 07:00:00 host kernel: [    1.5] smmu", 1.5, " smmu", True),
        ("host kernel[9]: smmu", None, "smmu", True),
        ("[12345.678901] host kernel: smmu", 12345.678901, "smmu", True),
        ("[12345.678901] host kernel: [    1.5] smmu", 1.5, " smmu", True),
        ("1700000000.250 host kernel: smmu", 1700000000.25, "smmu", True),
        # Of a message that a mail program put on the line of the one before.
        ("event 0x10 received: [    1.5] smmu", None, "event 0x10 received: [    1.5] smmu", False),
        ("> | > [    1.5] smmu", 1.5, " smmu", True),
        ("\x1b[31m[    1.5]\x1b[0m smmu", 1.5, " smmu", True),
        ("event [    1.5] smmu", None, "event [    1.5] smmu", False),
        ("sm\x00m\x08u", None, "smmu", False),
        ("smm\x08u", None, "smmu", False),
        ("sm\x00mu", None, "smmu", False),
        ("a#011b#012", None, "a\tb\n", False),
        ("a#400", None, "a#400", False),
        (r"a\x09b\x41\tc", None, "a\tbA\tc", False),
    ],
)
def test_a_line_has_a_time_a_text_and_perhaps_a_logs_prefix(
    line: str, time: float | str | None, text: str, logged: bool
) -> None:
    assert peel(line) == [Peeled(time, text, logged)]


def test_a_prefix_is_looked_for_at_the_beginning_of_a_line() -> None:
    for length, time in ((150, 1.5), (151, None)):
        (one,) = peel("x" * length + " [    1.5] smmu")
        assert (one.time, one.logged) == (time, time is not None)
        (one,) = peel("host kernel: " + "x" * length + " [    1.5] smmu")
        assert (one.time, one.logged) == (time, True)
    (one,) = peel("x" * 151 + " kernel: smmu")
    assert (one.logged, one.text) == (True, "smmu")
    (one,) = peel("x" * 152 + " kernel: smmu")
    assert not one.logged


def test_rows_of_markup_are_lines() -> None:
    assert [one.text for one in peel("<pre>a &lt;b&gt;<br/><b>c</b>&amp;d<br> </pre>")] == [
        "a <b>",
        "c&d",
    ]
    assert [one.text for one in peel("a &lt; b &amp c", "a &amp c", "1 < 2", "2 > 1")] == [
        "a < b & c",
        "a &amp c",
        "1 < 2",
        "2 > 1",
    ]
    assert [one.text for one in peel("<b>bold</b> &amp", "<x>kept</x>")] == [
        "bold &amp",
        "<x>kept</x>",
    ]


@pytest.mark.parametrize(
    ("entry", "time"),
    [
        ({"time": "12.5"}, 12.5),
        ({"timestamp": "2026-11-21"}, "2026-11-21"),
        ({"__REALTIME_TIMESTAMP": "1700000000000000"}, 1.7e9),
        ({"_SOURCE_MONOTONIC_TIMESTAMP": "1500000"}, 1.5),
        ({"__MONOTONIC_TIMESTAMP": "2500000"}, 2.5),
        ({}, None),
    ],
)
def test_a_message_in_json_has_the_time_before_or_after_it(
    entry: dict[str, str], time: float | str | None
) -> None:
    message = {"MESSAGE": "one\ntwo"}
    for document in ({**entry, **message}, {**message, **entry}):
        assert peel(json.dumps(document)) == [Peeled(time, "one", True), Peeled(time, "two", True)]


def test_json_over_many_lines_keeps_its_time() -> None:
    lines = peel("{", '  "time": 3.5,', '  "message": "smmu"', "}", '  "message": "later"')
    assert [(one.time, one.text) for one in lines if one.logged] == [(3.5, "smmu"), (3.5, "later")]


def test_a_journals_fields_may_have_lines_of_their_own() -> None:
    lines = peel('"__REALTIME_TIMESTAMP" : "1700000000000000",', '"MESSAGE" : "smmu"')
    assert lines[-1] == Peeled(1.7e9, "smmu", True)


def test_a_message_that_is_no_json_hides_none_after_it() -> None:
    assert peel(r'[{"ts": 1, "msg": "a\q"}, {"ts": 2, "msg": "b"}]') == [Peeled(2.0, "b", True)]


def test_several_messages_of_a_line_have_their_own_times() -> None:
    line = '[{"ts": 1, "msg": "a"}, {"ts": 2, "msg": "b"}, {"msg": "c"}]'
    assert [(one.time, one.text) for one in peel(line)] == [(1.0, "a"), (2.0, "b"), (2.0, "c")]
    # A time behind the end of its entry is another entry's.
    line = '[{"msg": "a"}, {"ts": 2, "msg": "b"}]'
    assert [(one.time, one.text) for one in peel(line)] == [(None, "a"), (2.0, "b")]


def test_the_time_of_a_message_is_that_of_its_object_wherever_it_is() -> None:
    """The journal writes an entry's fields in any order."""
    first, second = '{"ts": 1, "msg": "a"}', '{"msg": "b", "ts": 2}'
    one, other = f"[{first}, {second}]", f"[{second},{first}]"
    for lines in ([first, second], [one], [other], [first, f"[{second}]"]):
        made = {one.text: one.time for one in peel(*lines)}
        assert made == {"a": 1.0, "b": 2.0}
    made = {one.text: one.time for one in peel('{"ts": 1, "of": {"a": 0}, "msg": "a"}')}
    assert made == {"a": 1.0}


def test_a_message_may_be_bytes_or_empty() -> None:
    (one,) = peel('{"MESSAGE": [115, 109, 255, 256, 117]}')
    assert one.text == "sm\ufffdu"
    (one,) = peel('{"MESSAGE": [195, 0, 188]}')
    assert one.text == "\ufffd\ufffd", "two bytes that have another between them are no character"
    assert peel('{"MESSAGE": ""}') == [Peeled(None, "", True)]
    assert [one.logged for one in peel('{"MESSAGE": [1 2]}')] == [False]


@pytest.mark.parametrize(
    ("prefix", "time"),
    [
        ("[    1.5] ", 1.5),
        ("4,1234,5000000,-;", 5.0),
        ("Sat Nov 21 07:00:00", "Sat Nov 21 07:00:00"),
        ("2026-11-21 07:00:00 ", "2026-11-21 07:00:00"),
        ("Nov 21 07:00:00 ", "Nov 21 07:00:00"),
        ("1700000000.250 ", 1700000000.25),
        ("host", None),
    ],
)
def test_a_prefix_alone_has_a_time(prefix: str, time: float | str | None) -> None:
    assert time_of(prefix) == time
