"""Send random requests, in pieces and by several clients at a time, to the control sockets of the
boundary's program and of the silicon model's, while records and commands come.

    python -m tests.fuzz.control --messages 1000000
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.boundary.on_host import rules
from harness.boundary.on_host.__main__ import Loop
from harness.boundary.on_host.relay import Log, Queue
from harness.boundary.on_host.rules import Address
from harness.boundary.on_host.seccomp import Listener
from harness.json_lines import LONGEST_REQUEST, JsonLineServer, dispatch
from harness.smmu.cmdqv import ENABLE, VINTF_STRIDE, Config
from harness.smmu.vevents import QueueType, VEvent
from harness.virtual.silicon.process import ModelProcess
from harness.virtual.silicon.registers import Parameters
from tests.fuzz.campaign import Stream, main

Handle = Callable[[dict[str, Any]], dict[str, Any]]

#: A program does nothing more for its clients when it has been asked that often.
_MOST_TURNS = 100_000

_ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 255, 256, 1.5, float("inf"), float("nan")),
    *((1 << 31) - 1, 1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 63), 10**30),
    *("", "x", "do", "rules", "\ud800", "\0", "é", "00" * 8, "status" * 50),
    *([], {}, [[]], [1, 0], [2, 0], [0, 1], [1.0, 0.0], {"rule": "drop"}, {"": {}}),
)
_REQUESTS: tuple[dict[str, Any], ...] = (
    *({"do": "status"},) * 3,
    {"do": "release", "queue": [1, 0]},
    {"do": "commands", "since": 0},
    {"do": "commands", "since": 90},
    {"do": "inject", "vintf": 1, "lvcmdq": 0, "error": 1},
    {"do": "invalidate", "on": False},
    {"do": "leave_dirty"},
)
_RULES: tuple[dict[str, Any], ...] = tuple(
    rule.to_json()
    for rule in (
        *(rules.Pass(3), rules.Drop(), rules.Duplicate(2), rules.Reorder((2, 0, 1))),
        *(rules.Delay(0.001, count=2), rules.Renumber(to=7), rules.Renumber(by=-3, count=4)),
        *(rules.Short(20), rules.Hold(), rules.LostHeader(), rules.Inject(bytes(24))),
        *(rules.Merge(), rules.FailCall(22, rules.Call.VIOMMU_ALLOC), rules.HostIdr(1, 3, 4)),
        *(rules.RefuseInvalidation(2), rules.FailCall(5, rules.Call.MMAP)),
        *(rules.Depth(8), rules.BusyOnDestroy(), rules.InterruptRead(4)),
    )
)


# -- the programs ----------------------------------------------------------------------------


class CountedHandle:
    """A program's `handle`, which may raise ValueError and nothing else, but for JSON that is too
    deep to be shown. What else it raises is kept."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.problem: Exception | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._handle(request)
        except (ValueError, RecursionError):
            raise
        except Exception as problem:
            self.problem = problem
            raise


class Boundary:
    """The boundary's program, with one queue of each type, between a kernel and a QEMU."""

    def __init__(self, chance: random.Random, listening: socket.socket, log: Log) -> None:
        self._random, self._sequence = chance, itertools.count()
        self._loop = Loop(
            Listener(-1),
            listening,
            log,
            reads=chance.random() < 0.9,
            watches=rules.FREQUENT[: chance.randrange(3)],
        )
        self.selector = self._loop.selector
        self.handle = CountedHandle(self._loop.control.handle)
        self._loop.server.handle = self.handle
        self._ends: list[socket.socket] = []
        self._queues: list[tuple[Queue, socket.socket, socket.socket]] = []
        for kind in QueueType:
            kernel, real = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours, qemu = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._ends += [kernel, real, ours, qemu]
            for end in self._ends[-4:]:
                end.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # full after a few records
            address = Address(kind)
            at_address = self._loop.queues.rules_at(address)
            queue = Queue(*address, int(kind), 64, real.fileno(), ours, 9, at_address)
            self._loop.queues.adopt(queue)
            self._queues.append((queue, kernel, qemu))

    def happen(self) -> str:
        """Let something happen around the program; return what."""
        queue, kernel, qemu = self._random.choice(self._queues)
        chance = self._random.random()
        if chance < 0.6:
            count = self._random.randint(1, 8)
            data = bytes([self._random.randrange(3)]) * queue.kind.data_bytes
            records = [VEvent(next(self._sequence), data).encode() for _ in range(count)]
            with contextlib.suppress(OSError):
                kernel.send(b"".join(records))
            return f"{count} records to {queue.address}"
        if chance < 0.95:
            with contextlib.suppress(OSError):
                while qemu.recv(4096):
                    pass
            return f"QEMU reads {queue.address}"
        qemu.close()
        return f"QEMU closes {queue.address}"

    def due(self) -> None:
        """Deliver what is due."""
        self._loop.queues.deliver_due()

    def close(self) -> None:
        """End it."""
        self._loop.server.close()
        self._loop.queues.close()
        self.selector.close()
        for end in self._ends:
            end.close()


class Silicon:
    """The silicon model's process, whose VINTF 1 has one queue."""

    def __init__(self, chance: random.Random, listening: socket.socket) -> None:
        nowhere = Path("/nonexistent/socket")
        self._random = chance
        self._process = ModelProcess(Parameters(), nowhere, nowhere, 0, 200)
        model = self._process.model
        model.write(Config.CONFIG, 4, ENABLE)
        model.write(Config.VINTF + VINTF_STRIDE, 4, ENABLE)
        model.write(Config.CMDQ_ALLOC, 4, 1 << 15 | 1)
        self.selector = selectors.DefaultSelector()
        self.handle = CountedHandle(self._process.handle)
        self._server = JsonLineServer(listening, self.selector, self.handle)

    def happen(self) -> str:
        """Let commands be carried out; return how many."""
        count = self._random.randint(0, 200)
        with self._process.model.lock:
            queue = self._process.model.registers.vcmdqs[0]
            self._process.carried_out(queue, [(0x46, 0)] * count, [None] * count)
        return f"{count} commands"

    def due(self) -> None:
        """Do nothing: nothing is due at a time."""

    def close(self) -> None:
        """End it."""
        self._server.close()
        self.selector.close()


# -- requests --------------------------------------------------------------------------------


class Requests:
    """A source of lines, most of which are nearly requests."""

    def __init__(self, chance: random.Random) -> None:
        self._random = chance

    def line(self) -> bytes:
        """Return a line, with its end."""
        chance = self._random.random()
        if chance < 0.02:
            return self._garbage()
        if chance < 0.03:
            depth = self._random.choice((10, 500, 990, 2000))
            inner = b"[" * depth + b"]" * depth
            return b'{"do": "rules", "queue": [1, 0], "rules": ' + inner + b"}\n"
        request = self._request()
        if chance < 0.4:
            request = self._changed(request)
        line = json.dumps(request, ensure_ascii=chance < 0.9).encode(errors="surrogatepass")
        if chance > 0.95:
            line = self._damaged(line)
        return line + b"\n"

    def _request(self) -> Any:
        if self._random.random() < 0.5:
            return self._random.choice(_REQUESTS)
        chosen = self._random.choices(_RULES, k=self._random.choice((0, 1, 1, 1, 3)))
        return {"do": "rules", "queue": [self._random.choice((1, 2)), 0], "rules": chosen}

    def _changed(self, value: Any) -> Any:
        """Return the same JSON with something odd in it."""
        if self._random.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
            return self._random.choice(_ODD)
        if isinstance(value, list):
            at = self._random.randrange(len(value))
            return [*value[:at], self._changed(value[at]), *value[at + 1 :]]
        key = self._random.choice(list(value))
        rest = {name: part for name, part in value.items() if name != key}
        chance = self._random.random()
        if chance < 0.1:
            return rest
        if chance < 0.2:
            return {**rest, str(self._random.choice(_ODD)): value[key]}
        return {**value, key: self._changed(value[key])}

    def _damaged(self, line: bytes) -> bytes:
        at = self._random.randrange(len(line))
        return self._random.choice(
            (line[:at], line[at:], line[:at] + b"\xff" + line[at:], line[:at] + line, b"")
        ).replace(b"\n", b"")

    def _garbage(self) -> bytes:
        if self._random.random() < 0.002:
            return b"x" * (LONGEST_REQUEST + self._random.choice((-1, 0, 1, 2))) + b"\n"
        return self._random.randbytes(self._random.randint(0, 200)).replace(b"\n", b"") + b"\n"


# -- a stream --------------------------------------------------------------------------------


class Client:
    """A client that checks what it is answered: one JSON object for each line, in order."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.todo = bytearray()
        self.lines = self.answers = self.refused = 0
        self.gone = self.too_long = False
        self._data = bytearray()

    def send(self, size: int) -> int:
        """Send so many bytes of what is to be sent, if there is room; return how many were."""
        try:
            sent = self.sock.send(self.todo[:size])
        except OSError:
            return 0
        self.lines += self.todo[:sent].count(b"\n")
        del self.todo[:sent]
        return sent

    def add(self, line: bytes) -> None:
        """Have a line to send."""
        self.todo += line
        self.too_long |= len(line) > LONGEST_REQUEST + 1

    def close(self) -> None:
        """Hang up."""
        self.gone = True
        self.sock.close()

    def receive(self) -> int:
        """Receive all answers that there are; return how many. Raises AssertionError if one is
        none, or if the program has hung up on a client that keeps to the rules."""
        with contextlib.suppress(BlockingIOError):
            while not self.gone:
                try:
                    chunk = self.sock.recv(1 << 16)
                except ConnectionResetError:  # it did not read all that was sent
                    chunk = b""
                self._data += chunk
                if not chunk:
                    assert self.too_long, "the program has hung up"
                    self.gone = True
        *answers, rest = self._data.split(b"\n")
        self._data = bytearray(rest)
        for line in answers:
            answer = json.loads(line)
            assert isinstance(answer, dict), line
            self.answers += 1
            self.refused += "error" in answer
        return len(answers)


class ControlSockets:
    """The target: each stream has a program of its own."""

    def __init__(self) -> None:
        self._log = Log("/dev/null")

    def __call__(self, stream: Stream) -> None:
        chance = stream.random
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("")
            listening.listen()
            program: Boundary | Silicon
            if chance.random() < 0.7:
                program = Boundary(chance, listening, self._log)
            else:
                program = Silicon(chance, listening)
            stream.sent.append(f"to {type(program).__name__}")
            try:
                self._talk(stream, program, listening)
            finally:
                program.close()

    def _talk(self, stream: Stream, program: Boundary | Silicon, listening: socket.socket) -> None:
        chance, requests = stream.random, Requests(stream.random)
        with _clients(listening, chance.randint(1, 4)) as clients:
            for _ in range(chance.randint(5, 60)):
                client = chance.choice(clients)
                what = chance.random()
                if what < 0.15:
                    stream.sent.append(program.happen())
                elif what < 0.2:
                    client.receive()
                elif what < 0.21:
                    client.close()
                else:
                    if not client.todo:
                        client.add(requests.line())
                    size = chance.choice((1, 20, 1 << 16, 1 << 16, 1 << 16))
                    shown = bytes(client.todo[:size])
                    sent = client.send(size)
                    stream.sent.append(f"client {clients.index(client)}: {shown[:sent]!r}")
                _settle(program)
            for client in clients:
                while _settle(program) or client.receive() or client.send(1 << 20):
                    pass
                assert client.gone or client.answers == client.lines, "a line has no answer"
                stream.messages += client.lines
                stream.refused += client.refused
                stream.served += client.answers - client.refused
        with _clients(listening, 1) as (last,):
            last.add(b'{"do": "status"}\n')
            last.send(100)
            _settle(program)
            last.receive()
            assert (last.answers, last.refused) == (1, 0), "it serves nobody any more"


def _settle(program: Boundary | Silicon) -> int:
    """Let a program do what it can without waiting; return how many turns that took. Raises what
    its `handle` should not have raised."""
    for turn in range(_MOST_TURNS):
        program.due()
        if not dispatch(program.selector, 0):
            if program.handle.problem:
                raise program.handle.problem
            return turn
    raise AssertionError("the program does not come to rest")


@contextmanager
def _clients(listening: socket.socket, count: int) -> Iterator[list[Client]]:
    clients: list[Client] = []
    try:
        for _ in range(count):
            clients.append(Client(listening.getsockname()))
        yield clients
    finally:
        for client in clients:
            client.close()


if __name__ == "__main__":
    main("control", ControlSockets())
