"""The requests that a boundary obeys while QEMU runs: JSON lines, an answer to each.

    {"do": "rules", "queue": [TYPE, SLOT], "rules": [...]}   the rules that were left: {"left": []}
    {"do": "release", "queue": [TYPE, SLOT]}                 ends a hold
    {"do": "status"}                                         the queues, and what waits

Part of the boundary's supervisor on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
from collections.abc import Sequence
from typing import Any

from harness.boundary.on_host import rules
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.rules import Address, Rule


class Control:
    """Behind a listening socket. `reads`: this boundary supervises reads of queues."""

    def __init__(self, listening: socket.socket, queues: Queues, *, reads: bool) -> None:
        self.listening, self.queues, self.reads = listening, queues, reads
        self.clients: dict[socket.socket, bytes] = {}

    def accept(self) -> None:
        client, _ = self.listening.accept()
        client.settimeout(5)
        self.clients[client] = b""
        self.queues.selector.register(client, selectors.EVENT_READ, lambda: self.listen_to(client))

    def listen_to(self, client: socket.socket) -> None:
        try:
            data = client.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.queues.selector.unregister(client)
            del self.clients[client]
            client.close()
            return
        *lines, self.clients[client] = (self.clients[client] + data).split(b"\n")
        for line in lines:
            try:
                answer = self.obey(json.loads(line))
            except (ValueError, TypeError, KeyError) as problem:
                answer = {"error": f"{problem}"}
            with contextlib.suppress(OSError):
                client.sendall(json.dumps(answer).encode() + b"\n")

    def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked, wholly or not at all. Raises ValueError."""
        verb = request.get("do")
        if verb == "status":
            return self.status()
        address = Address.from_json(request.get("queue"))
        if verb == "rules":
            new = [rules.from_json(one) for one in request["rules"]]
            return {"left": [rule.to_json() for rule in self.load(address, new)]}
        if verb == "release":
            queue = self.queues.at(address)
            if queue is None:
                raise ValueError(f"no queue {address} now")
            queue.script.release()
            self.queues.advance(queue)
            return {}
        raise ValueError(f"no such request: {verb!r}")

    def load(self, address: Address, new: Sequence[Rule], early: bool = False) -> list[Rule]:
        """Replace an address's rules; those left. Raises ValueError for one that cannot be."""
        queue = self.queues.at(address)
        for rule in new:
            rule.check_fits(address.kind)
            if isinstance(rule, rules.ReadRule) and not self.reads:
                raise ValueError(f"{rule.name}: this boundary does not supervise reads")
            if queue is None and not early and not isinstance(rule, rules.CallRule):
                raise ValueError(f"{rule.name}: there is no queue {address} now")
        left = self.queues.lane(address).load(new)
        if queue:
            self.queues.advance(queue)
            self.queues.log.flush()
        return left

    def status(self) -> dict[str, Any]:
        queues = [
            {
                "queue": list(queue.address),
                "id": queue.id,
                "depth": queue.depth,
                "received": queue.received,
                "delivered": queue.delivered,
                "waiting": queue.script.waiting + len(queue.outbox),
                "left": [rule.to_json() for rule in queue.script.left],
            }
            for queue in self.queues.by_id.values()
        ]
        return {"queues": queues}
