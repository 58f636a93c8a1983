"""Judge one commit after the other, until git knows which one is looked for."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bisect import summary, trial
from harness.bisect.builder import Builder, UnbuildableError
from harness.bisect.git import Repository, Worktree
from harness.bisect.question import Commit, Judgement, Known, Question, Step, symptom
from harness.bisect.state import StateFolder
from harness.bisect.trial import PYTEST, Trial
from harness.errors import HarnessError, LabError
from harness.progress import Progress

Say = Callable[[str], None]


def search(
    question: Question,
    builder: Builder,
    folder: StateFolder,
    progress: Progress,
    say: Say,
    *,
    trust_ends: bool = False,
    command: Sequence[str] = PYTEST,
) -> Known:
    """Answer a question, or go on where an earlier call stopped, and return what is known then, the
    answer included. `say` gets a line for each step. Unless `trust_ends`, both ends are judged
    first. `command` runs tests.

    Raises HarnessError if the question cannot be answered: an end that is not what it is said to
    be, a wrong call of pytest, another bisection's folder; and LabError when the lab fails at
    commits at which it did not.
    """
    pattern = symptom(question.symptom) if question.symptom is not None else None
    repository = Repository(builder.repository)
    worktree = Worktree(repository, folder.worktree, folder.logs / "git.log")

    def tidy() -> None:
        worktree.remove()
        shutil.rmtree(folder.build, ignore_errors=True)

    with folder.locked():
        known = _known(question, repository, folder, say)
        if not known.answer:
            judge = _Judge(known, builder, folder, worktree, progress, pattern, command)
            try:
                known.answer = _answer(judge, repository, say, trust_ends)
            except HarnessError:
                # It will be asked otherwise, most likely with another folder.
                tidy()
                raise
            folder.save(known)
            summary.write(known, folder)
        # Even if the call that found the answer was interrupted before.
        tidy()
    return known


def _known(question: Question, repository: Repository, folder: StateFolder, say: Say) -> Known:
    """Return what is known of a question. Raises HarnessError for one that has no sense, or is not
    the folder's."""
    good = repository.resolve("--good", question.good)
    bad = repository.resolve("--bad", question.bad)
    known = folder.load()
    if known is None or (not known.steps and known.question != question):
        _check_ends(question, repository, good, bad)
        known = Known(question, good, bad)
        folder.save(known)
        return known
    question.refuse_unless(known.question, folder.folder)
    for option, name, then, now in (
        ("--good", question.good, known.good, good),
        ("--bad", question.bad, known.bad, bad),
    ):
        if then != now:
            say(f"{option}: {name} was {then[:12]} when this bisection began, and is so for it")
    if known.steps:
        say(f"going on in {folder.folder}: {len(known.steps)} commits are judged")
    return known


def _check_ends(question: Question, repository: Repository, good: str, bad: str) -> None:
    if good == bad:
        raise HarnessError(
            f"--good {question.good} and --bad {question.bad} are one commit",
            fix="name a commit at which the test passes, and one at which it fails",
        )
    old, new = (bad, good) if question.find_fix else (good, bad)
    if repository.comes_before(new, old):
        older, newer = ("good", "bad") if question.find_fix else ("bad", "good")
        what = "broke" if question.find_fix else "repaired"
        verb = "leave --find-fix out" if question.find_fix else "add --find-fix"
        raise HarnessError(
            f"the {older} commit comes before the {newer} one",
            fix=f"{verb} to look for the commit that {what} it, or exchange the two",
        )


def _answer(
    judge: _Judge, repository: Repository, say: Say, trust_ends: bool
) -> tuple[Commit, ...]:
    """Judge commits until git has none left to ask for. Return those that may be the one."""
    known, worktree = judge.known, judge.worktree
    judge.check_call()
    worktree.prepare(known.new)
    if not trust_ends:
        # The bad end first: it says whether the test shows what is looked for.
        for name in (known.bad, known.good):
            if name not in known.steps:
                say(summary.line(_checked_end(judge, repository.commit(name))))
    judged = [one for one in known.steps.values() if one.commit.hash not in (known.good, known.bad)]
    more = worktree.begin(known, judged)
    between, steps = len(worktree.candidates()) - 1, worktree.steps_left()
    say(f"{between} commits are between the two: about {steps} steps")
    while more:
        step = judge.step(repository.commit(worktree.next()))
        judge.record(step)
        more = worktree.judge(step)
        say(summary.line(step, worktree.steps_left() if more else 0))
    return tuple(repository.commit(one) for one in worktree.candidates())


def _checked_end(judge: _Judge, commit: Commit) -> Step:
    """Judge an end, and record it. Raises HarnessError, and records nothing, if it is not what it
    is said to be: whatever was wrong may be right at the next call."""
    known = judge.known
    expected = Judgement.BAD if commit.hash == known.bad else Judgement.GOOD
    step = judge.step(commit)
    if step.judgement is not expected:
        why = f": {step.reason}" if step.reason else ""
        raise HarnessError(
            f"--{expected} {getattr(known.question, expected)} is not {expected}, but "
            f'"{step.judgement}"{why}',
            fix=f"see {step.run or step.log}; name another commit, or pass --trust-ends if you "
            "know that it is",
        )
    judge.record(step)
    return step


@dataclass
class _Judge:
    """Builds commits, has their tests run, and records what these say."""

    known: Known
    builder: Builder
    folder: StateFolder
    worktree: Worktree
    progress: Progress
    symptom: re.Pattern[str] | None
    command: Sequence[str]

    def check_call(self) -> None:
        """Raise HarnessError if pytest cannot run the tests at all."""
        question, log = self.known.question, self.folder.logs / "collection.log"
        with self.progress.step("collecting the tests", 5):
            trial.check(question.arguments, Path(question.folder), log, self.command)

    def record(self, step: Step) -> None:
        """Write down what a commit is. Of what was built only the products of the last good and of
        the last bad commit are kept."""
        self.known.steps[step.commit.hash] = step
        self.known.built.pop(step.commit.hash, None)
        self.folder.save(self.known)
        summary.write(self.known, self.folder)
        kept = {one.commit.short for one in self._known_products()}
        for one in self.folder.products.glob("*/"):
            if one.name not in kept:
                shutil.rmtree(one)

    def _known_products(self) -> list[Step]:
        latest = [self.known.latest(one) for one in (Judgement.GOOD, Judgement.BAD)]
        return [one for one in latest if one is not None]

    # -- one commit ------------------------------------------------------------------------

    def step(self, commit: Commit) -> Step:
        """Build a commit and have it tested. Return what it is, which is not recorded yet."""
        started = time.monotonic()
        try:
            built = self._built(commit)
        except UnbuildableError as problem:
            taken, log = time.monotonic() - started, str(self._log(commit, "build"))
            return Step(commit, Judgement.UNKNOWN, problem.message, built=taken, log=log)
        started = time.monotonic()
        said = self._tested(commit)
        return Step(
            commit,
            said.judgement,
            said.reason,
            built=built,
            tested=time.monotonic() - started,
            run=str(said.run or ""),
            log=str(self._log(commit, "test")),
        )

    def _built(self, commit: Commit) -> float:
        """Build a commit unless an interrupted call has, and return the seconds that it took.
        Raises UnbuildableError."""
        out = self._product(commit)
        if commit.hash in self.known.built and out.exists():
            return self.known.built[commit.hash]
        before = [one.built for one in self.known.steps.values() if one.built]
        out.parent.mkdir(parents=True, exist_ok=True)
        self.folder.build.mkdir(exist_ok=True)
        started, log = time.monotonic(), self._log(commit, "build")
        log.unlink(missing_ok=True)
        with self.progress.step(f"building {commit}", before[-1] if before else None) as report:
            self.worktree.check_out(commit.hash)
            tree = self.folder.worktree
            self.builder.build(tree, self.folder.build, out, log, report)
        self.known.built[commit.hash] = time.monotonic() - started
        self.folder.save(self.known)
        return self.known.built[commit.hash]

    def _tested(self, commit: Commit) -> Trial:
        """Run the tests at a commit, once more if the lab fails. Raises LabError if it also fails
        at a commit at which it did not: then it is broken, and no commit's fault."""
        said = self._tried(commit)
        if not said.lab:
            return said
        said = self._tried(commit)
        known = (one.commit for one in self._known_products())
        control = next((one for one in known if self._product(one).exists()), None)
        if not said.lab or control is None:
            return said
        if self._tried(control).lab:
            raise LabError(
                f"the lab fails, also at {control}, at which it did not: {said.reason}",
                fix="repair the lab; the same command line goes on where this one stopped",
            )
        return dataclasses.replace(said, reason=f"{said.reason} (not at {control.short})")

    def _tried(self, commit: Commit) -> Trial:
        question, last = self.known.question, self.known.latest(self.known.question.new)
        chosen = f"{self.builder.option}={self._product(commit)}"
        out = self.folder.runs / commit.short
        out.mkdir(parents=True, exist_ok=True)
        with self.progress.step(f"testing {commit}", last.tested if last else None):
            return trial.run(
                (*question.arguments, chosen),
                Path(question.folder),
                out,
                self._log(commit, "test"),
                self.symptom,
                self.command,
            )

    def _product(self, commit: Commit) -> Path:
        return self.folder.products / commit.short / self.builder.name

    def _log(self, commit: Commit, what: str) -> Path:
        return self.folder.logs / f"{commit.short}-{what}.log"
