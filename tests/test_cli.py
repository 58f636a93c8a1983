"""`hil` says what people need who call it: its revision, its help, its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from harness.checkout import ROOT
from harness.cli import SUMMARIES, app, load


def test_the_version_names_the_revision() -> None:
    asked = [sys.executable, "-m", "harness.cli", "--version"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"hil \d+\.\d+\.\d+ \((unknown|[0-9a-f]{12}(-dirty)?)\)\n", said)


def test_help_is_asked_for_with_h_too() -> None:
    for arguments in ([], ["lab"], ["lab", "ssh"]):
        told = CliRunner().invoke(app, [*arguments, "-h"])
        assert told.exit_code == 0
        assert told.output == CliRunner().invoke(app, [*arguments, "--help"]).output
    assert "[COMMAND]..." in told.output
    assert "(lab-inventory/virtual.yaml)" in told.output


def test_a_mistyped_command_is_known() -> None:
    told = CliRunner().invoke(app, ["lab", "statsu"])
    assert told.exit_code == 2
    assert "Did you mean 'status'?" in told.output


@pytest.mark.parametrize(
    ("words", "completed"), [("hil lab st", ["status"]), ("hil compare la", ["latest"])]
)
def test_a_shell_completes_commands_and_runs(words: str, completed: list[str]) -> None:
    place = str(words.count(" "))
    asked = {"_HIL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    program = "import sys; sys.argv = ['hil']; from harness import cli; cli.main()"
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split() == completed


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_summary_is_the_first_sentence_of_a_command_s_own_help(name: str) -> None:
    own = load(name).help
    assert " ".join(own.split("\n\n")[0].split()) == SUMMARIES[name]


def test_every_command_is_in_the_help() -> None:
    modules = {path.stem for path in (ROOT / "harness/commands").glob("[!_]*.py")}
    # What several commands share, and the parts of `hil lab`.
    assert set(SUMMARIES) == modules - {"options", "power", "stack"}


def test_a_call_imports_its_own_command_only() -> None:
    program = (
        "import contextlib, sys; from harness.cli import app\n"
        "with contextlib.suppress(SystemExit): app(['decode', '/dev/null'])\n"
        "print(*sorted(name for name in sys.modules if name.startswith('harness.commands.')))\n"
        "print(*{'paramiko', 'rich', 'psutil'} & set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines() == ["harness.commands.decode", ""]


@pytest.mark.parametrize("line", ["lab schema", "runs list --out /nowhere", "coverage"])
def test_a_reader_that_has_closed_the_pipe_is_no_verdict(line: str) -> None:
    """Status 1 would say that the command found what it looks for: `hil compare good | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "harness.cli", *line.split()],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")
