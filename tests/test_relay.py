"""The relay that stands for the link to a host falls silent, is cut, and comes back."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.lab.chaos.relay import Relay


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Yield a relay to a server that sends back what it gets."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        with Relay.to(lambda: int(server.server_address[1])) as running:
            yield running
        server.shutdown()


def connect(relay: Relay) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", relay.port), timeout=10)
    connection.settimeout(0.2)
    return connection


def said(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    return connection.recv(100)


def test_it_carries(relay: Relay) -> None:
    with connect(relay) as one, connect(relay) as other:
        assert (said(one, b"one"), said(other, b"other")) == (b"one", b"other")


def test_a_silent_link_loses_nothing(relay: Relay) -> None:
    with connect(relay) as before:
        assert said(before, b"before") == b"before"
        relay.silence()
        with connect(relay) as meanwhile:
            for connection in (before, meanwhile):
                with pytest.raises(TimeoutError):
                    said(connection, b"held")
            relay.mend()
            for connection in (before, meanwhile):
                connection.settimeout(10)
                assert connection.recv(100) == b"held"


def test_a_silent_link_tells_no_end(relay: Relay) -> None:
    with connect(relay) as connection:
        assert said(connection, b"one") == b"one"
        relay.silence()
        connection.shutdown(socket.SHUT_WR)
        with pytest.raises(TimeoutError):
            connection.recv(100)


def test_a_cut_link_resets_until_it_is_mended(relay: Relay) -> None:
    with connect(relay) as before:
        assert said(before, b"before") == b"before"
        relay.cut()
        with pytest.raises(ConnectionResetError):
            before.recv(100)
    with pytest.raises(ConnectionResetError), connect(relay) as meanwhile:
        meanwhile.recv(100)
    relay.mend()
    with connect(relay) as after:
        assert said(after, b"after") == b"after"


def test_a_server_that_is_not_there_resets() -> None:
    with Relay.to(lambda: 1) as nowhere:
        with pytest.raises(ConnectionResetError), connect(nowhere) as connection:
            connection.recv(100)
