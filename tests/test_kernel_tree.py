"""A developer's tree is built elsewhere and never written to. A build goes on from the last one.
make is real; the tree is a small one that is made as Linux is."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from rich.console import Console

from harness.artifacts import kernel
from harness.artifacts.kernel_tree import Overlay
from harness.artifacts.store import Store
from harness.errors import HarnessError, LabError
from harness.progress import Progress
from harness.waiting import wait_for
from tests.processes import interruptible

ROOT = Path(__file__).parents[1]
QUIET = Progress(enabled=False)

#: `allnoconfig` takes all options but those in `refused`, and what Kconfig selects. `Image` has the
#: release, the options and file.c; it waits while there is a file `wait`, and fails if file.c has
#: an error.
MAKEFILE = """\
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 0
EXTRAVERSION = -rc2
IMAGE = $(O)/arch/arm64/boot/Image

allnoconfig:
\t@test "$(ARCH)" = arm64
\t@echo allnoconfig >>$(O)/calls
\t@grep -vxFf refused $(KCONFIG_ALLCONFIG) >$(O)/.config
\t@grep -q ^mainmenu $(KBUILD_KCONFIG)
\t@sed -n 's/^.*select \\(.*\\)/CONFIG_\\1=y/p' $(KBUILD_KCONFIG) >>$(O)/.config

Image: $(IMAGE)
$(IMAGE): file.c $(O)/.config
\t@mkdir -p $(O)/include/config $(O)/arch/arm64/boot
\t@echo 7.3.0-rc2$(LOCALVERSION) >$(O)/include/config/kernel.release
\t@echo $$$$ >$(O)/pid; while test -e $(O)/../wait; do sleep 0.05; done
\t@if grep error file.c; then exit 1; fi
\t@echo Image >>$(O)/calls; touch $(O)/vmlinux
\t@{ head -c 56 /dev/zero; printf 'ARM\\144Linux version 7.3.0-rc2$(LOCALVERSION) (hil) '; \\
\t    cat file.c $(O)/.config; } >$@
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "linux"
    (tree / "arch/arm64").mkdir(parents=True)
    (tree / "arch/arm64/Kconfig").write_text('config IOMMUFD\n\tbool "x"\n\tdepends on FOO\n')
    (tree / "Makefile").write_text(MAKEFILE)
    (tree / "Kconfig").write_text('mainmenu "Linux"\n')
    (tree / "file.c").write_text("first\n")
    (tree / "refused").write_text("none\n")
    return tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def built(tree: Path, store: Store, *overlays: Overlay, progress: Progress = QUIET) -> str:
    """Build a tree, and return the Image as text."""
    output = store.root.parent / "Image"
    kernel.build_tree(tree, overlays, output, store, progress)
    return output.read_text()


def calls(store: Store, tree: Path) -> list[str]:
    return (store.root / kernel.tree_entry(tree) / "calls").read_text().split()


def files(tree: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in tree.rglob("*")}


def test_an_image_has_our_options_and_the_trees_name(tree: Path, store: Store) -> None:
    before = files(tree)
    image = built(tree, store)
    assert "Linux version 7.3.0-rc2-hil (hil) first\n" in image
    assert "\nCONFIG_IOMMUFD=y\n" in image
    assert files(tree) == before, "nothing is written to the tree"
    assert {path.name for path in store.root.parent.iterdir()} == {"cache", "Image", "linux"}


def test_the_image_is_replaced_as_a_whole(tree: Path, store: Store) -> None:
    built(tree, store)
    with (store.root.parent / "Image").open() as reader:
        (tree / "file.c").write_text("second\n")
        assert "second" in built(tree, store)
        assert "first" in reader.read(), "whoever reads the old one reads it to its end"


def test_two_trees_and_links_to_them_have_their_folders(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert kernel.tree_entry(tmp_path / "link") == kernel.tree_entry(tree)
    assert kernel.tree_entry(tmp_path / "other") != kernel.tree_entry(tree)


def test_options_are_laid_over(tree: Path, store: Store) -> None:
    more = Overlay("a.config", {"CONFIG_SLUB_DEBUG_ON": "y", "CONFIG_CMA_ALIGNMENT": "3"})
    image = built(tree, store, kernel.SMALL_QUEUES, more)
    assert "CONFIG_SLUB_DEBUG_ON=y\n" in image
    assert "CONFIG_CMA_ALIGNMENT=3\n" in image
    assert "CONFIG_CMA_ALIGNMENT=10\n" not in image
    assert "CONFIG_CMA_ALIGNMENT=2\n" in built(tree, store, kernel.SMALL_QUEUES)


def test_what_nobody_can_choose_is_selected(tree: Path, store: Store) -> None:
    before = files(tree)
    assert "CONFIG_GENERIC_PT=y\n" in built(tree, store, kernel.DEBUG)
    assert files(tree) == before, "nothing is written to the tree"
    assert "CONFIG_GENERIC_PT" not in built(tree, store), "a variant leaves nothing behind"


def test_a_fragment_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("# KASAN\nCONFIG_KASAN=y\n# CONFIG_CMA is not set\n")
    assert Overlay.read(tmp_path / "a").settings == {"CONFIG_KASAN": "y", "CONFIG_CMA": "n"}
    (tmp_path / "b").write_text("KASAN=y\n")
    for name, said in (("b", "sets no option"), ("c", "cannot be read")):
        with pytest.raises(HarnessError, match=said):
            Overlay.read(tmp_path / name)


def told(tree: Path, store: Store, *overlays: Overlay) -> str:
    """Build a tree, and return what is shown meanwhile on no terminal."""
    shown = io.StringIO()
    built(tree, store, *overlays, progress=Progress(Console(file=shown, width=500)))
    return shown.getvalue()


def test_an_option_that_is_needed_must_be_taken(tree: Path, store: Store) -> None:
    (tree / "refused").write_text("CONFIG_IOMMUFD=y\nCONFIG_PROC_FS=y\nCONFIG_KPROBES=y\n")
    with pytest.raises(LabError) as problem:
        built(tree, store)
    assert problem.value.message.splitlines() == [
        f"{tree} does not take options that are needed:",
        "  CONFIG_IOMMUFD=y depends on FOO (needed by host: assignment of devices)",
        "  CONFIG_PROC_FS=y is unknown in this tree (needed by guest, host: what every program "
        "needs)",
    ]
    assert "--config" in (problem.value.fix or "")
    without = Overlay("a", {"CONFIG_IOMMUFD": "n", "CONFIG_PROC_FS": "n"})
    assert "IOMMUFD" not in told(tree, store, without)


def test_an_option_that_is_useful_is_told_and_a_choice_is_not(tree: Path, store: Store) -> None:
    (tree / "refused").write_text("CONFIG_KPROBES=y\nCONFIG_PROC_SYSCTL=y\n")
    said = told(tree, store)
    line = "CONFIG_KPROBES=y is unknown in this tree; it is useful to host: kernel probes\n"
    assert line in said
    assert "PROC_SYSCTL" not in said


def test_an_option_that_stays_on_is_told(tree: Path, store: Store) -> None:
    makefile = tree / "Makefile"
    selecting = "\t@sed -i s/STRICT_DEVMEM=n/STRICT_DEVMEM=y/ $(O)/.config\n\nImage:"
    makefile.write_text(makefile.read_text().replace("\nImage:", selecting, 1))
    with pytest.raises(LabError, match=r"CONFIG_STRICT_DEVMEM=n: other options select it \(needed"):
        built(tree, store)


def test_an_option_that_was_asked_for_must_be_taken(tree: Path, store: Store) -> None:
    (tree / "refused").write_text("CONFIG_KASAN=y\nCONFIG_KPROBES=y\n")
    said = r"CONFIG_KASAN=y is unknown in this tree \(from a\.config\)\n"
    with pytest.raises(LabError, match=said):
        built(tree, store, Overlay("a.config", {"CONFIG_KASAN": "y"}))


@pytest.mark.parametrize("left", [".config", "include/config/", "arch/arm64/include/generated/"])
def test_a_tree_that_was_built_in_place_is_told(tree: Path, store: Store, left: str) -> None:
    path = tree / left
    path.mkdir(parents=True) if left.endswith("/") else path.touch()
    with pytest.raises(HarnessError, match=r"built in place (.|\n)*mrproper(.|\n)*worktree"):
        built(tree, store)
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["my linux", "linux:7.3"])
def test_a_path_that_linux_does_not_take_is_told(tree: Path, store: Store, name: str) -> None:
    with pytest.raises(HarnessError, match="space or a colon"):
        built(tree.rename(tree.with_name(name)), store)


def test_a_tree_without_arm64_is_told(tree: Path, store: Store) -> None:
    (tree / "arch/arm64/Kconfig").unlink()
    with pytest.raises(HarnessError, match="for arm64"):
        built(tree, store)


def test_an_error_is_shown_and_corrected(tree: Path, store: Store) -> None:
    (tree / "file.c").write_text("file.c:1:1: error: wrong\n")
    with pytest.raises(LabError) as problem:
        built(tree, store)
    log = store.root / kernel.tree_entry(tree) / "make.log"
    assert problem.value.message == (
        f"compiling {tree} failed with status 2:\n  file.c:1:1: error: wrong"
    )
    assert str(log) in (problem.value.fix or "")
    assert "*** [Makefile" in log.read_text()
    assert not (store.root.parent / "Image").exists()
    (tree / "file.c").write_text("right\n")
    assert "right" in built(tree, store)


def hil(tree: Path, store: Store) -> list[str]:
    output = store.root.parent / "Image"
    return ["env", f"HIL_CACHE={store.root}", sys.executable, "-m", "harness.cli", "kernel",
            "build", str(tree), "-o", str(output)]  # fmt: skip


def waits(tree: Path, store: Store) -> Path:
    """Have builds wait while there is the file that this returns."""
    store.root.mkdir()
    path = store.root / "wait"
    path.touch()
    return path


def test_a_second_build_waits_for_the_first_and_says_so(tree: Path, store: Store) -> None:
    hold = waits(tree, store)
    with interruptible(hil(tree, store), cwd=ROOT) as first:
        pid = store.root / kernel.tree_entry(tree) / "pid"
        wait_for("the first build", pid.exists, deadline=60)
        second = subprocess.Popen(
            hil(tree, store), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with second:
            assert second.stderr is not None
            assert second.stderr.readline().startswith(f"wait for another build of {tree} (about ")
            assert calls(store, tree) == ["allnoconfig"], "the second one has not begun"
            hold.unlink()
            assert (first.wait(), second.wait()) == (0, 0)
            assert second.stdout is not None
            said = f"{store.root.parent}/Image: 7.3.0-rc2-hil, sha256 "
            assert second.stdout.read().startswith(said)


def test_after_ctrl_c_nothing_runs_and_the_next_build_goes_on(tree: Path, store: Store) -> None:
    hold = waits(tree, store)
    with interruptible(hil(tree, store), cwd=ROOT) as process:
        pid = store.root / kernel.tree_entry(tree) / "pid"
        wait_for("the build", lambda: pid.exists() and pid.read_text(), deadline=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    number = pid.read_text().strip()
    wait_for("make to end", lambda: not Path(f"/proc/{number}").exists(), deadline=20)
    assert not (store.root.parent / "Image").exists()
    hold.unlink()
    assert "first" in built(tree, store)


def test_the_lock_is_the_one_that_prune_looks_at(tree: Path, store: Store) -> None:
    built(tree, store)
    entry = kernel.tree_entry(tree)
    with filelock.FileLock(store.root / f"{entry}.lock", timeout=0):
        assert (store.root / entry / "vmlinux").exists()


@pytest.mark.parametrize(
    ("where", "words", "said"),
    [
        ("linux", ("-o", "Image"), "would be in the tree"),
        ("linux", (), "would be in the tree"),
        (".", ("-o", "linux/arch/Image"), "would be in the tree"),
        (".", ("-o", "none/Image"), "there is no folder"),
        (".", ("-o", "linux"), "is a directory"),
        (".", ("--config", "none"), "does not exist"),
        (".", ("--config", "linux/file.c"), "sets no option"),
    ],
)
def test_a_wrong_call_is_told_before_anything_is_built(
    tree: Path, store: Store, where: str, words: tuple[str, ...], said: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", "kernel", "build", str(tree), *words],
        cwd=tree.parent / where,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HIL_CACHE": str(store.root), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert not store.root.exists()
