"""Labs can be owned from machines of several architectures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.artifacts import apt, architecture, debian, images
from harness.artifacts.architecture import CROSS_COMPILE, KNOWN
from harness.artifacts.store import Store
from harness.errors import LabError
from harness.lab.doctor import Check, checks
from harness.lab.inventory import HostEntry, Virtual
from tests.mirror import stack_of

ROOT = Path(__file__).parents[1]
VIRTUAL = HostEntry(name="one", virtual=Virtual())
METAL = HostEntry(
    name="grace", address="grace.example", key=Path("/key"), known_hosts=Path("/hosts")
)
Machine = Callable[[str], None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Return how to make this a machine of another architecture: dpkg then says so."""

    def become(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dpkg").write_text(f"#!/bin/sh\n[ $* = --print-architecture ] && echo {name}\n")
        (folder / "dpkg").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        architecture.name.cache_clear()

    yield become
    architecture.name.cache_clear()


def test_a_machine_without_apt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    architecture.name.cache_clear()
    try:
        with pytest.raises(LabError, match=r"needs Debian for amd64 or arm64 .*and not Debian"):
            with apt.index(["sid"], ("arm64",)):
                pass
    finally:
        architecture.name.cache_clear()


def asked(hosts: list[HostEntry], root: Path) -> list[Check]:
    return list(checks(hosts, Store(root / "cache"), root / "out"))


def packages(name: str) -> set[str]:
    """Return the packages that `make setup` installs on an architecture."""
    planned = subprocess.run(
        ["make", "--dry-run", "--always-make", "packages", f"ARCHITECTURE={name}"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(planned.partition("dpkg -s ")[2].partition(" >/dev/null")[0].split())


def test_this_machine_is_known() -> None:
    """A program of this machine starts by the loader that is said to be its own."""
    here = architecture.here()
    assert Path("/usr/lib", here.triplet, here.loader).exists()
    assert debian.program(Path("/"), "true") == [
        f"/usr/lib/{here.triplet}/{here.loader}",
        *("--library-path", f"/usr/lib/{here.triplet}", "/usr/bin/true"),
    ]
    subprocess.run(debian.program(Path("/"), "true"), check=True)
    assert Path(here.libc_file).exists()
    assert shutil.which(f"{CROSS_COMPILE}gcc")


def test_programs_of_an_arm64_machine_are_arm64(machine: Machine) -> None:
    machine("amd64")
    other = images.emulator(stack_of().qemu).entry
    machine("arm64")
    libraries = "/tree/usr/lib/aarch64-linux-gnu"
    assert debian.program(Path("/tree"), "python3") == [
        f"{libraries}/ld-linux-aarch64.so.1",
        *("--library-path", libraries, "/tree/usr/bin/python3"),
    ]
    assert images.emulator(stack_of().qemu).entry != other, "the trees have other programs"


@pytest.mark.parametrize("name", KNOWN)
def test_setup_installs_all_that_doctor_asks_for(
    machine: Machine, tmp_path: Path, name: str
) -> None:
    machine(name)
    assert architecture.here().name == name
    fixes = [check.fix for check in asked([VIRTUAL], tmp_path)]
    wanted = {fix.removeprefix("apt-get install ") for fix in fixes if fix.startswith("apt-get")}
    assert {"mmdebstrap", "gcc", KNOWN[name].libc} <= wanted
    assert wanted - packages(name) <= {"python3", "npm"}, "the two may be others than Debian's"


def test_a_cross_compiler_is_installed_only_where_it_is_one() -> None:
    cross = {"gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"}
    assert packages("amd64") - packages("arm64") == cross
    assert packages("arm64") - packages("amd64") == {"libc6-dev"}


def test_setup_refuses_another_architecture() -> None:
    refused = subprocess.run(
        ["make", "--dry-run", "--always-make", "packages", "ARCHITECTURE=riscv64"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "this needs Debian for amd64 or arm64 (this is riscv64)" in refused.stderr


def test_a_virtual_host_is_refused_on_another_architecture(
    machine: Machine, tmp_path: Path
) -> None:
    machine("riscv64")
    with pytest.raises(LabError, match=r"needs Debian for amd64 or arm64 \(this is riscv64\)"):
        images.emulator(stack_of().qemu)
    found = {check.what: check for check in asked([VIRTUAL, METAL], tmp_path)}
    assert not found["Debian for amd64 or arm64 (this is riscv64)"].met
    assert not any(what.startswith("mmdebstrap") for what in found), "nothing will help"
    assert not any("riscv64" in check.what for check in asked([METAL], tmp_path))
