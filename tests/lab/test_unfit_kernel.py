"""A guest whose kernel lacks what we need."""

from __future__ import annotations

import pytest

from harness.guest.description import Guest as Description
from harness.guest.description import Smmu
from harness.guest.fleet import Fleet, Freshness
from harness.guest.guest import GuestUnfitError

pytestmark = pytest.mark.lab


def test_a_kernel_without_the_virtio_console_is_told(fleet: Fleet) -> None:
    """Not waited for until a deadline."""
    without = "initcall_blacklist=virtio_console_init"
    guest = Description(smmus=(Smmu(devices=("edu",)),), append=without)
    with pytest.raises(GuestUnfitError, match=r"no /dev/hvc0 \(CONFIG_VIRTIO_CONSOLE\)"):
        with fleet.guests([guest], Freshness.COLD):
            pass
