"""`hil cross`: tests on every combination of kernels."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.artifacts import kernel, stack
from harness.checkout import OUT
from harness.commands.matrix import PAGE, show, write
from harness.commands.options import PytestCommand, with_lab
from harness.errors import HarnessError
from harness.lab import calls
from harness.matrix import crossing
from harness.matrix import table as tables
from harness.progress import Progress

#: Options of pytest that `hil cross` itself gives.
_OWN = ("--out", "--report")

app = typer.Typer(add_completion=False)


@app.command(cls=PytestCommand, context_settings=PytestCommand.SETTINGS)
def cross(
    context: typer.Context,
    host_kernel: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A kernel Image for the host; give several."),
    ] = None,
    guest_kernel: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A kernel Image for guests; give several."),
    ] = None,
    qemu: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A QEMU, here or host:PATH; give several."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where the runs are kept.", show_default="out/matrix"),
    ] = OUT / "matrix",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run combinations again that have run.")
    ] = False,
) -> None:
    """Run tests on every combination of kernels, and make the page of the matrix.

    Further arguments go to pytest: tests of suites/, and options such as
    --lab. Where no tests are named, a sample runs, for minutes a combination.
    Where no kernel or QEMU of a kind is given, it is the host's own; where none
    at all is given, the kernels of the lab's stack are crossed.

    A combination that fails does not stop the others. After Ctrl-C, or whatever
    else stopped it, the same command line goes on: a combination is not run
    again if its run has ended and was not interrupted.

    Example: hil cross --host-kernel v7.2/Image --host-kernel v7.3/Image
    --guest-kernel v7.3/Image suites/veventq --numprocesses=2

    The exit status is that of `hil matrix`.
    """
    for own in _OWN:
        if any(one == own or one.startswith(f"{own}=") for one in context.args):
            raise HarnessError(f"{own}: each combination has its own", fix=f"leave {own} out")
    if not (host_kernel or guest_kernel or qemu):
        host_kernel = guest_kernel = kernels_of_the_stack()
    asked = crossing.combinations(
        host_kernel or (), guest_kernel or (), qemu or (), crossing.chosen(with_lab(context.args))
    )
    found, missing = [], []
    try:
        for combination, run in crossing.cross(asked, out, Progress(), _say, fresh=fresh):
            if run:
                found.append(run)
            else:
                missing.append(str(combination))
    except (KeyboardInterrupt, SystemExit):
        line = shlex.join(["hil", *(one for one in sys.argv[1:] if one != "--fresh")])
        done = len(found) + len(missing)
        print(
            f"stopped after {done} of {len(asked)} combinations; to go on: `{line}`",
            file=sys.stderr,
        )
        raise
    if not found:
        raise HarnessError("no combination left results", fix=f"read the logs of pytest in {out}")
    table = tables.read(found)
    show(table, differing=True)
    write(table, out / PAGE, differing=False)
    for name in missing:
        print(f"left no results, and is not in the page: {name}")
    if table.bad or missing:
        raise typer.Exit(1)


def kernels_of_the_stack() -> list[Path]:
    """Return the Images of all kernels of the stack in use, and build those that are missing.
    Raises HarnessError if there is one only."""
    progress, store = Progress(), calls.store()
    sources = stack.in_use(store.root, progress).linux
    if len(sources) < 2:
        raise HarnessError(
            f"there is nothing to cross: no kernel is given, and the lab's stack has {sources[0]} "
            "only",
            fix="give Images with --host-kernel and --guest-kernel, each as often as you like; or "
            "name several in HIL_STACK, as `make matrix` does",
        )
    return [store.get(kernel.recipe(one, progress), progress) / kernel.IMAGE for one in sources]


def _say(line: str) -> None:
    # Whoever watches a log file sees each step when it is done.
    print(line, flush=True)
