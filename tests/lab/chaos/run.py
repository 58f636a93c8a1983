"""Runs of pytest that something happens to: each has a folder, an environment and a process group
of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import LabError
from harness.waiting import wait_for
from tests.suite_run import PLUGINS, ROOT

#: The environment variable by which all processes of a run are known; also the run's folder.
MARK = "HIL_CHAOS"
#: What the names of the hosts of this process end in: each worker of pytest-xdist has its own.
SUFFIX = f"-{os.environ['PYTEST_XDIST_WORKER']}" if "PYTEST_XDIST_WORKER" in os.environ else ""
#: The locks of the hosts of these runs, which are named by their address alone or as in lab.yaml.
LOCKS = (
    "reservations/127.0.0.1-port-*.lock",
    f"reservations/virtual-vgrace-chaos*{SUFFIX}.lock",
    f"hosts/vgrace-chaos*{SUFFIX}/lock",
)
#: How long it may take until what ends with a run has ended.
MOMENT_SECONDS = 3.0
SUITE = Path(__file__).with_name("suite.py")
#: Makes a small disk in a mount namespace of its own, large enough for a run to begin; at the end,
#: keeps what is on it. Arguments: the folder for it, and a command.
_ON_DISK = """
disk=$1; shift
mkdir "$disk" && mount -t tmpfs -o size=20m tmpfs "$disk" || exit 99
"$@"; status=$?
mkdir kept && cp -a "$disk/." kept && umount "$disk" && mv kept/* "$disk"; rm -rf kept
exit $status
"""
#: Tells that the run is about to start, and waits for the word to go on.
_HELD = """touch reached; until [ -e 'go on' ]; do sleep 0.05; done; exec "$@" """
#: Has another user run a command. It may read everything, since the checkout and its virtual
#: environment may be in a folder of ours alone, but write only what is its own.
_AS_USER = (
    *(
        "setpriv",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ),
    "--bounding-set=-all,+dac_read_search",
)
#: Gives a run a wall clock that its file "clock" steps, by so many seconds. It is compiled here,
#: because libfaketime 0.9.10 has time.sleep fail after a step (EINVAL of clock_nanosleep).
_CLOCK = Path(__file__).with_name("clock.c")


@dataclass(frozen=True)
class Conditions:
    """What is special about the circumstances of a run."""

    #: A folder inside the run's that is on a small disk of its own.
    disk: str | None = None
    #: Whether the run's clock can be set, by its file "clock".
    clock: bool = False
    #: Whether pytest starts only after the word to go on.
    held: bool = False
    #: The user who runs it; None for this one.
    user: int | None = None

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs another under these conditions."""
        command = list(argv)
        if self.held:
            command = ["sh", "-c", _HELD, "sh", *command]
        if self.disk:
            command = ["unshare", "--mount", "sh", "-c", _ON_DISK, "sh", self.disk, *command]
        if self.user is not None:
            ids = f"--reuid={self.user}", f"--regid={self.user}"
            command = [*_AS_USER, *ids, *command]
        return command

    def environment(self, folder: Path) -> dict[str, str]:
        """Return what these conditions add to the environment of a run in `folder`."""
        if not self.clock:
            return {}
        library, clock = folder / "clock.so", folder / "clock"
        subprocess.run(["gcc", "-Wall", "-shared", "-fPIC", "-o", library, _CLOCK], check=True)
        clock.write_text("0")
        return {"LD_PRELOAD": str(library), "HIL_CHAOS_CLOCK": str(clock)}


@dataclass(frozen=True)
class Run:
    """One run under test. Its output and its results are in `folder`."""

    folder: Path
    cache: Path
    process: subprocess.Popen[bytes]

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path,
        tests: Sequence[str],
        *,
        cache: Path,
        options: Sequence[str] = (),
        conditions: Conditions = Conditions(),
    ) -> Iterator[Run]:
        """Start a run of these tests of the suite, and kill what is left of it at the end."""
        (folder / "suites").mkdir(parents=True)
        (folder / "tmp").mkdir(mode=0o777)
        shutil.copy(SUITE, folder / "suites" / "test_chaos.py")
        shutil.copy(ROOT / "pyproject.toml", folder)
        if conditions.user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, conditions.user, conditions.user)
        command = [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *PLUGINS),
            *(f"--out={folder / 'out'}", *options),
            *(f"suites/test_chaos.py::test_{name}" for name in tests),
        ]
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                conditions.command(command),
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "HIL_CACHE": str(cache),
                    "TMPDIR": str(folder / "tmp"),
                    MARK: str(folder),
                    **conditions.environment(folder),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell starts background jobs, such as this run may be, with SIGINT ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        run = cls(folder, cache, process)
        try:
            yield run
        finally:
            for pid in run.pids():
                os.kill(pid, signal.SIGKILL)
            process.wait()

    def pids(self) -> list[int]:
        """Return the processes that carry the run's mark, the first one first."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it has ended meanwhile
        return sorted(found)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the run, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait(self, seconds: float) -> int | None:
        """Return the run's exit status; None if it has not ended after `seconds`. Then it is
        killed, and its output tells where its threads were."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            # pytest has faulthandler on.
            self.signal(signal.SIGABRT)
            self.process.wait(10)
            return None

    # -- what it left on this machine --------------------------------------------------------

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def results(self) -> list[dict[str, Any]]:
        """Return the results that the run wrote; none if it was killed."""
        return [
            one
            for pattern in ("out/*/result.json", "tmp/hil-*/result.json")
            for file in self.folder.glob(pattern)
            if (text := file.read_text())
            for one in json.loads(text)["tests"]
        ]

    def report(self) -> str:
        """Return all that the run says: its output, its summary and its tests' messages."""
        summaries = [file.read_text() for file in self.folder.glob("out/*/summary.md")]
        messages = [one["message"] for one in self.results()]
        return "\n".join([self.output, *summaries, *messages])

    def _locks(self) -> list[Path]:
        return [path for pattern in LOCKS for path in self.cache.glob(pattern)]

    def left(self) -> list[str]:
        """Return what the run has left on this machine, a moment after its end: processes, sockets,
        mounts, temporary files, and locks that are held."""
        with contextlib.suppress(LabError):
            wait_for("nothing to be left", lambda: not self._left(), deadline=MOMENT_SECONDS)
        return self._left()

    def _left(self) -> list[str]:
        where = str(self.folder)
        found = [f"lock {path}" for path in self._locks() if _held(path)]
        found += [f"process {pid}: {_command(pid)}" for pid in self.pids()]
        for table in ("/proc/net/unix", "/proc/self/mounts"):
            lines = Path(table).read_text().splitlines()
            found += [f"{table}: {line}" for line in lines if where in line]
        # pytest keeps its own temporary folders from run to run.
        found += [
            f"file {path}"
            for path in (self.folder / "tmp").iterdir()
            # Results that had no room in the run's folder are there by design.
            if not path.name.startswith(("pytest-of-", "hil-"))
        ]
        return found


def _held(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "has ended"
