"""cmdqv=on without a device that has one."""

from __future__ import annotations

from harness.guest.description import EXPLICIT, SmmuSpec
from harness.guest.fleet import Fleet
from harness.guest.qemu import ask
from harness.reproduce.show import Say


def _show(fleet: Fleet, say: Say) -> bool:
    """Ask QEMU for cmdqv=on without an assigned device, with all other properties set explicitly so
    that nothing is to be copied from a device."""
    smmu = SmmuSpec(properties=tuple({**EXPLICIT, "cmdqv": "on"}.items()))
    bus = "-object iommufd,id=iommufd0 -device pxb-pcie,id=pcie.1,bus=pcie.0"
    options = f"{bus} -device {smmu.option(0)}"
    say("QEMU is started, paused, with an SMMU that has no device, and should refuse:")
    say(f"  {options}")
    answer = ask(fleet.host, options)
    say(f"QEMU {'accepts it' if answer.accepted else 'refuses it'}")
    for line in answer.said:
        say(f"  {line}")
    return answer.accepted


SHOW = _show
