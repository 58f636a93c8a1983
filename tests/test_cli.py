"""`hil --version` names the revision that people need for a report."""

from __future__ import annotations

import re
import subprocess
import sys

from harness.checkout import ROOT


def test_the_version_names_the_revision() -> None:
    asked = [sys.executable, "-m", "harness.cli", "--version"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"hil \d+\.\d+\.\d+ \((unknown|[0-9a-f]{12}(-dirty)?)\)\n", said)
