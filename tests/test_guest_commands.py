"""The guest's program runs commands as a shell does, and simple ones without one."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

WORDS = ["'a b'", "c", "''", "d=e", "$A", ";", "'", "*"]
#: Return a command's status and output.
Run = Callable[[str], tuple[int, bytes]]


@pytest.fixture(scope="module")
def folder(tool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that is searched for programs."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("env", "cat", "printf", "sleep"):
        (folder / name).symlink_to(shutil.which(name) or name)
    (folder / "hil").symlink_to(tool)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    def ran(command: str) -> tuple[int, bytes]:
        argv = [str(folder / "hil"), "run", "7", command]
        said = subprocess.run(
            argv,
            env={"PATH": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        ).stdout
        frame = re.fullmatch(rb"\n~HIL:7:\n([\w+/=\n]*):(\d+):[0-9a-f]{8}~\n", said)
        assert frame, said
        return int(frame[2]), base64.b64decode(frame[1])

    return ran


@pytest.fixture(scope="module")
def shell(folder: Path) -> Run:
    def ran(command: str) -> tuple[int, bytes]:
        ended = subprocess.run(
            ["sh", "-c", command],
            executable="/bin/sh",
            env={"PATH": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        # A signal that ended it is told as a shell tells it.
        return ended.returncode if ended.returncode >= 0 else 128 - ended.returncode, ended.stdout

    return ran


@pytest.mark.parametrize(
    "command",
    [
        "cat",
        "  cat   /proc/self/nothing  ",
        "printf '%s|' a 'b  c' '' d'e'f g",
        "printf %s 'a;b|c&d>e'",
        "exit 3",
        "cd / && printf done",
        "printf $PATH",
        "printf '%s|' $HOME a* ~ \\n",
        "A=5 env",
        "A=5",
        "none of these",
        "printf 'open",
        "kill -9 $$",
        "",
        " ",
        "''",
        "hil mmio /dev/null",
        "hil none",
        "# nothing",
        "printf é",
        "printf '%s' 'line\nline'",
        "printf a\nprintf b",
        # As many words as are taken without a shell, and more than there is room for.
        " ".join(["printf", "%s", *["a"] * 254]),
        " ".join(["printf", "%s", *["a"] * 5000]),
    ],
)
def test_a_command_does_what_a_shell_does(run: Run, shell: Run, command: str) -> None:
    assert run(command) == shell(command)


@given(st.lists(st.sampled_from(WORDS)))
def test_any_words_are_taken_as_by_a_shell(run: Run, shell: Run, words: list[str]) -> None:
    command = " ".join(["printf '%s|'", *words])
    assert run(command) == shell(command)


def test_a_simple_command_takes_no_shell(folder: Path, run: Run) -> None:
    """A shell tells the programs that it starts where it is (PWD)."""
    assert run("env") == (0, f"PATH={folder}\n".encode())
    assert b"PWD=" in run("env;")[1]
