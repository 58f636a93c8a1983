"""Use pages of a guest's memory by their physical addresses."""

from __future__ import annotations

from harness.errors import HarnessError
from harness.guest.guest import Guest


def pin_page(guest: Guest) -> int:
    """Have the guest pin a zeroed page for as long as it runs; return the page's physical address.

    Raises HarnessError if the guest cannot do it.
    """
    wait = "until [ -s /tmp/pinned ]; do usleep 10000; done"
    pin = "rm -f /tmp/pinned; hil pin >/tmp/pinned 2>&1 &"
    pinned = guest.run(f"{pin} {wait}; cat /tmp/pinned").text
    if not pinned.startswith("0x"):
        raise HarnessError(f"the guest could not pin a page: {pinned}")
    return int(pinned, 16)
