"""The agent's server: JSON lines, one request and one answer at a time on each connection."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from typing import Any

from harness.host.agent import requests
from harness.host.agent.agent import Agent
from harness.host.agent.requests import Later, Message


class Server:
    """Answers requests on a listening socket, and lets the agent go on between them."""

    def __init__(self, agent: Agent, listener: socket.socket) -> None:
        self._agent, self._listener = agent, listener
        #: What each connection has sent that is no whole line.
        self._received: dict[socket.socket, bytes] = {}
        self._pending: list[tuple[socket.socket, Later]] = []

    def serve(self) -> None:
        """Answer requests until the session has ended."""
        chosen = selectors.DefaultSelector()
        chosen.register(self._listener, selectors.EVENT_READ)
        while not self._agent.ended:
            for key, _ in chosen.select(self._tick()):
                if key.fileobj is self._listener:
                    self._accept(chosen)
                else:
                    self._receive(chosen, key.fileobj)

    def _tick(self) -> float:
        """Let the agent go on, and send what is due. Return the seconds until the next call."""
        seconds = self._agent.tick()
        self.send_due()
        return min(seconds, 0.05) if self._pending else seconds

    def send_due(self) -> None:
        """Send the answers that are given now."""
        still = []
        for connection, later in self._pending:
            answer = later.due()
            if answer is None:
                still.append((connection, later))
            else:
                _send(connection, answer)
        self._pending = still

    def _accept(self, chosen: selectors.BaseSelector) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:  # too many files are open: another connection will end first
            return
        accepted.settimeout(10)
        self._received[accepted] = b""
        chosen.register(accepted, selectors.EVENT_READ)

    def _receive(self, chosen: selectors.BaseSelector, connection: Any) -> None:
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            chosen.unregister(connection)
            del self._received[connection]
            self._pending = [one for one in self._pending if one[0] is not connection]
            connection.close()
            return
        lines = (self._received[connection] + data).split(b"\n")
        self._received[connection] = lines.pop()
        for line in lines:
            self._handle(connection, line)

    def _handle(self, connection: socket.socket, line: bytes) -> None:
        try:
            answer = requests.answer(self._agent, json.loads(line))
        except Exception as problem:  # no request may end the agent
            answer = {"error": f"{type(problem).__name__}: {problem}"}
            if isinstance(problem, OSError):
                answer["by"] = "system"  # as on a full disk, which is no fault of who asked
        if isinstance(answer, Later):
            self._pending.append((connection, answer))
        else:
            _send(connection, answer)


def _send(connection: socket.socket, message: Message) -> None:
    # The session goes on when a peer has closed its connection.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")
