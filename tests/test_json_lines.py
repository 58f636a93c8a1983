"""A server of JSON lines answers whatever it is sent, and waits for nobody."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from harness.json_lines import (
    LONGEST_ERROR,
    LONGEST_REQUEST,
    MOST_CLIENTS,
    JsonLineServer,
    dispatch,
)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Answer with the length of the text that is asked for, or fail as asked."""
    if "fail" in request:
        raise {"lookup": LookupError("none"), "value": ValueError("a word" * 1000)}[request["fail"]]
    return {"text": "x" * request.get("length", 0)}


class Served:
    """A server, with no thread: it does something when `settle` is called."""

    def __init__(self) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind("")
        self.listening.listen(MOST_CLIENTS + 8)
        self.selector = selectors.DefaultSelector()
        self.server = JsonLineServer(self.listening, self.selector, handle)

    def settle(self) -> None:
        """Let the server do all that it can do without waiting."""
        while dispatch(self.selector, 0):
            pass

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.listening.getsockname())
        client.setblocking(False)
        self.settle()
        return client

    def ask(self, client: socket.socket, line: bytes) -> Any:
        client.send(line + b"\n")
        self.settle()
        return json.loads(client.recv(1 << 20))

    def works(self) -> bool:
        with self.client() as client:
            return bool(self.ask(client, b'{"length": 1}') == {"text": "x"})


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.close()
    made.selector.close()
    made.listening.close()


@pytest.mark.parametrize(
    ("line", "error"),
    [
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b"{", "Expecting property name", id="half"),
        pytest.param(b"[1]", "a request is a JSON object", id="list"),
        pytest.param(b"null", "a request is a JSON object", id="null"),
        pytest.param(b"[" * 50_000, "RecursionError", id="deep list"),
        pytest.param(b'{"a":' * 20_000, "RecursionError", id="deep object"),
        pytest.param(b'{"length": "\xff"}', "can't decode byte 0xff", id="not UTF-8"),
        pytest.param(b'{"length": 1e999}', "TypeError", id="wrong type"),
        pytest.param(b"9" * 5000, "4300 digits", id="long number"),
        pytest.param(b"\0" * 100, "Expecting value", id="zeros"),
        pytest.param(b'{"fail": "lookup"}', "LookupError: none", id="mistake of the program"),
    ],
)
def test_what_is_no_request_is_answered_with_an_error(
    served: Served, line: bytes, error: str
) -> None:
    with served.client() as client:
        assert error in served.ask(client, line)["error"]
        assert served.ask(client, b'{"length": 2}') == {"text": "xx"}, "the connection goes on"
    assert served.works()


def test_an_error_is_not_longer_than_a_reader_wants_it(served: Served) -> None:
    with served.client() as client:
        error = served.ask(client, b'{"fail": "value"}')["error"]
    assert (error[:6], len(error)) == ("a word", LONGEST_ERROR)


def test_requests_come_in_any_pieces_and_are_answered_in_order(served: Served) -> None:
    with served.client() as client:
        for byte in b'{"length": 1}\n{"length": 2}\n{"len':
            client.send(bytes([byte]))
            served.settle()
        assert client.recv(1 << 16) == b'{"text": "x"}\n{"text": "xx"}\n'
        assert served.ask(client, b'gth": 3}') == {"text": "xxx"}


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_request_that_is_too_long_ends_the_connection(served: Served, end: bytes) -> None:
    with served.client() as client:
        todo = b"x" * (LONGEST_REQUEST + 1) + end
        with contextlib.suppress(ConnectionError):  # the server may have hung up before the end
            while todo:
                with contextlib.suppress(BlockingIOError):
                    todo = todo[client.send(todo) :]
                served.settle()
        assert f"{LONGEST_REQUEST} bytes at most" in json.loads(client.recv(1 << 16))["error"]
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
    assert served.works()


def test_a_client_that_is_silent_or_slow_is_in_nobodys_way(served: Served) -> None:
    with served.client(), served.client() as half, served.client() as deaf:
        half.send(b'{"length":')
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(b'{"length": 100000}\n')
        served.settle()
        assert served.works()
        held = sum(len(one.answers) for one in served.server._clients)
        assert held < 200_000, "one answer at a time is kept for a client that reads none"
        assert served.ask(half, b" 1}") == {"text": "x"}
        received = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                received += len(deaf.recv(1 << 20))
                served.settle()
        assert received > 1_000_000


def test_a_client_that_goes_before_its_answer_is_forgotten(served: Served) -> None:
    with served.client() as client:
        client.send(b'{"length": 1}\n{"length": 1000000}\n{"length"')
    served.settle()
    assert served.server._clients == []
    assert served.works()


def test_of_too_many_clients_the_one_that_was_silent_for_longest_goes(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(served.client()) for _ in range(MOST_CLIENTS)]
        assert served.ask(clients[0], b"{}") == {"text": ""}
        assert served.works()
        assert clients[1].recv(1) == b""
        assert served.ask(clients[0], b"{}") == {"text": ""}


def test_a_process_without_descriptors_left_serves_on(served: Served) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with served.client() as old, socket.socket(socket.AF_UNIX) as new:
        resource.setrlimit(resource.RLIMIT_NOFILE, (new.fileno() + 1, hard))
        spare = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    spare.append(os.dup(new.fileno()))
            new.connect(served.listening.getsockname())
            assert served.ask(new, b"{}") == {"text": ""}
        finally:
            for one in spare:
                os.close(one)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert old.recv(1) == b"", "it gave its descriptor to the new client"


def test_no_call_is_made_for_a_descriptor_that_has_become_another_file() -> None:
    calls: list[str] = []
    pairs = [socket.socketpair() for _ in range(3)]
    (_, first), (_, second), (_, later) = pairs
    with selectors.DefaultSelector() as selector:

        def replace(name: str, other: socket.socket) -> None:
            calls.append(name)
            selector.unregister(other)
            os.dup2(later.fileno(), other.fileno())
            selector.register(other, selectors.EVENT_READ, lambda: calls.append("later"))

        selector.register(first, selectors.EVENT_READ, lambda: replace("first", second))
        selector.register(second, selectors.EVENT_READ, lambda: replace("second", first))
        for writer, _ in pairs[:2]:
            writer.send(b"x")
        dispatch(selector)
    for pair in pairs:
        for end in pair:
            end.close()
    assert len(calls) == 1
    assert calls != ["later"]
