"""`hil matrix`: runs on several stacks as one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.checkout import OUT
from harness.commands.options import complete_run, wide_console
from harness.errors import HarnessError
from harness.matrix import page, text
from harness.matrix import table as tables
from harness.matrix.table import Table
from harness.report import runs as old_runs

#: The name of the page in a folder of runs.
PAGE = "matrix.html"

app = typer.Typer(add_completion=False)


@app.command(no_args_is_help=True)
def matrix(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            autocompletion=complete_run,
            help="Folders of runs, their names in out/, latest, or latest~N.",
        ),
    ],
    differing: Annotated[
        bool, typer.Option("--differing", help="Show only behaviours whose cells differ.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page instead.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, for a merge request.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show runs on several stacks as one table: behaviours × stacks.

    A stack is a host kernel, a guest kernel and a QEMU, in one lab. A cell says
    the worst of what the behaviour's tests said there. Of a test that ran twice
    on a stack, the later result counts. What was left out is told.

    The exit status is 1 if a behaviour failed, whoever is to blame, or was not
    run because its host was given up; if nothing ran on a stack; or if a run
    was left out or ended early. Known defects and skipped tests are no failure.
    It is 2 if there is nothing to show.
    """
    if (html is not None) + markdown + as_json > 1:
        raise HarnessError(
            "--html, --markdown and --json are three forms of one table", fix="choose one of them"
        )
    table = tables.read([old_runs.find(run, OUT) for run in runs])
    if as_json:
        print(json.dumps(text.as_json(table, differing), indent=1))
    elif markdown:
        print(text.markdown(table, differing), end="")
    elif html is not None:
        write(table, html, differing=differing)
    else:
        show(table, differing=differing)
    if table.bad:
        raise typer.Exit(1)


def write(table: Table, file: Path, *, differing: bool) -> None:
    """Write a table as an HTML page, with all behaviours or those whose cells differ, and print the
    file's name."""
    file.write_text(page.html(table, differing, file.absolute().parent), encoding="utf-8")
    print(file)


def show(table: Table, *, differing: bool) -> None:
    """Print a table on the terminal, with all behaviours or those whose cells differ."""
    console = wide_console()
    for part in text.terminal(table, differing):
        console.print(part)
