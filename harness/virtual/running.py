"""The record of a running virtual host, which outlives the command that started it."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessId:
    """A process of this machine, told from every other that has or will have its `pid`. `started`
    is when it was started, in clock ticks since the machine's boot, and `boot` is the id of that
    boot: unlike the time of day, neither changes when the clock is set."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the identity of the process that has this pid now. Raises OSError when there is
        none."""
        return cls(pid, _started(pid), boot_id())

    @classmethod
    def mine(cls) -> ProcessId:
        return cls.of(os.getpid())

    def alive(self) -> bool:
        """Return whether the process runs. One that only waits to be reaped does not."""
        return self._use(lambda _: None)

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal, if it runs."""
        self._use(lambda descriptor: signal.pidfd_send_signal(descriptor, number))

    def _use(self, action: Callable[[int], None]) -> bool:
        """Call `action` with a descriptor of the process, pidfd_open(2), if it runs. Return whether
        it runs."""
        if self.boot != boot_id():
            return False
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # The descriptor holds whatever process has the pid now. Only when all its threads have
            # ended, so that it has closed its files, is it readable.
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            if ended.poll(0) or _started(self.pid) != self.started:
                return False
            action(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True


def _started(pid: int) -> int:
    """Return when a process was started, in clock ticks since the boot: proc_pid_stat(5). Raises
    OSError."""
    # The name of the program, in parentheses, may have spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19])


@cache
def boot_id() -> str:
    return _BOOT.read_text().strip()


@dataclass(frozen=True)
class Running:
    """The content of `state.json`. `process` is the host's QEMU, and `keeper` the process that
    started it (keeper.py). `owner` is the process that the host ends with, or None when a person
    brought it up to stay. `booted` is False until the host answers. `since` is when it was brought
    up, in seconds since 1970. `kernel` tells which kernel it was given; empty for the lab's own."""

    process: ProcessId
    keeper: ProcessId
    owner: ProcessId | None
    port: int
    since: float
    booted: bool
    built_from: str
    kernel: str = ""

    @classmethod
    def read(cls, path: Path) -> Running | None:
        """Return the record in a file; None when there is no valid one."""
        try:
            state = json.loads(path.read_text())
            for name in ("process", "keeper", "owner"):
                state[name] = state[name] and ProcessId(**state[name])
            return cls(**state)
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def write(self, path: Path) -> None:
        """Write the record to a file, atomically."""
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)

    def alive(self) -> bool:
        return self.process.alive()

    def orphaned(self) -> bool:
        """Return whether the owner, which would have taken the machine down, has ended."""
        return self.owner is not None and not self.owner.alive()

    def end(self) -> None:
        """Begin to end the machine's processes: QEMU ends with its keeper."""
        self.keeper.send(signal.SIGTERM)
        if not self.keeper.alive():
            self.process.send(signal.SIGKILL)

    def gone(self) -> bool:
        """Return whether all of the machine's processes have ended."""
        return not self.keeper.alive() and not self.process.alive()
