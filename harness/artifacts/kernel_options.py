"""The options of kernels for hosts and guests, and who needs each of them. The lab's kernel is
configured with them, and any other is compared with them. They are in
harness/guest/payload/kernel.config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from harness.errors import HarnessError

_SETTING = re.compile(r"(CONFIG_\w+)=(.*)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")
_SECTION = re.compile(r"# == (.+)")
_USERS = re.compile(r"# (needed by|useful to): (.+)")
#: What an option is set to that is on, in the kernel's Image or as a module.
_ON = ("y", "m")


class KernelUser(StrEnum):
    """Whoever runs a kernel. A virtual host needs what any host needs, and more."""

    HOST = "host"
    GUEST = "guest"
    VIRTUAL_HOST = "virtual-host"

    @property
    def modules(self) -> bool:
        """Return whether it can load modules."""
        return self is KernelUser.HOST


class Importance(StrEnum):
    """How much an option matters to one who runs a kernel."""

    NEEDED = "needed"
    USEFUL = "useful"


@dataclass(frozen=True)
class KernelOption:
    """An option and its value, what it is for, and who needs it or finds it useful."""

    name: str
    value: str
    purpose: str
    needed_by: frozenset[KernelUser] = frozenset()
    useful_to: frozenset[KernelUser] = frozenset()

    def importance(self, user: KernelUser) -> Importance | None:
        """Return how much the option matters to one who runs the kernel; None if it does not."""
        as_host = {KernelUser.HOST} if user is KernelUser.VIRTUAL_HOST else set()
        if self.needed_by & {user, *as_host}:
            return Importance.NEEDED
        return Importance.USEFUL if self.useful_to & {user, *as_host} else None

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class MissingOption:
    """An option that a kernel lacks: what the kernel has instead, and to whom it matters."""

    option: KernelOption
    found: str
    matters_to: Mapping[KernelUser, Importance]


def fragment() -> str:
    """Return the text of kernel.config."""
    file = resources.files("harness.guest").joinpath("payload/kernel.config")
    return file.read_text(encoding="utf-8")


@cache
def options() -> tuple[KernelOption, ...]:
    """Return the options of kernel.config, in its order."""
    return parse(fragment())


def parse(text: str) -> tuple[KernelOption, ...]:
    """Return the options of a text that has the form of kernel.config. Raises HarnessError with the
    number of a line that is wrong."""
    found: dict[str, KernelOption] = {}
    purpose = ""
    users: dict[str, frozenset[KernelUser]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if section := _SECTION.fullmatch(line):
            purpose, users = section[1], {}
        elif named := _USERS.fullmatch(line):
            users[named[1]] = frozenset(_user(word, number) for word in named[2].split(", "))
        elif setting := _SETTING.fullmatch(line):
            name, value = setting.groups()
            if name in found:
                raise HarnessError(f"kernel.config, line {number}: {name} is there twice")
            needed, useful = (users.get(key, frozenset()) for key in ("needed by", "useful to"))
            found[name] = KernelOption(name, value, purpose, needed, useful)
        elif line and not line.startswith("#"):
            raise HarnessError(f"kernel.config, line {number}: {line!r} is no option")
    return tuple(found.values())


def _user(word: str, number: int) -> KernelUser:
    try:
        return KernelUser(word)
    except ValueError:
        known = ", ".join(KernelUser)
        raise HarnessError(f"kernel.config, line {number}: {word!r} is none of {known}") from None


def settings(text: str) -> dict[str, str]:
    """Return the options that a .config, or a fragment of one, sets, by name: `n` for one that is
    not set. Of one that is set twice the last value counts."""
    found = {}
    for line in text.splitlines():
        if setting := _SETTING.fullmatch(line.strip()):
            found[setting[1]] = setting[2]
        elif unset := _UNSET.fullmatch(line.strip()):
            found[unset[1]] = "n"
    return found


def is_taken(wanted: str, found: str | None, *, modules: bool = False) -> bool:
    """Return whether an option that was to have a value has it; `found` is None where the .config
    does not name it. With `modules` one that is on may be a module."""
    found = found or "n"
    if wanted in _ON:
        return found == "y" or (modules and found == "m")
    return found == wanted


def missing(
    found: Mapping[str, str], users: tuple[KernelUser, ...] = tuple(KernelUser)
) -> Iterator[MissingOption]:
    """Yield what a kernel with these settings lacks that matters to one of these users."""
    for option in options():
        value = found.get(option.name)
        matters_to = {
            user: importance
            for user in users
            if (importance := option.importance(user))
            and not is_taken(option.value, value, modules=user.modules)
        }
        if matters_to:
            yield MissingOption(option, _told(value), matters_to)


def _told(value: str | None) -> str:
    known = {None: "absent", "n": "not set", "m": "module", "y": "built in"}
    return known.get(value, f"{value}")
