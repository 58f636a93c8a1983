"""Events that the host's SMMU itself loses have no number: the host says so, and nobody else can.

The kernel numbers an event when it takes it from the SMMU's event queue. What does not fit into
that queue never was an event for it, so that QEMU and the guest cannot know of it.
"""

from __future__ import annotations

import re

import pytest

from harness.devices.dma import UNMAPPED
from harness.devices.source import FaultSource
from harness.errors import LabError, ProductError
from harness.fixtures.guests import FLOODED
from harness.guest.guest import Guest
from harness.host.host import Host
from harness.smmu import loss
from harness.waiting import wait_for

#: How many events more than the host's queue holds the device raises.
EXCESS = 1024
#: Linux's words for a queue that overflowed, and those for what QEMU's SMMU does in its place.
TOLD = re.compile(r"EVTQ (overflow detected|write aborted) -- events (may have been )?lost")


def queue_entries(host: Host) -> int:
    """Return how many events the event queues of the host's SMMUs hold, as the host logged at its
    start."""
    sizes = re.findall(r"allocated (\d+) entries for evtq", host.kernel_log())
    if not sizes:
        raise LabError(
            f"the kernel log of host {host.name} does not tell how large its event queues are",
            fix="reboot the host: its log does not go back to its start",
        )
    return max(map(int, sizes))


@pytest.mark.covers("LOSS-15")
@pytest.mark.needs("exact-events")
@pytest.mark.guest(FLOODED)
def test_the_guest_lacks_what_the_hosts_queue_did_not_hold(
    guest: Guest, host: Host, flooder: FaultSource
) -> None:
    """One DMA of a device raises more events than the host's queue holds, faster than the host's
    kernel can take them."""
    held = queue_entries(host)
    if (held + EXCESS) * flooder.unit > flooder.longest:
        pytest.skip(f"{flooder} cannot raise {held + EXCESS} events at once")
    flood = flooder.burst(held + EXCESS)
    queue = guest.event_queue()
    mark, before = queue.mark(), host.kernel_log_time()

    flooder.perform(flood)

    queue.expect(flooder.expected(flood)[:held], mark, deadline=30 + held / 500)
    wait_for(
        "the host to tell that its queue overflowed",
        lambda: TOLD.search(host.kernel_log(before)),
        deadline=10,
        error=ProductError,
    )
    # What comes later arrives, and QEMU has nothing to report, because no number is missing.
    mark = queue.mark()
    last = flooder.burst(1, 2 * UNMAPPED)
    flooder.perform(last)
    queue.expect(flooder.expected(last), mark)
    assert list(loss.messages(guest.qemu_messages())) == []
