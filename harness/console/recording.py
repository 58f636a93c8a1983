"""Record a host's console: a thread that reads it, stamps its lines and writes them to a file.

A console that is lost is opened again until the recording ends. What could not be recorded is told,
in the file too, and is never the end of a run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.console.source import ConsoleLostError, ConsoleSource, ConsoleStream
from harness.console.stamps import Stamper, parse
from harness.errors import LabError

#: How long a console that is lost is left alone.
RETRY_SECONDS = 2.0
#: How long the first try to open a console, and the end of the thread, are waited for.
OPEN_SECONDS, CLOSE_SECONDS = 20.0, 20.0
#: How often the thread looks for what has come, and how many pieces it takes at once.
_LOOK_SECONDS, _MOST_PIECES = 0.02, 100


class Recording:
    """The console of a host, as far as it is recorded. It is a HostConsole; it goes on through the
    host's boots, so that there is no boot before."""

    def __init__(
        self, host: str, source: ConsoleSource, path: Path, tell: Callable[[str], None]
    ) -> None:
        self.path = path
        self._host, self._source, self._tell = host, source, tell
        self._stamper = Stamper()
        self._lock = threading.Lock()  # of the file and the stamper
        self._begin = 0
        self._over = threading.Event()
        self._tried = threading.Event()
        self._reading = threading.Lock()
        self._stream: ConsoleStream | None = None
        #: Why the console could not be recorded, each reason once.
        self.problems: list[str] = []
        self._thread = threading.Thread(target=self._record, name=f"console {host}", daemon=True)

    @classmethod
    @contextmanager
    def of(
        cls, host: str, source: ConsoleSource, path: Path, tell: Callable[[str], None]
    ) -> Iterator[Recording]:
        """Yield the recording of a host's console, which goes to the end of the file `path`. It has
        begun by then, if the console can be opened. The thread that reads calls `tell` with each
        reason why it cannot, once. Raises OSError if the file cannot be written."""
        recording = cls(host, source, path, tell)
        with path.open("ab") as file:
            recording._begin = file.tell()
        recording.note("the recording begins")
        recording._thread.start()
        try:
            # One that takes longer is recorded from then on.
            if not recording._tried.wait(OPEN_SECONDS):
                recording._lost(f"it was not open after {OPEN_SECONDS:.0f} s; it is tried further")
            yield recording
        finally:
            recording._over.set()
            recording._thread.join(CLOSE_SECONDS)
            with contextlib.suppress(OSError):
                recording.note("the recording ends")

    # -- what it has -----------------------------------------------------------------------

    @property
    def lag(self) -> float:
        return self._source.lag

    def text(self) -> str:
        """Return what the host has printed so far, without times."""
        return "".join(f"{line}\n" for _, line in parse(self.stamped()))

    def last_boot(self) -> str:
        return ""

    def stamped(self) -> str:
        """Return what the host has printed so far, as harness.console.stamps has it."""
        self._catch_up()
        with self._lock, self.path.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    def note(self, text: str) -> None:
        """Write a line of the harness's own between those of the host. Raises OSError."""
        with self._lock, self.path.open("ab") as file:
            file.write(self._stamper.noted(text, time.time()))

    def _catch_up(self) -> None:
        """Write what has come by now, if the console is open. The thread finds what is wrong."""
        with contextlib.suppress(ConsoleLostError, OSError):
            self._drain()

    # -- the thread ------------------------------------------------------------------------

    def _record(self) -> None:
        while not self._over.is_set():
            try:
                with self._source.open() as stream:
                    self._read(stream)
            except ConsoleLostError as lost:
                self._lost(str(lost))
            except LabError as problem:
                self._lost(str(problem))
            except Exception as problem:  # no kind of console may end a run
                # Not its repr, which for an error about a text has all of the text.
                self._lost(f"{type(problem).__name__}: {problem}")
            self._tried.set()
            self._over.wait(RETRY_SECONDS)

    def _read(self, stream: ConsoleStream) -> None:
        """Write what comes until the recording is over, and then what has come by that time."""
        self._stream = stream
        self._tried.set()
        try:
            over = False
            while not over:
                over = self._over.wait(_LOOK_SECONDS)
                self._drain()
        finally:
            # Nobody may read what is about to be closed.
            with self._reading:
                self._stream = None

    def _drain(self) -> None:
        """Write what has come by now, or a lot of it, if the console is open. Raises
        ConsoleLostError, OSError."""
        with self._reading:
            for _ in range(_MOST_PIECES):
                data = self._stream.read() if self._stream else b""
                if not data:
                    break
                with self._lock, self.path.open("ab") as file:
                    file.write(self._stamper.stamped(data, time.time()))

    def _lost(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self.note(f"the console is lost: {why}")
        if why not in self.problems:
            self.problems.append(why)
            self._tell(why)
