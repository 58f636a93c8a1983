"""QEMU's answer to a command line, without a guest: it starts, stands before the machine's first
instruction, and is told to quit. Takes a fraction of a second."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from harness.host.host import Host
from harness.steps import step

_QUIT = "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", "quit"))


@dataclass(frozen=True)
class Answer:
    """Whether QEMU takes a command line, and what it says of it: a message a line."""

    accepted: bool
    said: tuple[str, ...]

    def refuses_with(self, message: str) -> bool:
        """Whether it refused, and the last it said is this message, whole, after the option that
        it is about."""
        return not self.accepted and bool(self.said) and self.said[-1].endswith(f": {message}")


def ask(host: Host, options: str, *, firmware: bool = True) -> Answer:
    """Start the host's QEMU as a virt machine with `options`, which are split at spaces; a later
    -machine adds to ours. Without firmware there is no ACPI."""
    argv = [
        *(host.files.qemu, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "virt,accel=kvm,gic-version=3", "-cpu", "host", "-m", "64M"),
        *(("-bios", host.files.firmware) if firmware else ()),
        *("-S", "-qmp", "stdio", *options.split()),
    ]
    with step(f"ask QEMU: {options}"):
        # Its answers on the socket are not what it says.
        line = f"{shlex.join(argv)} 2>&1 >/dev/null"
        ended = host.connection.run(line, stdin=_QUIT.encode(), timeout=20, check=False)
    return Answer(ended.status == 0, tuple(ended.text.splitlines()))
