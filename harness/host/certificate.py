"""Check the certificate that a host shows instead of a plain key (OpenSSH's PROTOCOL.certkeys)."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

SUFFIX = "-cert-v01@openssh.com"


def parse(line: str) -> SSHCertificate:
    """Return the certificate of a line `TYPE BASE64`. Raises ValueError if it is none."""
    try:
        found = load_ssh_public_identity(line.encode())
    except UnsupportedAlgorithm as problem:
        raise ValueError(str(problem)) from None
    if not isinstance(found, SSHCertificate):
        raise ValueError("it is a plain key")  # noqa: TRY004
    return found


def authority(certificate: SSHCertificate) -> str:
    """Return the key of the CA that signed a certificate, as `TYPE BASE64`. Raises ValueError."""
    try:
        key = certificate.signature_key()
    except UnsupportedAlgorithm as problem:
        raise ValueError(str(problem)) from None
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def check(certificate: SSHCertificate, host: str) -> None:
    """Raise ValueError, which says why, unless a certificate is that of the host of this name: it
    is signed by its CA, by no SHA-1 signature; it is a host's, valid now, and for this name or for
    any. Whether that CA is trusted is the caller's to check."""
    if certificate.type is not SSHCertificateType.HOST:
        raise ValueError("it is a user's, not a host's")
    signed_by = bytes(certificate._inner_sig_type)
    if signed_by == b"ssh-rsa":
        raise ValueError("it is signed with SHA-1 (ssh-rsa)")
    try:
        certificate.verify_cert_signature()
    except InvalidSignature:
        raise ValueError("its signature is not that of its CA") from None
    now = time.time()
    if now < certificate.valid_after:
        raise ValueError(f"it is valid only from {_date(certificate.valid_after)} on")
    if now >= certificate.valid_before:
        raise ValueError(f"it expired on {_date(certificate.valid_before)}")
    if certificate.critical_options:
        options = ", ".join(one.decode(errors="replace") for one in certificate.critical_options)
        raise ValueError(f"it has critical options that no host has: {options}")
    names = [one.decode(errors="replace") for one in certificate.valid_principals]
    # Without names it is for all hosts (ssh-keygen(1), -n). As for ssh, a name is no pattern.
    if names and host.lower() not in names:
        raise ValueError(f"it is for {', '.join(names)} and not for {host}")


def _date(seconds: int) -> str:
    """Return a time of a certificate, in seconds since 1970, as text."""
    if seconds >= 2**33:
        return "a date far away"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
