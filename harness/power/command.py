"""Power by commands of this machine: for a switched socket, a relay, or any other program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.errors import LabError
from harness.host.power import PowerState, PowerUnsupportedError
from harness.power.settle import emptied, settled
from harness.strict_yaml import Strict

#: How long a command may take.
COMMAND_SECONDS = 120.0
#: What a command knows the host's name by.
HOST_VARIABLE = "HIL_HOST"


def _line(does: str) -> object:
    return Field(min_length=1, description=f"a command of this machine's shell that {does}")


class CommandPower(Strict):
    """Commands of this machine's shell, which have the host's name in $HIL_HOST."""

    on: Annotated[str, _line("turns the host on")]
    off: Annotated[str, _line("turns the host off at once")]
    cycle: Annotated[
        str | None, _line("restarts the host at once; without it, the host is turned off and on")
    ] = None
    nmi: Annotated[str | None, _line("sends the host a diagnostic interrupt; may be absent")] = None
    status: Annotated[
        str | None, _line("prints on or off as its last word; without it, nobody knows")
    ] = None

    def control(self, host: str) -> CommandControl:
        return CommandControl(self, host)


@dataclass(frozen=True)
class CommandControl:
    """The power of a host by commands. It is a HostPower."""

    commands: CommandPower
    host: str

    def state(self) -> PowerState:
        if self.commands.status is None:
            return PowerState.UNKNOWN
        said = self._run("status").split()
        try:
            return PowerState(said[-1].lower() if said else "")
        except ValueError:
            raise LabError(
                f"the command power.command.status of host {self.host} prints neither on nor off",
                fix="have it print one of them as its last word",
            ) from None

    def on(self) -> None:
        self._run("on")
        settled(self, PowerState.ON, self.host)

    def off(self) -> None:
        self._run("off")
        settled(self, PowerState.OFF, self.host)

    def cycle(self) -> None:
        if self.commands.cycle is not None:
            self._run("cycle")
        else:
            self.off()
            emptied(self.host)
            self.on()

    def nmi(self) -> None:
        if self.commands.nmi is None:
            raise PowerUnsupportedError(
                f"no command sends host {self.host} a diagnostic interrupt",
                fix="name one as power.command.nmi in the inventory, if there is one",
            )
        self._run("nmi")

    def _run(self, which: str) -> str:
        """Run a command and return what it prints. A command is told by its name in the inventory:
        its text may have secrets. Raises LabError."""
        line: str = getattr(self.commands, which)
        what = f"the command power.command.{which} of host {self.host}"
        process = subprocess.Popen(
            ["/bin/sh", "-c", line],
            env={**os.environ, HOST_VARIABLE: self.host},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # What it has started ends with it, and Ctrl-C is for this program.
            start_new_session=True,
        )
        try:
            said, complained = process.communicate(timeout=COMMAND_SECONDS)
        except BaseException as problem:
            # The shell may have ended, and what it started may not.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # Nobody reads on: what has left the group for a session of its own, as daemons do, may
            # hold the output for ever.
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            process.wait()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise LabError(
                    f"{what} did not end within {COMMAND_SECONDS:.0f} s",
                    fix="correct it in the inventory, or what it calls; what it leaves running "
                    "must not keep its output",
                ) from None
            raise
        if process.returncode != 0:
            why = complained.decode(errors="replace").strip()[-500:] or "it printed no error"
            raise LabError(
                f"{what} ended with status {process.returncode}: {why}",
                fix="correct it in the inventory, or what it calls",
            )
        return said.decode(errors="replace")
