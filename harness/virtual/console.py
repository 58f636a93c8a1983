"""What a virtual host prints on its serial console: a file for each of its last boots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: How many boots before the current one keep their file.
EARLIER_BOOTS = 3


@dataclass(frozen=True)
class ConsoleLog:
    """The consoles of a host's boots: `path` is of the current or last one, and beside it
    `console.1.log`, … are of the boots before, the latest first. It is an implementation of
    harness.host.host.HostConsole."""

    path: Path

    @property
    def lag(self) -> float:
        return 0.0

    def text(self) -> str:
        return _read(self.path)

    def last_boot(self) -> str:
        return _read(earlier(self.path, 1))

    def stamped(self) -> str:
        """Return the text: QEMU writes no times."""
        return self.text()

    def begin_boot(self) -> None:
        """Put the console of the last boot aside: what is printed from now on is the next one's."""
        put_aside(self.path)

    def note(self, line: str) -> None:
        """Write a line of the harness's own between those of the host."""
        with self.path.open("a") as console:
            console.write(f"hil: {line}\n")


def earlier(path: Path, boots: int) -> Path:
    """Return the path of the log as it was so many boots ago."""
    return path.with_suffix(f".{boots}{path.suffix}")


def put_aside(path: Path) -> None:
    """Make a log, if there is one, that of the boot before. The oldest is deleted."""
    for boots in range(EARLIER_BOOTS, 1, -1):
        if earlier(path, boots - 1).exists():
            earlier(path, boots - 1).replace(earlier(path, boots))
    if path.exists():
        path.replace(earlier(path, 1))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
