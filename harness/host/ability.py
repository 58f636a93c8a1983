"""Name what assignable devices can do, and what a test needs of them.

A test asks for abilities, never for a kind of device: any device of the host that has them will do.
Only tests that are about one kind of device name its role.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Ability(enum.StrEnum):
    """Something that an assignable device can do for a test."""

    #: It performs DMA reads at IOVAs that we choose.
    READ = "read"
    #: It performs DMA writes at IOVAs that we choose.
    WRITE = "write"
    #: Its DMA, told once, makes 10,000 and more accesses in a row.
    FLOOD = "flood"
    #: One of its DMAs has the length that we choose.
    EXACT_LENGTH = "exact-length"
    #: It can show that its DMA reads and writes the guest's memory, through whatever translation
    #: the guest's SMMU has for it.
    REACH = "reach"
    #: The guest has it as a disk, whose data tests may overwrite.
    DISK = "disk"


#: What follows "a device that can", where it is not the ability's name.
_WORDS = {
    Ability.EXACT_LENGTH: "choose a DMA's length",
    Ability.REACH: "show what it reaches",
    Ability.DISK: "be a disk",
}


@dataclass(frozen=True)
class Need:
    """What a test needs of one device: abilities, and a role if the test is about a kind."""

    can: frozenset[Ability] = frozenset()
    role: str = ""

    def met_by(self, role: str, can: frozenset[Ability]) -> bool:
        """Return whether a device of this role, with these abilities, will do."""
        return self.role in ("", role) and self.can <= can

    def __str__(self) -> str:
        return self._named("device")

    @property
    def plural(self) -> str:
        """Return what several devices for this need are called."""
        return self._named("devices")

    def _named(self, noun: str) -> str:
        role = f" of role {self.role}" if self.role else ""
        abilities = " and ".join(_WORDS.get(ability, ability) for ability in sorted(self.can))
        return f"{noun}{role}" + (f" that can {abilities}" if abilities else "")


def able(*abilities: Ability) -> Need:
    """Return the need of a device with these abilities."""
    return Need(frozenset(abilities))


def of_role(role: str) -> Need:
    """Return the need of a device of one kind."""
    return Need(role=role)


#: Any device that the host can assign.
ANY = Need()
READER = able(Ability.READ)
WRITER = able(Ability.WRITE)
READER_AND_WRITER = able(Ability.READ, Ability.WRITE)
FLOODER = able(Ability.WRITE, Ability.FLOOD)
#: A device by whose DMA a test sees whether memory is reached.
PROBE = able(Ability.REACH, Ability.READ, Ability.WRITE)
DISK = able(Ability.DISK)
