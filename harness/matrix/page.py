"""Draw the table of behaviours × stacks as one HTML page, which loads nothing and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from harness.matrix.cell import Cell, CellKind
from harness.matrix.table import MatrixRow, Table, titles
from harness.matrix.text import report, summary
from harness.report import tested_stack
from harness.report.markup import printable, xml
from harness.report.site import INDEX

STYLE = """
body { font: 14px/1.4 sans-serif; margin: 0; padding: 8px 16px; color: #222; background: #fff }
table { border-collapse: collapse; margin: 12px 0 } caption { text-align: left }
th, td { border: 1px solid #d4d8dd; padding: 3px 8px; text-align: left; vertical-align: top }
tbody th:first-child { white-space: nowrap }
thead th { position: sticky; top: 0; background: #eef0f3 } tbody th { font-weight: normal }
tr.group th { background: #f6f7f9; font-weight: bold } tr:target th { background: #fff6d6 }
td.product, td.fixed, td.unknown { background: #fbd5d3; font-weight: bold }
td.harness, td.lab { background: #ffe9a8; font-weight: bold } td.given_up { background: #fff6d6 }
td.known { background: #dcebfa } td.passed { background: #dff3e2 }
td.skipped { color: #555; background: #f3f3f3 }
a { color: inherit } small { display: block; font-weight: normal; overflow-wrap: anywhere }
tr.differs th:first-child { border-left: 4px solid #222; font-weight: bold }
@media print {
  body { font-size: 10px; padding: 0 }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  thead { display: table-header-group } thead th { position: static } tr { break-inside: avoid }
}
"""


def html(table: Table, differing: bool, folder: Path) -> str:
    """Return the page, to be written into `folder`: links to reports are relative to that."""
    groups = table.groups(differing)
    shown = sum(len(rows) for _, rows in groups)
    which = f"{shown} of {len(table.rows)} behaviours"
    which += ", those that differ between the stacks" if differing else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Behaviours by stack</title><style>{STYLE}</style></head><body>"
        f"<h1>Behaviours by stack</h1>\n{_legend(table, folder)}\n{_notes(table)}"
        f'<table id="behaviours"><caption>{xml(which)}</caption>{_head(table)}\n<tbody>\n'
        f"{''.join(_body(table, groups, folder))}</tbody></table></body></html>\n"
    )


def _legend(table: Table, folder: Path) -> str:
    """Return the table of the stacks: what each is, its runs, and how many verdicts it has."""
    rows = []
    for column, counts in summary(table):
        runs = ", ".join(_run(run, folder) for run in column.runs)
        parts = "".join(f"<td>{xml(str(part))}</td>" for part in column.stack.parts)
        rows.append(
            f'<tr><th scope="row">{column.label}</th>{parts}<td>{xml(column.lab)}</td>'
            f"<td>{xml(counts)}</td><td>{runs}</td></tr>\n"
        )
    heads = ("stack", *tested_stack.PARTS, "lab", "behaviours", "runs")
    return (
        f'<table id="stacks"><thead><tr>{"".join(f"<th>{xml(one)}</th>" for one in heads)}</tr>'
        f"</thead><tbody>\n{''.join(rows)}</tbody></table>"
    )


def _run(run: Path, folder: Path) -> str:
    page = run / "report" / INDEX
    name = xml(run.name)
    return f"<a href={address(page, '', folder)}>{name}</a>" if page.is_file() else name


def _notes(table: Table) -> str:
    if not table.notes:
        return ""
    return f'<ul id="notes">{"".join(f"<li>{xml(one)}</li>" for one in table.notes)}</ul>\n'


def _head(table: Table) -> str:
    heads = "".join(
        f'<th scope="col">{"<br>".join(map(xml, head))}</th>' for head in titles(table.columns)
    )
    return f"<thead><tr><th>id</th><th>behaviour</th>{heads}</tr></thead>"


def _body(table: Table, groups: list[tuple[str, list[MatrixRow]]], folder: Path) -> Iterator[str]:
    for title, rows in groups:
        span = 2 + len(table.columns)
        yield f'<tr class="group"><th colspan="{span}">{xml(title)}</th></tr>\n'
        for row in rows:
            one, mark = row.behaviour, ' class="differs"' if row.differs else ""
            cells = "".join(_cell(cell, one.id, folder) for cell in row.cells)
            yield (
                f'<tr id={quoteattr(printable(one.id))}{mark}><th scope="row">{xml(one.id)}</th>'
                f"<th>{xml(one.text)}</th>{cells}</tr>\n"
            )


def _cell(cell: Cell, behaviour: str, folder: Path) -> str:
    if cell.kind is CellKind.NOTHING:
        return "<td></td>"
    target = report(cell, behaviour)
    words = xml(cell.words)
    if target:
        words = f"<a href={address(*target, folder)}>{words}</a>"
    why = "".join(f"<small>{xml(reason)}</small>" for reason in cell.reasons)
    return f'<td class="{cell.kind.name.lower()}">{words}{why}</td>'


def address(page: Path, place: str, folder: Path) -> str:
    """Return the address of a page as the quoted value of an attribute."""
    path = quote(os.fsencode(os.path.relpath(page, folder)))
    return quoteattr(f"{path}#{quote(place)}" if place else path)
