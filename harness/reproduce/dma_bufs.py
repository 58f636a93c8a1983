"""A device's dma-bufs stay when it goes."""

from __future__ import annotations

from harness.guest.description import GuestSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug
from harness.host.ability import ANY
from harness.reproduce.show import PLUGGED, Say, in_guest


def _show(guest: Guest, say: Say) -> bool:
    """Compare QEMU's dma-buf descriptors before a device is plugged and after it is unplugged."""
    device = guest.device(ANY)

    def held() -> int:
        files = guest.host_run(f"ls -l /proc/{guest.qemu_pid()}/fd")
        return files.count("/dmabuf:")

    before = held()
    say(f"QEMU has {before} descriptors of dma-bufs; a device is plugged and unplugged")
    plug(guest, device)
    say(f"  plugged: {held()}")
    eject(guest, device)
    after = held()
    say(f"  unplugged, and deleted by QEMU: {after}, should be {before}")
    return after > before


SHOW = in_guest(GuestSpec(smmus=(PLUGGED,)), _show)
