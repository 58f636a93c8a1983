"""Show each known upstream defect with the fewest steps, for the person who repairs it.

`hil reproduce ID` runs these. Each module but show.py is one reproducer: its name is what
suites/defects.yaml calls it, and its SHOW performs the steps.
"""

from __future__ import annotations

import importlib
import pkgutil

from harness.checkout import DEFECTS
from harness.errors import HarnessError
from harness.report.defects import Defect
from harness.reproduce.show import Show


def reproducers() -> dict[str, Show]:
    """Return what shows each defect, by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        show = getattr(importlib.import_module(f"{__name__}.{module.name}"), "SHOW", None)
        if show:
            found[module.name] = show
    return found


def reproducer(defect: Defect) -> Show:
    """Return what shows a defect. Raises HarnessError if the catalogue names a reproducer that does
    not exist."""
    known = reproducers()
    if defect.reproducer not in known:
        raise HarnessError(
            f"{defect.id}: found {defect.reproducer!r} as its reproducer in {DEFECTS}; "
            f"allowed: {', '.join(known)}",
            fix="name one of these, or add it to harness/reproduce/",
        )
    return known[defect.reproducer]
