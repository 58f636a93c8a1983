"""The process that models the CMDQV of one virtual host: a vfio-user server for the host's QEMU.

    python -m harness.virtual.silicon.process --vfio-user FD --control FD --qtest PATH --qmp PATH …

It ends when QEMU does. One thread answers QEMU, at once, because a CPU that reads a register waits
for it; one carries out commands, with QEMU's help; one answers requests on the listening socket
--control, which has JSON lines:

    {"do": "status"}                                       counts and times since the start
    {"do": "commands", "since": N}                         commands of guest-owned queues that were
                                                           carried out, without the first N:
                                                           [vintf, lvcmdq, low, high]; and as
                                                           `issued`, for each of them, what the
                                                           SMMU got for it: [low, high] or null
    {"do": "inject", "vintf": V, "lvcmdq": L, "error": 1}  make the queue's next command fail
    {"do": "invalidate", "on": false}                      withhold guests' commands from the SMMU
    {"do": "leave_dirty"}                                  have the queues that nobody has look as
                                                           if an owner had died in an error
    {"do": "save"}                                         the state of the model of a machine that
                                                           is stopped, once all is carried out; and
                                                           leave qtest to others until there are
                                                           commands again
    {"do": "load", "state": {…}}                           set the model to what "save" returned, in
                                                           the process of another machine
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import queue
import selectors
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import LabError
from harness.json_lines import JsonLineServer, dispatch
from harness.qmp import Monitor
from harness.smmu.cmdqv import QueueError
from harness.smmu.commands import Command
from harness.virtual.qtest import Qtest
from harness.virtual.silicon import vfio_user
from harness.virtual.silicon.memory import AccessError, Memory
from harness.virtual.silicon.model import AbortedError, Cmdqv
from harness.virtual.silicon.registers import Parameters, Vcmdq
from harness.virtual.silicon.smmu_commands import SmmuCommands
from harness.virtual.silicon.vfio_user import Endpoint, PciIdentity

#: QEMU connects while it starts, or never.
CONNECT_SECONDS = 60.0
#: A turn of a queue, of a machine that is stopped, takes some milliseconds.
_IDLE_SECONDS = 8.0
#: How many commands, and how many times, are kept.
REMEMBERED = 100_000

_VENDOR_NVIDIA, _DEVICE, _CLASS_SYSTEM_OTHER = 0x10DE, 0x241C, 0x088000


def identity(parameters: Parameters) -> PciIdentity:
    """Return the PCI identity of the model."""
    return PciIdentity(_VENDOR_NVIDIA, _DEVICE, _CLASS_SYSTEM_OTHER, parameters.bytes)


class QueueMemory:
    """The machine's memory for the model: an access outside of it raises AbortedError."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def read(self, address: int, size: int) -> bytes:
        try:
            return self._memory.read(address, size)
        except AccessError as problem:
            raise AbortedError(str(problem)) from None

    def write(self, address: int, data: bytes) -> None:
        try:
            self._memory.write(address, data)
        except AccessError as problem:
            raise AbortedError(str(problem)) from None


class ModelProcess:
    """The model, its vfio-user endpoint, and the Surroundings that the model calls. What is counted
    is guarded by the model's lock."""

    def __init__(
        self, parameters: Parameters, qtest_path: Path, qmp_path: Path, smmu: int, spi: int
    ) -> None:
        self.memory = Memory()
        self.model = Cmdqv(parameters, QueueMemory(self.memory), self)
        self.endpoint = Endpoint(identity(parameters), self.model, self.memory)
        self._qtest_path, self._qmp_path, self._smmu, self._spi = qtest_path, qmp_path, smmu, spi
        #: Queues with commands; and events for the worker to set when it comes to them.
        self._work: queue.SimpleQueue[Vcmdq | threading.Event] = queue.SimpleQueue()
        self._turns = 0
        self._interrupt_controller = ""
        self._invalidates = True
        self._failure = ""
        self._done = 0
        self._commands: deque[tuple[int, int, int, int]] = deque(maxlen=REMEMBERED)
        #: What the SMMU got for each of them.
        self._issued: deque[Command | None] = deque(maxlen=REMEMBERED)
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._interrupts = 0

    # -- Surroundings ----------------------------------------------------------------------

    def doorbell(self, queue: Vcmdq) -> None:
        self._work.put(queue)

    def invalidate(self, commands: Sequence[Command]) -> None:
        if not self._invalidates:
            return
        started = time.perf_counter()
        # VINTF0's first queue: the host's kernel allocates it and, with bypass_vcmdq=1, never uses
        # it.
        scratch = self.model.registers.vcmdqs[0].ring
        if scratch.entries < 2:
            raise AbortedError("VINTF0 has no queue")
        self._smmu_commands.carry_out(commands, scratch)
        with self.model.lock:
            self._seconds.append(time.perf_counter() - started)

    def carried_out(
        self, queue: Vcmdq, commands: Sequence[Command], issued: Sequence[Command | None]
    ) -> None:
        self._commands.extend((queue.vintf, queue.lvcmdq, *command) for command in commands)
        self._issued.extend(issued)
        self._done += len(commands)

    def interrupt(self) -> None:
        with self.model.lock:
            self._interrupts += 1
        self._qtest.pulse(self._interrupt_controller, self._spi)

    # -- threads ---------------------------------------------------------------------------

    def work(self) -> None:
        """Carry out commands until the process ends. A failure ends this thread; `status` then
        shows it."""
        try:
            while True:
                waiting = self._work.get()
                if isinstance(waiting, threading.Event):
                    waiting.set()
                else:
                    self._carry_out(waiting)
        except Exception:
            self._failure = traceback.format_exc()
            sys.stderr.write(self._failure)
            sys.stderr.flush()

    def _carry_out(self, waiting: Vcmdq) -> None:
        """Carry out commands until somebody else needs qtest, which serves one client at a time."""
        with Qtest.on(self._qtest_path) as self._qtest:
            # Once: whoever saves a snapshot has QEMU's monitor, which serves one client at a time.
            if not self._interrupt_controller:
                self._interrupt_controller = self._find_interrupt_controller()
            memory = QueueMemory(self.memory)
            self._smmu_commands = SmmuCommands(self._qtest, self._smmu, memory)
            while True:
                self._turns += 1
                self.model.process(waiting)
                following = self._work.get()
                if isinstance(following, threading.Event):
                    break
                waiting = following
        following.set()

    def _find_interrupt_controller(self) -> str:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self._qmp_path))
        folder = "/machine/unattached"
        with Monitor.on(sock, "silicon") as monitor:
            for child in monitor.execute("qom-list", path=folder):
                if child["type"] == "child<arm-gicv3>":
                    return f"{folder}/{child['name']}"
        raise LabError("the machine has no GICv3")

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request of the control socket and return its answer. Raises ValueError for a
        wrong request."""
        verb = request.get("do")
        if verb == "status":
            return self._status()
        if verb == "commands":
            return self._carried_out_since(_number(request, "since"))
        if verb == "inject":
            error = QueueError(_number(request, "error"))
            try:
                self.model.inject(_number(request, "vintf"), _number(request, "lvcmdq"), error)
            except LookupError as problem:
                raise ValueError(str(problem)) from None
            return {}
        if verb == "invalidate":
            if not isinstance(request.get("on"), bool):
                raise ValueError(f"on is {request.get('on')!r}; allowed: true, false")
            self._invalidates = request["on"]
            return {}
        if verb == "leave_dirty":
            return {"queues": self.model.leave_dirty()}
        if verb == "save":
            return {"state": self._save()}
        if verb == "load":
            try:
                self._load(request["state"])
            except (LookupError, TypeError, AttributeError) as problem:
                raise ValueError(f"no state of this model: {problem!r}") from None
            return {}
        raise ValueError(f"no such request: {verb!r}")

    def _save(self) -> dict[str, Any]:
        """Return the model's state, and what was counted, of a machine whose CPUs do not run."""
        turns = -1
        # A turn may have made another one due, so one must have nothing left to do.
        while turns != self._turns:
            turns, idle = self._turns, threading.Event()
            self._work.put(idle)
            if not idle.wait(_IDLE_SECONDS):
                raise ValueError("the model does not come to rest")
        with self.model.lock:
            return {
                "registers": self.model.registers.state(),
                "invalidates": self._invalidates,
                "done": self._done,
                "commands": list(self._commands),
                "issued": list(self._issued),
            }

    def _load(self, state: dict[str, Any]) -> None:
        commands, issued = (
            [one and tuple(map(int, one)) for one in state[name]] for name in ("commands", "issued")
        )
        if len(commands) != len(issued):
            raise ValueError("what was issued does not fit the commands")
        invalidates, done = bool(state["invalidates"]), int(state["done"])
        with self.model.lock:
            self.model.registers.set_state(state["registers"])
            self._invalidates, self._done = invalidates, done
            for kept, saved in ((self._commands, commands), (self._issued, issued)):
                kept.clear()
                kept.extend(saved)

    def _carried_out_since(self, since: int) -> dict[str, Any]:
        with self.model.lock:
            first = self._done - len(self._commands)
            since = max(since, first)
            known, issued = (
                list(itertools.islice(kept, since - first, None))
                for kept in (self._commands, self._issued)
            )
        return {"first": since, "commands": known, "issued": issued}

    def _status(self) -> dict[str, Any]:
        with self.model.lock:
            times, done, interrupts = list(self._seconds), self._done, self._interrupts
        return {
            "parameters": dataclasses.asdict(self.model.registers.parameters),
            "commands": done,
            "batches": len(times),
            "median_seconds": statistics.median(times) if times else 0.0,
            "longest_seconds": max(times, default=0.0),
            "interrupts": interrupts,
            "failure": self._failure,
        }


def _number(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= sys.maxsize:
        raise ValueError(f"{name} is {value!r}; allowed: 0 or more")
    return value


def control(listener: socket.socket, silicon: ModelProcess) -> None:
    """Answer the clients of the control socket, for ever."""
    with selectors.DefaultSelector() as selector:
        JsonLineServer(listener, selector, silicon.handle)
        while True:
            dispatch(selector)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vfio-user", type=int, required=True, help="listening descriptor")
    parser.add_argument("--control", type=int, required=True, help="listening descriptor")
    parser.add_argument("--qtest", type=Path, required=True)
    parser.add_argument("--qmp", type=Path, required=True)
    parser.add_argument("--smmu", type=lambda text: int(text, 0), required=True)
    parser.add_argument("--spi", type=int, required=True)
    parser.add_argument("--parameters", type=json.loads, required=True, help="JSON object")
    options = parser.parse_args()
    silicon = ModelProcess(
        Parameters(**options.parameters), options.qtest, options.qmp, options.smmu, options.spi
    )
    requests = socket.socket(fileno=options.control)
    for target in (silicon.work, partial(control, requests, silicon)):
        threading.Thread(target=target, daemon=True).start()
    with socket.socket(fileno=options.vfio_user) as listener:
        listener.settimeout(CONNECT_SECONDS)
        client, _ = listener.accept()
    with client:
        client.settimeout(None)
        vfio_user.serve(client, silicon.endpoint, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
