"""The fuzzer of parsers finds what is not documented; what it has found once is in no parser."""

from __future__ import annotations

import re
import time

import pytest

from tests.fuzz import parsers
from tests.fuzz.parsers import TARGETS, RefusedError, Target, refusing

BY_NAME = {target.name: target for target in TARGETS}


def test_some_inputs_of_every_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsers.main(["--messages", str(20 * len(TARGETS)), "--seed", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(
        r"parsers: \d+, inputs: \d+ in \d+ s, seed 1: [1-9]\d* read, [1-9]\d* ref", line
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_good_inputs_are_read(target: Target) -> None:
    """Else only refusals would be tested."""
    for sample in target.samples:
        target.read(sample)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("result.json", b'{"tests": ' + b"[" * 100_000),
        ("boundary log", b'{"time": 1, "queue": [1, 0], "got": ' + b"[" * 100_000),
        ("boundary log", b'{"time": 1, "queue": [1, 0], "got": [0, "AAAA"]}'),
        ("boundary log", b'{"time": 1, "queue": [1, 0], "got": [2]}'),
        ("boundary log", b'{"time": 1' + b"0" * 400 + b', "queue": [1, 0], "got": []}'),
    ],
)
def test_what_was_found_once_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(RefusedError):
        BY_NAME[name].read(data)


def found_by(target: Target, capsys: pytest.CaptureFixture[str]) -> str:
    assert parsers.main(["--messages", "200", "--seed", "3"], [target]) == 1
    return capsys.readouterr().out


def test_an_undocumented_exception_is_told_with_its_input(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(data: bytes) -> None:
        with refusing(ValueError):
            int(data)
            raise KeyError("planted")

    said = found_by(Target("planted", read, [b"7"]), capsys)
    assert said.startswith("planted: KeyError: 'planted'\n  input ")
    assert " of seed 3: b'" in said
    assert found_by(Target("planted", read, [b"7"]), capsys) == said


def test_a_parser_that_does_not_end_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes) -> None:
        while True:
            time.monotonic()

    monkeypatch.setattr(parsers, "LONGEST", 0.2)
    assert "TooLongError: not done within 0 s" in found_by(Target("endless", read, [b""]), capsys)
