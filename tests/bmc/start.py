"""Start real programs that are a host's BMC, for tests."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness.checkout import ROOT
from harness.waiting import wait_for

USER, PASSWORD = "admin", "hunter2-of-the-bmc"


@dataclass(frozen=True)
class Bmc:
    """A running BMC; what its host does is in the folder. See tests/bmc/redfish.py and ipmi.py."""

    folder: Path
    port: int

    @property
    def did(self) -> list[str]:
        """Return what the BMC was told to do to its host."""
        path = self.folder / "did"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    def power(self, state: str) -> None:
        """Let the host be on or off."""
        (self.folder / "power").write_text(state)


@contextlib.contextmanager
def redfish(folder: Path, *systems: str) -> Iterator[Bmc]:
    """Yield a BMC that speaks Redfish by TLS, of systems with these names, or of one."""
    folder.mkdir()
    bmc = Bmc(folder, _free(socket.SOCK_STREAM))
    bmc.power("On")
    _certify(folder)
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{USER}:{hashed}\n")
    described = [
        {"uuid": f"27946b59-9e44-4fa7-8e91-f3527a1ef00{number}", "name": name, "nics": []}
        for number, name in enumerate(systems or ("grace-1",))
    ]
    settings = {
        "FAKE_DRIVER": True,
        "LISTEN_IP": "127.0.0.1",
        "LISTEN_PORT": bmc.port,
        "SSL_CERT": str(bmc.certificate),
        "SSL_KEY": str(folder / "key.pem"),
        "AUTH_FILE": str(folder / "htpasswd"),
        "STATE_DIR": str(folder),
        "FAKE_SYSTEMS": described,
    }
    config = folder / "emulator.conf"
    config.write_text("".join(f"SUSHY_EMULATOR_{key} = {one!r}\n" for key, one in settings.items()))

    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", bmc.port), 1):
            return True
        return False

    with _program(folder, "redfish", str(config), str(folder)) as process:
        wait_for(
            "the emulator of Redfish to listen",
            lambda: process.poll() is not None or listening(),
            deadline=30,
        )
        assert process.poll() is None, (folder / "log").read_text()
        yield bmc


@contextlib.contextmanager
def ipmi(folder: Path) -> Iterator[Bmc]:
    """Yield a BMC that speaks IPMI 2.0."""
    folder.mkdir()
    bmc = Bmc(folder, _free(socket.SOCK_DGRAM))
    bmc.power("on")
    password = PASSWORD[:16]
    with _program(folder, "ipmi", str(folder), str(bmc.port), USER, password) as process:
        wait_for(
            "the BMC to listen",
            lambda: process.poll() is not None or (folder / "listening").exists(),
            deadline=30,
        )
        assert process.poll() is None, (folder / "log").read_text()
        yield bmc


@contextlib.contextmanager
def _program(folder: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bmc.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _free(kind: socket.SocketKind) -> int:
    with socket.socket(type=kind) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _certify(folder: Path) -> None:
    """Make a key and a certificate of 127.0.0.1, as a BMC has one that nobody signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    form, unlocked = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, unlocked))
