"""What a harness may ask the agent for.

Each line of a connection is a request, one JSON object, and is answered with one. A connection has
one request at a time.

    {"do": "renew"}                      start the lease anew; the answer names all processes
    {"do": "lease", "seconds": S}        change the lease's length and start it anew
    {"do": "spawn", "name": N, "argv": […], "listen": {"qmp": PATH}, "log": PATH}
                                         "{qmp}" in argv becomes the number of a listening socket
    {"do": "adopt", "holder": H}         have the session be another run's: H says whose
    {"do": "pid", "name": N}
    {"do": "signal", "name": N, "number": 9}
    {"do": "wait", "name": N, "seconds": 5}     answer its exit status once it has ended, null if
                                         it still runs after so many seconds
    {"do": "undo", "name": N, "command": "…"}   run a shell command when the session ends
    {"do": "undo now", "names": […]}     run these now instead; unknown names are skipped
    {"do": "undos"}                      answer the names of those that are registered
    {"do": "watch kernel", "pattern": P}    keep the kernel's messages from now on in which the
                                         regular expression P is found
    {"do": "read", "path": P, "offset": N}      answer the size of a regular file, and a part of it
                                         as base64: READ_BYTES from byte N on at most; N < 0 counts
                                         from the end
    {"do": "clock"}                      answer the host's time, in seconds since the epoch
    {"do": "kernel"}                     answer all messages kept so far, each as [SECONDS, TEXT];
                                         SECONDS is the log's own time, since the boot
    {"do": "inherited", "seconds": S}    answer how earlier sessions ended that no other session
                                         was told of
    {"do": "end", "seconds": S}          end all processes, run the undos, remove FOLDER, release
                                         the host, and answer what came of the undos

The last two answer {"doing": WHAT} if they are not done within S seconds; without S they have no
limit. A session that is ending answers {"over": WHY} to everything else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from harness.host.agent import files
from harness.host.agent.agent import ASKED, Agent

Message = dict[str, Any]


class Later(NamedTuple):
    """An answer that is given later: what `ready` returns as soon as that is not None, or else what
    `late` returns when the time `until` has come."""

    ready: Callable[[], Message | None]
    until: float
    late: Callable[[], Message]

    def due(self) -> Message | None:
        """Return the answer, if it is to be given now."""
        answer = self.ready()
        if answer is None and time.monotonic() >= self.until:
            return self.late()
        return answer


def answer(agent: Agent, request: Message) -> Message | Later:
    """Return the answer to one request.

    Raises ValueError for an unknown verb or process, KeyError for a missing field.
    """
    verb = request.get("do")

    def later(ready: Callable[[], Message | None], late: Callable[[], Message]) -> Later:
        return Later(ready, time.monotonic() + request.get("seconds", float("inf")), late)

    def progress() -> Message:
        return {"doing": agent.undoing.doing}

    if verb == "end":
        agent.end(ASKED)
        return later(agent.outcome, progress)
    if agent.over is not None:
        return {"over": agent.over}
    if verb == "renew":
        agent.renew()
        return {"processes": agent.processes.statuses()}
    if verb == "lease":
        agent.lease = float(request["seconds"])
        agent.renew()
        return {}
    if verb == "adopt":
        agent.adopt(request["holder"])
        return {}
    if verb == "pid":
        return {"pid": agent.processes.named(request["name"]).pid}
    if verb == "signal":
        process = agent.processes.named(request["name"])
        if process.status() is None:
            os.kill(process.pid, request["number"])
        return {}
    if verb == "wait":
        process = agent.processes.named(request["name"])

        def ended() -> Message | None:
            status = process.status()
            return None if status is None else {"status": status}

        return later(ended, lambda: {"status": None})
    if verb == "read":
        return files.read(request["path"], request["offset"])
    if verb == "clock":
        return {"time": time.time()}
    if verb == "watch kernel":
        agent.watch_kernel(request["pattern"])
        return {}
    if verb == "kernel":
        return {"kept": agent.kernel_messages()}
    undoing = agent.undoing
    if verb == "inherited":
        return later(undoing.inherited, progress)
    if undoing.taking_over:
        raise ValueError("what a killed session has left is not undone yet")
    if verb == "spawn":
        name, argv, log = (request[field] for field in ("name", "argv", "log"))
        return {"pid": agent.processes.spawn(name, argv, log, request.get("listen", {}))}
    if verb == "undo":
        undoing.undos.add(request["name"], request["command"])
        return {}
    if verb == "undos":
        return {"names": [name for name, _ in undoing.record["undos"]]}
    if verb == "undo now":
        job = agent.jobs.add(undoing.undo_now(request["names"]))
        return Later(lambda: job.answer, float("inf"), progress)
    raise ValueError(f"unknown request {request!r}")
