"""Answer requests on a listening socket: JSON objects, one a line, with one JSON line for each.

A server waits nowhere: not for a client that is silent or slow, nor for one that does not read its
answers. It registers with a selector what is to be waited for, and what to call then. What a client
sends is never an exception: it is answered with {"error": TEXT}, or the client is hung up on.

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: In bytes. A client that sends a longer line is hung up on.
LONGEST_REQUEST = 1 << 20
#: When there are more, the one that has been silent for longest is hung up on.
MOST_CLIENTS = 32
#: In characters.
LONGEST_ERROR = 1000
_CHUNK = 1 << 16


def dispatch(selector: selectors.BaseSelector, timeout: float | None = None) -> list[int]:
    """Wait until something is ready, `timeout` seconds at most, and call what is registered for it,
    a function without arguments; return the descriptors that were ready."""
    ready = selector.select(timeout)
    for key, _ in ready:
        # An earlier call may have closed the descriptor, and a later file may have its number.
        if selector.get_map().get(key.fd) is key:
            key.data()
    return [key.fd for key, _ in ready]


@dataclass(eq=False)
class _Client:
    sock: socket.socket
    requests: bytearray = field(default_factory=bytearray)  # that are not served
    answers: bytearray = field(default_factory=bytearray)  # that are not sent
    refused: bool = False  # and to be hung up on, when it has its answers

    @property
    def waits_for_us(self) -> bool:
        return bool(self.answers or self.refused or b"\n" in self.requests)


class JsonLineServer:
    """The server of one listening socket. `handle` gets a request and returns its answer; it raises
    ValueError for a request that cannot be served."""

    def __init__(
        self,
        listening: socket.socket,
        selector: selectors.BaseSelector,
        handle: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._listening, self._selector, self.handle = listening, selector, handle
        self._clients: list[_Client] = []  # the one that has been silent for longest is first
        listening.setblocking(False)
        selector.register(listening, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Hang up on all clients, and serve no more. The listening socket is the caller's."""
        self._selector.unregister(self._listening)
        while self._clients:
            self._hang_up(self._clients[0])

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except BlockingIOError:
            return  # the client has gone
        except OSError:
            # Out of descriptors: this frees one, and the selector calls again.
            if self._clients:
                self._hang_up(self._clients[0])
            return
        if len(self._clients) == MOST_CLIENTS:
            self._hang_up(self._clients[0])
        sock.setblocking(False)
        client = _Client(sock)
        self._clients.append(client)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._serve(client))

    def _hang_up(self, client: _Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.sock)
        client.sock.close()

    def _serve(self, client: _Client) -> None:
        """Take one step for a client: receive, or answer one request, or send."""
        self._clients.remove(client)
        self._clients.append(client)
        try:
            open_ = self._step(client)
        except BlockingIOError:
            open_ = True
        except OSError:
            open_ = False
        if not open_:
            self._hang_up(client)
            return
        # A client is not read from before it has read its answers.
        events = selectors.EVENT_WRITE if client.waits_for_us else selectors.EVENT_READ
        if events != self._selector.get_key(client.sock).events:
            self._selector.modify(client.sock, events, lambda: self._serve(client))

    def _step(self, client: _Client) -> bool:
        """Return whether the client stays. Raises OSError if it has gone."""
        if not client.waits_for_us:
            data = client.sock.recv(_CHUNK)
            if not data:
                return False
            client.requests += data
        if not client.answers:
            self._answer_next(client)
        if client.answers:
            del client.answers[: client.sock.send(client.answers[:_CHUNK])]
        return bool(client.answers or not client.refused)

    def _answer_next(self, client: _Client) -> None:
        end = client.requests.find(b"\n")
        if end > LONGEST_REQUEST or (end < 0 and len(client.requests) > LONGEST_REQUEST):
            client.refused = True
            client.requests.clear()
            client.answers += _error(f"a request has {LONGEST_REQUEST} bytes at most")
        elif end >= 0:
            line = bytes(client.requests[:end])
            del client.requests[: end + 1]
            client.answers += self._answer(line)

    def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line.decode())
            if not isinstance(request, dict):
                return _error("a request is a JSON object")
            return json.dumps(self.handle(request)).encode() + b"\n"
        except ValueError as problem:
            return _error(str(problem))
        except Exception as problem:
            # A mistake of ours must not end a process that QEMU cannot do without.
            return _error(f"{type(problem).__name__}: {problem}")


def _error(text: str) -> bytes:
    return json.dumps({"error": text[:LONGEST_ERROR]}).encode() + b"\n"
