"""The program `hil`: its commands (harness/commands), and how it ends."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from harness.errors import HarnessError, HilError, LabError
from harness.lab import defaults

#: What `hil --help` says of each command: the first sentence of its own help. A command is a module
#: of harness/commands that has its name, and an `app`.
SUMMARIES = {
    "doctor": "Check what this machine lacks for a lab, and say what it is for and how to get it.",
    "decode": "Explain SMMUv3 events, and what drivers and QEMU print about an SMMU.",
    "coverage": "Show every behaviour, its tests, their known defects, and the last outcome in "
    "each lab.",
    "report": "Make Allure's page of a run: one file, <run>/report/index.html, that any "
    "browser opens.",
    "compare": "Show what changed from one run to another: versions, outcomes, times.",
    "history": "Show what a test said in each run, and how often it failed; or list the flaky "
    "tests.",
    "kcidb": "Print a run's results as KCIDB takes them: JSON of its schema 5.3.",
    "matrix": "Show runs on several stacks as one table: behaviours × stacks.",
    "cross": "Run tests on every combination of kernels, and make the page of the matrix.",
    "bisect": "Find the commit of a kernel or of QEMU with which a test began to fail.",
    "reproduce": "Show a known defect with the fewest steps, and say whether this QEMU or kernel "
    "has it.",
    "lab": "Build, start, stop and enter the lab's hosts.",
    "kernel": "Build kernels for the lab from any Linux source tree, and check other kernels' "
    "options.",
    "runs": "List runs, and remove old ones.",
}


class _Commands(TyperGroup):
    """A group whose commands are summaries only. The module of one is imported when it is called:
    all of them take most of a second."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _readers_leave():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _readers_leave():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, summary, rest = super().resolve_command(ctx, args)
        return name, summary and load(summary.name or ""), rest


@contextlib.contextmanager
def _readers_leave() -> Iterator[None]:
    """End `hil` as the shell says of SIGPIPE if whoever reads what the body prints (head, less) has
    closed the pipe. click would end it with status 1, which for many commands is a verdict."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _has_no_reader(sys.stdout.fileno()):
            # click would say nothing.
            raise LabError("a connection was closed at its other end") from None
        # This keeps Python from an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_SIGPIPE) from None


def _has_no_reader(file: int) -> bool:
    poll = select.poll()
    poll.register(file, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


app = typer.Typer(
    cls=_Commands,
    help="Hardware-in-the-loop tests for accelerated SMMUv3 virtualisation on NVIDIA Grace. "
    "pytest runs the suites: `pytest suites/veventq --help` shows the options of a run.",
    epilog="Exit status: 0 if all is well; 1 if the command failed, or found what it looks for; 2 "
    "if it was called wrongly: an option, or a file that it names; 130 after Ctrl-C.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _name, _summary in SUMMARIES.items():
    app.command(_name, help=_summary)(lambda: None)


def load(name: str) -> Any:
    """Return a command in the form that typer runs."""
    return get_command(importlib.import_module(f"harness.commands.{name}").app)


def main() -> None:
    """Run `hil`. An error ends it with the error's text: a HarnessError, such as a wrong call, with
    status 2, any other and an OSError with status 1; Ctrl-C with status 130."""
    # A build that is terminated must clean up as one that is interrupted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Catalogues and reasons have characters that the locale's encoding may lack.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        defaults.apply()
        app()
    except HilError as problem:
        print(f"hil: {problem}", file=sys.stderr)
        sys.exit(_WRONG_CALL if isinstance(problem, HarnessError) else 1)
    except KeyboardInterrupt:
        print("hil: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as problem:
        print(f"hil: {problem}", file=sys.stderr)
        sys.exit(1)


#: The exit status of a wrong call, as typer has it, and of one whose reader has left.
_WRONG_CALL, _SIGPIPE = 2, 141


def _print_version(asked: bool) -> None:
    if asked:
        # What only this needs takes a while to be imported.
        from harness.checkout import IN_CHECKOUT, ROOT
        from harness.report import executor

        revision = f" ({executor.revision(ROOT)})" if IN_CHECKOUT else ""
        print(f"hil {executor.version()}{revision}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and the revision, and exit.",
        ),
    ] = False,
) -> None:
    """Accept the options that come before a command."""


if __name__ == "__main__":
    main()
