"""Secrets of a lab: where an inventory says that one is, and what keeps it out of what is shown.

An inventory never has a secret itself. It names an environment variable, a file or a command.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Annotated, Self

import psutil
from pydantic import AfterValidator, Field, model_validator

from harness.errors import LabError
from harness.strict_yaml import HomePath, Strict

#: How long a command that prints a secret may take.
COMMAND_SECONDS = 30.0
VARIABLE = "^[A-Za-z_][A-Za-z0-9_]*$"
#: What no password has: neither an environment nor a header of HTTP takes them all. Python's errors
#: about such a text have the whole text in them. Surrogates stand for bytes that are no UTF-8.
_STRANGE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
#: What is shown in place of a secret.
HIDDEN = "(secret)"


class Secret:
    """A text that is shown to nobody: neither by print, nor by a traceback with its variables."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret, for whom it is meant. Do not keep it in a variable."""
        return self._value

    def hide(self, text: str) -> str:
        """Return a text of somebody else's without the secret."""
        return text.replace(self._value, HIDDEN) if self._value else text

    def __repr__(self) -> str:
        return HIDDEN


def _variable(name: str) -> str:
    # Whoever has written the secret itself here must not see it in an error.
    if not re.fullmatch(VARIABLE, name):
        raise ValueError("found what is no name of an environment variable")
    return name


#: The name of an environment variable that has a secret.
VariableName = Annotated[
    str, AfterValidator(_variable), Field(json_schema_extra={"pattern": VARIABLE})
]


class Password(Strict):
    """The base of entries that need a password."""

    password_env: Annotated[
        VariableName | None,
        Field(description="name of an environment variable with the password"),
    ] = None
    password_file: Annotated[
        HomePath | None,
        Field(
            description="path of a file with the password in its first line, which only its owner "
            "can read (mode 0600)"
        ),
    ] = None
    password_command: Annotated[
        str | None,
        Field(min_length=1, description="a command of the shell that prints the password"),
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        found = [one for one in _SOURCES if getattr(self, one) is not None]
        if len(found) != 1:
            raise ValueError(f"needed: one of {', '.join(_SOURCES)}")
        return self

    def password(self, whose: str) -> Secret:
        """Return the password; `whose` tells in errors what it is for. Raises LabError if it cannot
        be had."""
        if self.password_env:
            return _of_environment(self.password_env, whose)
        if self.password_file:
            return _of_file(self.password_file, whose)
        assert self.password_command
        return _of_command(self.password_command, whose)


_SOURCES = tuple(Password.model_fields)


def others_can_read(path: Path) -> bool:
    """Return whether others can read this user's secret file, which ssh(1) then refuses."""
    found = path.stat()
    return found.st_uid == os.getuid() and bool(found.st_mode & 0o077)


def _of_environment(name: str, whose: str) -> Secret:
    value = os.environ.get(name)
    if not value:
        raise LabError(
            f"{whose}: the environment has no variable {name}, or it is empty",
            fix="set it to the password, or correct `password_env` in the inventory",
        )
    return _checked(
        value,
        f"{whose}: the variable {name}",
        "set it to the password, which is text in UTF-8 without control characters",
    )


def _of_file(path: Path, whose: str) -> Secret:
    try:
        if others_can_read(path):
            raise LabError(
                f"{whose}: others can read password_file {path} "
                f"(mode {stat.S_IMODE(path.stat().st_mode):04o})",
                fix=f"run `chmod 600 {shlex.quote(str(path))}`; if others have read the password, "
                "replace it",
            )
        return _first_line(path.read_text(encoding="utf-8"), f"{whose}: password_file {path}")
    except (OSError, UnicodeDecodeError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise LabError(
            f"{whose}: password_file {path} cannot be read: {why}",
            fix="correct `password_file` in the inventory, or the file",
        ) from None


def _of_command(command: str, whose: str) -> Secret:
    """Return what a command prints. Its text is not told: that may have secrets, too."""
    what = f"{whose}: password_command"
    fix = "run the command by hand as the same user, and correct it in the inventory"
    try:
        status, said = _run(command)
        if status != 0:
            raise LabError(f"{what} ended with status {status}", fix=fix)
        return _first_line(said.decode(), what)
    except subprocess.TimeoutExpired:
        raise LabError(f"{what} did not end within {COMMAND_SECONDS:.0f} s", fix=fix) from None
    except UnicodeDecodeError:
        raise LabError(f"{what} prints what is not UTF-8", fix=fix) from None


def _run(command: str) -> tuple[int, bytes]:
    """Run a command of the shell; return its status and what it prints. What it has started ends
    with it. Raises subprocess.TimeoutExpired."""
    # It is not in a session of its own: it may ask at the terminal.
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            said, _ = process.communicate(timeout=COMMAND_SECONDS)
        except BaseException:
            with contextlib.suppress(psutil.Error):
                for one in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        one.kill()
            process.kill()
            raise
        return process.returncode, said


def _first_line(text: str, what: str) -> Secret:
    # Not splitlines(): a password may have what ends lines for Python only, such as U+2028.
    first = text.partition("\n")[0].removesuffix("\r")
    if not first:
        raise LabError(f"{what}: its first line is empty", fix="put the password there")
    return _checked(first, what, "have nothing but the password in the first line")


def _checked(text: str, what: str, fix: str) -> Secret:
    """Return a secret that is text. Raises LabError, which does not show it."""
    if _STRANGE.search(text):
        raise LabError(f"{what} has a control character, or is not UTF-8", fix=fix)
    return Secret(text)
