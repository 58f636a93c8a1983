"""A real OpenSSH server on loopback for tests, and a wire to it that can be cut or go silent."""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.host.target import Target
from harness.waiting import wait_for

SSHD = "/usr/sbin/sshd"
CHUNK = 1 << 16


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair, the public half with .pub at the end of its name."""
    make = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    return path


def public(key: Path) -> str:
    """Return the public half of a key as `TYPE BASE64`."""
    return " ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2])


@dataclass
class Sshd:
    """A running server. `target` is where it is, under the rules of the test's known_hosts."""

    folder: Path
    port: int
    address: str = "127.0.0.1"
    user: str = field(default_factory=getpass.getuser)

    @property
    def key(self) -> Path:
        return self.folder / "id"

    @property
    def host_key(self) -> Path:
        return self.folder / "host_key"

    @property
    def target(self) -> Target:
        """Return where the server is, with a known_hosts file that has its plain key."""
        return self.through(self.port)

    def through(self, port: int) -> Target:
        """Return where the server is when it is reached by another port."""
        known = self.folder / f"known_hosts.{port}"
        target = Target(self.address, port, self.user, self.key, known)
        known.write_text(f"{target.known_as} {public(self.host_key)}\n")
        return target

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def sshd(folder: Path, *lines: str, address: str = "127.0.0.1") -> Iterator[Sshd]:
    """Yield a server with these lines of sshd_config(5) besides. It lets this user log in with the
    key in the folder.

    As root it has a /run and processes of its own, so that nothing of this machine's is touched,
    and nothing that it has started outlives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        server = Sshd(folder, free.getsockname()[1], address)
    for key in (server.key, server.host_key):
        if not key.exists():
            make_key(key)
    (folder / "authorized_keys").write_text(public(server.key) + "\n")
    listen = f"[{address}]" if ":" in address else address
    config = folder / "sshd_config"
    config.write_text(
        "\n".join(
            [
                *lines,  # the first of equal keywords counts
                f"ListenAddress {listen}:{server.port}",
                f"HostKey {server.host_key}",
                f"AuthorizedKeysFile {folder / 'authorized_keys'}",
                "StrictModes no",
                # Only root can read whether an account is locked; for others PAM can tell.
                f"UsePAM {'no' if os.getuid() == 0 else 'yes'}",
                "PidFile none",
                "PasswordAuthentication no",
                "KbdInteractiveAuthentication no",
                "PermitRootLogin prohibit-password",
                # Commands need nothing from this user's shell start-up files.
                f"SetEnv HOME={folder}",
                "LogLevel VERBOSE",
                "",
            ]
        )
    )
    start = [SSHD, "-D", "-e", "-f", str(config)]
    if os.getuid() == 0:
        private = "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "
        start = [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
            *("sh", "-c", private + " ".join(start)),
        ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(start, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(
            "sshd to listen",
            lambda: process.poll() is not None or f"port {server.port}" in server.log,
            deadline=20,
        )
        assert process.poll() is None, server.log
        yield server
    finally:
        process.kill()
        process.wait()


class Wire:
    """A TCP relay to a port of this machine."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.to = (address, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        #: Cut the next connections when they have carried so many bytes to the server.
        self.cut_after: int | None = None
        #: Whether new connections are silent.
        self.silent = False
        self.delay = 0.0
        self.connections = 0
        self._silent: list[threading.Event] = []
        self._socks: list[socket.socket] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def silence(self) -> None:
        """Pass nothing more on the connections that there are. Nobody is told."""
        for one in self._silent:
            one.set()

    def speak(self) -> None:
        """End all silence."""
        self.silent = False
        for one in self._silent:
            one.clear()

    def cut(self) -> None:
        """Cut the connections that there are."""
        for sock in self._socks:
            _cut(sock)

    def close(self) -> None:
        self._over.set()
        self._threads[0].join(10)
        self.listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._over.is_set():
            if not select.select([self.listener], [], [], 0.1)[0]:
                continue
            near, _ = self.listener.accept()
            self.connections += 1
            far = socket.create_connection(self.to)
            silent = threading.Event()
            if self.silent:
                silent.set()
            self._silent.append(silent)
            self._socks += [near, far]
            left = self.cut_after
            for thread in (
                threading.Thread(target=self._pump, args=(near, far, silent, left), daemon=True),
                threading.Thread(target=self._pump, args=(far, near, silent, None), daemon=True),
            ):
                self._threads.append(thread)
                thread.start()

    def _pump(
        self, source: socket.socket, to: socket.socket, silent: threading.Event, left: int | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):
            while not self._over.is_set():
                if silent.is_set():
                    self._over.wait(0.02)
                    continue
                if not select.select([source], [], [], 0.02)[0]:
                    continue
                data = source.recv(CHUNK if left is None else min(left, CHUNK))
                if self.delay:
                    time.sleep(self.delay)
                to.sendall(data)
                if left is not None:
                    left -= len(data)
                if not data or left == 0:
                    break
        _cut(source)
        _cut(to)


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@contextlib.contextmanager
def wire(port: int, address: str = "127.0.0.1") -> Iterator[Wire]:
    """Yield a wire to a port of this machine."""
    relay = Wire(port, address)
    try:
        yield relay
    finally:
        relay.close()


@contextlib.contextmanager
def ssh_agent(folder: Path, *keys: Path) -> Iterator[Path]:
    """Yield the socket of an ssh-agent that has these keys, which have no passphrase."""
    where = folder / "agent.sock"
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(where)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for("the ssh-agent to listen", where.exists, deadline=10)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(where)}
        for key in keys:
            subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True)
        yield where
    finally:
        agent.kill()
        agent.wait()


def run_here(argv: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line on this machine, as a person would."""
    return subprocess.run(
        argv,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
