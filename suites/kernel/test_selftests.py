"""The kernels under test pass their own tests, those of tools/testing/selftests in Linux."""

from __future__ import annotations

import dataclasses
import re

import pytest

from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet, Freshness
from harness.guest.vfio import lent
from harness.host import huge_pages, own_tests
from harness.host.ability import of_role
from harness.host.host import Host
from harness.smmu.events import EventType
from harness.steps import step

pytestmark = pytest.mark.needs("selftests")

#: A network card whose driver among the tests makes it perform DMA (igb.c there).
CARD = of_role("igb")
#: The tests make 1 GiB of memory accessible to the card.
IN_GUEST = GuestSpec(smmus=(SmmuSpec(devices=(CARD,)),), memory_mib=1536)
#: A program's interrupts do not arrive in a guest with an accelerated SMMU: see
#: harness.guest.vfio.lent. `iommufd` is the one mode in which the guest's kernel has vfio. Of these
#: filters the first that fits counts.
WITHOUT_INTERRUPTS = "-T send_msi -T mix_and_match -v iommufd"

#: What is called, and how long that may take, in seconds. In iommufd_fail_nth one allocation after
#: the other fails. DMA_BUFS are tests with buffers that the kernel's test device exports.
HOST_PROGRAMS = {
    "iommufd": ("-T dmabuf_simple -T dmabuf_revoke", 600),
    "iommufd_fail_nth": ("", 900),
}
DMA_BUFS = "-t dmabuf_simple -t dmabuf_revoke"
#: The largest buffer of these tests is 128 MiB in huge pages; they keep some more.
HUGE_PAGES = 96


def skip_those_of_another_kernel(host: Host) -> None:
    """Skip the test if the programs are not of the host's kernel: they test each change of it."""
    release = own_tests.release(host)
    series = ".".join(release.split(".")[:2])
    if not series or not re.match(rf"{re.escape(series)}\b", host.facts.host_kernel):
        pytest.skip(
            f"the tests in {host.files.selftests} are of Linux {release or 'an unknown version'}"
        )


@pytest.mark.covers("KRN-02")
@pytest.mark.needs("iommufd-test", "huge-pages")
@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    "program", ["iommufd", pytest.param("iommufd_fail_nth", marks=pytest.mark.long)]
)
def test_iommufd(host: Host, program: str) -> None:
    skip_those_of_another_kernel(host)
    options, seconds = HOST_PROGRAMS[program]
    with huge_pages.set_aside(host.session, HUGE_PAGES), step(f"run {program}"):
        own_tests.run(host, program, options.split(), seconds)


@pytest.mark.covers("KRN-02")
@pytest.mark.known_defect("KRN-02", symptom="not ok .*dmabuf_simple")
@pytest.mark.needs("iommufd-test")
def test_iommufd_with_dma_bufs(host: Host) -> None:
    skip_those_of_another_kernel(host)
    with step("run iommufd's tests of DMA-BUFs"):
        own_tests.run(host, "iommufd", DMA_BUFS.split(), 120)


@pytest.mark.covers("KRN-02")
@pytest.mark.needs("device:igb")
@pytest.mark.guest(IN_GUEST)
@pytest.mark.timeout(600)
def test_vfio_in_a_guest(fleet: Fleet, host: Host) -> None:
    """The card copies memory, and from and to where nothing is mapped: those accesses, and no
    others, are events in the guest."""
    program = f"{host.files.selftests}/vfio_pci_driver_test"
    spec = dataclasses.replace(IN_GUEST, disks=(program,))
    with fleet.guests([spec], Freshness.CLEAN) as (guest,):
        card, queue = guest.device(CARD), guest.event_queue()
        lent(guest, card)
        guest.run("cat /dev/vda >/tmp/test && chmod 700 /tmp/test")
        mark = queue.mark()

        command = f"/tmp/test {WITHOUT_INTERRUPTS} {card.guest_bdf} 2>&1"
        done = guest.run(command, timeout=300, check=False)

        own_tests.check(done.text)
        assert done.status == 0, done.text
        records = queue.wait_for(2, mark)
        assert {(one.type, one.sid) for one in records} == {(EventType.F_TRANSLATION, card.vsid)}
        assert {one.rnw for one in records} == {"read", "write"}
