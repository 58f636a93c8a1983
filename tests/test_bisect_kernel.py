"""`hil bisect` builds kernels as `hil kernel build` does. make and pytest are real; the tree is a
small one that is made as Linux is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkout import ROOT
from tests.products import git
from tests.suite_run import PLUGINS, write_suite

pytest.importorskip("harness.commands.kernel")

WHO = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
#: The third commit does not compile, and the fourth broke the test.
SOURCES = ["works 0", "works 1", "error", "broken 3", "broken 4"]
MAKEFILE = """\
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 0
EXTRAVERSION = -rc2
IMAGE = $(O)/arch/arm64/boot/Image

allnoconfig:
\t@cp $(KCONFIG_ALLCONFIG) $(O)/.config

Image: $(IMAGE)
$(IMAGE): file.c $(O)/.config
\t@mkdir -p $(O)/include/config $(O)/arch/arm64/boot
\t@echo 7.3.0-rc2$(LOCALVERSION) >$(O)/include/config/kernel.release
\t@if grep -q error file.c; then echo 'file.c:1:1: error: no such word'; exit 1; fi
\t@{ head -c 56 /dev/zero; printf 'ARM\\144Linux version 7.3.0-rc2$(LOCALVERSION) (hil) '; \\
\t    cat file.c; } >$@
"""
SUITE = """
from pathlib import Path

def test_kernel(pytestconfig):
    image = Path(pytestconfig.getoption("--guest-kernel")).read_bytes()
    assert b"works" in image, "an event is lost"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a repository with a commit for each of SOURCES."""
    tree = tmp_path / "linux"
    (tree / "arch/arm64").mkdir(parents=True)
    (tree / "arch/arm64/Kconfig").write_text("")
    (tree / "Makefile").write_text(MAKEFILE)
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(tree))
    for source in SOURCES:
        (tree / "file.c").write_text(f"{source}\n")
        git(tree, "add", "--all")
        git(tree, *WHO, "commit", "--quiet", f"--message={source}")
    return tree


def test_the_commit_of_a_kernel_is_found(tree: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    write_suite(suite, SUITE)
    asked = [f"--kernel-tree={tree}", "--kernel-of=guest", "--good=main~4", "--bad=main"]
    asked += [f"--folder={tmp_path / 'out'}", "suites/test_suite.py::test_kernel", *PLUGINS]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "bisect", *asked],
        cwd=suite,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HIL_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the first bad commit is one of 2, of which 1 cannot be told:\n" in done.stdout
    assert "(error): does not build: file.c:1:1: error: no such word\n" in done.stdout
    assert "(broken 3)\n" in done.stdout
    kept = {image.read_bytes()[56:] for image in (tmp_path / "out/products").glob("*/Image")}
    assert sorted(b"works" in image for image in kept) == [False, True]
    built = [one.name for one in (tmp_path / "cache").glob("tree-*")]
    assert built == [], "the developer's cache has nothing of it"
