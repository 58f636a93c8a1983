"""Show figures as a table: for a terminal or a log, and as Markdown for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.runner.figure import Better, Figure
from benchmarks.runner.judge import Judgement
from benchmarks.runner.record import Baseline, Measured

_HEADS = ("figure", "median", "", "from", "to", "n", "limit", "before", "ratio", "")
#: The columns of words are aligned to the left, those of numbers to the right.
_LEFT = {0, 2, len(_HEADS) - 1}


def number(value: float | None) -> str:
    """Return a value with three digits that say something; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def limit(figure: Figure) -> str:
    """Return a figure's limit in words; nothing if it has none."""
    if figure.limit is None:
        return ""
    return f"{'<=' if figure.better is Better.SMALLER else '>='} {number(figure.limit)}"


def verdict(judged: Judgement, measured: Measured | None) -> str:
    """Return what is said of a figure, in words. Capitals are for what makes a call fail."""
    if measured is None:
        return "NOT MEASURED"
    words = []
    if judged.regressed:
        words.append("REGRESSED")
    elif measured.seemed:
        words.append("had seemed to regress")
    if judged.exceeds:
        words.append("over its limit" if judged.figure.better is Better.SMALLER else "below it")
    if judged.before is None and judged.figure.compared:
        words.append("nothing to compare with")
    return ", ".join(words) or "ok"


def lines(judgements: Sequence[Judgement], figures: Mapping[str, Measured]) -> Iterable[str]:
    """Yield the lines of the table."""
    rows = [_HEADS, *(_row(one, figures.get(one.figure.name)) for one in judgements)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADS))]
    for row in rows:
        cells = [
            cell.ljust(width) if at in _LEFT else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _row(judged: Judgement, measured: Measured | None) -> tuple[str, ...]:
    samples = measured.samples if measured else ()
    ratio = "" if judged.ratio is None else f"{judged.ratio:.2f}"
    return (
        *(judged.figure.name, number(judged.now), judged.figure.unit),
        *(number(min(samples, default=None)), number(max(samples, default=None))),
        *(str(len(samples)), limit(judged.figure), number(judged.before), ratio),
        verdict(judged, measured),
    )


def markdown(figures: Iterable[Figure], known: Baseline) -> Iterable[str]:
    """Yield the lines of a table of what is measured, whose last column has the last good values,
    as far as there are some."""
    yield "| figure | what | unit | limit | measured |"
    yield "|---|---|---|---|---:|"
    for one in figures:
        earlier = known.of(one)
        bound = limit(one).replace("<=", "≤").replace(">=", "≥")
        bound = bound or ("" if not one.compared else f"{one.better} is better")
        value = number(earlier.median if earlier else None)
        yield f"| `{one.name}` | {one.what} | {one.unit} | {bound} | {value} |"
