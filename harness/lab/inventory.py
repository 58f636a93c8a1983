"""The inventory: a YAML file, strictly checked, of a lab's hosts and what may be used on them.

Relative paths start at the inventory file's folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from harness import strict_yaml
from harness.boundary.client import merging
from harness.checkout import INVENTORIES, name_of
from harness.console.kinds import ConsoleEntry
from harness.devices import kinds
from harness.errors import LabError
from harness.guest.description import GuestSpec
from harness.host.host import EXACT_EVENTS
from harness.host.target import ADDRESS, JUMP, LONGEST_ADDRESS, USER
from harness.power.bmc import BmcEntry
from harness.power.kinds import PowerEntry
from harness.secret import VariableName
from harness.strict_yaml import HomePath, Strict, anchored
from harness.virtual.topology import MOST_DEVICES, emulated_roles

BDF = r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]$"
#: The roles that a device may have. Each has a module in harness/devices.
ROLES = list(kinds())
#: Those of them that a device of a virtual host may have.
EMULATED_ROLES = emulated_roles()
#: What a debug kernel has (harness.artifacts.kernel.DEBUG).
OF_DEBUG_KERNELS = frozenset({"iommufd-test", "slab-poisoning"})
NAME = r"^[a-z][a-z0-9-]{0,30}$"
#: A tag of a place, and its value, as labgrid's coordinator accepts them.
TAG, TAG_VALUE = r"^[a-z][a-z0-9_]+$", r"^[A-Za-z0-9_.:/+-]{1,128}$"
#: The name of a place. labgrid forbids no more than the slash.
PLACE = r"^[^/\s]{1,64}$"
#: Where a coordinator is: HOST[:PORT], an IPv6 address in brackets.
COORDINATOR_PORT = 20408
COORDINATOR = r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$"


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
    debug_kernel: Annotated[
        bool,
        Field(
            description="true to boot the variant of the lab's kernel that checks itself: freed "
            "memory is poisoned, and iommufd has its test device; or false"
        ),
    ] = False


class RecoveryEntry(Strict):
    """What is done, and for how long, for a host that does not answer the run that has it."""

    wait: Annotated[
        int | None,
        Field(
            ge=0,
            le=3600,
            description="seconds that the host is waited for before anything is done to it; "
            "default: 60 if its power can be controlled, else 0",
        ),
    ] = None
    nmi: Annotated[
        bool,
        Field(description="true to send it a diagnostic interrupt then, for a dump; or false"),
    ] = True
    dump: Annotated[
        int,
        Field(ge=0, le=3600, description="seconds that it is waited for after that, 0 to 3600"),
    ] = 300
    restart: Annotated[
        bool, Field(description="true to restart it by its power control at last; or false")
    ] = True
    reboot: Annotated[
        int,
        Field(ge=1, le=3600, description="seconds that a restart may take, 1 to 3600"),
    ] = 900


#: What only a host with an address, or a place, has.
_SSH_FIELDS = (
    "agent",
    "bmc",
    "console",
    "host_kernel",
    "passphrase_env",
    "passphrase_file",
    "power",
    "proxy_jump",
    "recovery",
    "ssh_config",
)


def _jumps(written: Any) -> Any:
    """Return a text of jump hosts, as ssh(1) has it for -J, as a list."""
    return [one.strip() for one in written.split(",")] if isinstance(written, str) else written


def _config(written: Any) -> Any:
    """Return the path of the configuration that `ssh_config` means."""
    return {True: "~/.ssh/config", False: None}[written] if isinstance(written, bool) else written


def _tags(written: Any) -> Any:
    """Return a mapping of tags. Raises ValueError for what labgrid takes for none."""
    if isinstance(written, dict):
        for tag, value in written.items():
            if not re.fullmatch(TAG, str(tag)):
                raise ValueError(f"tag {tag!r}: allowed: lower-case letters, digits and _")
            if not isinstance(value, str) or not re.fullmatch(TAG_VALUE, value):
                raise ValueError(
                    f"tag {tag}: found {value!r}; allowed: letters, digits and _ . : / + -, with "
                    "numbers in quotes"
                )
    return written


class MachineEntry(Strict):
    """What the inventory says of a machine, besides where it is: of a host, or of a place."""

    key: Annotated[
        HomePath | None,
        Field(
            description="path of a private SSH key; with `agent`, of the public or private half of "
            "the agent's key to use"
        ),
    ] = None
    passphrase_file: Annotated[
        HomePath | None,
        Field(description="path of a file with the passphrase of `key` in its first line"),
    ] = None
    passphrase_env: Annotated[
        VariableName | None,
        Field(description="name of an environment variable with the passphrase of `key`"),
    ] = None
    agent: Annotated[
        bool, Field(description="true to log in with keys of the ssh-agent; or false")
    ] = False
    known_hosts: Annotated[HomePath | None, Field(description="path of a known_hosts file")] = None
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
        HomePath | None,
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
    selftests: Annotated[
        str,
        Field(
            pattern="^/",
            description="absolute path on the host of a folder with the kernel's own tests, those "
            "of tools/testing/selftests/iommu and vfio; may be absent",
        ),
    ] = "/usr/share/hil/selftests"
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
    power: Annotated[
        PowerEntry | None,
        Field(
            description="what controls the host's power: a mapping of one of "
            f"{', '.join(PowerEntry.model_fields)}"
        ),
    ] = None
    console: Annotated[
        ConsoleEntry | None,
        Field(
            description="where the host's serial console is: a mapping of one of "
            f"{', '.join(ConsoleEntry.model_fields)}"
        ),
    ] = None
    recovery: Annotated[
        RecoveryEntry,
        Field(description=f"a mapping of {', '.join(RecoveryEntry.model_fields)}"),
    ] = RecoveryEntry()
    tags: Annotated[
        tuple[Annotated[str, Field(pattern=NAME)], ...],
        Field(
            description="a list of words of your own; a test that needs tag:WORD runs on a host "
            "that has it"
        ),
    ] = ()
    only_for: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None,
        Field(
            description="a list of capabilities: the host is used only for tests that need one of "
            "them; [] for any test. Default: any test; what is odd about it, for a virtual host "
            "with a debug kernel or a CMDQV of unusual sizes"
        ),
    ] = None
    bmc: Annotated[
        BmcEntry | None,
        Field(
            description="how to log in to the BMC that the host's place names: a mapping of "
            f"{', '.join(BmcEntry.model_fields)}"
        ),
    ] = None


class HostEntry(MachineEntry):
    """One host: `virtual`, or an `address` with all that SSH needs, or a `place` that says the
    address."""

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
    place: Annotated[
        dict[str, str] | None,
        BeforeValidator(_tags),
        Field(
            min_length=1,
            description="a mapping of the tags that a place of `coordinator` must have, such as "
            "{board: grace}, with numbers in quotes; {name: grace-1} is the place of that name",
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
            return frozenset({"cmdqv", *OF_DEBUG_KERNELS}) | self.tagged
        model, plain = self.virtual.cmdqv, self.virtual.plain
        found = {"cmdqv" if model else "no-cmdqv", *self.tagged}
        if self.virtual.debug_kernel:
            found |= OF_DEBUG_KERNELS
        if plain:
            return frozenset(found)
        if not self.merging:
            found.add(EXACT_EVENTS)
        found.add("snapshot")
        if model is None:
            return frozenset(found)
        sizes = model.model_dump()
        return frozenset({*found, "cmdqv-model", *(f"cmdqv-{k}:{v}" for k, v in sizes.items())})

    @property
    def tagged(self) -> frozenset[str]:
        """Return the capabilities that the host has by its tags."""
        return frozenset(f"tag:{one}" for one in self.tags)

    @property
    def kept_for(self) -> frozenset[str]:
        """Return the capabilities for whose sake alone tests run on this host; empty if any test
        may. A virtual host that is built for few tests is left to them, unless the inventory says
        otherwise: it takes a minute to boot, and others may fail on it."""
        if self.only_for is not None or self.virtual is None:
            return frozenset(self.only_for or ())
        kept = set(OF_DEBUG_KERNELS) if self.virtual.debug_kernel else set()
        if self.virtual.cmdqv:
            usual, own = CmdqvEntry().model_dump(), self.virtual.cmdqv.model_dump()
            kept |= {f"cmdqv-{name}:{own[name]}" for name in own if own[name] != usual[name]}
        return frozenset(kept)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(one is not None for one in (self.virtual, self.address, self.place)) != 1:
            raise ValueError("a host has either `virtual`, `address` or `place`")
        if self.place is not None:
            self._check_place()
        else:
            self._check_ssh()
        addresses = [device.bdf for device in self.devices]
        if len(set(addresses)) != len(addresses):
            raise ValueError("a device is listed twice")
        return self

    def _check_place(self) -> None:
        """Check an entry that a place completes. What that place lacks is found when it is had."""
        told = self.model_fields_set & {"port", "user"}
        if told:
            raise ValueError(f"a host with `place` has its `{min(told)}` from the place")

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
    coordinator: Annotated[
        str | None,
        Field(
            pattern=COORDINATOR,
            description="where labgrid's coordinator is, for hosts with `place`: HOST or HOST:PORT "
            f"(default {COORDINATOR_PORT})",
        ),
    ] = None
    hosts: Annotated[
        tuple[HostEntry, ...], Field(min_length=1, description="a list of at least one host")
    ]
    places: Annotated[
        dict[Annotated[str, Field(pattern=PLACE)], MachineEntry],
        Field(
            description="what the coordinator does not know of its places, by their names; it "
            "takes precedence over what the host's entry says: mappings of "
            f"{', '.join(MachineEntry.model_fields)}",
        ),
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [host.name for host in self.hosts]
        if len(set(names)) != len(names):
            raise ValueError("two hosts have the same name")
        return self

    @model_validator(mode="after")
    def _coordinated(self) -> Self:
        asking = any(host.place is not None for host in self.hosts)
        if asking and self.coordinator is None:
            raise ValueError("a host with `place` needs `coordinator`, beside `lab`")
        if self.coordinator and not asking:
            raise ValueError("`coordinator` is for hosts with `place`, and there is none")
        if self.places and not asking:
            raise ValueError("`places` is for hosts with `place`")
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
        fix=f"correct the inventory; {name_of(INVENTORIES)}/schema.json lists all fields, for "
        "editors",
        none=f"give an existing file with --lab; {name_of(INVENTORIES)}/ has examples",
    )
    return anchored(inventory, path.parent)
