"""The file of a user's defaults: its fields, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness import strict_yaml
from harness.errors import HarnessError
from harness.strict_yaml import HomePath, Strict


class Defaults(Strict):
    """The fields of the file."""

    lab: Annotated[
        HomePath | None,
        Field(description="path of an inventory; a relative one starts at this file's folder"),
    ] = None
    cache: Annotated[
        HomePath | None,
        Field(description="path of a folder; a relative one starts at this file's folder"),
    ] = None
    debian_mirror: Annotated[str | None, Field(description="base URL of a Debian mirror")] = None
    stack: Annotated[
        str | None, Field(description="what virtual labs are built from, such as linux=7.2")
    ] = None


def read(path: Path) -> Defaults:
    """Return what the file has. Raises HarnessError for a file that is not as it should be."""
    return strict_yaml.load(
        path,
        Defaults,
        what="file",
        error=HarnessError,
        fix="correct the file, or remove it: docs/nightly.md says what it may have",
        none="have a file there that you may read, or none",
    )
