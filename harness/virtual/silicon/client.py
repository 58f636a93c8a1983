"""A client of the process that models a virtual host's CMDQV (process.py)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, LabError
from harness.virtual.sockets import connect

_SECONDS = 10.0


class SiliconClient:
    """An implementation of harness.host.host.Silicon. Its methods raise LabError when the process
    does not answer or its model has failed, HarnessError when it refuses a request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _ask(self, **request: object) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_SECONDS)
            try:
                connect(sock, self._path)
                sock.sendall(json.dumps(request).encode() + b"\n")
                with sock.makefile("rb") as stream:
                    line = stream.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionError("it was closed before the answer was complete")
            except OSError as problem:
                raise LabError(
                    f"the CMDQV's process does not answer at {self._path}: {problem}",
                    fix=f"read {self._path.with_suffix('.log')}, then restart the host with "
                    "`hil lab down` and `hil lab up`",
                ) from problem
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise HarnessError(f"CMDQV: {request['do']}: {answer['error']}")
        return answer

    def status(self) -> dict[str, Any]:
        """Return the process's counts and times (process.py). Raises LabError when the model has
        failed."""
        status = self._ask(do="status")
        if status["failure"]:
            raise LabError(
                f"the CMDQV's model has failed:\n{status['failure']}",
                fix="restart the host with `hil lab down` and `hil lab up`",
            )
        return status

    def inject(self, vintf: int, lvcmdq: int, error: int) -> None:
        self._ask(do="inject", vintf=vintf, lvcmdq=lvcmdq, error=error)

    def invalidate(self, on: bool) -> None:
        self._ask(do="invalidate", on=on)

    def count(self) -> int:
        return int(self.status()["commands"])

    def commands(self, since: int = 0) -> list[tuple[int, int, int, int]]:
        return [
            (vintf, lvcmdq, low, high)
            for vintf, lvcmdq, low, high in self._ask(do="commands", since=since)["commands"]
        ]

    def issued(self, since: int = 0) -> list[tuple[int, int, int, int]]:
        answer = self._ask(do="commands", since=since)
        pairs = zip(answer["commands"], answer["issued"], strict=True)
        return [(vintf, lvcmdq, *got) for (vintf, lvcmdq, *_), got in pairs if got]

    def leave_dirty(self) -> int:
        return int(self._ask(do="leave_dirty")["queues"])

    def save(self) -> dict[str, Any]:
        """Return the model's state, of a machine that is stopped. The process leaves qtest to
        others meanwhile."""
        state: dict[str, Any] = self._ask(do="save")["state"]
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Set the model to a state that `save` returned."""
        self._ask(do="load", state=state)
