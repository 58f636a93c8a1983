"""`hil decode` reads the logs that kernels write and the lines that people paste."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from harness.smmu.decode import decode
from harness.smmu.events import EventRecord
from harness.smmu.klog import Broken

SMMU = "arm-smmu-v3 arm-smmu-v3.0.auto:"
LOG = f"""\
[    2.730787] pci 0000:22:00.0: enabling device (0000 -> 0002)
[   11.272523] {SMMU} event 0x10 received:
[   11.272530] {SMMU} \t0x0000220000000010
[   11.272539] {SMMU} \t0x0000020000000000
[   11.272540] audit: something in between
[   11.272547] {SMMU} \t0x0000000010000000
[   11.272550] {SMMU} \t0x0000000000000000
[   11.272561] {SMMU} event: F_TRANSLATION client: 0000:22:00.0 sid: 0x2200 ssid: 0x0
[   11.272561] {SMMU} unpriv data write s1 "Input address caused fault" stag: 0x0
"""
RECORD = EventRecord((0x220000000010, 0x20000000000, 0x10000000, 0))


def run(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "decode", *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_kernel_log() -> None:
    assert list(decode(LOG.splitlines())) == [(2, RECORD)]


def test_two_smmus_may_interleave() -> None:
    other = LOG.replace("v3.0.auto", "v3.1.auto")
    mixed = [
        line for pair in zip(LOG.splitlines(), other.splitlines(), strict=True) for line in pair
    ]
    assert [found[1] for found in decode(mixed) if not isinstance(found, Broken)] == [RECORD] * 2


@pytest.mark.parametrize("prefix", ["", "Nov 21 06:00:00 host kernel: ", "<6>[    1.000000] "])
def test_other_prefixes(prefix: str) -> None:
    lines = [prefix + line[15:] for line in LOG.splitlines()]
    assert list(decode(lines)) == [(2, RECORD)]


def test_an_event_that_is_cut_short_is_reported() -> None:
    lines = LOG.splitlines()
    assert list(decode(lines[:4])) == [Broken(2, "event 0x10 has 2 of its 4 words")]
    assert list(decode([*lines[:3], *lines[1:]])) == [
        Broken(2, "event 0x10 has 1 of its 4 words"),
        (4, RECORD),
    ]


def test_words_of_another_type_than_the_head_says_are_reported() -> None:
    lines = LOG.replace("event 0x10 received", "event 0x13 received").splitlines()
    assert list(decode(lines)) == [Broken(2, "says event 0x13, but its words are event 0x10")]


@pytest.mark.parametrize(
    "line",
    [
        "0x0000220000000010 0x0000020000000000 0x0000000010000000 0x0000000000000000",
        "220000000010 20000000000 10000000 0",
        " 0x220000000010, 0x20000000000, 0x10000000, 0x0,",
        "0X220000000010\t0X20000000000\t0X10000000\t0X0",
    ],
)
def test_lines_of_words(line: str) -> None:
    assert list(decode([line + "\n"])) == [(1, RECORD)]


@pytest.mark.parametrize(
    "line", ["0x10 0x20 0x30", "1 2 3 4 5", "10000000000000000 0 0 0", "hello", "1 2 3 x", "0x"]
)
def test_broken_lines_are_reported_with_their_number(line: str) -> None:
    ended = run(f"# a comment\n\n{line}\n1 2 3 4\n")
    assert ended.returncode == 1
    assert "standard input:3:" in ended.stderr
    assert len(ended.stdout.splitlines()) == 1, "the good line after it is still decoded"


def test_json_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(LOG)
    ended = run("", "--json", str(file))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == RECORD.as_dict()


def test_text_names_what_happened() -> None:
    said = run(LOG).stdout
    assert all(word in said for word in ("F_TRANSLATION", "0x2200", "write", "0x10000000"))


def test_a_missing_file_is_an_error_that_names_it() -> None:
    ended = run("", "/no/such/file")
    assert ended.returncode == 2
    assert "/no/such/file" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_bytes_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    file = tmp_path / "noise"
    file.write_bytes(random.Random(1).randbytes(4096) + b"\n1 2 3 4\n")
    ended = run("", "--json", str(file))
    assert ended.returncode == 1
    assert json.loads(ended.stdout.splitlines()[-1])["raw"] == [1, 2, 3, 4]
