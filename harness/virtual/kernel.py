"""The one kernel Image, for the virtual host and its guests: Debian's source, our options."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from harness.errors import LabError
from harness.progress import Progress
from harness.virtual import debian
from harness.virtual.store import Recipe, content_key

SOURCE_PACKAGE = "linux-source-7.2"
CROSS = "aarch64-linux-gnu-"
#: Lines that make prints for these options; measured, only the progress bar depends on it.
EXPECTED_STEPS = 1950


def options() -> bytes:
    """The fragment laid over allnoconfig."""
    return resources.files("harness.virtual").joinpath("kernel.config").read_bytes()


def recipe(progress: Progress) -> Recipe:
    """Entry holds `Image` and `config`."""

    def build(out: Path, work: Path) -> dict[str, object]:
        versions = _unpack_source(work, progress)
        _configure(work)
        _compile(work, progress)
        shutil.copy(work / "build/arch/arm64/boot/Image", out / "Image")
        shutil.copy(work / "build/.config", out / "config")
        release = (work / "build/include/config/kernel.release").read_text().strip()
        return {"release": release, "packages": {SOURCE_PACKAGE: versions[SOURCE_PACKAGE]}}

    key = content_key("kernel 1", SOURCE_PACKAGE, options())
    return Recipe("kernel", key, build, needs_bytes=4 << 30, expected_seconds=330)


def _unpack_source(work: Path, progress: Progress) -> dict[str, str]:
    done = work / "source.versions"
    if not done.exists():
        with progress.step("unpack the kernel source", 20):
            tree = work / "package"
            shutil.rmtree(tree, ignore_errors=True)
            # An apt pattern, exact, so that the package comes without its dependencies.
            only = f"?exact-name({SOURCE_PACKAGE})"
            versions = debian.extract(tree, "amd64", (only,))
            tarball = tree / "usr/src" / f"{SOURCE_PACKAGE}.tar.xz"
            run(["tar", "-xf", str(tarball), "-C", str(work)], work)
            shutil.rmtree(tree)
        done.write_text("".join(f"{name} {version}\n" for name, version in versions.items()))
    return dict(line.split() for line in done.read_text().splitlines())


def _configure(work: Path) -> None:
    config = work / "build/.config"
    fragment = work / "fragment"
    if config.exists() and fragment.exists() and fragment.read_bytes() == options():
        return  # an interrupted build goes on; touching .config would start it over
    (work / "build").mkdir(exist_ok=True)
    fragment.write_bytes(options())
    run([*_make(work), f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"], work)
    got = set(config.read_text().splitlines())
    wanted = re.findall(r"^CONFIG_\w+=[^n].*$", options().decode(), re.MULTILINE)
    missing = [line for line in wanted if line not in got]
    if missing:
        config.unlink()
        raise LabError(
            f"this kernel source does not take: {', '.join(missing)}",
            fix="an option's dependency changed; adapt harness/virtual/kernel.config",
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


def _compile(work: Path, progress: Progress) -> None:
    jobs = f"-j{os.cpu_count() or 1}"
    with progress.step("compile the kernel", 330) as report:
        run([*_make(work), jobs, "Image"], work, lambda count: report(count / EXPECTED_STEPS))


def run(argv: list[str], work: Path, each_line: Callable[[int], None] | None = None) -> None:
    """Run to the end; on Ctrl-C the tool's whole process group ends with us."""
    tail: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        argv,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for count, line in enumerate(process.stdout):
                tail.append(line.rstrip())
                if each_line:
                    each_line(count)
        except BaseException:
            os.killpg(process.pid, 15)
            raise
    if process.returncode != 0:
        raise LabError(
            f"`{' '.join(argv)}` failed with status {process.returncode}:\n  " + "\n  ".join(tail),
            fix="run `hil doctor` for missing tools, then `hil lab build` again: it goes on",
        )
