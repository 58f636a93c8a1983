"""Ask QEMU whether it accepts a command line, without booting a guest.

QEMU starts, stops before the machine's first instruction and is told to quit. That takes a fraction
of a second.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from harness.host.host import Host
from harness.steps import step

_QUIT = "".join(json.dumps({"execute": name}) for name in ("qmp_capabilities", "quit"))


@dataclass(frozen=True)
class Answer:
    """QEMU's answer to a command line: whether it accepted it, and its messages, one a line."""

    accepted: bool
    said: tuple[str, ...]

    def refuses_with(self, message: str) -> bool:
        """Return whether QEMU refused the command line and its last message is this one, complete,
        after the option that it is about."""
        return not self.accepted and bool(self.said) and self.said[-1].endswith(f": {message}")


def ask(host: Host, options: str, *, firmware: bool = True) -> Answer:
    """Start the host's QEMU as a virt machine with `options`, and return its answer.

    The options are split at spaces; a -machine among them adds to ours. Without `firmware` the
    machine has no ACPI.
    """
    argv = [
        *(host.files.qemu, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "virt,accel=kvm,gic-version=3", "-cpu", "host", "-m", "64M"),
        *(("-bios", host.files.firmware) if firmware else ()),
        *("-S", "-qmp", "stdio", *options.split()),
    ]
    with step(f"ask QEMU: {options}"):
        # QMP's answers on standard output are not QEMU's messages.
        line = f"{shlex.join(argv)} 2>&1 >/dev/null"
        ended = host.connection.run(line, stdin=_QUIT.encode(), timeout=20, check=False)
    return Answer(ended.status == 0, tuple(ended.text.splitlines()))
