"""A virtual host boots the kernel that it is given, and none is taken for another."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifacts import kernel
from harness.artifacts.store import Store
from harness.errors import LabError
from harness.host.last_words import HostKernelError
from harness.kernel_image import KernelImage
from harness.lab import status
from harness.lab.inventory import Inventory, load
from harness.lab.provide import provided
from harness.progress import Progress

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
QUIET = Progress(enabled=False)
INVENTORY = """
lab: kernels
hosts:
  - name: vgrace-kernel
    virtual: {memory_mib: 2048, smmus: 1}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(INVENTORY)
    return path


@pytest.fixture
def lab(inventory: Path) -> Inventory:
    return load(inventory)


def patched(path: Path, old: bytes, new: bytes) -> KernelImage:
    """Return the lab's kernel with `old` replaced by `new`, which is as long."""
    own = (Store().path(kernel.recipe(QUIET)) / kernel.IMAGE).read_bytes()
    assert old in own
    assert len(old) == len(new)
    path.write_bytes(own.replace(old, new))
    return KernelImage.read(path)


@pytest.fixture
def renamed(tmp_path: Path) -> KernelImage:
    """Return a kernel that is the lab's but for its name."""
    return patched(tmp_path / "Image", b"-vgrace", b"-mygrac")


@pytest.fixture
def broken(tmp_path: Path) -> KernelImage:
    """Return a kernel that cannot mount the host's root."""
    return patched(tmp_path / "Image.broken", b"\0erofs\0", b"\0erofz\0")


def test_a_run_tests_the_given_kernel(
    renamed: KernelImage, inventory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chosen = "suites/veventq/test_allocation.py::test_second_device_shares_the_queue"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", chosen),
            *(f"--lab={inventory}", f"--out={out}", f"--host-kernel={renamed.path}"),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (result,) = out.glob("*/result.json")
    environment = json.loads(result.read_text())["environment"]
    assert environment["host kernel"] == renamed.release
    assert environment["host kernel"].endswith("-mygrac")
    assert environment["guest kernel"].endswith("-vgrace")
    assert environment["host kernel file"] == f"sha256 {renamed.digest}"


def test_a_running_host_is_not_taken_for_one_with_another_kernel(
    renamed: KernelImage, lab: Inventory
) -> None:
    (entry,) = lab.hosts
    store = Store()
    with provided(entry, store, QUIET, renamed):
        shown = str(status.status(entry, store, QUIET))
        assert f" with kernel {renamed.release}, sha256 {renamed.digest} since " in shown
        said = re.escape(f"is up with another kernel: {renamed}")
        with pytest.raises(LabError, match=said), provided(entry, store, QUIET):
            pass
        with provided(entry, store, QUIET, renamed):
            pass
    with provided(entry, store, QUIET):
        with pytest.raises(LabError, match="is up with another kernel: the lab's own"):
            with provided(entry, store, QUIET, renamed):
                pass
        assert "kernel" not in str(status.status(entry, store, QUIET)).replace(entry.name, "")


def test_a_given_kernel_that_panics_is_the_products_failure(
    broken: KernelImage, lab: Inventory
) -> None:
    (entry,) = lab.hosts
    with pytest.raises(
        HostKernelError, match=r"(?s)panicked while it booted.*Unable to mount root"
    ):
        with provided(entry, Store(), QUIET, broken):
            pass
    assert status.status(entry, Store(), QUIET).state == status.DOWN
