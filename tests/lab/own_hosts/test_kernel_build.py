"""A real kernel tree that has been built is built again in seconds, and with one changed file well
within a minute. What counts is the processors' time: other programs may run meanwhile.

This takes the tree of a build that the cache has. The tests work in layers over the tree and over
its build, in a mount namespace of their own, so that both stay as they are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.artifacts.kernel import tree_entry
from harness.artifacts.store import Store

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[3]
CHANGED = "drivers/iommu/iommufd/eventq.c"


@dataclass(frozen=True)
class Layers:
    """A built tree, a folder for what is changed of it and of its build, and the namespace's first
    process."""

    tree: Path
    scratch: Path
    process: subprocess.Popen[bytes]

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace."""
        enter = ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", f"--wd={ROOT}"]
        return subprocess.run([*enter, *argv], capture_output=True, text=True, check=False)

    def build(self, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
        """Build the tree; return how that ended, and how many seconds one processor would take."""
        before = os.times()
        hil = [sys.executable, "-m", "harness.cli", "kernel", "build", str(self.tree)]
        ended = self.run(*hil, "-o", str(self.scratch / "Image"), *words)
        after = os.times()
        used = after.children_user - before.children_user
        return ended, used + after.children_system - before.children_system


def built_tree() -> Path | None:
    """Return a tree whose build the cache has, and that could be built again."""
    store = Store()
    for vmlinux in store.root.glob("tree-*/vmlinux"):
        source = vmlinux.with_name("source")
        tree = source.resolve()
        if (tree / CHANGED).exists() and vmlinux.parent.name == tree_entry(tree):
            return tree
    return None


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    tree = built_tree()
    if tree is None:
        pytest.skip("the cache has no built kernel tree: call `hil kernel build TREE` once")
    script = "set -e\n"
    for name, lower in (("tree", tree), ("build", Store().root / tree_entry(tree))):
        for layer in ("upper", "work"):
            (tmp_path / name / layer).mkdir(parents=True)
        upper, work = tmp_path / name / "upper", tmp_path / name / "work"
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        script += f"mount -t overlay -o {options} overlay {lower}\n"
    argv = ["unshare", "--mount", "sh", "-c", f"{script}echo ready; exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        yield Layers(tree, tmp_path, process)
        process.stdin.close()


def compiled(said: str) -> set[str]:
    """Return the source files that make said it compiles."""
    return set(re.findall(r"^  CC +(\S+)\.o$", said, re.MULTILINE))


def test_a_real_tree_is_built_again_quickly(layers: Layers) -> None:
    log = Store().root / tree_entry(layers.tree) / "make.log"
    ended, _ = layers.build()  # it may have been built with other options
    assert ended.returncode == 0, ended.stderr

    ended, seconds = layers.build()
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"/Image: \S+-hil, sha256 [0-9a-f]{12}\n$", ended.stdout)
    assert compiled(layers.run("cat", log).stdout) == set()
    print(f"nothing changed: {seconds:.1f} s")
    assert seconds < 30
    assert not list((layers.scratch / "tree/upper").iterdir()), "something was written to the tree"

    words = "echo 'const int hil_was_here = 1;' >>"
    assert layers.run("sh", "-c", f"{words}{layers.tree / CHANGED}").returncode == 0
    ended, seconds = layers.build()
    assert ended.returncode == 0, ended.stderr
    assert CHANGED.removesuffix(".c") in compiled(layers.run("cat", log).stdout)
    print(f"one file changed: {seconds:.1f} s")
    assert seconds < 60

    layers.run("sh", "-c", f"echo 'int wrong = missing;' >>{layers.tree / CHANGED}")
    ended, _ = layers.build()
    assert ended.returncode == 1
    assert re.search(rf"{CHANGED}:\d+:\d+: error: 'missing' undeclared", ended.stderr)
    assert "***" not in ended.stderr


def test_a_real_tree_takes_a_variants_options(layers: Layers) -> None:
    (layers.scratch / "good").write_text("CONFIG_SLUB_DEBUG=y\nCONFIG_SLUB_DEBUG_ON=y\n")
    ended, _ = layers.build("--config", str(layers.scratch / "good"), "--small-queues")
    assert ended.returncode == 0, ended.stderr
    shown = layers.run(
        *(sys.executable, "-m", "harness.cli", "kernel", "config", layers.scratch / "Image")
    )
    assert shown.returncode == 0, shown.stdout
    config = layers.run("cat", Store().root / tree_entry(layers.tree) / ".config").stdout
    assert "CONFIG_SLUB_DEBUG_ON=y\n" in config
    assert "CONFIG_CMA_ALIGNMENT=2\n" in config

    (layers.scratch / "bad").write_text("CONFIG_KASAN_VMALLOC=y\nCONFIG_NO_SUCH_OPTION=y\n")
    ended, _ = layers.build("--config", str(layers.scratch / "bad"))
    assert ended.returncode == 1
    assert "CONFIG_NO_SUCH_OPTION=y is unknown in this tree (from " in ended.stderr
    assert re.search(r"CONFIG_KASAN_VMALLOC=y depends on .*KASAN", ended.stderr)
