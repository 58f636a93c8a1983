"""Secrets of a lab: where an inventory says that one is, and what keeps it out of what is shown.

An inventory never has a secret itself. It names an environment variable, a file or a command.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from harness.errors import LabError
from harness.strict_yaml import HomePath, Strict

#: How long a command that prints a secret may take.
COMMAND_SECONDS = 30.0
VARIABLE = "^[A-Za-z_][A-Za-z0-9_]*$"
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
    # Whoever has written the password itself here must not see it in an error.
    if not re.fullmatch(VARIABLE, name):
        raise ValueError("password_env: found what is no name of an environment variable")
    return name


class Password(Strict):
    """The base of entries that need a password."""

    password_env: Annotated[
        str | None,
        AfterValidator(_variable),
        Field(
            description="name of an environment variable with the password",
            json_schema_extra={"pattern": VARIABLE},
        ),
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
    return Secret(value)


def _of_file(path: Path, whose: str) -> Secret:
    try:
        if others_can_read(path):
            raise LabError(
                f"{whose}: others can read password_file {path} "
                f"(mode {stat.S_IMODE(path.stat().st_mode):04o})",
                fix=f"run `chmod 600 {shlex.quote(str(path))}`; if others have read the password, "
                "replace it",
            )
        return _first_line(path.read_text(), f"{whose}: password_file {path}")
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
        ended = subprocess.run(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if ended.returncode != 0:
            raise LabError(f"{what} ended with status {ended.returncode}", fix=fix)
        return _first_line(ended.stdout.decode(), what)
    except subprocess.TimeoutExpired:
        raise LabError(f"{what} did not end within {COMMAND_SECONDS:.0f} s", fix=fix) from None
    except UnicodeDecodeError:
        raise LabError(f"{what} prints what is not UTF-8", fix=fix) from None


def _first_line(text: str, what: str) -> Secret:
    first = text.splitlines()[0] if text else ""
    if not first:
        raise LabError(f"{what}: its first line is empty", fix="put the password there")
    return Secret(first)
