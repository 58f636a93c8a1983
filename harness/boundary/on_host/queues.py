"""The queues that a boundary relays: records from the kernel to QEMU, as their rules say.

Part of the boundary's supervisor on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time

from harness.boundary.on_host import rules
from harness.boundary.on_host.relay import AddressRules, Log, Queue
from harness.boundary.on_host.rules import Address
from harness.boundary.on_host.script import Decision
from harness.smmu.vevents import split

#: Records a read of ours takes at most: what we hold besides the kernel's queue.
BATCH = 64


class Queues:
    """All queues that live, and the rules of all addresses. It never waits: what is to be waited
    for it registers with `selector`, and what to call then."""

    def __init__(self, selector: selectors.BaseSelector, log: Log) -> None:
        self.selector, self.log = selector, log
        self.lanes: dict[Address, AddressRules] = {}
        self.by_id: dict[int, Queue] = {}  # the kernel's ids

    def lane(self, address: Address) -> AddressRules:
        return self.lanes.setdefault(address, AddressRules())

    def at(self, address: Address) -> Queue | None:
        return next((one for one in self.by_id.values() if one.address == address), None)

    def next_due(self) -> float | None:
        """When there is something to deliver, by the wall clock."""
        dues = (queue.next_due() for queue in self.by_id.values())
        return min((due for due in dues if due is not None), default=None)

    def carry_on(self) -> None:
        """Deliver what became due."""
        now = time.time()
        for queue in self.by_id.values():
            due = queue.next_due()
            if due is not None and due <= now:
                self.advance(queue)

    def close(self) -> None:
        """QEMU has ended: say what it did not get."""
        for queue in self.by_id.values():
            self._undelivered(queue)

    def _undelivered(self, queue: Queue) -> None:
        now = time.time()
        for decision in queue.outbox:
            self.log.decision(queue, decision, now, "undelivered")
        queue.outbox.clear()

    def adopt(self, queue: Queue) -> None:
        """Relay a queue's records from now on."""
        self.by_id[queue.id] = queue
        self.selector.register(queue.ours, selectors.EVENT_READ, lambda: self.hear(queue))
        self._watch(queue)
        self.advance(queue)

    def take(self, queue: Queue) -> None:
        """The kernel has records."""
        try:
            data = os.read(queue.real, BATCH * queue.kind.record_bytes)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            return  # another read was faster; so says an empty queue
        now, records = time.time(), split(data, queue.kind)
        queue.received += len(records)
        if queue.script.idle:
            queue.script.passed(records[-1])
            whole = tuple(records)
            queue.outbox.append(Decision(rules.Pass.name, whole, whole, now, now))
        else:
            queue.script.feed(records, now)
        self.advance(queue)

    def advance(self, queue: Queue) -> None:
        """Decide and deliver all that can be."""
        now = time.time()
        queue.outbox.extend(queue.script.decide(now))
        was_blocked = queue.blocked
        try:
            for done in queue.deliver(now):
                self.log.decision(queue, done, time.time())
        except OSError:  # QEMU has closed its end, or had before
            self.hang_up(queue)
            return
        if queue.blocked != was_blocked:
            self._watch(queue)

    def _watch(self, queue: Queue) -> None:
        """Wait for QEMU while it does not take records, else for the kernel."""
        with contextlib.suppress(KeyError):
            self.selector.unregister(queue.real)
        events = selectors.EVENT_READ
        if queue.blocked:
            events |= selectors.EVENT_WRITE
        else:
            self.selector.register(queue.real, selectors.EVENT_READ, lambda: self.take(queue))
        self.selector.modify(queue.ours, events, lambda: self.hear(queue))

    def hear(self, queue: Queue) -> None:
        """QEMU took records, or closed its end."""
        try:
            closed = not queue.ours.recv(1)
        except BlockingIOError:
            closed = False
        except ConnectionResetError:
            closed = True
        if closed:
            self.hang_up(queue)
        else:
            self.advance(queue)

    def hang_up(self, queue: Queue) -> None:
        """QEMU closed the queue; it still has to destroy it."""
        for end in (queue.real, queue.ours):
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(end)
        self._undelivered(queue)
        queue.at_qemu = -1
        queue.ours.close()
