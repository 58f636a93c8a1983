"""Say in words what the capabilities are that a test may need of its host."""

from __future__ import annotations

_WORDS = {
    "cmdqv": "a Tegra241 CMDQV",
    "cmdqv-model": "a CMDQV that is a model",
    "exact-events": "an SMMU that merges no events and leaves no field of a record UNKNOWN",
    "huge-pages": "huge pages of 2 MiB",
    "kprobe": "kernel probes",
    "kvm": "KVM",
    "no-cmdqv": "no Tegra241 CMDQV",
    "small-queues": "a guest kernel with small queues",
    "snapshot": "snapshots of the whole host",
}


def words(name: str) -> str:
    """Return what a capability is, such as "a CMDQV that is a model"; of an unknown one, its
    name."""
    subject, _, value = name.partition(":")
    if value and subject == "device":
        return f"a device of role {value}"
    if value and subject.startswith("cmdqv-"):
        return f"a model of a CMDQV with {subject.removeprefix('cmdqv-')} {value}"
    return _WORDS.get(name, name)
