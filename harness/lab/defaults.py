"""What a user has set once instead of with each command: environment variables, and a file that
stands for them.

Each field of the file is the variable of its name, `lab` is `$HIL_LAB`. A variable that is set
takes precedence over the file, and an option over both.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs

LAB = "HIL_LAB"


def file() -> Path:
    """Return the path of this user's file, which need not exist."""
    return platformdirs.user_config_path("hil") / "defaults.yaml"


def exists() -> bool:
    """Return whether this user has a file. Who may not look for it, as in a container whose HOME is
    another user's, has none."""
    with contextlib.suppress(OSError):
        return file().exists()
    return False


def apply() -> None:
    """Set the variables that the file has and the environment has not. Raises HarnessError for a
    file that is not as it should be."""
    if not exists():
        return
    # Most users have no such file, and what reads it takes a while to be imported.
    from harness.lab.defaults_file import read

    path = file()
    for name, value in read(path):
        if value is not None:
            text = str(path.parent / value) if isinstance(value, Path) else value
            os.environ.setdefault(f"HIL_{name.upper()}", text)


def lab() -> Path | None:
    """Return the inventory that `$HIL_LAB` names, None if it names none."""
    chosen = os.environ.get(LAB)
    return Path(chosen) if chosen else None
