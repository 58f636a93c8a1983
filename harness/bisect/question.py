"""What a bisection looks for, and what it knows of a commit."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, fields

from harness.errors import HarnessError


class Judgement(enum.StrEnum):
    """What a test says of a commit."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Question:
    """What is looked for, as it was asked: which commit after `good` made the tests of `arguments`
    fail, as they do at `bad`; or, if `find_fix`, which commit after `bad` repaired it. `product`
    says what is built and how, `folder` is where pytest is called. With a `symptom` only a failure
    that this regular expression is found in counts."""

    product: str
    repository: str
    good: str
    bad: str
    arguments: tuple[str, ...]
    folder: str
    find_fix: bool = False
    symptom: str | None = None

    @property
    def old(self) -> Judgement:
        """Return what the older end is."""
        return Judgement.BAD if self.find_fix else Judgement.GOOD

    @property
    def new(self) -> Judgement:
        """Return what the newer end is."""
        return Judgement.GOOD if self.find_fix else Judgement.BAD

    @property
    def wanted(self) -> str:
        """Return what the commit that is looked for is called."""
        return "commit that repaired it" if self.find_fix else "first bad commit"

    def refuse_unless(self, other: Question, where: object) -> None:
        """Raise HarnessError if `other`, which the folder `where` is of, asks something else."""
        pairs = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in _FIELDS]
        differing = [
            f"{name} was {then!r} and is {now!r}" for name, now, then in pairs if now != then
        ]
        if differing:
            raise HarnessError(
                f"{where} is of another bisection: {'; '.join(differing)}",
                fix="repeat its command line to go on with it, or name another folder with "
                "--folder",
            )


_FIELDS = fields(Question)


@dataclass(frozen=True)
class Commit:
    """A commit: its hash, and what a person knows it by."""

    hash: str
    author: str
    date: str
    subject: str

    @property
    def short(self) -> str:
        """Return the digits by which people name it."""
        return self.hash[:12]

    def __str__(self) -> str:
        return f"{self.short} ({self.subject})"


@dataclass(frozen=True)
class Step:
    """What is known of one commit, and why: the seconds that its build and its test took, and the
    folder of the run. `reason` is a line for people."""

    commit: Commit
    judgement: Judgement
    reason: str = ""
    built: float = 0.0
    tested: float = 0.0
    run: str = ""
    log: str = ""


@dataclass
class Known:
    """All that a bisection has found out. `good` and `bad` are the hashes of the two ends, which
    stay what they are when a branch moves. `steps` has what was judged, in that order, by hash;
    `built` the seconds of the builds of commits that are not judged yet. `answer` has the commits
    of which one is looked for, once git has no commit left to ask for: one, or several of which
    some cannot be judged."""

    question: Question
    good: str
    bad: str
    steps: dict[str, Step] = field(default_factory=dict)
    built: dict[str, float] = field(default_factory=dict)
    answer: tuple[Commit, ...] = ()

    @property
    def old(self) -> str:
        """Return the hash of the older end."""
        return self.bad if self.question.find_fix else self.good

    @property
    def new(self) -> str:
        """Return the hash of the newer end."""
        return self.good if self.question.find_fix else self.bad

    def latest(self, judgement: Judgement) -> Step | None:
        """Return the last commit that was judged so, which is the nearest to the answer."""
        return next(
            (one for one in reversed(self.steps.values()) if one.judgement is judgement), None
        )


def symptom(pattern: str) -> re.Pattern[str]:
    """Return a regular expression. Raises HarnessError for one that is none."""
    try:
        return re.compile(pattern)
    except re.error as problem:
        raise HarnessError(
            f"--symptom: {pattern!r} is no regular expression: {problem}",
            fix="write a backslash before a character such as ( or [ that stands for itself",
        ) from None
