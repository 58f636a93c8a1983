"""Relay the records of all queues from the kernel to QEMU, as their rules say.

Part of the boundary's program on lab hosts: standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import selectors
import time

from harness.boundary.on_host import rules
from harness.boundary.on_host.relay import AddressRules, Log, Queue
from harness.boundary.on_host.rules import Address
from harness.boundary.on_host.script import Decision
from harness.smmu.vevents import split

#: The most records that one read of ours takes: so many can be here, beyond the kernel's queue.
BATCH = 64


class Queues:
    """All queues that QEMU has, and the rules of all addresses.

    Its methods never wait: they register with `selector` what is to be waited for, and what to call
    then.
    """

    def __init__(self, selector: selectors.BaseSelector, log: Log) -> None:
        self.selector, self.log = selector, log
        self._rules: dict[Address, AddressRules] = {}
        self.by_id: dict[int, Queue] = {}  # the kernel's ids

    def rules_at(self, address: Address) -> AddressRules:
        """Return the rules of an address, which need not have a queue yet."""
        return self._rules.setdefault(address, AddressRules())

    def at(self, address: Address) -> Queue | None:
        """Return the queue at an address, or None if QEMU has none there now."""
        return next((one for one in self.by_id.values() if one.address == address), None)

    def next_due(self) -> float | None:
        """Return when the next delivery is due, by the monotonic clock; None if none waits."""
        dues = (queue.next_due() for queue in self.by_id.values())
        return min((due for due in dues if due is not None), default=None)

    def deliver_due(self) -> None:
        """Deliver all records that are due."""
        now = time.monotonic()
        for queue in self.by_id.values():
            due = queue.next_due()
            if due is not None and due <= now:
                self.advance(queue)

    def close(self) -> None:
        """Log which records QEMU did not get, after QEMU has ended."""
        for queue in self.by_id.values():
            self._undelivered(queue)

    def _undelivered(self, queue: Queue) -> None:
        for decision in queue.outbox:
            # Of the first one, QEMU may have got some records.
            sent = decision.sent[: queue.sent]
            self.log.decision(queue, dataclasses.replace(decision, sent=sent), "undelivered")
            queue.sent = 0
        queue.outbox.clear()
        for decision in queue.script.abandon():
            self.log.decision(queue, decision, "undelivered")

    def adopt(self, queue: Queue) -> None:
        """Relay the records of a new queue from now on."""
        self.by_id[queue.id] = queue
        self.selector.register(queue.ours, selectors.EVENT_READ, lambda: self.on_qemu_ready(queue))
        self._watch(queue)
        self.advance(queue)

    def on_kernel_ready(self, queue: Queue) -> None:
        """Read a batch of records from the kernel, apply the rules and deliver."""
        try:
            data = os.read(queue.real, BATCH * queue.kind.record_bytes)
        except OSError as problem:
            # ENOMEM: the kernel keeps what it had no memory to tell of, and is asked again.
            if problem.errno in (errno.EAGAIN, errno.EINTR, errno.ENOMEM):
                return
            raise
        if not data:
            return  # the queue is empty: another read was faster
        now, records = time.monotonic(), split(data, queue.kind)
        queue.received += len(records)
        for rule in queue.rules.standing:
            records, removed = rule.sift(records, queue.removed[rule])
            queue.removed[rule] += len(removed)
            for record in removed:
                self.log.decision(queue, Decision(rule.name, (record,), (), now, now))
        if queue.script.idle:
            queue.script.passed(records[-1])
            whole = tuple(records)
            queue.outbox.append(Decision(rules.Pass.name, whole, whole, now, now))
        else:
            queue.script.feed(records, now)
        self.advance(queue)

    def advance(self, queue: Queue) -> None:
        """Decide on and deliver all records that can be now."""
        now = time.monotonic()
        queue.outbox.extend(queue.script.decide(now))
        if queue.closed:
            self._undelivered(queue)
            return
        was_blocked = queue.blocked
        try:
            for done in queue.deliver(now):
                self.log.decision(queue, done)
        except OSError:  # QEMU has closed its end, perhaps before this turn
            self.hang_up(queue)
            return
        if queue.blocked != was_blocked:
            self._watch(queue)

    def _watch(self, queue: Queue) -> None:
        """Wait for QEMU while its socket is full, else for the kernel."""
        with contextlib.suppress(KeyError):
            self.selector.unregister(queue.real)
        events = selectors.EVENT_READ
        if queue.blocked:
            events |= selectors.EVENT_WRITE
        else:
            self.selector.register(
                queue.real, selectors.EVENT_READ, lambda: self.on_kernel_ready(queue)
            )
        self.selector.modify(queue.ours, events, lambda: self.on_qemu_ready(queue))

    def on_qemu_ready(self, queue: Queue) -> None:
        """Deliver more records, now that QEMU has read some; hang up if it has closed its end."""
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
        """Stop relaying a queue that QEMU has closed. QEMU still has to destroy it."""
        for end in (queue.real, queue.ours):
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(end)
        self._undelivered(queue)
        queue.at_qemu = -1  # QEMU may give this number to another file
        queue.ours.close()
