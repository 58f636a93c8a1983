"""The recipe of the kernel Image for the virtual host and its guests, and of a variant for guests
with small SMMU queues. The source is Debian's, the options are this project's."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from harness.artifacts import debian, tools
from harness.artifacts.store import Recipe, content_key
from harness.errors import LabError
from harness.progress import Progress

SOURCE_PACKAGE = "linux-source-7.2"
CROSS = "aarch64-linux-gnu-"
IMAGE, SMALL_QUEUES_IMAGE = "Image", "Image.small-queues"
#: In the variant the SMMU's driver makes queues of 16 KiB, which hold 512 events
#: (drivers/iommu/arm/arm-smmu-v3, Q_MAX_SZ_SHIFT). All else is equal: few files are compiled again.
SMALL_QUEUES = b"CONFIG_CMA_ALIGNMENT=2\n"


def options() -> bytes:
    """Return the options that are added to allnoconfig. Comments are left out, so that rewording
    one does not change the key of the build."""
    source = resources.files("harness.guest").joinpath("payload/kernel.config").read_text()
    return "".join(
        f"{line}\n" for line in source.splitlines() if line.startswith("CONFIG_")
    ).encode()


def recipe(progress: Progress) -> Recipe:
    """Return the recipe of an entry with `Image`, `Image.small-queues` and `config`."""

    def build(out: Path, work: Path) -> dict[str, object]:
        versions = _unpack_source(work, progress)
        image, config = work / "build/arch/arm64/boot/Image", work / "build/.config"
        _configure(work, options())
        # `lines` is how many make prints, as measured. Only the progress bar depends on it.
        _compile(work, progress, "compile the kernel", lines=1950, seconds=330)
        shutil.copy(image, out / IMAGE)
        shutil.copy(config, out / "config")
        _configure(work, options() + SMALL_QUEUES)
        _compile(work, progress, "compile it for small queues", lines=60, seconds=30)
        shutil.copy(image, out / SMALL_QUEUES_IMAGE)
        release = (work / "build/include/config/kernel.release").read_text().strip()
        return {"release": release, "packages": {SOURCE_PACKAGE: versions[SOURCE_PACKAGE]}}

    key = content_key("kernel 2", SOURCE_PACKAGE, options(), SMALL_QUEUES)
    return Recipe("kernel", key, build, needs_bytes=4 << 30, expected_seconds=360)


def _unpack_source(work: Path, progress: Progress) -> dict[str, str]:
    done = work / "source.versions"
    if not done.exists():
        with progress.step("unpack the kernel source", 20):
            tree = work / "package"
            shutil.rmtree(tree, ignore_errors=True)
            # This apt pattern matches the package alone, so that its dependencies are left out.
            only = f"?exact-name({SOURCE_PACKAGE})"
            versions = debian.extract(tree, "amd64", (only,))
            tarball = tree / "usr/src" / f"{SOURCE_PACKAGE}.tar.xz"
            _run(["tar", "-xf", str(tarball), "-C", str(work)], work)
            shutil.rmtree(tree)
        done.write_text("".join(f"{name} {version}\n" for name, version in versions.items()))
    return dict(line.split() for line in done.read_text().splitlines())


def _configure(work: Path, options: bytes) -> None:
    """Configure the build with these options; of an option that is given twice the last value
    counts. Raises LabError when the kernel does not take an option."""
    config = work / "build/.config"
    fragment = work / "fragment"
    if config.exists() and fragment.exists() and fragment.read_bytes() == options:
        return  # leave .config alone: changing it would restart an interrupted build
    (work / "build").mkdir(exist_ok=True)
    fragment.write_bytes(options)
    _run([*_make(work), f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"], work)
    got = set(config.read_text().splitlines())
    given = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", options.decode(), re.MULTILINE))
    wanted = [f"{name}={value}" for name, value in given.items() if value != "n"]
    missing = [line for line in wanted if line not in got]
    if missing:
        config.unlink()
        raise LabError(
            f"the kernel's configuration drops these options: {', '.join(missing)}",
            fix="find which options they depend on in this kernel, and add those to "
            "harness/guest/payload/kernel.config",
        )


def _make(work: Path) -> list[str]:
    return [
        "make",
        "-C",
        str(work / SOURCE_PACKAGE),
        f"O={work / 'build'}",
        "ARCH=arm64",
        f"CROSS_COMPILE={CROSS}",
        "KBUILD_BUILD_TIMESTAMP=1970-01-01",
        "KBUILD_BUILD_USER=hil",
        "KBUILD_BUILD_HOST=hil",
    ]


def _compile(work: Path, progress: Progress, what: str, *, lines: int, seconds: float) -> None:
    jobs = f"-j{os.cpu_count() or 1}"
    with progress.step(what, seconds) as report:
        _run([*_make(work), jobs, "Image"], work, lambda count: report(count / lines))


def _run(argv: list[str], work: Path, each_line: Callable[[int], None] | None = None) -> None:
    tools.run(
        argv,
        folder=work,
        each_line=each_line,
        fix="run `hil doctor` to find missing tools, then `hil lab build` again: it goes on where "
        "it stopped",
    )
