"""The iommufd boundary on a lab host: starts QEMU and stands between it and the kernel.

    python3 boundary.pyz CONTROL LOG [--reads] [--rules JSON] -- QEMU ARGUMENT...

QEMU runs under a seccomp filter. For each IOMMU_VEVENTQ_ALLOC the queue's file stays here and QEMU
gets one end of a SOCK_SEQPACKET pair, which carries one record a datagram: as QEMU reads records.
All else QEMU does itself. Records are taken from the kernel only while QEMU takes them from us (but
for those that a rule keeps), so an overflow is still the kernel's.

CONTROL is a listening socket's descriptor: see control.py. A queue's slot counts those of its type
that live: the first is 0. LOG gets one JSON line for each decision, once it was carried out, and
for each call. When QEMU ends this ends with its status; when this ends QEMU is killed: a QEMU that
nobody answers would hang.

Sent to the host as a zip: standard library only, Python 3.9.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import sys
import time

from harness.boundary.on_host import rules, seccomp
from harness.boundary.on_host.calls import DESTROY, Calls
from harness.boundary.on_host.control import Control
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.relay import Log
from harness.boundary.on_host.rules import Address, Call
from harness.boundary.on_host.seccomp import Listener, UnsupportedError
from harness.smmu.vevents import QueueType


class Loop:
    """One thread, which only ever waits in `turn`."""

    def __init__(self, listener: Listener, control: socket.socket, log: Log, reads: bool) -> None:
        self.log = log
        self.selector = selectors.DefaultSelector()
        self.queues = Queues(self.selector, log)
        self.calls = Calls(listener, self.queues, log)
        self.control = Control(control, self.queues, reads=reads)

    def run(self, pid: int) -> int:
        """Until process `pid` ends; its wait status."""
        ended = os.pidfd_open(pid)
        self.selector.register(ended, selectors.EVENT_READ, lambda: None)
        self.selector.register(self.calls.listener, selectors.EVENT_READ, self.calls.serve)
        self.selector.register(self.control.listening, selectors.EVENT_READ, self.control.accept)
        while ended not in self.turn():
            pass
        _, status = os.waitpid(pid, 0)
        self.queues.close()
        self.log.flush()
        return status

    def turn(self) -> list[int]:
        """Wait for whatever comes next and see to it; the descriptors that were ready."""
        due = self.queues.next_due()
        ready = self.selector.select(None if due is None else max(0.0, due - time.time()))
        for key, _ in ready:
            # An earlier one of this turn may have closed it.
            if key.fd in self.selector.get_map():
                key.data()
        self.queues.carry_on()
        self.log.flush()
        return [key.fd for key, _ in ready]


def main() -> None:
    parser = argparse.ArgumentParser(prog="boundary", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("control", type=int, help="descriptor of a listening socket")
    parser.add_argument("log", help="file that the log is added to")
    parser.add_argument("--reads", action="store_true", help="supervise reads of queues too")
    parser.add_argument("--rules", default="[]", help='[{"queue": [TYPE, SLOT], "rules": […]}]')
    parser.add_argument("argv", nargs="+", help="QEMU and its arguments, after --")
    options = parser.parse_args()
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    try:
        sizes = [kind.record_bytes for kind in QueueType] if options.reads else []
        pid, listener = seccomp.start(options.argv, [*Call, DESTROY], sizes, keep=control.fileno())
    except UnsupportedError as problem:
        sys.stderr.write(f"boundary: {problem}\n")
        sys.exit(os.EX_CONFIG)  # this host cannot have a boundary
    loop = Loop(listener, control, Log(options.log), options.reads)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    try:
        for early in json.loads(options.rules):
            new = [rules.from_json(one) for one in early["rules"]]
            loop.control.load(Address.from_json(early["queue"]), new, early=True)
        status = loop.run(pid)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)
