"""A short sample of each campaign of random input passes, and a campaign tells what fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: A campaign that does something to the stream of seed 7.
CAMPAIGN = """
import os, signal, sys, time
from tests.fuzz.campaign import Stream, main
kept = []
def run(stream):
    stream.messages = stream.served = 1
    stream.sent.append(f"chance {{stream.random.random()}}")
    if stream.random.random() == seventh:
        {what}
import random
seventh = random.Random(7)
seventh.random()
seventh = seventh.random()
main("sample", run)
"""


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("target", ["vfio_user", "control"])
def test_a_sample_passes(target: str) -> None:
    status, said = run("-m", f"tests.fuzz.{target}", "--messages", "3000", "--seed", "1")
    assert status == 0, said
    figures = re.search(r"(\d+) messages .*: (\d+) served, (\d+) refused", said)
    assert figures, said
    messages, served, refused = map(int, figures.groups())
    assert messages >= 3000
    assert served > 800 < refused, "most messages end their connection"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ('raise KeyError("gone")', "KeyError: 'gone'"),
        ("kept.append(open('/dev/null'))", r"LeakError: \d+ descriptors before, \d+ after"),
        ("time.sleep(60)", "HangError: over 1.0 s of work, or 0.5 s of waiting"),
        ("while True: pass", "HangError"),
        ("os.kill(os.getpid(), signal.SIGBUS)", "sample: ended by SIGBUS"),
    ],
)
def test_what_fails_is_told_with_its_seed(what: str, told: str) -> None:
    program = CAMPAIGN.format(what=what)
    program = f"import tests.fuzz.campaign as campaign; campaign.LONGEST_WAIT = 0.5\n{program}"
    status, said = run("-c", program, "--messages", "100", "--seed", "3")
    assert status == 1
    assert re.search(told, said), said
    assert said.endswith("to repeat: --messages 1 --seed 7\n")
    if "SIGBUS" not in what:
        assert "input:\nchance 0.3238" in said, "the input of seed 7"
    again, _ = run("-c", program, "--messages", "1", "--seed", "7")
    assert again == 1


def test_memory_that_a_campaign_keeps_is_told() -> None:
    program = CAMPAIGN.format(what="pass").replace(
        "    stream.messages", "    kept.append(b'x' * 50_000)\n    stream.messages"
    )
    status, said = run("-c", program, "--messages", "1000", "--seed", "100")
    assert status == 1
    assert re.search(r"\d+\.\d MiB more at the end  limit 16.0  LEAK", said), said
