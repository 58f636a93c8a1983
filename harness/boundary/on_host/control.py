"""Serve the requests that a boundary gets while QEMU runs: JSON lines, with an answer to each.

    {"do": "rules", "queue": [TYPE, SLOT], "rules": [...]}   replace rules; answers {"left": [...]}
    {"do": "release", "queue": [TYPE, SLOT]}                 end a hold
    {"do": "status"}                                         the queues, and how many records wait

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
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
    """A server of requests on a listening socket. `reads` says whether this boundary supervises
    QEMU's reads of queues."""

    def __init__(self, listening: socket.socket, queues: Queues, *, reads: bool) -> None:
        self.listening, self.queues, self.reads = listening, queues, reads
        self.clients: dict[socket.socket, bytes] = {}

    def accept(self) -> None:
        """Accept a client, and serve it from now on."""
        client, _ = self.listening.accept()
        client.settimeout(5)
        self.clients[client] = b""
        self.queues.selector.register(
            client, selectors.EVENT_READ, lambda: self.on_client_ready(client)
        )

    def on_client_ready(self, client: socket.socket) -> None:
        """Answer the requests that a client has sent, or forget a client that has closed."""
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
                answer = self.handle(json.loads(line))
            except (ValueError, TypeError, KeyError) as problem:
                answer = {"error": f"{problem}"}
            with contextlib.suppress(OSError):
                client.sendall(json.dumps(answer).encode() + b"\n")

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks, completely or not at all; return the answer. Raises ValueError
        for a request that cannot be served."""
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
                raise ValueError(f"there is no queue {address} now")
            queue.script.release()
            self.queues.advance(queue)
            return {}
        raise ValueError(f"unknown request: {verb!r}; allowed: rules, release, status")

    def load(self, address: Address, new: Sequence[Rule], early: bool = False) -> list[Rule]:
        """Replace the rules of an address; return the old ones that were not used up. With `early`,
        before QEMU runs, the queue need not exist yet, and rules may be standing rules. Raises
        ValueError for a rule that cannot be used."""
        queue = self.queues.at(address)
        for rule in new:
            rule.check_fits(address.kind)
            if isinstance(rule, rules.ReadRule) and not self.reads:
                raise ValueError(f"{rule.name}: this boundary does not supervise reads")
            if isinstance(rule, rules.StandingRule) and not early:
                raise ValueError(f"{rule.name}: only in force from the boundary's start on")
            if queue is None and not early and not isinstance(rule, rules.CallRule):
                raise ValueError(f"{rule.name}: there is no queue {address} now")
        left = self.queues.rules_at(address).load(new)
        if queue:
            self.queues.advance(queue)
            self.queues.log.flush()
        return left

    def status(self) -> dict[str, Any]:
        """Return the state of all queues; client.QueueState explains it."""
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
