"""An event for which the host's kernel has no memory is lost, and counted as lost."""

from __future__ import annotations

import pytest

from harness.boundary.account import Account
from harness.boundary.client import Boundary
from harness.errors import ProductError
from harness.fixtures.guests import BEHIND_BOUNDARY
from harness.host.failslab import no_memory_for_events
from harness.host.host import Host
from harness.smmu.loss import count_lost
from harness.smmu.vevents import INT_MAX, VEvent
from harness.waiting import wait_for

#: One event is lost, so that the kernel marks that once: of two marks that come in one read QEMU
#: tells once.
BEFORE, LOST, AFTER = 2, 1, 4


@pytest.mark.covers("LOSS-17")
@pytest.mark.needs("failslab")
@pytest.mark.guest(BEHIND_BOUNDARY)
def test_what_the_kernel_cannot_queue_is_counted(
    host: Host, account: Account, boundary: Boundary
) -> None:
    before = account.fault(BEFORE)
    boundary.wait_received(BEFORE, 0)
    host_before = host.kernel_log_time()

    with no_memory_for_events(host.session, LOST):
        events = account.fault(LOST + AFTER)

    assert account.close() == [*before, *events[LOST:]]
    assert count_lost(map(VEvent.decode, boundary.delivered()), after=INT_MAX) == LOST
    assert account.reported() == account.expected()[1] != []
    # An event that no guest gets is the host's to tell of.
    wait_for(
        "the host to log an event that it could not queue",
        lambda: "event: F_TRANSLATION" in host.kernel_log(host_before),
        deadline=10,
        error=ProductError,
    )
