"""A launcher that finds its host unfit, as the boundary's does on an old kernel."""

from __future__ import annotations

import sys


def main() -> None:
    sys.exit(_refuse())


def _refuse() -> int:
    sys.stderr.write("boundary: this kernel is too old\n")
    return 78
