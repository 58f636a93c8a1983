"""`hil coverage`: behaviours and their tests, and what a host can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harness.checkout import DEFAULT_LAB, OUT, ROOT, SUITES, name_of
from harness.commands.options import JsonOption, wide_console
from harness.errors import HarnessError
from harness.host.capability import words
from harness.lab import calls, defaults
from harness.lab import offer as offers
from harness.lab.inventory import HostEntry
from harness.report import behaviours, host_coverage, requirements

LabOfHostOption = Annotated[
    Path | None,
    typer.Option(
        "--lab",
        metavar="FILE",
        help="Inventory that has the host of --host; default: $HIL_LAB, or "
        f"{name_of(DEFAULT_LAB)}.",
        show_default=False,
    ),
]

app = typer.Typer(add_completion=False)


@app.command()
def coverage(
    host: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show which behaviours can run on this host of the lab."),
    ] = None,
    lab: LabOfHostOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every behaviour, its tests, their known defects, and the last outcome in each lab.

    With --host it shows which behaviours can run on that host of the lab, or
    what is missing for them. The host is not reached: what its inventory says
    counts. Capabilities that only probing can tell (a CMDQV, kernel probes, …)
    are assumed and named; `hil doctor --host NAME` probes them. Devices of one
    PCI segment are assumed to be behind one SMMU.

    Example: hil coverage --host grace-1 --lab lab-inventory/grace.example.yaml
    """
    _refuse_lab_without_host(lab, host)
    if host is not None:
        chosen = lab or defaults.lab() or DEFAULT_LAB
        _coverage_on(calls.host(calls.inventory(chosen), host), chosen, as_json)
        return
    rows = behaviours.coverage(SUITES, ROOT, OUT)
    if as_json:
        for row in rows:
            one = row.behaviour
            body = {"id": one.id, "text": one.text, "tests": row.tests, "ran": row.outcomes}
            known = [defect.model_dump(mode="json") for defect in row.defects]
            print(json.dumps({**body, "known_defects": known}))
        return
    table = _behaviour_table(("tests", 4), ("ran", 1))
    for row in rows:
        names = (escape(test.removeprefix("suites/")) for test in row.tests)
        tests = "\n".join(names) or "[dim]none[/]"
        for defect in row.defects:
            tests += f"\n[yellow]known defect[/], {escape(f'{defect.concerned}: {defect.title}')}"
        ran = "\n".join(f"{lab}: {outcome}" for lab, outcome in row.outcomes.items())
        table.add_row(*map(escape, (row.behaviour.id, row.behaviour.text)), tests, escape(ran))
    console = wide_console()
    console.print(table)
    carried = sum(bool(row.tests) for row in rows)
    console.print(f"{carried} of {len(rows)} behaviours have a test")


def _behaviour_table(*columns: tuple[str, int]) -> Table:
    """Return an empty table of behaviours with these columns besides, each with its share of the
    width."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for title, ratio in (("behaviour", 3), *columns):
        table.add_column(title, ratio=ratio, overflow="fold")
    return table


def _refuse_lab_without_host(lab: Path | None, host: str | None) -> None:
    """Raise HarnessError where only a host's inventory is read, and no host is named."""
    if lab is not None and host is None:
        names = ", ".join(entry.name for entry in calls.inventory(lab).hosts)
        raise HarnessError(
            f"--lab: {lab} is read for one of its hosts only, and --host names none",
            fix=f"add --host with one of {names}",
        )


def _coverage_on(entry: HostEntry, lab: Path, as_json: bool) -> None:
    """Print which behaviours can run on a host."""
    offered = offers.offer(entry)
    tests = requirements.requirements(SUITES, lab, entry.name)
    rows = host_coverage.host_coverage(behaviours.catalogue().values(), tests, offered)
    if as_json:
        for row in rows:
            verdicts = [
                {"test": one.test, "missing": one.missing, "unprobed": sorted(one.unprobed)}
                for one in row.tests
            ]
            one = row.behaviour
            body = {"id": one.id, "text": one.text, "host": entry.name, "runs": bool(row.running)}
            print(json.dumps({**body, "tests": verdicts}))
        return
    table = _behaviour_table((f"on {entry.name}", 3))
    for row in rows:
        table.add_row(*map(escape, (row.behaviour.id, row.behaviour.text, str(row))))
    console = wide_console()
    console.print(table)
    for name in sorted({name for row in rows for name in row.unprobed}):
        ids = ", ".join(row.behaviour.id for row in rows if name in row.unprobed)
        text = f"only if probing finds {name}, {words(name)}: {ids}"
        console.print(text, highlight=False, markup=False)
    if offered.guessed:
        console.print("devices of one PCI segment are assumed to be behind one SMMU")
    running = sum(bool(row.running) for row in rows)
    console.print(f"{running} of {len(rows)} behaviours can run on {entry.name}")
