"""What tools, git and developers' files say is UTF-8, whatever the locale's encoding is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.products import git

ROOT = Path(__file__).parents[1]
#: Python takes ASCII for the encoding of text there, as another one where people chose another.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

TOOL = """
from harness.artifacts import tools
tools.run(["printf", r"x.c:1: error: \\303\\244\\377\\n"], log=Path("made.log"))
print(ascii(Path("made.log").read_text(encoding="utf-8")))
"""
FRAGMENT = """
from harness.artifacts.kernel_tree import Overlay
Path("fragment").write_bytes(b"# f\\xc3\\xbcr, \\xff\\nCONFIG_A=y\\n")
print(Overlay.read(Path("fragment")).settings)
"""
#: The paths that QEMU's configure was called with are bytes.
QEMU = """
import os
from harness.bisect.builder import QemuBuilder
folder = os.getcwdb() + b"/f\\xc3\\xbcr"
os.mkdir(folder)
script = b"#!/bin/sh\\nexec '" + folder + b"/configure' '--x' \\"$@\\"\\n"
Path(os.fsdecode(folder + b"/config.status")).write_bytes(script)
print(os.fsencode(QemuBuilder(Path(os.fsdecode(folder))).repository) == folder)
"""
#: What a BMC or a PDU says may have any character.
RECOVERY = """
from harness.lab.recovery import RecoveryLog
from harness.progress import Progress
RecoveryLog("grace", Progress(enabled=False), Path("log")).tell("f\\xfcr \\ufffd \\udcff")
print(ascii(Path("log").read_text(encoding="utf-8").partition(" ")[2]))
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (TOOL, r"'x.c:1: error: \xe4\ufffd\n'"),
        (FRAGMENT, "{'CONFIG_A': 'y'}"),
        (QEMU, "True"),
        (RECOVERY, r"'f\xfcr \ufffd \\udcff\n'"),
    ],
    ids=["a tool's output", "a fragment of a .config", "a build folder of QEMU", "a recovery"],
)
def test_text_is_read_and_written(tmp_path: Path, program: str, said: str) -> None:
    assert in_ascii(tmp_path, program) == said


BISECTION = """
from harness.bisect.git import Repository, Worktree
from harness.bisect.question import Known, Question
repository = Repository(Path("source"))
good, bad = (repository.resolve("", name) for name in ("HEAD~2", "HEAD"))
Path("logs").mkdir()
worktree = Worktree(repository, Path("worktree").resolve(), Path("logs/git.log").resolve())
worktree.prepare(bad)
question = Question("", "", good, bad, (), "")
print(worktree.begin(Known(question, good, bad), ()), ascii(repository.commit("HEAD").subject))
print(ascii(Path("logs/bisect.log").read_text(encoding="utf-8").splitlines()[0]))
"""


REVISION = """
from harness.report import executor
print(ascii(executor.revision(Path("source"))))
"""


def test_a_checkout_may_have_any_tag(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet")
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    git(source, *who, "commit", "--quiet", "--allow-empty", "--message=1")
    git(source, *who, "tag", "--annotate", "--message=1", "für-1")
    assert in_ascii(tmp_path, REVISION) == r"'f\xfcr-1'"


def test_commits_are_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet")
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for number in range(3):
        subject = f"{number} für"
        git(source, *who, "commit", "--quiet", "--allow-empty", f"--message={subject}")
    told, log = in_ascii(tmp_path, BISECTION).splitlines()
    assert told == r"True '2 f\xfcr'"
    assert log.endswith(r"2 f\xfcr'")


@pytest.mark.parametrize("words", ["coverage", "--help"])
def test_hil_prints_what_the_encoding_lacks_as_escapes(words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", words],
        cwd=ROOT,
        env={**os.environ, **ASCII},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert rb"\u2026" in ended.stdout or rb"\xd7" in ended.stdout


def in_ascii(folder: Path, program: str) -> str:
    """Run a program of Python in a folder, in a locale whose encoding is ASCII. Return what it
    prints."""
    ended = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\n{program}"],
        cwd=folder,
        env={**os.environ, **ASCII, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
