"""This machine as a lab host, without SSH: commands and the agent are real, and the link to them
can be cut at will."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from harness.errors import LabError
from harness.host.connection import (
    CommandFailedError,
    Completed,
    Connection,
    LinkLostError,
)


class LocalHost(Connection):
    """A link to this machine. `before` and `after` are called with each request to an agent, and
    may raise what a link raises: before the request is sent, or after it was answered."""

    def __init__(self) -> None:
        self.target = cast(Any, SimpleNamespace(known_as="this-machine"))
        self.before: Callable[[Mapping[str, object]], None] = lambda _: None
        self.after: Callable[[Mapping[str, object]], None] = lambda _: None

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes = b"",
        check: bool = True,
    ) -> Completed:
        line = command if isinstance(command, str) else shlex.join(command)
        done = subprocess.run(
            ["sh", "-c", line], input=stdin, capture_output=True, timeout=timeout, check=False
        )
        completed = Completed(line, done.returncode, done.stdout, done.stderr)
        if check and done.returncode:
            raise CommandFailedError(f"`{line}`: {done.stderr.decode()}", completed)
        return completed

    def write_file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        self.run(f"cat >{path} && chmod {mode:o} {path}", stdin=content)

    def ask(
        self, path: str, request: Mapping[str, object], *, timeout: float = 15.0
    ) -> dict[str, Any]:
        self.before(request)
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(timeout)
                sock.connect(path)
                sock.sendall(json.dumps(request).encode() + b"\n")
                line = sock.makefile().readline()
        except (FileNotFoundError, ConnectionRefusedError) as refused:
            raise LabError(f"no connection to {path}: {refused}") from refused
        except OSError as problem:
            raise LinkLostError(f"link lost: {problem!r}") from problem
        if not line:
            raise LinkLostError(f"{path} was closed")
        self.after(request)
        answer: dict[str, Any] = json.loads(line)
        return answer
