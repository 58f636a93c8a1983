"""`hil compare`: what changed from one run to another, as a gate."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Annotated

import typer

from harness.checkout import OUT
from harness.commands.options import JsonOption, complete_run
from harness.errors import HarnessError
from harness.report import compare as comparing
from harness.report import runs
from harness.report.blame import Blame
from harness.report.compare import WORSE, ChangeKind, Gate
from harness.report.run import load

#: The name of the last good run before the later one, in the same lab.
_GOOD = "good"
#: The kinds that `--fail-on` takes, as words without blanks.
_WORDS = {
    kind.replace(" ", "-"): kind
    for kind in ChangeKind
    if kind not in (ChangeKind.VERSIONS, ChangeKind.NEWLY_PASSING)
}
_DEFAULT = ", ".join(word for word, kind in _WORDS.items() if kind in WORSE)


def _kind(word: str) -> ChangeKind:
    if word not in _WORDS:
        raise typer.BadParameter(f"{word!r} is not one of {', '.join(_WORDS)}")
    return _WORDS[word]


app = typer.Typer(add_completion=False)


@app.command(no_args_is_help=True)
def compare(
    before: Annotated[
        str,
        typer.Argument(
            metavar="RUN_A",
            autocompletion=complete_run,
            help="The earlier run: its name in out/, its folder, latest~N for the N-th before the "
            "latest, or good for the last good run before RUN_B in the same lab.",
        ),
    ],
    after: Annotated[
        str, typer.Argument(metavar="RUN_B", autocompletion=complete_run, help="The later run.")
    ] = "latest",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEST",
            help="Compare only these tests: a folder, a file or a test, such as suites/veventq; "
            "give several. Default: all.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        list[ChangeKind] | None,
        typer.Option(
            metavar="KIND",
            parser=_kind,
            help="A change by which RUN_B is worse, in place of the usual ones; give several. "
            f"{', '.join(_WORDS)}; default: {_DEFAULT}.",
            show_default=False,
        ),
    ] = None,
    blame: Annotated[
        list[Blame] | None,
        typer.Option(
            help="Of failures, count only those that are the product's, the lab's or the "
            "harness's; give several. Default: all.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, for a merge request.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what changed from one run to another: versions, outcomes, times.

    The exit status is 1 if RUN_B is worse or tells less: tests fail that did
    not fail in RUN_A or that are new, tests of RUN_A are missing or were not
    run, RUN_B ended early, or nothing ran in one of the two. It is 0 if not, and
    2 if the runs cannot be compared, because one is no run or is damaged.

    Examples: hil compare good
    hil compare latest~1 --only suites/veventq --blame product --markdown
    """
    if markdown and as_json:
        raise HarnessError("--markdown and --json are two forms of one list", fix="choose one")
    # A path may be `.`, which is no name.
    earlier = None if before == _GOOD else runs.find(before, OUT).resolve()
    later = runs.find(after, OUT).resolve()
    found = load(later)
    earlier = earlier or runs.last_good(later, found)
    gate = Gate(fail_on or WORSE, blame or ())
    changes = comparing.compare(load(earlier), found, only or ())
    if as_json:
        told = [{**dataclasses.asdict(one), "counts": gate.counts(one)} for one in changes]
        print(json.dumps(told, indent=1))
    elif markdown:
        print(comparing.markdown(changes, gate, earlier.name, later.name), end="")
    else:
        for kind, group in itertools.groupby(changes, key=lambda change: change.kind):
            print(f"{kind}:")
            for change in group:
                print(f"  {change}{f': {change.why}' if change.why else ''}")
        if not changes:
            print("nothing changed")
        print(f"{later.name} is {gate.verdict(changes)} than {earlier.name}")
    if any(map(gate.counts, changes)):
        raise typer.Exit(1)
