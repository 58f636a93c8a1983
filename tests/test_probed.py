"""What probing found on a host holds until the host boots, loads a module or has other files, and
no longer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.errors import LabError
from harness.host import probed
from harness.host.host import Host, HostDescription, HostFiles
from tests.local_host import LocalHost


class Booted(LocalHost):
    """This machine, as if it had booted at some time with some modules."""

    boot, modules = "one", "vfio iommufd"

    def run(self, command: Any, **options: Any) -> Any:
        if isinstance(command, str):
            command = command.replace(
                "cat /proc/sys/kernel/random/boot_id", f"echo {self.boot}"
            ).replace("cut -d' ' -f1 /proc/modules", f"echo {self.modules}")
        return super().run(command, **options)


class Probe:
    """A probe that counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Mapping[str, Any]:
        self.calls += 1
        return {"capabilities": ["kvm"], "call": self.calls}


def test_a_host_is_probed_once_a_boot(tmp_path: Path) -> None:
    host, probe, qemu = Booted(), Probe(), tmp_path / "qemu"
    qemu.write_text("1")

    def found(about: object = "questions") -> int:
        file = str(tmp_path / "probed")
        call = probed.remembered(host, [str(qemu), "sh"], about, probe, file=file)["call"]
        assert isinstance(call, int)
        return call

    assert [found(), found()] == [1, 1]
    host.boot = "two"
    assert [found(), found()] == [2, 2]
    host.modules = "vfio iommufd failing"
    assert [found(), found()] == [3, 3]
    qemu.write_text("a newer one")
    assert [found(), found()] == [4, 4]
    qemu.unlink()
    assert [found(), found()] == [5, 5]
    assert found("other questions") == 6


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_damaged_file_is_not_used(tmp_path: Path, text: str) -> None:
    file, probe = tmp_path / "probed", Probe()
    file.write_text(text)
    for _ in range(2):
        found = probed.remembered(LocalHost(), [], None, probe, file=str(file))
        assert found == {"capabilities": ["kvm"], "call": 1}


def test_where_no_session_was_nothing_is_kept(tmp_path: Path) -> None:
    probe = Probe()
    for _ in range(2):
        probed.remembered(LocalHost(), [], None, probe, file=str(tmp_path / "none" / "probed"))
    assert probe.calls == 2
    assert not list(tmp_path.iterdir())


def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return this machine as a host that is not open."""
    monkeypatch.setattr("harness.host.host.Connection", lambda _: LocalHost())
    monkeypatch.setattr(Host, "_qemu_version", lambda _: "11.1")
    file = tmp_path / "Image"
    file.write_text("Linux version 7.2.12 (me@here)")
    described = HostDescription("one", None, HostFiles("sh", *[str(file)] * 3))  # type: ignore[arg-type]
    return Host(described)


def test_sizes_and_conditions_are_asked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One condition that ends its shell, or prints, does not disturb another."""
    asked = {"yes": "true; exit 0", "no": "exit 1", "prints": "echo cmdqv", "not": "! true"}
    monkeypatch.setattr("harness.host.host.probes", lambda _: asked)
    host = local(tmp_path, monkeypatch)
    monkeypatch.setattr("harness.host.host.IOMMUFD", str(tmp_path))
    found = host._look()
    assert found["guest_kernel"] == "7.2.12"
    assert found["capabilities"][:2] == ["yes", "prints"]
    sizes = dict(one.split(":") for one in found["capabilities"][2:])
    assert sizes.keys() == {"cpus", "memory-mib"}
    assert all(int(size) > 0 for size in sizes.values())


def test_a_kernel_that_has_iommufd_as_a_module_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iommufd, modprobe = tmp_path / "iommu", tmp_path / "modprobe"
    modprobe.write_text(f'#!/bin/sh\n[ "$1" != "$MODULE" ] || : >{iommufd}\n')
    modprobe.chmod(0o755)
    monkeypatch.setattr("harness.host.host.IOMMUFD", str(iommufd))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    host = local(tmp_path, monkeypatch)
    with pytest.raises(LabError, match="offers no"):
        host._look()
    monkeypatch.setenv("MODULE", "iommufd")
    assert host._look()["guest_kernel"] == "7.2.12"
