"""Tell what a bisection has found out: a line for a step, and bisect.md."""

from __future__ import annotations

from harness.bisect.question import Commit, Judgement, Known, Step
from harness.bisect.state import StateFolder
from harness.report.markup import cell, code, printable


def line(step: Step, left: int | None = None) -> str:
    """Return a line about a commit that was judged; about `left` others are still to be."""
    times = f"built in {step.built:.0f} s"
    if step.tested:
        times += f", tested in {step.tested:.0f} s"
    why = f": {step.reason}" if step.judgement is Judgement.UNKNOWN else ""
    steps = "" if not left else f"; about {left} step{'s' if left > 1 else ''} left"
    return printable(f"{step.commit}: {step.judgement}{why}; {times}{steps}")


def result(known: Known) -> str:
    """Return the answer as a person reads it on a terminal."""
    wanted = known.question.wanted
    if len(known.answer) == 1:
        lines = [f"the {wanted}:", *_described(known.answer[0])]
    else:
        unknown = [one for one in known.answer if _cannot_tell(known, one)]
        lines = [
            f"the {wanted} is one of {len(known.answer)}, of which {len(unknown)} cannot be told:"
        ]
        lines += [f"  {one}{_reason(known, one)}" for one in known.answer]
    for judgement in (Judgement.GOOD, Judgement.BAD):
        step = known.latest(judgement)
        if step:
            lines.append(f"{_end(known, judgement)}: {step.commit}; its run: {step.run}")
    return printable("\n".join(lines))


def _described(commit: Commit) -> list[str]:
    return [
        f"  commit {commit.hash}",
        f"  author {commit.author}",
        f"  date   {commit.date}",
        f"  {commit.subject}",
    ]


def _end(known: Known, judgement: Judgement) -> str:
    """Return what the tested commit on one side of the answer is called."""
    return f"last {judgement}" if judgement is known.question.old else f"first {judgement}"


def _cannot_tell(known: Known, commit: Commit) -> bool:
    step = known.steps.get(commit.hash)
    return step is not None and step.judgement is Judgement.UNKNOWN


def _reason(known: Known, commit: Commit) -> str:
    step = known.steps.get(commit.hash)
    return f": {step.reason}" if step and step.judgement is Judgement.UNKNOWN else ""


def write(known: Known, folder: StateFolder) -> None:
    """Write bisect.md, also of a bisection that goes on."""
    question = known.question
    lines = [
        f"**{_verdict(known)}**",
        "",
        f"- tests: {code(' '.join(question.arguments))}",
        f"- product: {code(question.product)}",
        f"- good: {code(question.good)}, {known.good}",
        f"- bad: {code(question.bad)}, {known.bad}",
        *([f"- symptom: {code(question.symptom)}"] if question.symptom is not None else []),
    ]
    for one in known.answer:
        lines += ["", f"### {code(str(one))}", ""]
        lines += [f"- commit: {one.hash}", f"- author: {code(one.author)}", f"- date: {one.date}"]
    lines += [
        "",
        "| commit | subject | is | why | built in | tested in | run |",
        "|---|---|---|---|---:|---:|---|",
        *(_row(step, folder) for step in known.steps.values()),
    ]
    lines.append("")
    for judgement in (Judgement.GOOD, Judgement.BAD):
        step = known.latest(judgement)
        if step:
            run = code(_within(folder, step.run))
            lines.append(f"- {_end(known, judgement)}: {code(str(step.commit))}, run {run}")
    folder.summary.write_text(
        printable("\n".join(lines)) + "\n", encoding="utf-8", errors="backslashreplace"
    )


def _verdict(known: Known) -> str:
    wanted = known.question.wanted
    if not known.answer:
        return f"The {wanted} is not found yet: {len(known.steps)} commits are judged"
    if len(known.answer) == 1:
        return f"The {wanted} is {known.answer[0].short}"
    return f"The {wanted} is one of {len(known.answer)}: some cannot be told"


def _row(step: Step, folder: StateFolder) -> str:
    why = cell(step.reason) if step.reason else ""
    tested = f"{step.tested:.0f} s" if step.tested else ""
    kept = cell(_within(folder, step.run or step.log))
    return (
        f"| {step.commit.short} | {cell(step.commit.subject)} | {step.judgement} | {why} "
        f"| {step.built:.0f} s | {tested} | {kept} |"
    )


def _within(folder: StateFolder, path: str) -> str:
    """Return a path from the bisection's folder on, so that the folder may be moved."""
    return path.removeprefix(f"{folder.folder}/")
