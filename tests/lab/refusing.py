"""Launchers that do not bring up a guest."""

from __future__ import annotations

import os
import sys
import time


def unfit() -> None:
    """Finds its host unfit, as the boundary does on an old kernel."""
    sys.stderr.write("boundary: this kernel is too old\n")
    sys.exit(78)


def slowly() -> None:
    """Ends as QEMU does on a busy host: its sockets long before itself."""
    sys.stderr.write("qemu: no\n")
    sys.stderr.flush()
    os.closerange(3, 1024)
    time.sleep(3)
    sys.exit(1)
