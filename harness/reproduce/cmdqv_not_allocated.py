"""The host does not allocate the hardware queue that a guest's driver asks for."""

from __future__ import annotations

import errno

from harness.boundary.client import CMDQV, behind_boundary
from harness.boundary.on_host.rules import Call, FailCall
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.host.ability import ANY
from harness.reproduce.show import Say, in_guest

_PLAIN = GuestSpec(smmus=(SmmuSpec(devices=(ANY,), properties=(("cmdqv", "on"),)),))


def _show(guest: Guest, say: Say) -> bool:
    """Look whether the guest has an SMMU after its command queue could not be set up."""
    say("the boundary fails the first IOMMU_HW_QUEUE_ALLOC with EFAULT, as the kernel does when a")
    say("guest's ring is not contiguous in the host's memory; the guest says:")
    say(guest.kernel_log("arm-smmu-v3"))
    smmus = guest.run("ls /sys/class/iommu").text.split()
    say("the guest should go on with the SMMU's own command queue")
    say(f"it has {' and '.join(smmus) or 'no SMMU at all'}")
    return not smmus


SHOW = in_guest(
    behind_boundary(_PLAIN, {CMDQV: [FailCall(errno.EFAULT, Call.HW_QUEUE_ALLOC)]}), _show
)
