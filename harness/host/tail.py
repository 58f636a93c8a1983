"""Read a growing log on a host, each line once."""

from __future__ import annotations

from harness.host.session import Session


class Tail:
    """A reader of a text file, from byte `offset` on."""

    def __init__(self, session: Session, path: str, offset: int = 0) -> None:
        self.session, self.path, self.offset = session, path, offset

    def lines(self) -> list[str]:
        """Return the whole lines that were added since the last call, without their line ends."""
        data = self.session.read_file(self.path, offset=self.offset)
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.decode(errors="replace").splitlines()
