"""`hil history`: what a test said in one run after the other, and which tests are flaky."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from harness.checkout import OUT
from harness.commands.options import JsonOption, wide_console
from harness.commands.runs import OutOption
from harness.errors import HarnessError
from harness.report import history as histories
from harness.report.history import Flaky, Past
from harness.report.markup import printable

app = typer.Typer(add_completion=False)


@app.command()
def history(
    test: Annotated[
        str | None,
        typer.Argument(
            metavar="TEST",
            help="A test's id, or a part of one; default: only the flaky tests are listed.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[
        int, typer.Option(metavar="N", min=1, help="Look at the latest N runs.")
    ] = histories.RUNS,
    out: OutOption = OUT,
    as_json: JsonOption = False,
) -> None:
    """Show what a test said in each run, and how often it failed; or list the flaky tests.

    A test is flaky if it changes its outcome although the software under test
    is the same: at one revision of the harness, or back and forth. Failures of
    the lab, and runs in which it was skipped, do not count.

    Example: hil history test_burst
    """
    found = list(histories.pasts(histories.read(out, last)))
    if test is not None:
        found = _of(test, found)
    if test is not None and not found:
        raise HarnessError(
            f"no test of the latest {last} runs in {out} has {test} in its id",
            fix="give a part of an id as pytest prints it, such as test_burst",
        )
    flaky = histories.flaky(found)
    if as_json:
        told: Sequence[Past | Flaky] = flaky if test is None else found
        print(json.dumps([_body(one) for one in told]))
        return
    if test is not None:
        _print(found)
    for one in flaky:
        print(f"{one.test} is flaky: {one.rate}\n  on {one.stack}, lab {one.lab}")
    if test is None and not flaky:
        print(f"no test of the latest {last} runs in {out} is flaky")


def _of(test: str, found: list[Past]) -> list[Past]:
    """Return what the test with this id said, or those that have it in theirs."""
    exact = [past for past in found if past.test == test]
    return exact or [past for past in found if test in past.test]


def _body(one: Past | Flaky) -> dict[str, object]:
    return {**dataclasses.asdict(one), "stack": str(one.stack) if one.stack else None}


def _print(found: Sequence[Past]) -> None:
    """Print a table for each test. Where stacks differ, numbers stand for them."""
    console = wide_console()
    places = {
        place: number
        for number, place in enumerate(
            dict.fromkeys((past.stack, past.lab) for past in found), start=1
        )
    }
    for test in dict.fromkeys(past.test for past in found):
        console.print(Text(printable(test), style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("run", "on", "host", "outcome", "seconds", "why"):
            table.add_column(title, overflow="fold", no_wrap=title == "run")
        for past in (one for one in found if one.test == test):
            outcome = f"{past.outcome} ({past.blame})" if past.blame else past.outcome
            on = str(places[past.stack, past.lab])
            row = (past.run, on, past.host, outcome, f"{past.seconds:.1f}", past.why)
            table.add_row(*(Text(printable(one)) for one in row))
        console.print(table)
    for (stack, lab), number in places.items():
        console.print(Text(printable(f"{number}: {stack or 'an unknown stack'}, lab {lab}")))
