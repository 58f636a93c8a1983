"""Options that several commands of `hil` have, and what their commands do alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from rich.console import Console
from typer.core import TyperCommand

from harness.checkout import DEFAULT_LAB, OUT, name_of
from harness.lab import defaults
from harness.report import runs

LabOption = Annotated[
    Path,
    typer.Option(
        "--lab",
        metavar="FILE",
        envvar=defaults.LAB,
        help="Inventory of the lab.",
        show_default=name_of(DEFAULT_LAB),
    ),
]
HostOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of a host in the inventory; default: the first."),
]
HostKernelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Kernel Image for the host itself, a file on this machine; default: the lab's own.",
    ),
]
NoBuildOption = Annotated[
    bool,
    typer.Option(
        "--no-build", help="Refuse to build a virtual host that is not built, which takes minutes."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class PytestCommand(TyperCommand):
    """A command whose further arguments go to pytest as they are, options of pytest among them.

    `-h` asks for help as a word of its own only: click would also find it in `-k what`, of which it
    knows neither -k nor what.
    """

    #: What click is told of such a command.
    SETTINGS: ClassVar = {
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": ["--help"],
    }

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--help" if one == "-h" else one for one in args])


def with_lab(arguments: Sequence[str]) -> list[str]:
    """Return arguments of pytest with the inventory of $HIL_LAB if they name none: whoever goes on
    with them later, or asks whether they have run, has the same lab."""
    chosen = defaults.lab()
    if chosen is None or any(one.partition("=")[0] == "--lab" for one in arguments):
        return list(arguments)
    return [*arguments, f"--lab={chosen.absolute()}"]


def complete_run(incomplete: str) -> list[str]:
    """Return the names of runs that begin so, the latest first, for a shell to complete."""
    names = ["latest", *(run.name for run in reversed(runs.ended(OUT)))]
    return [name for name in names if name.startswith(incomplete)]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `hil` how it ends (harness/cli.py). rich calls this while it handles the
        error, and would itself end with status 1."""
        raise


def wide_console() -> Console:
    """Return a console that writes long lines where its output is not shown on a terminal."""
    console = _Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console
