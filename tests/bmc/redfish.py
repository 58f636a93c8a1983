"""Run a BMC that speaks Redfish: sushy-tools' emulator, whose one system does what it is told at
once, and writes it down. Arguments: the emulator's configuration, and a folder.

The folder has `power`, which says On or Off, and `did`, a line for each reset. A program `act` in
it, if there is one, is run for each reset, with its kind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from sushy_tools.emulator import main
from sushy_tools.emulator.resources.systems import fakedriver

config, folder = sys.argv[1], Path(sys.argv[2])


class Driver(fakedriver.FakeDriver):  # type: ignore[misc]
    def get_power_state(self, identity: str) -> Any:
        self._get(identity)  # it raises for another system
        return (folder / "power").read_text()

    def set_power_state(self, identity: str, state: str) -> None:
        self._get(identity)
        with (folder / "did").open("a") as did:
            did.write(f"{state}\n")
        if state != "Nmi":
            (folder / "power").write_text("Off" if state == "ForceOff" else "On")
        if (folder / "act").exists():
            subprocess.run([folder / "act", state], check=True)


fakedriver.FakeDriver = Driver
sys.argv = ["sushy-emulator", "--config", config]
main.main()
