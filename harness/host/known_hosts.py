"""The file of host keys that are known: plain keys, hashed names, CAs and revoked keys (sshd(8),
SSH_KNOWN_HOSTS FILE FORMAT). A host whose key or certificate is not in it is refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from harness.errors import LabError
from harness.host import certificate
from harness.host.target import Target

_AUTHORITY, _REVOKED = "@cert-authority", "@revoked"
#: The algorithms of each type of host key, in the order in which they are asked for.
_ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


@dataclass(frozen=True)
class _Line:
    number: int
    marker: str
    patterns: tuple[str, ...]
    #: The key as `TYPE BASE64`.
    key: str

    @property
    def type(self) -> str:
        return self.key.partition(" ")[0]

    def names(self, host: str) -> bool:
        """Return whether the line is about the host of this name. A pattern with `!` excepts
        hosts from the others."""
        hits = {pattern.startswith("!") for pattern in self.patterns if _matches(pattern, host)}
        return hits == {False}


def _matches(pattern: str, host: str) -> bool:
    if pattern.startswith("|1|"):
        _, _, salt, hashed = pattern.split("|")
        name = hmac.new(base64.b64decode(salt), host.lower().encode(), hashlib.sha1)
        return hmac.compare_digest(name.digest(), base64.b64decode(hashed))
    wild = re.escape(pattern.removeprefix("!")).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, host, re.IGNORECASE) is not None


@dataclass(frozen=True)
class KnownHosts:
    """The lines of a known_hosts file. `odd` are the numbers of lines that are none."""

    path: Path
    lines: tuple[_Line, ...]
    odd: tuple[int, ...]

    @classmethod
    def load(cls, path: Path) -> KnownHosts:
        """Read a known_hosts file. As for ssh, a line that is none is of no use, and no error, but
        a broken line that revokes a key is: LabError. Comments may be in any encoding. Raises
        OSError when the file cannot be read."""
        lines, odd = [], []
        for number, text in enumerate(path.read_bytes().decode(errors="replace").split("\n"), 1):
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            try:
                lines.append(_parse(number, text))
            except ValueError:
                if text.split()[0] == _REVOKED:
                    raise LabError(
                        f"{path}:{number}: a line that revokes a key cannot be read",
                        fix=f"correct the line to `{_REVOKED} HOSTS TYPE BASE64`",
                    ) from None
                odd.append(number)
        return cls(path, tuple(lines), tuple(odd))

    # -- what to ask the host for ----------------------------------------------------------

    def algorithms(self, target: Target) -> tuple[str, ...]:
        """Return the algorithms of host keys to ask the host for: first certificates if a CA is
        known for it, then the types of its known keys, then the others."""
        plain = [name for names in _ALGORITHMS.values() for name in names]
        known = {
            name for line in self._about(target, "") for name in _ALGORITHMS.get(line.type, ())
        }
        ordered = sorted(plain, key=lambda name: name not in known)
        if any(self._about(target, _AUTHORITY)):
            return (*(name + certificate.SUFFIX for name in plain), *ordered)
        return tuple(ordered)

    # -- what the host shows ---------------------------------------------------------------

    def check(self, target: Target, shown: paramiko.PKey) -> None:
        """Raise LabError unless the host may show this key, or the certificate in it. The key
        exchange has proved that the host has the private half."""
        key = f"{shown.get_name()} {shown.get_base64()}"
        self._refuse_revoked(target, "key", key)
        problem = self._certificate_problem(target, shown)
        if problem is None:
            return
        known = list(self._about(target, ""))
        if any(line.key == key for line in known):
            return
        if problem:
            raise LabError(
                f"host {target.known_as} shows a host certificate ({_fingerprint(key)}) that "
                f"cannot be accepted: {problem}",
                fix="have the CA sign the host's key again, with `ssh-keygen -h -s CA -I ID "
                f"-n {target.address} KEY.pub`, and name the result as HostCertificate in the "
                "host's sshd_config",
            )
        if known:
            expected = ", ".join(sorted({_fingerprint(line.key) for line in known}))
            name = next(one for one in _names(target) if any(line.names(one) for line in known))
            raise LabError(
                f"host {target.known_as} shows another key ({_fingerprint(key)}) than "
                f"{self.path} has ({expected})",
                fix="if the machine was installed anew, remove the old key with "
                f"`ssh-keygen -f {shlex.quote(str(self.path))} -R {shlex.quote(name)}` and add "
                "the new one; if not, do not connect: another machine answers at this address",
            )
        odd = f" (not a line of known_hosts: {_numbers(self.odd)})" if self.odd else ""
        raise LabError(
            f"host {target.known_as} is not in {self.path}{odd}; it shows {_fingerprint(key)}",
            fix="compare that key with the one on the machine's console; if they are the same, "
            f"add this line: {target.known_as} {key}",
        )

    def _certificate_problem(self, target: Target, shown: paramiko.PKey) -> str | None:
        """Return None if the host shows a certificate that holds, else why it does not: an empty
        text if it shows none, or one of a CA that is not known for it."""
        blob = shown.public_blob
        if blob is None:
            return ""
        try:
            found = certificate.parse(f"{blob.key_type} {_base64(blob.key_blob)}")
            signer = certificate.authority(found)
            self._refuse_revoked(target, "a certificate of CA", signer)
            if not any(line.key == signer for line in self._about(target, _AUTHORITY)):
                return ""
            certificate.check(found, target.address)
        except ValueError as problem:
            return str(problem)
        return None

    def _refuse_revoked(self, target: Target, what: str, key: str) -> None:
        for line in self.lines:
            if line.marker == _REVOKED and line.key == key and any(map(line.names, _names(target))):
                raise LabError(
                    f"host {target.known_as} shows {what} {_fingerprint(key)}, which is revoked: "
                    f"{self.path}:{line.number}",
                    fix="do not connect: whoever has that key can pose as the host. Give the host "
                    "a new host key, and add that to the file",
                )

    def _about(self, target: Target, marker: str) -> Iterator[_Line]:
        """Yield the lines about a host with this marker. As for ssh, what is known of the host by
        its name alone counts for another port, unless something is known of that port."""
        lines = [line for line in self.lines if line.marker == marker]
        for name in _names(target):
            found = [line for line in lines if line.names(name)]
            if found:
                yield from found
                return


def _names(target: Target) -> Iterable[str]:
    """Return the names by which a file may know a host, most exact first."""
    return dict.fromkeys((target.known_as, target.address))


def _parse(number: int, text: str) -> _Line:
    """Return a line of the file. Raises ValueError for what is none."""
    words = text.split()
    marker = words.pop(0) if words[0].startswith("@") else ""
    if marker not in ("", _AUTHORITY, _REVOKED) or len(words) < 3:
        raise ValueError(text)
    hosts, kind, key = words[:3]
    patterns = tuple(hosts.split(","))
    for pattern in patterns:
        if pattern.startswith("|"):
            _, version, salt, hashed = pattern.split("|")
            if version != "1":
                raise ValueError(text)
            base64.b64decode(salt, validate=True)
            base64.b64decode(hashed, validate=True)
    blob = base64.b64decode(key, validate=True)
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != kind.encode():
        raise ValueError(text)
    return _Line(number, marker, patterns, f"{kind} {_base64(blob)}")


def _base64(blob: bytes) -> str:
    return binascii.b2a_base64(blob, newline=False).decode()


def _fingerprint(key: str) -> str:
    """Return a key's type and fingerprint, as `ssh-keygen -l` prints it."""
    kind, _, blob = key.partition(" ")
    digest = base64.b64encode(hashlib.sha256(base64.b64decode(blob)).digest()).decode()
    return f"{kind} SHA256:{digest.rstrip('=')}"


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
