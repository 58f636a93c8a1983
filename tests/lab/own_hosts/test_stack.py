"""The stack is found on this machine's Debian mirror, with its signatures verified."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.artifacts import debian, images, stack
from harness.artifacts.parts import DEFAULT_LINUX, StackWish, compare, find, unpack_source
from harness.artifacts.store import Store
from harness.progress import Progress

pytestmark = pytest.mark.lab
QUIET = Progress(enabled=False)


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stack.VARIABLE, raising=False)


def test_the_mirror_has_the_default_stack() -> None:
    """When the first of these fails, the mirror has the default series no more: see DEFAULT_LINUX.
    When the second does, the suites are for an older QEMU than Debian has."""
    found = find(StackWish(), QUIET)
    assert found.source().series == DEFAULT_LINUX
    assert ":11.1." in found.qemu.version
    assert [one.outdated for one in compare(found, StackWish(), QUIET)] == [False, False]


def test_other_suites_have_other_stacks() -> None:
    asked = StackWish.parse("linux=6.12@trixie,qemu=10@trixie", "here")
    found = find(asked, QUIET)
    assert (found.source().series, found.source().suite) == ("6.12", "trixie")
    assert ":10." in found.qemu.version


def test_the_source_is_that_of_the_stack(tmp_path: Path) -> None:
    source = find(StackWish(), QUIET).source()
    tarball = unpack_source(source, tmp_path / "tree")
    makefile = f"linux-source-{source.series}/Makefile"
    listed = ["tar", "-xOJf", str(tarball), "--occurrence=1", makefile]
    text = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    version, patch, *_ = source.series.split(".")
    assert f"VERSION = {version}\nPATCHLEVEL = {patch}\n" in text


def test_the_emulator_is_that_of_the_stack() -> None:
    qemu = stack.in_use(Store().root, QUIET).qemu
    store, recipe = Store(), images.emulator(qemu)
    program = debian.program(store.get(recipe, QUIET) / "tree", "qemu-system-aarch64")
    said = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert f"(Debian {qemu.versions['amd64']['qemu-system-arm']})" in said.stdout
    recorded = store.manifest(recipe)["packages"]
    assert isinstance(recorded, dict)
    assert qemu.versions["amd64"].items() <= recorded.items()
