"""A real kernel's aliases choose a device's vfio driver, and its refusals are explained."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.errors import LabError
from harness.host import pci
from harness.host.connection import Connection
from harness.host.host import HostDescription
from harness.host.session import Session

pytestmark = pytest.mark.lab

# The first SMMU of a virtual host has both.
EDU, NVME = "0000:09:00.0", "0000:0b:00.0"

# The host's kernel has no modules, and the host's root file system is read-only: a folder of links
# to all that is in /usr/lib, and with the kernel's folder of modules, takes its place.
_OFFER = """\
set -e
mkdir -p /run/lib/old /run/lib/new
mount --bind /usr/lib /run/lib/old
ln -s /run/lib/old/* /run/lib/new
modules=/run/lib/new/modules/$(uname -r)
mkdir -p $modules
echo 'alias vfio_pci:v00001B36d00000010sv*sd*bc*sc*i* vfio_pci' >$modules/modules.alias
printf 'absent_vfio_pci.%s\\0' license=GPL 'alias=vfio_pci:v*d*sv*sd*bc*sc*i*' \
  >$modules/modules.builtin.modinfo
mount --bind /run/lib/new /usr/lib"""


@pytest.fixture
def session(host_description: HostDescription) -> Iterator[Session]:
    with Connection.to(host_description.target) as connection:
        running = Session.start(connection)
        try:
            yield running
        finally:
            running.end()


@pytest.fixture
def offering(session: Session) -> Session:
    """Return a session on a host whose kernel offers vfio_pci for an NVMe, and a module that does
    not exist for any device."""
    session.on_end("offer", "umount -l /usr/lib; umount -l /run/lib/old; rm -r /run/lib")
    session.connection.run(_OFFER)
    return session


def refused(session: Session, named: dict[str, str] | None = None) -> str:
    """Return the error of assigning the NVMe and the edu, after which neither is bound anew."""
    before = pci.describe(session, [NVME, EDU])
    with pytest.raises(LabError) as caught:
        pci.assign(session, [NVME, EDU], named)
    assert pci.describe(session, [NVME, EDU]) == before
    assert before[NVME].driver == "nvme"
    assert before[EDU].driver is None
    overrides = f"cat {pci.SYSFS}/{NVME}/driver_override {pci.SYSFS}/{EDU}/driver_override"
    assert session.connection.run(overrides).text == "(null)\n(null)\n"
    return str(caught.value)


def test_the_offered_driver_is_bound_and_given_back(offering: Session) -> None:
    """The alias for the NVMe has fewer wildcards than the alias for any device, whose module does
    not exist."""
    pci.assign(offering, [NVME])
    assert pci.describe(offering, [NVME])[NVME].driver == "vfio-pci"
    pci.release(offering, [NVME])
    assert pci.describe(offering, [NVME])[NVME].driver == "nvme"


def test_an_offered_module_that_does_not_exist_is_explained(offering: Session) -> None:
    said = refused(offering)
    assert f"device {EDU} needs the driver of module absent_vfio_pci" in said
    assert "which the kernel offers for it" in said
    assert "Module absent_vfio_pci not found in directory /lib/modules/" in said
    assert "the host has vfio_pci" in said


def test_a_named_driver_counts_more_than_the_offered_one(offering: Session) -> None:
    pci.assign(offering, [EDU], {EDU: "vfio-pci"})
    assert pci.describe(offering, [EDU])[EDU].driver == "vfio-pci"


def test_a_wrong_name_is_answered_with_the_right_ones(session: Session) -> None:
    said = refused(session, {EDU: "nvgrace_gpu_vfio_pci"})
    assert "nvgrace_gpu_vfio_pci, which the inventory names as its vfio_driver" in said
    assert "the host has the vfio drivers vfio_pci" in said


def test_a_driver_that_refuses_the_device_is_explained(session: Session) -> None:
    """The driver of virtio devices takes no other device, even where it is told to. The NVMe, which
    was bound before, is given back."""
    said = refused(session, {EDU: "virtio-pci"})
    assert f"driver virtio-pci refuses device {EDU}" in said
    assert "write error: No such device" in said
    assert "the host has the vfio drivers vfio_pci" in said


def test_the_old_override_returns(session: Session) -> None:
    """A host's owner may have chosen a driver for good."""
    override = f"{pci.SYSFS}/{EDU}/driver_override"
    session.on_end("override", f"echo >{override}")
    session.connection.run(f"echo virtio-pci >{override}")
    pci.assign(session, [EDU])
    assert session.connection.run(f"cat {override}").text == "vfio-pci\n"
    pci.release(session, [EDU])
    assert session.connection.run(f"cat {override}").text == "virtio-pci\n"
