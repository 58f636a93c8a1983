"""Starts the agent on a host.

    python3 -I - FOLDER LEASE_SECONDS [HOLDER] <SCRIPT

makes FOLDER/agent.sock and returns when that answers; a daemon stays behind. HOLDER says who starts
the session, as one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time

from harness.host.agent.agent import Agent
from harness.host.agent.lock import Lock
from harness.host.agent.server import Server


def main() -> None:
    folder, lease = sys.argv[1], float(sys.argv[2])
    holder = json.loads(sys.argv[3]) if len(sys.argv) > 3 else None
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    lock = Lock.take(folder, holder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    agent = Agent(folder, lease, lock, holder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, "agent.sock"))
    listener.listen(8)
    if os.fork():
        return  # clients may connect from here on: the kernel queues them until the daemon accepts
    _become_daemon(folder)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: agent.expire("somebody has ended its agent"))
    server = Server(agent, listener)
    try:
        server.serve()
    finally:
        agent.end("its agent failed")
        while not agent.ended:
            agent.jobs.advance()
            time.sleep(0.01)
        server.send_due()
        listener.close()
        shutil.rmtree(folder, ignore_errors=True)
        agent.undoing.end()
        lock.release()
        # Whoever waits for the end may start the next session at once.
        agent.given_back = True
        server.send_due()


def _become_daemon(folder: str) -> None:
    """Leave the starter's session and its terminal, and write down the daemon's pid."""
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(os.path.join(folder, "agent.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, target in ((0, null), (1, log), (2, log)):
        os.dup2(target, number)
    with open(os.path.join(folder, "agent.pid"), "w") as file:
        file.write(str(os.getpid()))
