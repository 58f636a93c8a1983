"""Draw a page of two aligned lists, actual and expected, with the differences marked.

They are aligned so that one missing event shows as a single difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from harness.expectation import align
from harness.report.markup import xml

#: How many equal rows are shown on either side of a difference, and how many rows in all.
_CONTEXT, _MOST_ROWS = 1, 200

_STYLE = """
body { font: 12px/1.3 sans-serif; margin: 4px; color: #222; background: #fff }
table { border-collapse: collapse; font-family: monospace }
th, td { text-align: left; padding: 1px 10px 1px 4px; white-space: pre-wrap;
  border-bottom: 1px solid #e3e6ea; vertical-align: top }
tr.missing td, tr.extra td, tr.other td { background: #fdecea }
mark { background: #f5b7b1; color: inherit }
td.none { color: #c0262d; font-style: italic } tr.gap td { color: #777 }
"""


def html(what: str, actual: Sequence[object], expected: Sequence[object]) -> str:
    """Return a whole HTML page; `what` is its title. Entries are shown by their str()."""
    rows = list(_rows(actual, expected))
    more = ""
    if len(rows) > _MOST_ROWS:
        more = f"<p>{len(rows) - _MOST_ROWS} more rows are left out.</p>"
    body = "\n".join(rows[:_MOST_ROWS])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{xml(what)}</title><style>{_STYLE}</style></head><body>"
        f"<b>{xml(what)}</b>"
        f'<table><tr><th colspan="2">{len(actual)} actual</th>'
        f'<th colspan="2">{len(expected)} expected</th></tr>\n'
        f"{body}\n</table>{more}</body></html>\n"
    )


def _rows(actual: Sequence[object], expected: Sequence[object]) -> Iterator[str]:
    codes = align(actual, expected)
    for place, (what, start, end, from_, to) in enumerate(codes):
        if what == "equal":
            before = _CONTEXT if place > 0 else 0
            after = _CONTEXT if place < len(codes) - 1 else 0
            yield from _equal(range(start, end), from_ - start, before, after, actual)
            continue
        for left, right in zip_longest(range(start, end), range(from_, to)):
            found = "" if left is None else str(actual[left])
            wanted = "" if right is None else str(expected[right])
            kind = "missing" if left is None else "extra" if right is None else "other"
            yield (
                f'<tr class="{kind}">{_number(left)}{_cell(found, wanted, left is None, "missing")}'
                f"{_number(right)}{_cell(wanted, found, right is None, 'nothing')}</tr>"
            )


def _equal(
    places: range, offset: int, before: int, after: int, actual: Sequence[object]
) -> Iterator[str]:
    """Yield the first `before` and the last `after` of these equal rows, and between them a row
    that counts the others."""
    first, last = places[:before], places[max(before, len(places) - after) :]
    for place in first:
        yield _plain(place, offset, actual)
    if len(places) > len(first) + len(last):
        left_out = len(places) - len(first) - len(last)
        yield f'<tr class="gap"><td></td><td colspan="3">… {left_out} equal …</td></tr>'
    for place in last:
        yield _plain(place, offset, actual)


def _plain(place: int, offset: int, actual: Sequence[object]) -> str:
    text = xml(str(actual[place]))
    return f"<tr>{_number(place)}<td>{text}</td>{_number(place + offset)}<td>{text}</td></tr>"


def _number(place: int | None) -> str:
    return f"<td>{'' if place is None else place}</td>"


def _cell(text: str, other: str, absent: bool, instead: str) -> str:
    """Return a cell in which the words that the other side does not have are marked. `instead` is
    shown when the entry is absent."""
    if absent:
        return f'<td class="none">{instead}</td>'
    if not other:
        return f"<td>{xml(text)}</td>"
    words, others = text.split("  "), set(other.split("  "))
    shown = (xml(word) if word in others else f"<mark>{xml(word)}</mark>" for word in words)
    return f"<td>{'  '.join(shown)}</td>"
