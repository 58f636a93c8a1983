"""The kernel's own tests of iommufd and vfio: static programs for AArch64, which run on any host or
guest (tools/testing/selftests in Linux)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.artifacts import architecture, debian, kernel, tools
from harness.artifacts.kernel_name import kernel_version
from harness.artifacts.parts import KernelSource
from harness.artifacts.store import Recipe, content_key
from harness.progress import Progress

#: The folders of tools/testing/selftests whose programs are built.
_SUITES = ("iommu", "vfio")
#: The file that says of which kernel the tests are.
RELEASE = "release"
#: What these programs are built with.
_LIBRARIES = ("libc6-dev", "libcap-dev", "uuid-dev")


def recipe(source: KernelSource, progress: Progress) -> Recipe:
    """Return the recipe of the tests of this source. The entry has a file for each program, and
    RELEASE, a file with the kernel's version."""

    def build(out: Path, work: Path) -> dict[str, object]:
        kernel.unpack(source, work, progress)
        with progress.step("compile the kernel's own tests", 25):
            versions = _unpack_libraries(work)
            options = _options(work)
            tree = str(work / kernel.SOURCE)
            tools.run(["make", "-s", "-C", tree, *options, f"O={work / 'headers'}", "headers"])
            for name in _SUITES:
                built = work / name
                shutil.rmtree(built, ignore_errors=True)
                built.mkdir()
                folder = f"{tree}/tools/testing/selftests/{name}"
                tools.run(["make", "-s", "-C", folder, *options, f"OUTPUT={built}"], fix=kernel.FIX)
                for file in built.iterdir():
                    if file.is_file() and os.access(file, os.X_OK):
                        strip = f"{architecture.CROSS_COMPILE}strip"
                        tools.run([strip, "-o", str(out / file.name), str(file)])
        (out / RELEASE).write_text(f"{kernel_version(work / kernel.SOURCE)}\n")
        return {"packages": {source.package: source.version, **versions}}

    return Recipe(
        "selftests",
        content_key("selftests 1", source.package, source.version, _SUITES, _LIBRARIES),
        build,
        needs_bytes=2 << 30,
        expected_seconds=60,
    )


def _options(work: Path) -> list[str]:
    """Return what make is told for both the headers and the programs."""
    tree = work / "libraries/usr"
    library = tree / "lib/aarch64-linux-gnu"
    return [
        *("ARCH=arm64", f"CROSS_COMPILE={architecture.CROSS_COMPILE}"),
        # Libraries go with the C library beside them: this machine's own for AArch64 may be older.
        f"CC={architecture.CROSS_COMPILE}gcc -B{library} -L{library} -idirafter {tree}/include",
        f"KHDR_INCLUDES=-isystem {work / 'headers/usr/include'}",
        "LDFLAGS=-static",
        # A newer compiler than the kernel's developers had warns of more.
        "EXTRA_CFLAGS=-Wno-error",
    ]


def _unpack_libraries(work: Path) -> dict[str, str]:
    """Unpack the libraries into the folder `libraries`; return the versions by package."""
    tree = work / "libraries"
    shutil.rmtree(tree, ignore_errors=True)
    versions = debian.extract(tree, "arm64", _LIBRARIES)
    return {name: versions[name] for name in _LIBRARIES}
