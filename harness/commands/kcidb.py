"""`hil kcidb`: a run's results for the common database of kernel CI systems."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from harness.checkout import OUT
from harness.commands.options import complete_run
from harness.errors import HarnessError
from harness.report import kcidb as reports
from harness.report import runs
from harness.report.run import load

app = typer.Typer(add_completion=False)


@app.command(no_args_is_help=True)
def kcidb(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            autocompletion=complete_run,
            help="A run: its name in out/, its folder, or latest.",
        ),
    ],
    origin: Annotated[
        str, typer.Option(metavar="NAME", help="Who submits it, by the name that KCIDB knows.")
    ],
    commit: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="The commit of the host's kernel, all 40 digits."),
    ] = None,
    repository: Annotated[
        str | None, typer.Option(metavar="URL", help="Its git repository, https://….")
    ] = None,
    tree: Annotated[
        str | None, typer.Option(metavar="NAME", help="The tree's common name, such as mainline.")
    ] = None,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Its branch.")] = None,
) -> None:
    """Print a run's results as KCIDB takes them: JSON of its schema 5.3.

    Known defects are KCIDB's issues, failures of the harness are ERROR, and
    those of the lab MISS. What was tested is known by versions; say with the
    options which commit the host's kernel was built from.

    Example: hil kcidb latest --origin mylab | kcidb-validate
    """
    if commit is not None and not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise HarnessError(
            f"--commit: {commit} is no full hash", fix="give what `git rev-parse HEAD` says"
        )
    if repository is not None and not repository.startswith("https://"):
        raise HarnessError(f"--repository: {repository} is no https:// URL", fix="give its URL")
    given = {
        "git_commit_hash": commit,
        "git_repository_url": repository,
        "tree_name": tree,
        "git_repository_branch": branch,
    }
    folder = runs.find(run, OUT)
    checkout = {name: value for name, value in given.items() if value is not None}
    told = reports.report(folder.resolve().name, load(folder), origin, checkout)
    print(json.dumps(told, indent=1))
