"""The host's lock: a session has it from its start until it has given the host back."""

from __future__ import annotations

import fcntl
import json
import os
import sys


class Lock:
    """The lock that this process holds. Its file has the session and its holder."""

    def __init__(self, descriptor: int, session: str) -> None:
        self._descriptor, self._session = descriptor, session

    @classmethod
    def take(cls, folder: str, holder: object) -> Lock:
        """Lock the host for the session in `folder`; the kernel releases the lock when the process
        ends, however it ends. Exit with "RESERVED SESSION HOLDER" when another session has it."""
        path = os.path.join(os.path.dirname(folder), "lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("RESERVED " + os.pread(descriptor, 1 << 12, 0).decode(errors="replace"))
        lock = cls(descriptor, os.path.basename(folder))
        lock.tell(holder)
        return lock

    def tell(self, holder: object) -> None:
        """Write down who has the session."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{self._session} {json.dumps(holder)}".encode(), 0)

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
