"""Where mutants are tried: copies of the checkout, and processes that have imported already what
tests import from elsewhere, so that a trial takes a second."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from harness.checkout import ROOT
from harness.errors import HarnessError

#: What is imported once, rather than in each trial.
_HEAVY = (
    *("hypothesis.strategies", "paramiko", "psutil", "pydantic", "pytest", "rich.progress"),
    *("ruamel.yaml", "tenacity", "typer.testing", "unittest.mock", "xdist", "zstandard"),
    *("_hypothesis_pytestplugin", "pytest_timeout"),
)
#: What the checkout has. A trial imports it from its own copy.
_OURS = ("conftest", "fixtures", "harness", "suites", "tests")
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "out", "build", "*.egg-info")
_PYTEST = (
    *("-x", "-q", "--tb=no", "--confcutdir=tests", "--hypothesis-profile=mutation"),
    *("-pno:cacheprovider", "-p_hypothesis_pytestplugin", "-ppytest_timeout"),
)
#: Has pytest load no plugins but those; the tests' own processes do not have it.
_NO_PLUGINS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"
#: A mutant that fills the machine's memory ends by this, in bytes.
_MEMORY = 4 << 30
#: A trial may take so many times as long as the tests without a mutant, and so many seconds more:
#: of the processor, as a machine may have other work, and by the clock, as a trial may wait.
_PROCESSOR_TIMES, _PROCESSOR_MORE = 5.0, 5.0
_CLOCK_TIMES, _CLOCK_MORE = 10.0, 60.0


@dataclass(frozen=True)
class Ended:
    """How the tests ended: `killer` is the test that failed, or what else ended them, and empty if
    all passed. `late` says that they ran into a limit. `seconds` are those by the clock,
    `processor` those of the processor, if the tests ended by themselves."""

    killer: str
    seconds: float
    processor: float = 0.0
    late: bool = False


@dataclass(frozen=True)
class Limit:
    """How long a trial may take, in seconds by the clock and of the processor."""

    seconds: float
    processor: int


@dataclass
class Tree:
    """One copy of the checkout, in which one mutant is tried at a time."""

    folder: Path
    scratch: Path
    #: So that no two texts of one module have the same time: Python tells by it what to compile.
    _made: int = field(default=0, init=False)

    @contextlib.contextmanager
    def holding(self, module: str, text: str | None) -> Iterator[None]:
        """Let a module have another text meanwhile; its own if that is None."""
        path = self.folder / module
        original, times = path.read_bytes(), path.stat()
        if text is not None:
            self._made += 1
            path.write_text(text)
            os.utime(path, (self._made, self._made))
        try:
            yield
        finally:
            path.write_bytes(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@dataclass(frozen=True)
class Job:
    """Tests to run, with the text that a module has meanwhile, or None for its own."""

    module: str
    text: str | None
    tests: Sequence[str]
    limit: Limit


#: For tests without a mutant.
_ANY = Limit(900.0, 900)


@dataclass
class _Running:
    job: Job
    process: ForkProcess
    answer: Connection
    held: contextlib.ExitStack
    started: float

    @property
    def left(self) -> float:
        return self.started + self.job.limit.seconds - time.monotonic()


@contextlib.contextmanager
def trees(count: int) -> Iterator[list[Tree]]:
    """Yield so many copies of the checkout, and remove them in the end."""
    for name in _HEAVY:
        importlib.import_module(name)
    # pytest collects garbage five times as it ends. What is here now is none, and is many objects.
    gc.freeze()
    # A short path: tests make sockets below it.
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        made = [Tree(Path(folder) / f"{n}", Path(folder) / f"t{n}") for n in range(count)]
        for tree in made:
            shutil.copytree(ROOT, tree.folder, symlinks=True, ignore=_LEFT_OUT)
        yield made


def without_mutant(trees: Sequence[Tree], module: str, tests: Sequence[str]) -> Limit:
    """Run the tests of a module as it is, in all trees, and return the limit of its mutants. Raises
    HarnessError if a test fails."""
    ended: list[Ended] = []
    # In the first one twice: the first time Python compiles what it imports.
    for tree in [*trees, trees[0]]:
        job = Job(module, None, tests, _ANY)
        run([tree], iter([job]), lambda _, one: ended.append(one))
        if ended[-1].killer:
            raise HarnessError(f"{ended[-1].killer}: it fails without a mutant of {module}")
    seconds, processor = ended[-1].seconds, ended[-1].processor
    return Limit(
        seconds * _CLOCK_TIMES + _CLOCK_MORE,
        int(processor * _PROCESSOR_TIMES + _PROCESSOR_MORE),
    )


def run(trees: Sequence[Tree], jobs: Iterator[Job], done: Callable[[Job, Ended], None]) -> None:
    """Do jobs, one in each tree at a time, and call `done` with each as it ends."""
    free, busy = list(trees), {}
    try:
        while True:
            while free and (job := next(jobs, None)):
                tree = free.pop()
                busy[tree.folder] = (tree, _start(tree, job))
            if not busy:
                return
            wait(
                [one.process.sentinel for _, one in busy.values()],
                timeout=max(0.0, min(one.left for _, one in busy.values())),
            )
            for tree, one in list(busy.values()):
                if not one.process.is_alive() or one.left <= 0:
                    del busy[tree.folder]
                    free.append(tree)
                    done(one.job, _end(one))
    finally:
        for _, one in busy.values():
            _end(one)


def _start(tree: Tree, job: Job) -> _Running:
    held = contextlib.ExitStack()
    held.enter_context(tree.holding(job.module, job.text))
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_trial, args=(tree, job, theirs))
    process.start()
    theirs.close()
    return _Running(job, process, ours, held, time.monotonic())


def _end(one: _Running) -> Ended:
    """End a trial with all that it started, and put its module back."""
    seconds = time.monotonic() - one.started
    late = one.process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid or 0, signal.SIGKILL)
    one.process.join()
    late = late or one.process.exitcode == -signal.SIGXCPU
    one.held.close()
    killer, processor = f"ended with {one.process.exitcode}", 0.0
    with one.answer, contextlib.suppress(EOFError):
        if one.answer.poll():
            killer, processor = one.answer.recv()
    return Ended("too late" if late else killer, seconds, processor, late)


def _trial(tree: Tree, job: Job, answer: Connection) -> None:
    """Run in a process of its own: tests in a tree. Answer with the test that failed."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + job.limit.processor, -1))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.chdir(tree.folder)
    for name in list(sys.modules):
        if name.partition(".")[0] in _OURS:
            del sys.modules[name]
    here = {"", str(ROOT)}
    sys.path[:] = [str(tree.folder), *(path for path in sys.path if path not in here)]
    os.environ["PYTHONPATH"] = str(tree.folder)
    # Python may keep what it compiled of all but a mutant.
    sys.dont_write_bytecode = job.text is not None
    os.environ[_NO_PLUGINS] = "1"
    import pytest

    first = _First()
    options = [*_PYTEST, f"--basetemp={tree.scratch}", *job.tests]
    status = pytest.main(options, plugins=[first])
    passed = status == pytest.ExitCode.OK
    killer = "" if passed else first.failed or f"pytest's exit status {status:d}"
    answer.send((killer, time.process_time()))
    answer.close()
    os._exit(0)


class _First:
    """A plugin of pytest that remembers the first test, or file, that failed."""

    failed = ""

    def pytest_configure(self) -> None:
        del os.environ[_NO_PLUGINS]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    pytest_collectreport = pytest_runtest_logreport


def digest(*names: str) -> str:
    """Return one digest of files of the checkout."""
    found = hashlib.sha256()
    for name in names:
        found.update((ROOT / name).read_bytes())
    return found.hexdigest()
