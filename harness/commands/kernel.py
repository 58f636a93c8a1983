"""`hil kernel`: build a developer's tree for the lab, and compare a kernel's options with ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harness.artifacts import kernel
from harness.artifacts.kernel_options import (
    Importance,
    KernelUser,
    MissingOption,
    fragment,
    missing,
    settings,
)
from harness.artifacts.kernel_tree import Overlay
from harness.commands.options import wide_console
from harness.errors import HarnessError
from harness.kernel_image import KernelImage, configuration
from harness.lab import calls
from harness.progress import Progress

app = typer.Typer(
    add_completion=False,
    help="Build kernels for the lab from any Linux source tree, and check other kernels' options.",
    no_args_is_help=True,
)


@app.command(no_args_is_help=True)
def build(
    tree: Annotated[
        Path,
        typer.Argument(
            metavar="TREE", help="Source tree of Linux, git's or not.", exists=True, file_okay=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The Image that is made; default: Image, or Image.small-queues, in this folder.",
            dir_okay=False,
        ),
    ] = None,
    small_queues: Annotated[
        bool,
        typer.Option("--small-queues", help="Make the variant for guests with small SMMU queues."),
    ] = False,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FRAGMENT",
            help="Lines such as CONFIG_KASAN=y, laid over our options; may be repeated.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Build the kernel of a source tree for the virtual host and its guests.

    Its options are ours (`hil kernel config` prints them), whatever .config
    the tree has, and those of --config. The build is in the cache, a folder
    for each tree, so that the next one compiles what has changed only. After
    Ctrl-C it goes on where it stopped. The tree itself is never written to:
    one that was built in place needs `make mrproper` first.

    `uname -r` then tells the tree: its version, what git describes, -dirty
    if a file differs from its commit, and -hil.

    Example: hil kernel build ~/linux && pytest suites/loss --host-kernel Image
    """
    overlays = [Overlay.read(path) for path in config or ()]
    if small_queues:
        overlays.insert(0, kernel.SMALL_QUEUES)
    wanted = output or Path(kernel.SMALL_QUEUES_IMAGE if small_queues else kernel.IMAGE)
    _check_output(wanted, tree)
    kernel.build_tree(tree, overlays, wanted, calls.store(), Progress())
    print(f"{wanted}: {KernelImage.read(wanted)}")


def _check_output(output: Path, tree: Path) -> None:
    """Raise HarnessError for a file that cannot be made, or that would be in the tree."""
    folder = output.absolute().parent.resolve()
    if folder.is_relative_to(tree.resolve()):
        raise HarnessError(
            f"--output: {output} would be in the tree, which is never written to",
            fix="name a file elsewhere: -o ../Image",
        )
    if not folder.is_dir() or output.is_dir():
        wrong = f"{output} is a folder" if output.is_dir() else f"there is no folder {folder}"
        raise HarnessError(f"--output: {wrong}", fix="name the file that the Image becomes")


@app.command("config")
def config(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="A .config, /proc/config.gz, or an Image that has its own; -: standard input.",
        ),
    ] = None,
    users: Annotated[
        list[KernelUser] | None,
        typer.Option("--for", help="Whose needs count; may be repeated; default: all."),
    ] = None,
) -> None:
    """Print our kernel options, or say which of them another kernel lacks.

    A host under test may have modules; a guest and the virtual host load none.
    Without an option that is needed no test can run there; without a useful
    one some fail or are skipped. The exit status is 1 if a needed one is
    missing, and 2 if the file has no options.

    Example: ssh grace-1 cat /proc/config.gz | hil kernel config - --for host
    """
    if file is None:
        print(fragment(), end="")
        return
    chosen = tuple(user for user in KernelUser if not users or user in users)
    found = list(missing(_settings(file), chosen))
    if found:
        _print(found, chosen)
    lacking = 0
    for user in chosen:
        counts = {
            one: sum(missed.matters_to.get(user) is one for missed in found) for one in Importance
        }
        lacking += counts[Importance.NEEDED]
        print(f"{user}: {_verdict(counts[Importance.NEEDED], counts[Importance.USEFUL])}")
    if lacking:
        raise typer.Exit(1)


def _settings(file: str) -> dict[str, str]:
    """Return the options that a kernel was built with. Raises HarnessError for a file that does not
    tell them."""
    name = "standard input" if file == "-" else file
    if file == "-" and sys.stdin is None:
        raise HarnessError("standard input is closed", fix="name a file, or pipe one to this")
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as problem:
        raise HarnessError(f"cannot read {file}: {problem.strerror}") from None
    try:
        found = settings(configuration(content))
    except ValueError as problem:
        raise HarnessError(
            f"{name}: {problem}",
            fix="name the .config that the kernel was built with, such as /boot/config-RELEASE",
        ) from None
    if found.get("CONFIG_ARM64") != "y":
        what = "has a configuration for another architecture" if found else "has no options"
        raise HarnessError(
            f"{name} {what}", fix="name the whole .config of a kernel for arm64, not a fragment"
        )
    return found


def _print(found: Sequence[MissingOption], users: Sequence[KernelUser]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("option", "is", *users):
        table.add_column(title, no_wrap=title == "option")
    table.add_column("for", ratio=1)
    for missed in found:
        needs = (_colored(missed.matters_to.get(user)) for user in users)
        option = missed.option
        table.add_row(str(option), escape(missed.found), *needs, escape(option.purpose))
    wide_console().print(table)


def _colored(importance: Importance | None) -> str:
    return "[red]needed[/]" if importance is Importance.NEEDED else importance or ""


def _verdict(needed: int, useful: int) -> str:
    if not needed and not useful:
        return "nothing is missing"
    if not needed:
        return f"all that is needed is there; useful and missing: {useful}"
    return f"needed and missing: {needed}; useful and missing: {useful}"
