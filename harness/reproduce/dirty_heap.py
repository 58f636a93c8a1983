"""The first error of a CMDQV comes to a QEMU whose memory is not zero."""

from __future__ import annotations

from harness.errors import ProductError
from harness.faults.guest_cmdqv import GuestCmdqv
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.reproduce.show import Say, in_guest
from harness.smmu import loss
from harness.smmu.commands import cfgi_ste, sync
from harness.smmu.trace import TraceEvent
from harness.waiting import wait_for

#: glibc fills memory that QEMU allocates with a pattern.
_DIRTY = (("GLIBC_TUNABLES", "glibc.malloc.perturb=164:glibc.malloc.tcache_count=0"),)


def _show(guest: Guest, say: Say) -> bool:
    """Have the guest issue a command that it may not, and read what QEMU says of losses."""
    say(f"QEMU was started with {' '.join(map('='.join, _DIRTY))}")
    cmdqv, start = GuestCmdqv(guest), guest.trace_size()
    say("the guest issues CMD_CFGI_STE on its first VCMDQ, which is illegal there")
    index = cmdqv.give(0, cfgi_ste(0), sync())
    wait_for(
        "QEMU to receive the error",
        lambda: guest.trace(start).texts(TraceEvent.CMDQV_ERR_MAP),
        deadline=10,
        error=ProductError,
    )
    cmdqv.wait_done(0)
    cmdqv.take_back(0, index)
    found = [str(message.report) for message in loss.messages(guest.qemu_messages())]
    say("QEMU should report no loss: the error is the first record of its queue")
    say(f"QEMU reports: {', '.join(found) or 'nothing'}")
    return bool(found)


SHOW = in_guest(
    GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),), environment=_DIRTY),
    _show,
)
