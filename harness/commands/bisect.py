"""The command `hil bisect`. Its docstring is what `--help` prints."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.bisect import summary
from harness.bisect.builder import Builder, KernelBuilder, QemuBuilder
from harness.bisect.question import Question
from harness.bisect.search import search
from harness.bisect.state import StateFolder
from harness.checkout import OUT
from harness.commands.options import PytestCommand, with_lab
from harness.errors import HarnessError
from harness.progress import Progress

app = typer.Typer(add_completion=False)


@app.command(cls=PytestCommand, no_args_is_help=True, context_settings=PytestCommand.SETTINGS)
def bisect(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="TEST [PYTEST OPTIONS]",
            help="What pytest is called with: one test, and options such as --lab and --host.",
        ),
    ],
    good: Annotated[str, typer.Option(metavar="COMMIT", help="A commit at which the test passes.")],
    bad: Annotated[str, typer.Option(metavar="COMMIT", help="A commit at which it fails.")],
    kernel_tree: Annotated[
        Path | None, typer.Option(metavar="TREE", help="Bisect the kernel of this git checkout.")
    ] = None,
    kernel_of: Annotated[
        str, typer.Option(metavar="host|guest", help="Whose kernel that is.")
    ] = "host",
    qemu_build: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Bisect QEMU, built as this build folder is configured."),
    ] = None,
    find_fix: Annotated[
        bool,
        typer.Option("--find-fix", help="Look for the commit that repaired it: --good is newer."),
    ] = False,
    symptom: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only a failure that this is found in counts as bad."),
    ] = None,
    trust_ends: Annotated[
        bool, typer.Option("--trust-ends", help="Do not test the good and the bad commit first.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the bisection is kept; default: out/bisect-…, named after what is asked.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the commit of a kernel or of QEMU with which a test began to fail.

    Each commit that git asks for is built and tested. One that does not build,
    or at which the lab or the harness fails or the test is skipped, is left
    out. Your checkout is not touched: the work is done in a worktree of its own.

    After Ctrl-C, or whatever else stopped it, the same command line goes on.

    Example: hil bisect --kernel-tree linux --good v7.2 --bad v7.3-rc1
    suites/veventq/test_burst.py::test_burst

    The exit status is 0 if one commit is found, and 1 if it is one of several
    that cannot all be told.
    """
    builder = _builder(kernel_tree, kernel_of, qemu_build)
    _refuse_own_options(arguments, builder.option)
    question = Question(
        builder.product,
        str(builder.repository),
        good,
        bad,
        tuple(with_lab(arguments)),
        str(Path.cwd()),
        find_fix,
        symptom,
    )
    state = StateFolder(folder or OUT / _name(question, builder))
    try:
        known = search(question, builder, state, Progress(), _say, trust_ends=trust_ends)
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; to go on, repeat `{shlex.join(['hil', *sys.argv[1:]])}`", file=sys.stderr)
        worktree = shlex.join(
            ["git", "-C", str(builder.repository), "worktree", "remove", "--force", "--force"]
        )
        print(f"to give it up: {worktree} {state.worktree}; rm -rf {state.folder}", file=sys.stderr)
        raise
    print(f"\n{summary.result(known)}\nsummary: {state.summary}")
    if len(known.answer) > 1:
        raise typer.Exit(1)


def _say(line: str) -> None:
    # Whoever watches a log file sees each step when it is done.
    print(line, flush=True)


def _builder(kernel_tree: Path | None, kernel_of: str, qemu_build: Path | None) -> Builder:
    """Return how the chosen product is built. Raises HarnessError if none or two are chosen."""
    if kernel_of not in ("host", "guest"):
        raise HarnessError(f"--kernel-of: {kernel_of} has no kernel", fix="give host or guest")
    if kernel_tree is not None and qemu_build is None:
        return KernelBuilder(kernel_tree, kernel_of)
    if qemu_build is not None and kernel_tree is None:
        return QemuBuilder(qemu_build)
    raise HarnessError(
        "what is to be bisected is not told" if kernel_tree is None else "two products are told",
        fix="give either --kernel-tree or --qemu-build",
    )


def _refuse_own_options(arguments: list[str], option: str) -> None:
    """Raise HarnessError for an option of pytest that every step gets a value of its own for."""
    for own in (option, "--out"):
        if any(one == own or one.startswith(f"{own}=") for one in arguments):
            raise HarnessError(
                f"{own}: each step of the bisection has its own", fix=f"leave {own} out"
            )


def _name(question: Question, builder: Builder) -> str:
    """Return the name of the folder of whoever names none."""
    test = question.arguments[0].rpartition("::")[2]
    words = ("bisect", builder.name, question.good, question.bad, Path(test).stem)
    return re.sub(r"[^\w.+]+", "-", "-".join(words)).rstrip("-")
