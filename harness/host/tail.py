"""Read a growing log on a host, each line once."""

from __future__ import annotations

from harness.host.connection import Connection


class Tail:
    """A reader of a text file, from byte `offset` on."""

    def __init__(self, connection: Connection, path: str, offset: int = 0) -> None:
        self.connection, self.path, self.offset = connection, path, offset

    def lines(self) -> list[str]:
        """Return the whole lines that were added since the last call, without their line ends."""
        data = self.connection.read_file(self.path, offset=self.offset)
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.decode(errors="replace").splitlines()
