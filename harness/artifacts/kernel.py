"""The kernel Image for the virtual host and its guests, a variant for guests with small SMMU
queues, and a host's variant that checks itself: the recipe of the lab's own, whose source is
Debian's, and the build of anybody's tree."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import kernel_image
from harness.artifacts import disk, tools
from harness.artifacts.kernel_name import commit_name
from harness.artifacts.kernel_options import options
from harness.artifacts.kernel_tree import AGAIN_SECONDS, KernelTree, Overlay
from harness.artifacts.parts import KernelSource, unpack_source
from harness.artifacts.store import Recipe, Store, content_key, held
from harness.progress import Progress

IMAGE = "Image"
SMALL_QUEUES_IMAGE = IMAGE + kernel_image.SMALL_QUEUES
DEBUG_IMAGE = IMAGE + ".debug"
#: In the variant the SMMU's driver makes queues of 16 KiB, which hold 512 events
#: (drivers/iommu/arm/arm-smmu-v3, Q_MAX_SZ_SHIFT). All else is equal: few files are compiled again.
SMALL_QUEUES = Overlay("small queues", {"CONFIG_CMA_ALIGNMENT": "2"})
#: The variant that checks itself. Freed memory is filled with a pattern and checked (slab
#: poisoning), so that a use of it is found; and it has the device with which the tests of iommufd
#: work, tools/testing/selftests/iommu. What else it needs is in kernel.config, as it is in headers
#: that all files include. On AArch64 the page tables of that device can be chosen with COMPILE_TEST
#: only, which changes headers as well.
DEBUG = Overlay(
    "it checks itself",
    dict.fromkeys(
        (
            "CONFIG_SLUB_DEBUG_ON",
            "CONFIG_IOMMU_PT",
            "CONFIG_IOMMU_PT_AMDV1",
            "CONFIG_IOMMUFD_TEST",
        ),
        "y",
    ),
    selects="GENERIC_PT",
)
#: The folder in which a source is unpacked.
SOURCE = "source"
#: What `uname -r` ends with where the lab's own kernel runs, and where a developer's does.
_LAB_NAME, _TREE_NAME = "-vgrace", "-hil"
#: What a build from the start takes on two cores, in seconds, and in the folder of the build.
_SECONDS, _BYTES = 330.0, 1 << 30
#: What the build of the debug kernel takes after that of the lab's, likewise.
_DEBUG_SECONDS = 90.0
FIX = (
    "run `hil doctor` to find missing tools, then `hil lab build` again: it goes on where it "
    "stopped"
)


def recipe(source: KernelSource, progress: Progress) -> Recipe:
    """Return the recipe of an entry with `Image`, `Image.small-queues`, `Image.debug`, and the
    `config` of the first, of this source: `stack.source()` is the lab's, `stack.source("7.3")` that
    of a series."""
    images = {IMAGE: (), SMALL_QUEUES_IMAGE: (SMALL_QUEUES,), DEBUG_IMAGE: (DEBUG,)}

    def build(out: Path, work: Path) -> dict[str, object]:
        unpack(source, work, progress)
        tree = KernelTree(work / SOURCE, work / "build", FIX)
        for image, overlays in images.items():
            tree.configure(overlays, progress)
            what = ", ".join(one.origin for one in overlays)
            called = f"compile the kernel{f' ({what})' if what else ''}"
            again = _DEBUG_SECONDS if DEBUG in overlays else AGAIN_SECONDS
            tree.compile(_LAB_NAME, called, _SECONDS, progress, again=again)
            shutil.copy(tree.image, out / image)
            if not overlays:
                shutil.copy(tree.config, out / "config")
        return {"release": tree.release, "packages": {source.package: source.version}}

    # Sorted: another order of the options makes the same kernel.
    ours = sorted(map(str, options()))
    laid = [
        (image, *((one.settings, one.selects) for one in overlays))
        for image, overlays in images.items()
    ]
    key = content_key("kernel 4", source.package, source.version, _LAB_NAME, ours, laid)
    return Recipe("kernel", key, build, needs_bytes=4 << 30, expected_seconds=450)


def build_tree(
    source: Path, overlays: Sequence[Overlay], output: Path, store: Store, progress: Progress
) -> None:
    """Build the Image of a source tree into the file `output`. The folder in which it is built
    stays in the cache for the next build, which waits until this one is done.

    Raises HarnessError for a tree that cannot be built, and LabError when it does not build.
    """
    source = source.resolve()
    entry = tree_entry(source)
    fix = "correct what it says, and repeat the command: it goes on where it stopped"
    tree = KernelTree(source, store.root / entry, fix)
    tree.check()
    disk.prepare(store.root)
    with (
        held(store.lock(entry), f"build of {source}", _SECONDS, progress),
        disk.told_when_full(f"building {source}", store.root, _BYTES),
    ):
        name = commit_name(source) + _TREE_NAME
        tree.configure(overlays, progress)
        tree.compile(name, f"compile {source}", _SECONDS, progress)
        _put(tree.image, output)


def tree_entry(source: Path) -> str:
    """Return the name of the folder in the cache in which a tree is built."""
    return f"tree-{content_key(str(source.resolve()))}"


def _put(image: Path, output: Path) -> None:
    """Copy a file to where it is wanted. Whoever reads that meanwhile sees the old one, whole."""
    handle, path = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    os.close(handle)
    try:
        shutil.copyfile(image, path)
        Path(path).chmod(0o644)
        Path(path).rename(output)
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise


def unpack(source: KernelSource, work: Path, progress: Progress) -> None:
    """Unpack the source into the folder `work / SOURCE`, unless an interrupted build has done
    it."""
    folder, unpacked = work / SOURCE, work / "source.tmp"
    if folder.exists():
        return
    with progress.step("unpack the kernel source", 20):
        package = work / "package"
        for leftover in (package, unpacked):
            shutil.rmtree(leftover, ignore_errors=True)
        tarball = unpack_source(source, package)
        unpacked.mkdir()
        argv = ["tar", "-xf", str(tarball), "-C", str(unpacked), "--strip-components=1"]
        tools.run(argv, folder=work, fix=FIX)
        shutil.rmtree(package)
        unpacked.rename(folder)
