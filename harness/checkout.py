"""Where suites, catalogues, inventories and results are: in this checkout, or, for an installed
wheel, in its package and in the folder from which it is called."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
#: Whether this is a checkout, rather than an installed wheel.
IN_CHECKOUT = (_PACKAGE.parent / "suites" / "behaviours.yaml").is_file()
#: The checkout, or the folder from which an installed wheel is called.
ROOT = _PACKAGE.parent if IN_CHECKOUT else Path.cwd()
#: The folder with the tests of the product. A wheel brings none: they are its user's.
SUITES = ROOT / "suites" if IN_CHECKOUT else ROOT
#: One folder for each run.
OUT = ROOT / "out"

# What the package has in data/. In a checkout those are links.
BEHAVIOURS = (_PACKAGE / "data" / "behaviours.yaml").resolve()
DEFECTS = (_PACKAGE / "data" / "defects.yaml").resolve()
INVENTORIES = (_PACKAGE / "data" / "lab-inventory").resolve()
#: The inventory of whoever names none: a virtual host, built on this machine.
DEFAULT_LAB = INVENTORIES / "virtual.yaml"


def name_of(file: Path) -> str:
    """Return the name by which people are told of a file of this project: in a checkout its path
    there."""
    return str(file.relative_to(ROOT) if IN_CHECKOUT else file)
