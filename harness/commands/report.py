"""`hil report`: Allure's page of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.checkout import OUT
from harness.commands.options import complete_run
from harness.lab import calls
from harness.progress import Progress
from harness.report import runs as old_runs
from harness.report import site

app = typer.Typer(add_completion=False)


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=complete_run,
            help="Runs: their names in out/, their folders, latest, or latest~N for the N-th "
            "before; default: latest.",
        ),
    ] = None,
) -> None:
    """Make Allure's page of a run: one file, <run>/report/index.html, that any browser opens."""
    folders = [old_runs.find(run, OUT).resolve() for run in runs or ["latest"]]
    for folder in folders:
        site.check(folder)
    progress, store = Progress(), calls.store()
    for folder in folders:
        print(site.generate(folder, store, progress))
