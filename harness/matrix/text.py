"""Show a table of behaviours × stacks as text: on a terminal, as Markdown, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from harness.matrix.cell import Cell, CellKind
from harness.matrix.table import Column, Table, titles
from harness.report import markup, tested_stack
from harness.report.site import BEHAVIOURS, INDEX

#: Red is the product's, yellow the lab's or the harness's. The words say the same.
_STYLES = {
    CellKind.PRODUCT: "bold red",
    CellKind.FIXED: "bold red",
    CellKind.UNKNOWN: "bold red",
    CellKind.HARNESS: "bold yellow",
    CellKind.LAB: "bold yellow",
    CellKind.GIVEN_UP: "yellow",
    CellKind.KNOWN: "cyan",
    CellKind.PASSED: "green",
    CellKind.SKIPPED: "dim",
}


def summary(table: Table) -> Iterator[tuple[Column, str]]:
    """Yield each column with a line of how many behaviours have which verdict there."""
    for at, column in enumerate(table.columns):
        counts = table.counts(at).items()
        yield column, ", ".join(f"{count} {kind}" for kind, count in counts)


def reasons(table: Table, differing: bool) -> Iterator[str]:
    """Yield a line for each reason why tests did not pass, with the cells that have it."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for _, rows in table.groups(differing):
        for row in rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                for reason in cell.reasons:
                    cells = found.setdefault((cell.kind, reason), {})
                    cells.setdefault(row.behaviour.id, []).append(column.label)
    for (kind, reason), cells in found.items():
        alike: dict[str, list[str]] = {}
        for name, labels in cells.items():
            alike.setdefault(", ".join(labels), []).append(name)
        where = "; ".join(f"{', '.join(names)} on {labels}" for labels, names in alike.items())
        yield f"{where}: {kind}: {reason}"


def terminal(table: Table, differing: bool) -> Iterator[RichTable | Text]:
    """Yield what a rich console prints."""
    for column, counts in summary(table):
        yield Text(markup.printable(f"{column.label}: {column}"))
        yield Text(markup.printable(f"   {counts}"))
        yield Text(markup.printable(f"   runs: {', '.join(run.name for run in column.runs)}"))
    drawn = RichTable(box=None, pad_edge=False)
    drawn.add_column("id", no_wrap=True)
    drawn.add_column("behaviour", ratio=3, overflow="fold")
    for head in titles(table.columns):
        drawn.add_column(Text(markup.printable("\n".join(head))), ratio=2, overflow="fold")
    groups = table.groups(differing)
    for title, rows in groups:
        drawn.add_row("", Text(markup.printable(title), style="bold"))
        for row in rows:
            one = row.behaviour
            cells = (_linked(cell, one.id) for cell in row.cells)
            drawn.add_row(*(Text(markup.printable(text)) for text in (one.id, one.text)), *cells)
    yield Text()
    yield drawn if groups else Text("no behaviour differs between the stacks")
    why = [Text(markup.printable(f"  {line}")) for line in reasons(table, differing)]
    yield from (Text(), Text("why:"), *why) if why else ()
    notes = [Text(markup.printable(f"  {line}")) for line in table.notes]
    yield from (Text(), Text("to be known:"), *notes) if notes else ()


def _linked(cell: Cell, behaviour: str) -> Text:
    """Return the text of a cell. A terminal that knows links opens the run's report from it."""
    style = _STYLES.get(cell.kind, "")
    target = report(cell, behaviour)
    return Text(cell.words, style=f"{style} link {target[0].as_uri()}" if target else style)


def report(cell: Cell, behaviour: str) -> tuple[Any, str] | None:
    """Return the page of the run's report that shows a behaviour, and the place there; None if the
    run that decided the verdict has no report."""
    if cell.run is None:
        return None
    folder = cell.run / "report"
    if (folder / BEHAVIOURS).is_file():
        return folder / BEHAVIOURS, behaviour
    return (folder / INDEX, "") if (folder / INDEX).is_file() else None


def markdown(table: Table, differing: bool) -> str:
    """Return the table for a merge request. It has no links: the reports are elsewhere there."""
    lines = []
    for column, counts in summary(table):
        runs = ", ".join(run.name for run in column.runs)
        lines += [
            f"- **{column.label}**: {markup.code(str(column))}: {counts}. Runs: {markup.code(runs)}"
        ]
    heads = [
        " <br> ".join([head[0], *map(markup.cell, head[1:])]) for head in titles(table.columns)
    ]
    groups = table.groups(differing)
    for title, rows in groups:
        lines += ["", f"**{_plain(title)}**", ""]
        lines += [f"| | behaviour | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
        for row in rows:
            one = row.behaviour
            cells = [_plain(one.id), _plain(one.text), *map(_bold, row.cells)]
            lines.append(f"| {' | '.join(cells)} |")
    if not groups:
        lines += ["", "No behaviour differs between the stacks."]
    for what, told in (("Why", reasons(table, differing)), ("To be known", table.notes)):
        listed = [f"- {markup.code(line)}" for line in told]
        lines += ["", f"{what}:", "", *listed] if listed else []
    return "\n".join(lines) + "\n"


def _bold(cell: Cell) -> str:
    words = _plain(cell.words)
    return f"**{words}**" if cell.kind.failed else words


def _plain(text: str) -> str:
    """Return text as itself in Markdown, also within a table."""
    return "".join(
        f"\\{one}" if one in r"\`*_[]<>#!|~$&@" else one
        for one in " ".join(markup.printable(text).split())
    )


def as_json(table: Table, differing: bool) -> dict[str, Any]:
    """Return the table as values of JSON."""
    columns = [
        {
            "label": column.label,
            "lab": column.lab,
            **{
                name: dataclasses.asdict(part)
                for name, part in zip(tested_stack.PARTS, column.stack.parts, strict=True)
            },
            "runs": [str(run) for run in column.runs],
            "counts": table.counts(at),
        }
        for at, column in enumerate(table.columns)
    ]
    rows = [
        {
            "id": row.behaviour.id,
            "text": row.behaviour.text,
            "group": row.behaviour.group,
            "differs": row.differs,
            "cells": {
                column.label: _cell(cell, row.behaviour.id)
                for column, cell in zip(table.columns, row.cells, strict=True)
            },
        }
        for _, rows in table.groups(differing)
        for row in rows
    ]
    return {"stacks": columns, "behaviours": rows, "notes": table.notes, "bad": table.bad}


def _cell(cell: Cell, behaviour: str) -> dict[str, Any]:
    target = report(cell, behaviour)
    return {
        "verdict": cell.kind,
        "defects": cell.defects,
        "words": cell.words,
        "reasons": cell.reasons,
        "run": str(cell.run) if cell.run else None,
        "report": str(target[0]) if target else None,
        "tests": [{"id": one.test, "verdict": one.kind, "run": str(one.run)} for one in cell.told],
    }
