"""Serve the requests that a boundary gets while QEMU runs: JSON objects, with an answer to each.

    {"do": "rules", "queue": [TYPE, SLOT], "rules": [...]}   replace rules; answers {"left": [...]}
    {"do": "release", "queue": [TYPE, SLOT]}                 end a hold
    {"do": "status"}                                         the queues, and how many records wait

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from harness.boundary.on_host import rules
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.rules import Address, Call, Rule

#: No guest has so many queues of one type.
LAST_SLOT = 255


class Control:
    """What a client can ask of a boundary. `reads` says whether this boundary supervises QEMU's
    reads of queues; `watches` are the frequent calls that it supervises."""

    def __init__(self, queues: Queues, *, reads: bool, watches: Collection[Call] = ()) -> None:
        self.queues, self.reads, self.watches = queues, reads, watches

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks, completely or not at all; return the answer. Raises ValueError
        for a request that cannot be served."""
        verb = request.get("do")
        if verb == "status":
            return self.status()
        address = Address.from_json(request.get("queue"))
        if verb == "rules":
            wanted = request.get("rules")
            if not isinstance(wanted, list):
                raise ValueError(f"not a list of rules: {wanted!r}")
            new = [rules.from_json(one) for one in wanted]
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
        if address.slot > LAST_SLOT:
            raise ValueError(f"there is no queue {address}; the last is {LAST_SLOT}")
        queue = self.queues.at(address)
        for rule in new:
            rule.check_fits(address)
            call = rules.watched(rule)
            if call is not None and call not in self.watches:
                raise ValueError(f"{rule.name}: this boundary does not supervise {call.name}")
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
