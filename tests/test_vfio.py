"""The vfio driver of a device is the one that the host's kernel offers, and failures say why."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.errors import LabError
from harness.host import pci, vfio
from harness.host.connection import Completed
from harness.host.session import Session

#: As depmod writes them.
MODULES_ALIAS = """\
# Aliases extracted from modules themselves.
alias pci:v000010DEd00002342sv*sd*bc*sc*i* nvidia
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci
alias vfio_pci:v000010DEd00002345sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v000019E5d0000A251sv*sd*bc*sc*i* hisi-acc-vfio-pci
alias devname:vfio/vfio vfio
alias char-major-10-196 vfio
"""
GRACE_GPU = "pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00"
CONNECTX_VF = "pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00"
NVME = "pci:v0000144Dd0000A80Asv0000144Dsd0000A801bc01sc08i02"

ALIASES = vfio.aliases(MODULES_ALIAS.splitlines())


# -- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modalias", "module"),
    [(GRACE_GPU, "nvgrace_gpu_vfio_pci"), (CONNECTX_VF, "mlx5_vfio_pci"), (NVME, "vfio_pci")],
)
def test_the_fewest_wildcards_count(modalias: str, module: str) -> None:
    assert vfio.offered(modalias, ALIASES) == module
    assert vfio.offered(modalias, ALIASES[::-1]) == module


def test_a_kernel_may_offer_nothing() -> None:
    assert vfio.offered(NVME, [one for one in ALIASES if "v*d*" not in one.pattern]) is None


def test_of_equal_aliases_the_first_counts() -> None:
    lines = [f"alias vfio_pci:v0000144Dd*sv*sd*bc*sc*i* {name}" for name in ("one", "two")]
    assert vfio.offered(NVME, vfio.aliases(lines)) == "one"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("vfio_pci:v0000144Dd0000A80[9A]sv*sd*bc01sc08i*", True),
        ("vfio_pci:v0000144Dd0000A80?sv*sd*bc*sc*i*", True),
        ("vfio_pci:v0000144dd0000a80asv*sd*bc*sc*i*", False),  # case counts
        ("vfio_pci:v0000144Dd0000A80A", False),  # a pattern is for the whole
        ("pci:v0000144Dd*sv*sd*bc*sc*i*", False),
    ],
)
def test_patterns_are_those_of_fnmatch(pattern: str, matches: bool) -> None:
    assert (vfio.offered(NVME, [vfio.Alias(pattern, "found")]) == "found") is matches


def test_comments_and_other_lines_are_no_aliases() -> None:
    assert [one.module for one in ALIASES if one.pattern.startswith("vfio_pci:")] == [
        "vfio_pci",
        "nvgrace_gpu_vfio_pci",
        "nvgrace_gpu_vfio_pci",
        "mlx5_vfio_pci",
        "hisi_acc_vfio_pci",
    ]
    assert vfio.aliases(["# alias a b", "alias", "alias vfio_pci:v*", ""]) == []


def test_drivers_that_are_built_in_are_offered_too() -> None:
    entries = ["vfio_pci.alias=vfio_pci:v*d*sv*sd*bc*sc*i*", "vfio_pci.license=GPL v2"]
    assert vfio.offered(NVME, vfio.aliases(entries)) == "vfio_pci"


BUILT_IN = ["/sys/bus/pci/drivers/mlx5_core", "/sys/bus/pci/drivers/vfio-pci"]
LOADED = [
    *BUILT_IN,
    "/sys/module/mlx5_core/drivers/pci:mlx5_core",
    "/sys/module/vfio_pci/drivers/pci:vfio-pci",
    "/sys/module/other_vfio_pci/drivers/pci:another-name",
]


@pytest.mark.parametrize(
    ("module", "paths", "driver"),
    [
        ("vfio_pci", LOADED, "vfio-pci"),
        ("mlx5_core", LOADED, "mlx5_core"),
        ("other_vfio_pci", LOADED, "another-name"),
        ("vfio", LOADED, None),
        pytest.param("vfio_pci", BUILT_IN, "vfio-pci", id="a-kernel-without-loadable-modules"),
    ],
)
def test_a_module_may_have_another_name_than_its_driver(
    module: str, paths: list[str], driver: str | None
) -> None:
    assert vfio.registered(module, paths) == driver


# -- assignment --------------------------------------------------------------------------------

GPU, DRIVE = "0009:01:00.0", "0001:01:00.0"


@dataclass
class FakeHost:
    """Answer the commands of `pci.assign` as a host would. `modules` maps those that can be loaded
    to their drivers."""

    modalias: dict[str, str] = field(default_factory=lambda: {GPU: GRACE_GPU, DRIVE: NVME})
    bound: dict[str, str] = field(default_factory=lambda: {GPU: "nvidia", DRIVE: "nvme"})
    override: dict[str, str] = field(default_factory=dict)
    aliases: str = MODULES_ALIAS
    modules: dict[str, str] = field(
        default_factory=lambda: {
            "nvgrace_gpu_vfio_pci": "nvgrace_gpu_vfio_pci",
            "vfio_pci": "vfio-pci",
            "nvme": "nvme",
        }
    )
    #: The drivers that refuse devices, and those that take a device from its vfio driver.
    refusing: tuple[str, ...] = ()
    thief: str = ""
    log: str = "[    1.000000] earlier\n"
    #: The notes of earlier sessions; what uses devices, and how many looks at it find that.
    notes: dict[str, str] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    busy_looks: int = 1 << 30
    looks: int = 0
    commands: list[str | list[str]] = field(default_factory=list)
    undos: dict[str, str] = field(default_factory=dict)
    folder: str = "/run/hil/one"
    target = SimpleNamespace(known_as="grace-1")

    @property
    def session(self) -> Session:
        does = {"on_end": self.on_end, "undo_now": self.do}
        return cast(Session, SimpleNamespace(connection=self, folder=self.folder, **does))

    def on_end(self, name: str, command: str) -> None:
        self.undos[name] = command

    def do(self, names: list[str]) -> None:
        for name in names:
            command = self.undos.pop(name, "")
            found = re.match(r"bdf=(\S+) had=(\S+) ", command)
            if found:
                self.bound[found[1]] = "".join(shlex.split(found[2]))

    def run(self, command: str | list[str], check: bool = True, stdin: bytes = b"") -> Completed:
        self.commands.append(command)
        out, said = self._answer(command)
        return Completed(str(command), 0, out.encode(), said.encode())

    def _answer(self, command: str | list[str]) -> tuple[str, str]:
        if isinstance(command, list):
            self.looks += 1
            return json.dumps(self.uses if self.looks <= self.busy_looks else {}), ""
        if "/vendor" in command:
            lines = [f"{b} 0x10de 0x2342 0x030200 {d or '-'} smmu3" for b, d in self.bound.items()]
        elif "/modalias" in command:
            lines = [f"modalias {bdf} {text}" for bdf, text in self.modalias.items()]
            lines += [f"override {b} {self.override.get(b, '(null)')}" for b in self.modalias]
            lines += [f"note {b} {self.notes.get(b, '')}" for b in self.modalias]
            lines += [f"offer - {line}" for line in self.aliases.splitlines()]
        elif "modprobe" in command:
            asked = shlex.split(command.split("for m in ")[1].split(";")[0])
            lines = [f"log - {self.log.splitlines()[-1]}"]
            for module in asked:
                if module in self.modules:
                    driver = f"/sys/module/{module}/drivers/pci:{self.modules[module]}"
                    lines.append(f"driver - {driver}")
                else:
                    self.log += f"[    2.000000] {module}: disagrees about version\n"
                    lines.append(f"modprobe {module} modprobe: FATAL: Module {module} not found")
        elif "/unbind" in command:
            bind = next(line for line in command.splitlines() if line.endswith("/bind"))
            return self._bind(*bind.split()[1:])
        elif command == "dmesg":
            return self.log, ""
        else:
            lines = sorted({*self.modules, "mlx5_vfio_pci"} - {"nvme"})
        return "".join(f"{line}\n" for line in lines), ""

    def _bind(self, bdf: str, path: str) -> tuple[str, str]:
        driver = path.split("/")[-2]
        if driver in self.refusing:
            self.bound[bdf] = ""
            self.log += f"[    3.000000] {driver} {bdf}: probe failed with error -22\n"
            return "-\n", "/bin/echo: write error: Invalid argument\n"
        self.bound[bdf] = self.thief or driver
        return f"{self.bound[bdf]}{' vfio0' if 'vfio' in self.bound[bdf] else ''}\n", ""


def refused(host: FakeHost, named: Mapping[str, str] | None = None) -> str:
    """Return the error of assigning both devices, after which both have their old drivers."""
    before = dict(host.bound)
    with pytest.raises(LabError) as caught:
        pci.assign(host.session, [GPU, DRIVE], named)
    assert host.bound == before
    assert host.undos == {}
    return str(caught.value)


def test_each_device_gets_the_driver_that_the_kernel_offers() -> None:
    host = FakeHost()
    pci.assign(host.session, [GPU, DRIVE])
    assert host.bound == {GPU: "nvgrace_gpu_vfio_pci", DRIVE: "vfio-pci"}
    pci.release(host.session, [GPU, DRIVE])
    assert host.bound == {GPU: "nvidia", DRIVE: "nvme"}


def test_the_host_is_asked_once_for_all_devices() -> None:
    """All devices share the look at them, the look at what uses them, the survey and the loading of
    modules. Binding is a command for each device."""
    host = FakeHost()
    pci.assign(host.session, [GPU, DRIVE])
    assert len(host.commands) == 4 + 2


def test_what_is_bound_as_it_should_be_stays() -> None:
    host = FakeHost(bound={GPU: "nvgrace_gpu_vfio_pci", DRIVE: "vfio-pci"})
    pci.assign(host.session, [GPU, DRIVE])
    assert host.undos == {}
    assert len(host.commands) == 4


def test_vfio_pci_gives_way_to_a_variant_and_comes_back() -> None:
    host = FakeHost(bound={GPU: "vfio-pci", DRIVE: "nvme"}, override={GPU: "vfio-pci"})
    pci.assign(host.session, [GPU])
    assert host.bound[GPU] == "nvgrace_gpu_vfio_pci"
    assert f"bdf={GPU} had=vfio-pci override=vfio-pci " in host.undos[f"vfio {GPU}"]
    pci.release(host.session, [GPU])
    assert host.bound[GPU] == "vfio-pci"


@pytest.mark.parametrize("name", ["vfio-pci", "vfio_pci"])
def test_the_inventory_may_name_a_driver(name: str) -> None:
    host = FakeHost()
    pci.assign(host.session, [GPU, DRIVE], {GPU: name})
    assert host.bound == {GPU: "vfio-pci", DRIVE: "vfio-pci"}


def test_a_host_without_aliases_has_vfio_pci() -> None:
    host = FakeHost(aliases="")
    pci.assign(host.session, [GPU, DRIVE])
    assert host.bound == {GPU: "vfio-pci", DRIVE: "vfio-pci"}


def test_a_module_that_cannot_be_loaded_is_explained() -> None:
    host = FakeHost()
    del host.modules["nvgrace_gpu_vfio_pci"]
    said = refused(host)
    assert f"device {GPU} needs the driver of module nvgrace_gpu_vfio_pci" in said
    assert "which the kernel offers for it; host grace-1 does not have it" in said
    assert "FATAL: Module nvgrace_gpu_vfio_pci not found" in said
    assert "disagrees about version" in said
    assert "earlier" not in said
    assert "install all modules of the kernel" in said
    assert len(host.commands) == 6, "a device was touched"


def test_a_host_without_vfio_pci_is_told() -> None:
    said = refused(FakeHost(aliases="", modules={}))
    assert "module vfio_pci, which drives any device; host grace-1 does not have it" in said
    assert "CONFIG_VFIO_PCI" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nvidia-vfio", "module nvidia_vfio, which the inventory names as its vfio_driver; host"),
        ("nvme", f"{GPU} is bound to nvme on host grace-1, but that made no vfio device of it"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name: str, said: str) -> None:
    error = refused(FakeHost(), {GPU: name})
    assert said in error
    assert "has the vfio drivers mlx5_vfio_pci, nvgrace_gpu_vfio_pci, vfio_pci" in error


def test_a_driver_that_refuses_a_device_is_explained() -> None:
    said = refused(FakeHost(refusing=("vfio-pci",)))
    assert f"driver vfio-pci refuses device {DRIVE} on host grace-1" in said
    assert "write error: Invalid argument" in said
    assert f"[    3.000000] vfio-pci {DRIVE}: probe failed with error -22" in said
    assert "earlier" not in said


def test_another_driver_that_takes_the_device_is_named() -> None:
    said = refused(FakeHost(thief="nouveau"))
    assert f"device {GPU} is bound to nouveau instead of nvgrace_gpu_vfio_pci" in said
    assert "its kernel logged nothing" in said
    assert "udev rule, that gives the device to nouveau" in said


# -- devices in use ----------------------------------------------------------------------------


def test_a_device_in_use_is_refused_with_what_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pci, "SETTLE_SECONDS", 0.1)
    host = FakeHost(uses={GPU: [], DRIVE: [f"use {number}" for number in range(8)]})
    said = refused(host)
    assert f"device {DRIVE} is in use: use 0; use 1; use 2; use 3; use 4; use 5; and 2 more" in said
    assert "remove the device from the inventory" in said


def test_what_uses_a_device_for_a_moment_is_waited_for() -> None:
    """udev opens a disk that its driver has just taken."""
    host = FakeHost(
        uses={DRIVE: ["held by process 7 (udevd), which has /dev/x open"]}, busy_looks=2
    )
    pci.assign(host.session, [GPU, DRIVE])
    assert host.looks == 3
    assert host.bound[DRIVE] == "vfio-pci"


# -- what an earlier session has left -----------------------------------------------------------


def test_a_device_that_was_not_given_back_goes_to_its_first_driver() -> None:
    """An earlier session failed to give back both: one has no driver, one is with vfio-pci."""
    notes = {GPU: "nvidia (null) nvgrace_gpu_vfio_pci", DRIVE: "nvme nvme vfio-pci"}
    host = FakeHost(bound={GPU: "", DRIVE: "vfio-pci"}, override={DRIVE: "vfio-pci"}, notes=notes)
    pci.assign(host.session, [GPU, DRIVE])
    assert host.bound == {GPU: "nvgrace_gpu_vfio_pci", DRIVE: "vfio-pci"}
    assert f"bdf={DRIVE} had=nvme override=nvme " in host.undos[f"vfio {DRIVE}"]
    pci.release(host.session, [GPU, DRIVE])
    assert host.bound == {GPU: "nvidia", DRIVE: "nvme"}


def test_a_device_that_was_repaired_since_goes_to_its_new_driver() -> None:
    host = FakeHost(bound={GPU: "nouveau"}, notes={GPU: "nvidia (null) nvgrace_gpu_vfio_pci"})
    pci.assign(host.session, [GPU])
    pci.release(host.session, [GPU])
    assert host.bound[GPU] == "nouveau"


# -- removed devices ---------------------------------------------------------------------------


@pytest.fixture
def bring_back(tmp_path: Path) -> Callable[[], tuple[int, str]]:
    """Remove a device of a fake host; return a function that runs the command which brings it back,
    in a real shell with a sysfs in `tmp_path`, and returns its status and output."""
    host = FakeHost(folder=str(tmp_path))
    pci.remove(host.session, DRIVE)
    command = host.undos[f"rescan {DRIVE}"]
    for real, simulated in (
        (pci.SYSFS, f"{tmp_path}/devices"),
        (">/sys/bus/pci/rescan", f">{tmp_path}/rescan"),
        ("-w 20", "-w 0.2"),
    ):
        assert real in command
        command = command.replace(real, simulated)

    def run() -> tuple[int, str]:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    return run


def test_a_removed_device_is_found_again(
    bring_back: Callable[[], tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "devices" / DRIVE).mkdir(parents=True)
    assert bring_back() == (0, "")
    assert (tmp_path / "rescan").read_text() == "1\n"


def test_a_removed_device_that_is_not_found_again_is_told(
    bring_back: Callable[[], tuple[int, str]],
) -> None:
    status, said = bring_back()
    assert status == 1
    assert f"device {DRIVE} is not found again" in said


def test_a_removal_that_does_not_end_is_told(
    bring_back: Callable[[], tuple[int, str]], tmp_path: Path
) -> None:
    """While the device's user keeps it open, a scan would find the old device."""
    with (tmp_path / f"remove-{DRIVE}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, said = bring_back()
    assert status == 1
    assert f"device {DRIVE} is still being removed" in said
    assert not (tmp_path / "rescan").exists()
