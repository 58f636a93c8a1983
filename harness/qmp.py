"""A client of QEMU's monitor for callers that are not asynchronous: it runs qemu.qmp on an event
loop in a thread.

Use one `Monitor` for each QMP socket. QMP reference: docs/interop/qmp-spec.rst in QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from harness.errors import LabError, ProductError

T = TypeVar("T")

#: QEMU answers commands at once; only migration takes long, and it is polled.
COMMAND_SECONDS = 20.0


class QmpRefusedError(ProductError):
    """QEMU answered a command with an error; `reason` is its text."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"QMP {command}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Event:
    """An event that QEMU sent; `data` are its arguments."""

    name: str
    data: Mapping[str, Any]


class Monitor:
    """A connected monitor. Use `Monitor.on(...)` in a with statement."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"qmp-{name}", daemon=True
        )
        self._client = QMPClient(name)
        self._thread.start()

    @classmethod
    @contextlib.contextmanager
    def on(cls, sock: socket.socket, name: str, *, deadline: float = 30.0) -> Iterator[Monitor]:
        """Yield a monitor on a connected socket, which it owns from now on. Raises LabError when
        QEMU does not send its greeting within `deadline` seconds."""
        monitor = cls(name)
        try:
            try:
                monitor._await(monitor._client.connect(sock), deadline)
            except (QMPError, OSError, TimeoutError) as problem:
                sock.close()
                raise LabError(
                    f"no QMP greeting from {name} within {deadline:.0f} s: {problem!r}",
                    fix="read QEMU's own messages: it may have refused its command line",
                ) from problem
            yield monitor
        finally:
            monitor.close()

    def close(self) -> None:
        """Disconnect and end the thread. QEMU runs on."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._await(self._client.disconnect(), 5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, seconds)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a QMP command and return what it returns. Underscores in the names of arguments
        become hyphens.

        Raises QmpRefusedError with QEMU's text when QEMU refuses the command, LabError when QEMU
        does not answer within COMMAND_SECONDS or the socket is closed.
        """
        body: dict[str, object] = {k.replace("_", "-"): v for k, v in arguments.items()}
        try:
            return self._await(self._client.execute(command, body or None), COMMAND_SECONDS)
        except ExecuteError as refused:
            raise QmpRefusedError(command, str(refused)) from None
        except (QMPError, TimeoutError, OSError) as problem:
            raise LabError(f"QMP {command} on {self.name}: {problem!r}") from problem

    @contextlib.contextmanager
    def listening(self, *names: str) -> Iterator[Callable[[], list[Event]]]:
        """Collect events of these names while the body runs. Yield a call that returns those so
        far."""
        listener = EventListener(names)
        self._client.register_listener(listener)
        try:
            yield lambda: [
                Event(str(one["event"]), cast(dict[str, Any], one.get("data", {})))
                for one in listener.history
            ]
        finally:
            self._client.remove_listener(listener)

    def human(self, command_line: str) -> str:
        """Return what the human monitor prints for a command that QMP does not have."""
        answer = self.execute("human-monitor-command", command_line=command_line)
        return str(answer)
