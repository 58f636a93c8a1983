"""Races between calls of iommufd on a host, which its kernel must bear."""

from __future__ import annotations

from importlib import resources

from harness.errors import ProductError
from harness.host.host import Host
from harness.host.pci import SYSFS
from harness.host.probes import slowed

#: Longest that all rounds may take, in seconds.
_SECONDS = 120


def close_and_destroy(host: Host, rounds: int) -> None:
    """Close the file of a vEVENTQ while the queue is destroyed, so many times, with one of the
    host's devices, which no guest may have. Raises ProductError if the kernel refuses a call, and
    LabError, also when the host dies of it."""
    bdf = min(host.devices)
    host.assign([bdf])
    (device,) = host.connection.run(["ls", f"{SYSFS}/{bdf}/vfio-dev"]).text.split()
    program = resources.files("harness.host").joinpath("close_and_destroy.py").read_bytes()
    with slowed(host.session, "iommufd_eventq_fops_release"):
        done = host.connection.run(
            ["python3", "-I", "-", f"/dev/vfio/devices/{device}", str(rounds)],
            stdin=program,
            timeout=_SECONDS,
            check=False,
        )
    if done.text != f"{rounds}\n":
        said = done.stderr.decode(errors="replace").strip()
        raise ProductError(f"the host's kernel refuses to allocate or destroy a vEVENTQ:\n{said}")
