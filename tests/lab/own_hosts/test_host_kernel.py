"""A virtual host boots the kernel that it is given, and none is taken for another."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import kernel, stack
from harness.artifacts.store import Store
from harness.errors import LabError
from harness.host.connection import Connection
from harness.host.host import HostDescription
from harness.host.last_words import HostKernelError
from harness.kernel_image import KernelImage
from harness.lab import status
from harness.lab.inventory import Inventory, load
from harness.lab.pool import Hosts
from harness.lab.provide import provided
from harness.lab.software import Software
from harness.progress import Progress
from harness.virtual.machine import HOSTS
from harness.waiting import wait_for
from tests.lab.plain import write_inventory

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[3]
QUIET = Progress(enabled=False)
INVENTORY = """
lab: kernels
hosts:
  - name: vgrace-kernel
    virtual: {memory_mib: 2048, smmus: 1}
"""
#: As bare metal, this host boots again after a reboot. It has one CPU, because the lab's kernel
#: cannot stop others (CONFIG_HOTPLUG_CPU), as kexec must.
REBOOTING = """
lab: kernels
hosts:
  - name: vgrace-reboots
    virtual: {memory_mib: 2048, smmus: 1, cpus: 1, reboots: true}
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
    source = stack.in_use(Store().root, QUIET).source()
    own = (Store().path(kernel.recipe(source, QUIET)) / kernel.IMAGE).read_bytes()
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


def run(inventory: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run a test, and return the run's result."""
    chosen = "suites/veventq/test_allocation.py::test_second_device_shares_the_queue"
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", chosen),
            *(f"--lab={inventory}", f"--out={out}", *options),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    (result,) = out.glob("*/result.json")
    told: dict[str, Any] = json.loads(result.read_text())
    return told


def test_a_run_tests_the_given_kernel(
    renamed: KernelImage, inventory: Path, tmp_path: Path
) -> None:
    told = run(inventory, tmp_path / "out", f"--host-kernel={renamed.path}")
    assert [test["outcome"] for test in told["tests"]] == ["passed"]
    environment = told["environment"]
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
        shown = str(status.status(entry, store))
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
        assert status.status(entry, store).kernel is None


def test_a_given_kernel_that_panics_is_the_products_failure(
    broken: KernelImage, lab: Inventory
) -> None:
    (entry,) = lab.hosts
    said = f"the kernel of host vgrace-kernel, {broken}, died: .*Unable to mount root"
    with pytest.raises(HostKernelError, match=said):
        with provided(entry, Store(), QUIET, broken):
            pass
    assert status.status(entry, Store()).state == status.DOWN


# -- kexec -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_metal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, HostDescription]]:
    """Yield an inventory whose host is known by its address only, reboots as hardware does, and may
    be brought to other kernels; and the host's description."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "virtual.yaml").write_text(REBOOTING)
    (entry,) = load(folder / "virtual.yaml").hosts
    with provided(entry, Store(), QUIET) as described:
        path = write_inventory(described, folder)
        text = path.read_text()
        path.write_text(text.replace("    devices:", "    host_kernel: kexec\n    devices:"))
        yield path, described


def running(described: HostDescription) -> str:
    with Connection.to(described.target) as link:
        return link.run("uname -r; cat /proc/cmdline").text


def options(kernel: KernelImage) -> list[str]:
    """Return the options that have the host boot this kernel. Its tables are in its initrd."""
    initrd = Store().root / HOSTS / "vgrace-reboots" / "acpi.cpio"
    return [f"--host-kernel={kernel.path}", f"--host-initrd={initrd}"]


def test_a_host_is_brought_to_a_kernel_by_kexec_and_back(
    renamed: KernelImage, bare_metal: tuple[Path, HostDescription], tmp_path: Path
) -> None:
    inventory, described = bare_metal
    told = run(inventory, tmp_path / "out", *options(renamed))
    assert [test["outcome"] for test in told["tests"]] == ["passed"]
    assert told["environment"]["host kernel"] == renamed.release
    assert "-vgrace\n" in running(described)
    assert "hil.kexec" not in running(described)


@pytest.mark.long
def test_a_kernel_that_dies_while_it_boots_is_the_products_failure(
    broken: KernelImage, bare_metal: tuple[Path, HostDescription], tmp_path: Path
) -> None:
    inventory, described = bare_metal
    told = run(inventory, tmp_path / "out", *options(broken))
    (test,) = told["tests"]
    assert (test["outcome"], test["blame"]) == ("failed", "product")
    assert "did not come up on host plain: the host has rebooted" in test["message"]
    assert "hil.kexec" not in running(described)


@pytest.mark.long
def test_a_killed_run_leaves_the_installed_kernel(
    renamed: KernelImage, bare_metal: tuple[Path, HostDescription]
) -> None:
    """The agent reboots the host when the lease runs out."""
    inventory, described = bare_metal
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from harness.artifacts.store import Store; from harness.lab.inventory import load\n"
        "from harness.lab.pool import Hosts; from harness.lab.software import Software\n"
        "from harness.progress import Progress\n"
        "lab, kernel, initrd = map(Path, sys.argv[1:])\n"
        "software = Software.named(host_kernel=kernel, host_initrd=initrd)\n"
        "hosts = Hosts(load(lab), software, Store(), Progress(enabled=False))\n"
        "hosts.open('plain')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    files = [option.partition("=")[2] for option in options(renamed)]
    ended = subprocess.run([sys.executable, "-c", code, str(inventory), *files], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    assert f"{renamed.release}\n" in running(described)

    await_installed(described)


def await_installed(described: HostDescription) -> None:
    def back() -> bool:
        with contextlib.suppress(LabError):
            return "hil.kexec" not in running(described)
        return False

    wait_for("the installed kernel", back, deadline=120, interval=2)


@pytest.mark.long
def test_a_host_that_is_kept_is_rebooted_when_its_time_is_over(
    renamed: KernelImage, bare_metal: tuple[Path, HostDescription]
) -> None:
    inventory, described = bare_metal
    kernel, initrd = (Path(option.partition("=")[2]) for option in options(renamed))
    software = Software.named(host_kernel=kernel, host_initrd=initrd)
    hosts = Hosts(load(inventory), software, Store(), QUIET)
    hosts.open("plain")[0].keep(20)
    hosts.close()
    assert f"{renamed.release}\n" in running(described)
    await_installed(described)
