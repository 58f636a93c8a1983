"""Run a BMC that speaks IPMI 2.0 on loopback: pyghmi's, whose host does what it is told, and writes
it down. Arguments: a folder, a UDP port, a user and a password.

The folder has `power`, which says on or off, `did`, a line for each command, and `console`: what is
appended there is what the host prints.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from pyghmi.ipmi import bmc

from harness.console.file import FileConsole

#: As many bytes as a packet has.
PIECE = 200

folder, port, user, password = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Bmc(bmc.Bmc):  # type: ignore[misc]
    def get_power_state(self) -> str:
        return (folder / "power").read_text()

    def power_on(self) -> None:
        self._did("on")
        (folder / "power").write_text("on")

    def power_off(self) -> None:
        self._did("off")
        (folder / "power").write_text("off")

    def power_reset(self) -> None:
        self._did("reset")

    def pulse_diag(self) -> None:
        self._did("diag")

    def is_active(self) -> bool:
        return True

    def iohandler(self, data: Any) -> None:
        """Take what is typed on the console."""
        if isinstance(data, bytes):
            self._did(f"typed {data!r}")

    def _did(self, what: str) -> None:
        with (folder / "did").open("a") as did:
            did.write(f"{what}\n")


def print_console(machine: Bmc) -> None:
    with FileConsole(folder / "console").open() as stream:
        while True:
            data = stream.read()
            for at in range(0, len(data), PIECE):
                if machine.sol:
                    machine.sol.send_data(data[at : at + PIECE])
            time.sleep(0.05)


machine = Bmc({user: password}, port=port, address="::ffff:127.0.0.1")
(folder / "console").touch()
threading.Thread(target=print_console, args=[machine], daemon=True).start()
(folder / "listening").touch()
machine.listen()
