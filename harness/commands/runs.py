"""`hil runs`: what is left of runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from harness.artifacts import disk
from harness.checkout import OUT
from harness.errors import HarnessError
from harness.report import runs as old_runs

app = typer.Typer(
    add_completion=False, help="List runs, and remove old ones.", no_args_is_help=True
)

OutOption = Annotated[
    Path,
    typer.Option("--out", metavar="FOLDER", help="The folder of runs.", show_default="out"),
]
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([KMGT])(?:iB|B)?")


@app.command("list")
def list_runs(out: OutOption = OUT) -> None:
    """Show all runs, with their sizes and verdicts."""
    total = 0
    for one in old_runs.runs(out):
        total += one.size
        print(f"{one.folder.name} ({disk.size(one.size)}): {one.verdict}")
    print(f"{disk.size(total)} in {out}, on {disk.FileSystem.of(out)}")


@app.command(no_args_is_help=True)
def prune(
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Keep the latest N runs.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=0, help="Remove runs that ended so many days ago."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Keep as many of the latest runs as take SIZE: 20G, 500M."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    out: OutOption = OUT,
) -> None:
    """Remove old runs, by number, age and size, and show what that frees.

    A run goes if one of the limits says so. The last good run of each lab
    always stays, and so does a run that has not ended, unless nothing was
    written for a day. The history that reports show stays.
    """
    size = None if max_size is None else _bytes(max_size)
    limits = old_runs.Limits(keep, older_than, size)
    if limits == old_runs.Limits():
        raise HarnessError(
            "nothing says which runs are to go",
            fix="give a limit: --keep, --older-than or --max-size",
        )
    freed = 0
    for one in old_runs.prune(out, limits, remove=not dry_run):
        verdict = f"kept: {one.kept}" if one.kept else "would go" if dry_run else "removed"
        print(f"{one.run.folder.name} ({disk.size(one.run.size)}): {verdict}")
        freed += 0 if one.kept else one.run.size
    would = "would be " if dry_run else ""
    print(f"{disk.size(freed)} {would}freed in {out}, on {disk.FileSystem.of(out)}")


def _bytes(size: str) -> int:
    """Return the number of bytes that a size says. Raises HarnessError."""
    found = _SIZE.fullmatch(size)
    if not found:
        raise HarnessError(
            f"--max-size: {size} is no size", fix="give a number with a unit: 500M, 20G, 1.5T"
        )
    return int(float(found[1]) * _UNITS[found[2]])
