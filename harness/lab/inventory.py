"""The inventory: a YAML file, strictly checked, of a lab's hosts and what may be used on them.

Relative paths of `key`, `known_hosts`, `passphrase_file` and `ssh_config` start at the inventory
file's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from harness import strict_yaml
from harness.boundary.client import merging
from harness.devices import kinds
from harness.errors import LabError
from harness.guest.description import GuestSpec
from harness.host.host import EXACT_EVENTS
from harness.host.target import ADDRESS, JUMP, LONGEST_ADDRESS, USER
from harness.strict_yaml import Strict
from harness.virtual.topology import MOST_DEVICES, emulated_roles

BDF = r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]$"
#: The roles that a device may have. Each has a module in harness/devices.
ROLES = list(kinds())
#: Those of them that a device of a virtual host may have.
EMULATED_ROLES = emulated_roles()
NAME = r"^[a-z][a-z0-9-]{0,30}$"


def _role_of(roles: Sequence[str]) -> Any:
    """Return the rule of a field that has one of these roles."""
    return Field(
        pattern=f"^({'|'.join(roles)})$",
        json_schema_extra={"enum": list(roles)},
        description=f"one of {', '.join(roles)}",
    )


class Device(Strict):
    """A PCI function of the host that tests may take away from it."""

    bdf: Annotated[
        str, Field(pattern=BDF, description="a PCI address such as 0000:09:00.0, in lower case")
    ]
    role: Annotated[str, _role_of(ROLES)]
    vfio_driver: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            description="name of the host's vfio driver for the device, such as vfio-pci; without "
            "it, the driver is the one that the host's kernel offers",
        ),
    ] = None


class CmdqvEntry(Strict):
    """The Tegra241 CMDQV beside the first SMMU of a virtual host."""

    vintfs: Annotated[
        Literal[1, 2, 4, 8],
        Field(description="number of virtual interfaces: 1, 2, 4 or 8; the host itself has one"),
    ] = 4
    vcmdqs: Annotated[
        Literal[1, 2, 4, 8, 16, 32, 64, 128],
        Field(description="number of command queues: a power of two, 128 at most"),
    ] = 8
    sids: Annotated[
        Literal[1, 2, 4, 8, 16],
        Field(description="StreamIDs of an interface: 1, 2, 4, 8 or 16"),
    ] = 16
    version: Annotated[int, Field(ge=0, le=15, description="hardware version, 0 to 15")] = 1

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.vcmdqs < self.vintfs:
            raise ValueError("a CMDQV has at least one of `vcmdqs` for each of `vintfs`")
        return self


class Virtual(Strict):
    """A host that the harness builds and boots itself."""

    memory_mib: Annotated[
        int, Field(ge=2048, le=65536, description="MiB of the host's memory, 2048 to 65536")
    ] = 3072
    cpus: Annotated[int, Field(ge=1, le=8, description="number of CPUs, 1 to 8")] = 2
    smmus: Annotated[
        int, Field(ge=1, le=4, description="number of SMMUs with devices behind them, 1 to 4")
    ] = 2
    devices: Annotated[
        tuple[Annotated[str, _role_of(EMULATED_ROLES)], ...],
        Field(
            min_length=1,
            max_length=MOST_DEVICES,
            description=f"a list of 1 to {MOST_DEVICES} roles, those of the devices behind each "
            f"SMMU; each is one of {', '.join(EMULATED_ROLES)}, and may be repeated",
        ),
    ] = EMULATED_ROLES
    cmdqv: Annotated[
        CmdqvEntry | None,
        Field(description="a mapping of vintfs, vcmdqs, sids, version; {} for defaults"),
    ] = None
    segments: Annotated[
        bool,
        Field(
            description="true to have each SMMU's devices in a PCI segment of their own, as on "
            "Grace; or false"
        ),
    ] = False
    plain: Annotated[
        bool,
        Field(
            description="true to use the host over SSH only, as bare metal is used: without "
            "snapshots, and without commands to the CMDQV's model; or false"
        ),
    ] = False
    reboots: Annotated[
        bool,
        Field(
            description="true to have the host boot again after a reboot or a panic, as bare metal "
            "does; false to end it then, which whoever waits for it notices sooner"
        ),
    ] = False


#: What only a host with an address has.
_SSH_FIELDS = (
    "agent",
    "host_kernel",
    "passphrase_env",
    "passphrase_file",
    "proxy_jump",
    "ssh_config",
)
#: What starts at the inventory file's folder.
_PATHS = ("key", "known_hosts", "passphrase_file", "ssh_config")


def _jumps(written: Any) -> Any:
    """Return a text of jump hosts, as ssh(1) has it for -J, as a list."""
    return [one.strip() for one in written.split(",")] if isinstance(written, str) else written


def _config(written: Any) -> Any:
    """Return the path of the configuration that `ssh_config` means."""
    return {True: "~/.ssh/config", False: None}[written] if isinstance(written, bool) else written


class HostEntry(Strict):
    """One host: either `virtual`, or an `address` with all that SSH needs."""

    name: Annotated[
        str, Field(pattern=NAME, description="a name of lower-case letters, digits and hyphens")
    ]
    virtual: Annotated[
        Virtual | None,
        Field(description=f"a mapping of {', '.join(Virtual.model_fields)}; {{}} for defaults"),
    ] = None
    address: Annotated[
        str | None,
        Field(
            pattern=ADDRESS,
            max_length=LONGEST_ADDRESS,
            description="a host name (ASCII; labels of 1 to 63 letters, digits and hyphens) or IP "
            "address, or a Host of `ssh_config`",
        ),
    ] = None
    port: Annotated[int, Field(ge=1, le=65535, description="a TCP port, 1 to 65535")] = 22
    user: Annotated[
        str,
        Field(
            pattern=USER,
            max_length=64,
            description="the user to log in as: letters, digits and _ . @ + -, with no - first",
        ),
    ] = "root"
    key: Annotated[
        Path | None,
        Field(
            description="path of a private SSH key; with `agent`, of the public or private half of "
            "the agent's key to use"
        ),
    ] = None
    passphrase_file: Annotated[
        Path | None,
        Field(description="path of a file with the passphrase of `key` in its first line"),
    ] = None
    passphrase_env: Annotated[
        str | None,
        Field(
            pattern="^[A-Za-z_][A-Za-z0-9_]*$",
            description="name of an environment variable with the passphrase of `key`",
        ),
    ] = None
    agent: Annotated[
        bool, Field(description="true to log in with keys of the ssh-agent; or false")
    ] = False
    known_hosts: Annotated[Path | None, Field(description="path of a known_hosts file")] = None
    proxy_jump: Annotated[
        tuple[Annotated[str, Field(pattern=JUMP)], ...],
        BeforeValidator(_jumps),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string", "pattern": JUMP}},
                ]
            }
        ),
        Field(
            description="the hosts to go through, the nearest first: a list, or text with commas; "
            "each is [USER@]HOST[:PORT], with an IPv6 address in brackets"
        ),
    ] = ()
    ssh_config: Annotated[
        Path | None,
        BeforeValidator(_config),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string"}]}),
        Field(
            description="true to obey ~/.ssh/config, or the path of another ssh_config(5) file; or "
            "false"
        ),
    ] = None
    qemu: Annotated[
        str, Field(min_length=1, description="QEMU on the host: a path, or a name in its PATH")
    ] = "qemu-system-aarch64"
    firmware: Annotated[
        str, Field(pattern="^/", description="absolute path on the host of the guests' firmware")
    ] = "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
    guest_kernel: Annotated[
        str, Field(pattern="^/", description="absolute path on the host of the guests' kernel")
    ] = "/usr/share/hil/Image"
    small_queues_kernel: Annotated[
        str,
        Field(
            pattern="^/",
            description="absolute path on the host of a guests' kernel with small SMMU queues; "
            "may be absent",
        ),
    ] = "/usr/share/hil/Image.small-queues"
    guest_initrd: Annotated[
        str, Field(pattern="^/", description="absolute path on the host of the guests' initramfs")
    ] = "/usr/share/hil/initramfs.cpio.gz"
    devices: Annotated[
        tuple[Device, ...],
        Field(description="a list of devices, each with bdf and role, and vfio_driver if need be"),
    ] = ()
    host_kernel: Annotated[
        Literal["kexec"] | None,
        Field(
            description="kexec if runs may boot the host with a kernel that --host-kernel gives, "
            "and reboot it; a virtual host needs no leave"
        ),
    ] = None
    merging: Annotated[
        bool,
        Field(
            description="true or false; true imitates an SMMU that merges equal events: "
            "every guest runs behind a boundary with the rule merge"
        ),
    ] = False

    def adapt(self, guest: GuestSpec) -> GuestSpec:
        """Return the description that a guest has on this host."""
        return merging(guest) if self.merging else guest

    @property
    def capabilities(self) -> frozenset[str]:
        """Return the capabilities that this host has, or may have, as the inventory tells. Those
        of `harness.host.host.probes` serve to choose a host; once it is open, probing decides."""
        if self.virtual is None:
            return frozenset({"cmdqv"})
        model, plain = self.virtual.cmdqv, self.virtual.plain
        found = {"cmdqv"} if model else {"no-cmdqv"}
        if plain:
            return frozenset(found)
        if not self.merging:
            found.add(EXACT_EVENTS)
        if model is None:
            # QEMU cannot save a device that is in another process.
            return frozenset({*found, "snapshot"})
        sizes = model.model_dump()
        return frozenset({*found, "cmdqv-model", *(f"cmdqv-{k}:{v}" for k, v in sizes.items())})

    @field_validator(*_PATHS)
    @classmethod
    def _of_a_home(cls, path: Path | None) -> Path | None:
        try:
            return path and path.expanduser()
        except (RuntimeError, ValueError) as problem:
            raise ValueError(f"found {str(path)!r}: {problem}; allowed: a path") from None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.virtual is None) == (self.address is None):
            raise ValueError("a host has either `virtual` or `address`")
        self._check_ssh()
        addresses = [device.bdf for device in self.devices]
        if len(set(addresses)) != len(addresses):
            raise ValueError("a device is listed twice")
        return self

    def _check_ssh(self) -> None:
        if self.virtual is not None:
            if self.key or self.known_hosts or self.devices:
                raise ValueError("a virtual host brings its own key, known_hosts and devices")
            needless = self.model_fields_set & set(_SSH_FIELDS)
            if needless:
                raise ValueError(f"a virtual host has no `{min(needless)}`")
            return
        if not self.known_hosts or not (self.key or self.agent or self.ssh_config):
            raise ValueError(
                "a host with an address needs `key` and `known_hosts`; `agent` or `ssh_config` can "
                "take the place of `key`"
            )
        if self.passphrase_file and self.passphrase_env:
            raise ValueError("a host has one of `passphrase_file` and `passphrase_env`")


class Inventory(Strict):
    """A lab: the hosts of one file."""

    lab: Annotated[str, Field(pattern=NAME, description="the lab's name, as a host's")]
    hosts: Annotated[
        tuple[HostEntry, ...], Field(min_length=1, description="a list of at least one host")
    ]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [host.name for host in self.hosts]
        if len(set(names)) != len(names):
            raise ValueError("two hosts have the same name")
        return self

    def host(self, name: str | None = None) -> HostEntry:
        """Return the host of this name, or the first one without a name. Raises LabError when the
        lab has no such host."""
        for host in self.hosts:
            if name in (None, host.name):
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise LabError(f"lab {self.lab} has no host {name}", fix=f"choose one of {names}")


def schema() -> str:
    """Return the JSON schema of an inventory, for editors: lab-inventory/schema.json."""
    return json.dumps(Inventory.model_json_schema(), indent=2) + "\n"


def load(path: Path) -> Inventory:
    """Read and check an inventory.

    Raises LabError with all faults of the file at once: for each the line, the field, what was
    found and what is allowed.
    """
    inventory = strict_yaml.load(
        path,
        Inventory,
        what="inventory",
        error=LabError,
        fix="correct the inventory; lab-inventory/schema.json lists all fields, for editors",
        none="give an existing file with --lab; lab-inventory/ has examples",
    )
    return _anchored(inventory, path.parent)


def _anchored(inventory: Inventory, folder: Path) -> Inventory:
    def anchored(host: HostEntry) -> HostEntry:
        found = {name: getattr(host, name) for name in _PATHS}
        paths = {name: folder / path for name, path in found.items() if path}
        return host.model_copy(update=paths)

    hosts = tuple(anchored(host) for host in inventory.hosts)
    return inventory.model_copy(update={"hosts": hosts})
