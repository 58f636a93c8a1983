"""The capabilities that a test may need of its host: whether a host meets a need, and what they are
in words.

A need is the name of a capability, or a bound for one that is a size: `cpus>=4` is met by a host
that has `cpus:8`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection

_WORDS = {
    "cmdqv": "a Tegra241 CMDQV that the host's kernel drives",
    "cmdqv-model": "a CMDQV that is a model",
    "exact-events": "an SMMU that merges no events and leaves no field of a record UNKNOWN",
    "failslab": "a host kernel whose allocations can be made to fail",
    "huge-pages": "huge pages of 2 MiB",
    "iommufd-test": "a host kernel with the test device of iommufd",
    "kprobe": "kernel probes",
    "kvm": "KVM",
    "no-cmdqv": "no Tegra241 CMDQV",
    "selftests": "the kernel's own tests on the host",
    "slab-poisoning": "a host kernel that poisons freed memory",
    "small-queues": "a guest kernel with small queues",
    "snapshot": "snapshots of the whole host",
}
#: Capabilities that are sizes.
_SIZES = {
    "cmdqv-sids": "StreamIDs of a model of a CMDQV",
    "cmdqv-vcmdqs": "command queues of a model of a CMDQV",
    "cmdqv-vintfs": "virtual interfaces of a model of a CMDQV",
    "cpus": "CPUs",
    "memory-mib": "memory in MiB",
}

_BOUND = re.compile(r"(.+?)(>=|<=)([0-9]+)")
_COMPARE = {">=": operator.ge, "<=": operator.le}


def met(need: str, capabilities: Collection[str]) -> bool:
    """Return whether a host with these capabilities meets a need."""
    if need in capabilities:
        return True
    bound = _BOUND.fullmatch(need)
    if bound is None:
        return False
    name, sign, number = bound.groups()
    sizes = [
        value for one, _, value in (own.rpartition(":") for own in capabilities) if one == name
    ]
    return any(one.isdigit() and _COMPARE[sign](int(one), int(number)) for one in sizes)


def base(need: str) -> str:
    """Return the name of the capability that a need is about, without its bound."""
    bound = _BOUND.fullmatch(need)
    return bound[1] if bound else need


def words(name: str) -> str:
    """Return what a capability or a need is, such as "a CMDQV that is a model"; of an unknown one,
    its name."""
    bound = _BOUND.fullmatch(name)
    if bound:
        at = "at least" if bound[2] == ">=" else "at most"
        return f"{_SIZES.get(bound[1], bound[1])}, {at} {bound[3]}"
    subject, _, value = name.partition(":")
    if value and subject == "tag":
        return f"the tag {value} in the inventory"
    if value and subject in ("cpus", "memory-mib"):
        return f"{_SIZES[subject]}, {value}"
    if value and subject == "device":
        return f"a device of role {value}"
    if value and subject.startswith("cmdqv-"):
        return f"a model of a CMDQV with {subject.removeprefix('cmdqv-')} {value}"
    return _WORDS.get(name, name)
