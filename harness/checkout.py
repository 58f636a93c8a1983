"""Where this checkout has its suites, inventories and results."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITES = ROOT / "suites"
#: One folder for each run.
OUT = ROOT / "out"
#: The inventory of whoever names none: a virtual host, built on this machine.
DEFAULT_LAB = ROOT / "lab-inventory" / "virtual.yaml"
