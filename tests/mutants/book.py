"""Keep the verdicts, so that a call that was stopped goes on; show them as a table, in Markdown and
as a page; and keep the history of whole calls."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.checkout import ROOT
from harness.matrix.page import STYLE, address
from harness.report.executor import revision
from harness.report.markup import cell, xml
from tests.mutants.catalogue import Mutant
from tests.mutants.trial import Outcome, Verdict

Verdicts = Mapping[str, Verdict]
#: The class of a cell on the page, whose colours are those of the matrix.
_COLOURS = {
    Outcome.KILLED: "passed",
    Outcome.WRONGLY_BLAMED: "harness",
    Outcome.SURVIVED: "product",
    Outcome.UNREACHABLE: "skipped",
    Outcome.BROKEN: "lab",
}
_HEADS = ("mutant", "breaks", "must notice", "verdict", "by", "seconds")


def state(stack: str) -> str:
    """Return a digest of what a verdict depends on besides its mutant: the suites, the harness, and
    the stack."""
    digest = hashlib.sha256(stack.encode())
    for folder in ("harness", "fixtures", "suites"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml", ".c", ".sh", ".config"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Book:
    """The folder of verdicts. Those of another `state` do not count."""

    def __init__(self, folder: Path, state: str) -> None:
        self.folder, self._state = folder, state
        self._verdicts = folder / "verdicts"

    def _file(self, mutant: Mutant) -> Path:
        return self._verdicts / f"{mutant.kind}-{mutant.name}.json"

    def known(self, mutant: Mutant) -> Verdict | None:
        """Return the verdict on a mutant, if one was written down that still holds."""
        try:
            found = json.loads(self._file(mutant).read_text())
        except (OSError, ValueError):
            return None
        if (found.pop("mutant"), found.pop("state")) != (mutant.digest, self._state):
            return None
        return Verdict(**{**found, "outcome": Outcome(found["outcome"])})

    def write(self, mutant: Mutant, verdict: Verdict) -> None:
        """Write a verdict down, whole or not at all."""
        self._verdicts.mkdir(parents=True, exist_ok=True)
        body = {**asdict(verdict), "mutant": mutant.digest, "state": self._state}
        whole = self._file(mutant).with_suffix(".new")
        whole.write_text(json.dumps(body, indent=1) + "\n")
        whole.replace(self._file(mutant))

    def publish(self, mutants: Sequence[Mutant], verdicts: Verdicts) -> tuple[Path, Path]:
        """Write the table of a call, in Markdown and as a page, and a line of history; return the
        paths of the first two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text, page = self.folder / "mutants.md", self.folder / "mutants.html"
        text.write_text(markdown(mutants, verdicts), encoding="utf-8")
        page.write_text(html(mutants, verdicts, self.folder), encoding="utf-8")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "revision": revision(ROOT),
            "state": self._state,
            "counts": counts(verdicts),
            "not_good": {
                name: f"{one.outcome}: {one.test or one.why}"
                for name, one in verdicts.items()
                if not one.outcome.good
            },
        }
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")
        return text, page


def counts(verdicts: Verdicts) -> dict[str, int]:
    """Return how many mutants have each verdict."""
    found = Counter(one.outcome for one in verdicts.values())
    return {str(one): found[one] for one in Outcome if found[one]}


def summary(verdicts: Verdicts) -> str:
    """Return the counts in one line."""
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts(verdicts).items())
    return f"{len(verdicts)} mutants: {said or 'none'}"


def _row(mutant: Mutant, verdict: Verdict) -> tuple[str, ...]:
    seconds = f"{verdict.seconds:.0f}" if verdict.seconds else ""
    by = verdict.test or verdict.why
    if verdict.outcome is Outcome.WRONGLY_BLAMED:
        by += f" (blames the {verdict.blame}: {verdict.why})"
    elif verdict.test and verdict.outcome is Outcome.BROKEN:
        by += f" ({verdict.why})"
    return (
        mutant.id,
        mutant.breaks,
        " ".join(mutant.behaviours),
        str(verdict.outcome),
        by,
        seconds,
    )


def markdown(mutants: Sequence[Mutant], verdicts: Verdicts) -> str:
    """Return the table for a merge request."""
    lines = [summary(verdicts), "", f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
    for one in mutants:
        if one.id in verdicts:
            lines.append(f"| {' | '.join(map(cell, _row(one, verdicts[one.id])))} |")
    return "\n".join(lines) + "\n"


def html(mutants: Sequence[Mutant], verdicts: Verdicts, folder: Path) -> str:
    """Return the page, to be written into `folder`: links to runs are relative to that."""
    rows = []
    for one in mutants:
        verdict = verdicts.get(one.id)
        if verdict is None:
            continue
        name, breaks, ids, outcome, by, seconds = map(xml, _row(one, verdict))
        told = Path(verdict.run) / "summary.md"
        if verdict.run and told.is_file():
            outcome = f"<a href={address(told, '', folder)}>{outcome}</a>"
        rows.append(
            f'<tr><th scope="row">{name}</th><td>{breaks}<small>{xml(one.how)}</small></td>'
            f'<td>{ids}</td><td class="{_COLOURS[verdict.outcome]}">{outcome}</td>'
            f"<td>{by}</td><td>{seconds}</td></tr>\n"
        )
    heads = "".join(f'<th scope="col">{xml(one)}</th>' for one in _HEADS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Mutants</title><style>{STYLE}</style></head><body><h1>Mutants</h1>\n"
        f'<table id="mutants"><caption>{xml(summary(verdicts))}</caption><thead><tr>{heads}</tr>'
        f"</thead>\n<tbody>\n{''.join(rows)}</tbody></table></body></html>\n"
    )
