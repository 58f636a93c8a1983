"""Refuse the host as unfit, as the boundary does on an old kernel."""

from __future__ import annotations

import os
import sys


def main() -> None:
    sys.stderr.write("boundary: this kernel is too old\n")
    sys.exit(os.EX_CONFIG)
