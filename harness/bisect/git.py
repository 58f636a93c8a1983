"""The developer's repository, which is read, and a worktree of it, which a bisection has for
itself.

Of git-bisect(1) all state is the worktree's own, so that the developer may bisect at the same time.
git chooses the commits without checking them out (--no-checkout): so what was found out before an
interruption is told it again in no time, whatever state the interruption has left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.artifacts import leashed
from harness.bisect.question import Commit, Judgement, Known, Step
from harness.errors import HarnessError, LabError

#: What the developer's configuration must not do in a worktree that is not the developer's, nor to
#: what git prints.
_CONFIGURED = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "log.showSignature=false",
    "submodule.recurse=false",
)
#: What a calling git, such as that of a hook, tells its children of its own repository.
_OF_ANOTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
#: The status of `git bisect` when only commits are left that cannot be judged.
_ONLY_SKIPPED = 2
#: What fits the two ends, by what the older one is. "bad" must be newer in git's own words.
_TERMS = {
    Judgement.GOOD: {Judgement.GOOD: "good", Judgement.BAD: "bad"},
    Judgement.BAD: {Judgement.BAD: "broken", Judgement.GOOD: "fixed"},
}


def _argv(folder: Path, *words: str) -> list[str]:
    options = [word for one in _CONFIGURED for word in ("-c", one)]
    return ["git", "-C", str(folder), *options, *words]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER}


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call git in a folder, and return how it ended. Raises LabError if there is no git."""
    try:
        return subprocess.run(
            _argv(folder, *words),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # By default git converts what commits say to UTF-8, whatever the locale.
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise LabError("git is missing", fix="install the package git") from None


def _said(folder: Path, *words: str) -> str:
    """Return what git prints. Raises LabError with git's message if it fails."""
    ended = _git(folder, *words)
    if ended.returncode != 0:
        raise LabError(f"`git {' '.join(words)}` failed in {folder}: {ended.stderr.strip()}")
    return ended.stdout.strip()


class Repository:
    """The repository of the product. Its work tree, index and branches are left alone."""

    def __init__(self, folder: Path) -> None:
        """Raises HarnessError for a folder that is in no repository."""
        self.folder = folder.resolve()
        asked = _git(self.folder, "rev-parse", "--git-dir")
        if asked.returncode != 0:
            raise HarnessError(
                f"{folder} is no git checkout: {' '.join(asked.stderr.split())}",
                fix="name a folder that `git clone` made",
            )

    def resolve(self, option: str, name: str) -> str:
        """Return the hash of the commit that an option names. Raises HarnessError without one."""
        asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        ended = _git(self.folder, *asked)
        if ended.returncode != 0:
            raise HarnessError(
                f"{option}: {self.folder} has no commit {name}",
                fix="name a tag, a branch or a hash; `git fetch --tags` gets new ones",
            )
        return ended.stdout.strip()

    def commit(self, name: str) -> Commit:
        """Return what a person knows a commit by."""
        told = _said(self.folder, "show", "--no-patch", "--format=%H%n%an <%ae>%n%ai%n%s", name)
        return Commit(*told.split("\n", 3))

    def comes_before(self, ancestor: str, commit: str) -> bool:
        """Return whether a commit has the other one in its history."""
        return _git(self.folder, "merge-base", "--is-ancestor", ancestor, commit).returncode == 0


class Worktree:
    """A worktree in which one bisection builds. The same one is used from its beginning to its end:
    a checkout changes the times of changed files only, so that little is built again."""

    def __init__(self, repository: Repository, folder: Path, log: Path) -> None:
        self.repository, self.folder, self._log = repository, folder, log
        self._terms: dict[Judgement, str] = {}
        self._ends: dict[str, str] = {}
        #: How the line of git's log begins that has the answer.
        self._found = ""

    def prepare(self, commit: str) -> None:
        """Make the worktree at a commit, of which nothing is checked out yet, or mend the one that
        an interruption has left."""
        # Without its file .git the folder would be taken for a part of what is around it.
        if (self.folder / ".git").is_file():
            private = _git(self.folder, "rev-parse", "--absolute-git-dir")
            if private.returncode == 0:
                # A git that was killed leaves its locks. Nobody else works here.
                own = Path(os.fsdecode(private.stdout.strip().encode()))
                for lock in own.rglob("*.lock"):
                    lock.unlink()
                return
        self.remove()
        # --force twice: an interruption may have left the entry of such a worktree, locked.
        force = ("--force", "--force", "--detach", "--no-checkout")
        _said(self.repository.folder, "worktree", "add", *force, str(self.folder), commit)

    def remove(self) -> None:
        """Remove the worktree, if there is one."""
        force = ("--force", "--force")
        _git(self.repository.folder, "worktree", "remove", *force, str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)

    def check_out(self, commit: str) -> None:
        """Check a commit out, whatever a build or an interruption has done to files of git's."""
        words = ("checkout", "--force", "--detach", "--quiet", commit)
        argv = _argv(self.folder, *words)
        if leashed.run(argv, self._log, environment=_environment()) != 0:
            raise LabError(
                f"commit {commit} cannot be checked out in {self.folder}: {_last_line(self._log)}",
                fix="see whether the disk is full; the same command line goes on",
            )

    # -- git-bisect(1) ---------------------------------------------------------------------

    def begin(self, known: Known, steps: Iterable[Step]) -> bool:
        """Begin to bisect, tell git of the commits that were judged before, and return whether
        another one is to be judged. Raises HarnessError if git cannot bisect between these ends."""
        question = known.question
        terms = self._terms = _TERMS[question.old]
        names = (f"--term-old={terms[question.old]}", f"--term-new={terms[question.new]}")
        self._ends = {
            "new": f"refs/bisect/{terms[question.new]}",
            "old": f"--glob=refs/bisect/{terms[question.old]}-*",
        }
        self._found = f"# first {terms[question.new]} commit: "
        # This forgets a bisection that an interruption has left.
        more = self._bisect("start", "--no-checkout", *names, known.new, known.old)
        for step in steps:
            more = self.judge(step)
        return more

    def judge(self, step: Step) -> bool:
        """Tell git what a commit is, and return whether another one is to be judged."""
        return self._bisect(self._terms.get(step.judgement, "skip"), step.commit.hash)

    def _bisect(self, *words: str) -> bool:
        ended = _git(self.folder, "bisect", *words)
        log = _git(self.folder, "bisect", "log").stdout
        with contextlib.suppress(OSError):
            self._log.with_name("bisect.log").write_text(log, encoding="utf-8")
        if ended.returncode == _ONLY_SKIPPED:
            return False
        if ended.returncode != 0:
            said = (ended.stderr.strip() or ended.stdout.strip()).replace("\n", "\n  ")
            raise HarnessError(
                f"git cannot bisect between these commits:\n  {said}",
                fix="name a good and a bad commit of which one comes after the other",
            )
        # Of a side that branched off, git has the base tested first, even for a single candidate.
        return not any(line.startswith(self._found) for line in log.splitlines())

    def next(self) -> str:
        """Return the hash of the commit that git asks for."""
        return _said(self.folder, "rev-parse", "--verify", "BISECT_HEAD")

    def candidates(self) -> list[str]:
        """Return the hashes of all commits that may be the one that is looked for."""
        return _said(self.folder, "rev-list", *self._between()).split()

    def steps_left(self) -> int:
        """Return about how many commits are still to be judged."""
        told = _said(self.folder, "rev-list", "--bisect-vars", *self._between())
        steps = dict(line.split("=", 1) for line in told.splitlines())["bisect_steps"]
        return int(steps)

    def _between(self) -> tuple[str, ...]:
        return self._ends["new"], "--not", self._ends["old"]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "git said nothing"
