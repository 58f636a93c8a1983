"""The iommufd boundary: starts QEMU on a lab host and takes part in its iommufd calls.

    python3 boundary.pyz CONTROL LOG [--reads] [--watch CALL]... [--rules JSON] -- QEMU ARGUMENT...

QEMU runs under a seccomp filter. For each IOMMU_VEVENTQ_ALLOC this program keeps the queue's file,
and QEMU gets one end of a SOCK_SEQPACKET pair instead. Each datagram there is one record, which is
how QEMU reads records. QEMU makes all other system calls itself. Records are read from the kernel
only while QEMU reads them from the socket (except those that a rule keeps), so an overflow still
happens in the kernel.

CONTROL is the descriptor of a listening socket: see control.py. A queue's slot is its place among
the existing queues of its type, the first being 0. LOG gets one JSON line for each decision, after
it was carried out, and one for each call. When QEMU ends, this program ends with QEMU's status.
When this program ends, QEMU is killed: its calls would have no answer, and it would hang.

What is due is due by the monotonic clock. The times in LOG are the wall clock's, as those of QEMU's
trace are, so that a step of that clock changes the log and nothing else.

The program is sent to the host as a zip: standard library only, Python 3.9.
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
from collections.abc import Collection

from harness.boundary.on_host import rules, seccomp
from harness.boundary.on_host.calls import DESTROY, Calls
from harness.boundary.on_host.control import Control
from harness.boundary.on_host.queues import Queues
from harness.boundary.on_host.relay import Log
from harness.boundary.on_host.rules import FREQUENT, Address, Call
from harness.boundary.on_host.seccomp import Listener, Supervised, UnsupportedError
from harness.json_lines import JsonLineServer, dispatch
from harness.smmu.vevents import QueueType


class Loop:
    """The event loop of the program: one thread, which waits nowhere but in `turn`."""

    def __init__(
        self,
        listener: Listener,
        control: socket.socket,
        log: Log,
        reads: bool,
        watches: Collection[Call] = (),
    ) -> None:
        self.log = log
        self.selector = selectors.DefaultSelector()
        self.queues = Queues(self.selector, log)
        self.calls = Calls(listener, self.queues, log)
        self.control = Control(self.queues, reads=reads, watches=watches)
        self.server = JsonLineServer(control, self.selector, self.control.handle)

    def run(self, pid: int) -> int:
        """Serve calls and requests until process `pid` ends; return its wait status."""
        ended = os.pidfd_open(pid)
        self.selector.register(ended, selectors.EVENT_READ, lambda: None)
        self.selector.register(self.calls.listener, selectors.EVENT_READ, self.calls.serve)
        while ended not in self.turn():
            pass
        _, status = os.waitpid(pid, 0)
        self.queues.close()
        self.log.flush()
        return status

    def turn(self) -> list[int]:
        """Wait for the next events and serve them; return the descriptors that were ready."""
        due = self.queues.next_due()
        ready = dispatch(self.selector, None if due is None else max(0.0, due - time.monotonic()))
        self.queues.deliver_due()
        self.log.flush()
        return ready


def _supervised(watches: Collection[Call], reads: bool) -> Supervised:
    """Return what QEMU's filter must stop at: all calls but the frequent ones that are not in
    `watches`."""
    calls = [call for call in Call if call in watches or call not in FREQUENT]
    ioctls = {call.request for call in calls if call is not Call.MMAP}
    return Supervised(
        ioctls=[*sorted(ioctls), DESTROY],
        read_sizes=[kind.record_bytes for kind in QueueType] if reads else [],
        mappings=Call.MMAP in calls,
    )


def main() -> None:
    """Run the program. It ends with EX_CONFIG on a host that cannot have a boundary."""
    parser = argparse.ArgumentParser(prog="boundary", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("control", type=int, help="descriptor of a listening socket")
    parser.add_argument("log", help="file that the log is appended to")
    parser.add_argument("--reads", action="store_true", help="supervise QEMU's reads of queues too")
    parser.add_argument(
        "--watch",
        action="append",
        default=[],
        choices=[call.name for call in FREQUENT],
        help="supervise this frequent call too",
    )
    parser.add_argument("--rules", default="[]", help='[{"queue": [TYPE, SLOT], "rules": […]}]')
    parser.add_argument("argv", nargs="+", help="QEMU and its arguments, after --")
    options = parser.parse_args()
    control = socket.socket(fileno=options.control)
    control.set_inheritable(False)
    watches = [Call[name] for name in options.watch]
    try:
        pid, listener = seccomp.start(
            options.argv, _supervised(watches, options.reads), keep=control.fileno()
        )
    except UnsupportedError as problem:
        sys.stderr.write(f"boundary: {problem}\n")
        sys.exit(os.EX_CONFIG)  # this host cannot have a boundary
    loop = Loop(listener, control, Log(options.log), options.reads, watches)
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
