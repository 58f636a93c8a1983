"""Build the product at the commit that a worktree has: a kernel, or QEMU."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.artifacts import disk, leashed
from harness.artifacts.store import content_key
from harness.errors import HarnessError, HilError
from harness.progress import Advance

#: How a line of a compiler, or of make, tells an error.
_ERROR = re.compile(r"\b(?:fatal )?error\b[: ]|\*\*\*", re.IGNORECASE)
#: How ninja tells how far it is.
_DONE_OF_ALL = re.compile(rb"^\[(\d+)/(\d+)\]", re.MULTILINE)
#: What tools say of a full disk, and `hil kernel build`.
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "hil: disk full while ")
#: As much of a log's end has at least one line of it, in bytes.
_END = 4096


class UnbuildableError(HilError):
    """A commit does not build: nothing can be said of it."""


class Builder(Protocol):
    """How a product is built, and how pytest is told of it."""

    @property
    def product(self) -> str:
        """Return what is built and how, in a line that tells two ways apart."""

    @property
    def repository(self) -> Path:
        """Return the developer's checkout."""

    @property
    def name(self) -> str:
        """Return the name of the file that is built."""

    @property
    def option(self) -> str:
        """Return the option of pytest that takes the file."""

    def build(self, worktree: Path, folder: Path, out: Path, log: Path, report: Advance) -> None:
        """Build the file `out` from a worktree. What stays in `folder` makes the next build
        faster. Raises UnbuildableError."""


class KernelBuilder:
    """Builds a kernel as `hil kernel build` does."""

    name = "Image"

    def __init__(self, tree: Path, kernel_of: str) -> None:
        """Build a tree's kernel for the `host`, or for the `guest`."""
        self.repository = tree.resolve()
        self.option = f"--{kernel_of}-kernel"
        self.product = f"{kernel_of} kernel of {self.repository}"

    def build(self, worktree: Path, folder: Path, out: Path, log: Path, report: Advance) -> None:
        """Build as the protocol says. The command keeps what it compiled in its cache, which is
        this folder here, so that nothing of it is left in the developer's."""
        hil = [sys.executable, "-m", "harness.cli"]
        cache = {**os.environ, "HIL_CACHE": str(folder)}
        _run([*hil, "kernel", "build", worktree, "-o", out], folder, log, environment=cache)


class QemuBuilder:
    """Builds QEMU for AArch64 as a build folder of the developer's is configured."""

    name, option = "qemu-system-aarch64", "--qemu"

    def __init__(self, build: Path) -> None:
        """Read how a folder is configured. Raises HarnessError for one that QEMU's configure has
        not made."""
        self._configured = build.resolve() / "config.status"
        try:
            # Its words are paths and options as the shell was given them: bytes of any encoding.
            script = os.fsdecode(self._configured.read_bytes())
            head, _, call = script.rpartition("\nexec ")
            configure, *self._options = shlex.split(call.strip())
        except (OSError, ValueError) as problem:
            raise HarnessError(
                f"--qemu-build: {build} is not configured: {problem}",
                fix="name the folder in which you called QEMU's configure",
            ) from None
        self._environment = head
        self.repository = (build.resolve() / configure).resolve().parent
        self.product = f"QEMU as configured in {build.resolve()}"

    def build(self, worktree: Path, folder: Path, out: Path, log: Path, report: Advance) -> None:
        """Build as the protocol says. The build folder is configured again only where a commit
        has another configure; all else ninja knows."""
        script, stamp = folder / "config.status", folder / ".configured"
        files = [worktree / name for name in ("configure", "pythondeps.toml")]
        inputs = content_key(*(file for file in files if file.exists()))
        if not stamp.exists() or stamp.read_text() != inputs:
            stamp.unlink(missing_ok=True)
            self._copy_subprojects(worktree)
            words = [str(worktree / "configure"), *self._options]
            # The last word is "$@", which the shell has to see without quotes.
            quoted = " ".join('"$@"' if one == "$@" else shlex.quote(one) for one in words)
            script.write_bytes(os.fsencode(f"{self._environment}\nexec {quoted}\n"))
            _run(["sh", script.name], folder, log)
            stamp.write_text(inputs)
        _run(["ninja", self.name], folder, log, report)
        shutil.copy2(folder / self.name, out)

    def _copy_subprojects(self, worktree: Path) -> None:
        """Copy what configure has downloaded into the developer's checkout: git does not have it,
        and there may be no network now."""
        for one in (self.repository / "subprojects").glob("*/"):
            copy = worktree / "subprojects" / one.name
            if not one.is_symlink() and not copy.exists():
                # Whole or not at all: the next call takes what is there.
                new = copy.with_name(f".{one.name}.new")
                shutil.rmtree(new, ignore_errors=True)
                shutil.copytree(one, new, symlinks=True)
                new.rename(copy)


def _run(
    argv: Sequence[str | Path],
    folder: Path,
    log: Path,
    report: Advance | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a step of a build. Raises UnbuildableError with the first line of its output that tells
    an error, and DiskFullError if the disk is full, which is no commit's fault."""
    start = log.stat().st_size if log.exists() else 0

    def look() -> None:
        with log.open("rb") as output:
            output.seek(max(start, output.seek(0, os.SEEK_END) - _END))
            told = _DONE_OF_ALL.findall(output.read())
        if report and told:
            report(int(told[-1][0]) / max(1, int(told[-1][1])))

    status = leashed.run(argv, log, folder=folder, environment=environment, look=look)
    if status == 0:
        return
    with log.open("rb") as output:
        output.seek(start)
        said = output.read().decode(errors="replace")
    system = disk.FileSystem.of(folder)
    if system.full or any(words in said for words in _FULL):
        raise disk.DiskFullError(
            f"disk full while building in {folder}: {system}",
            fix="free some space there, for example with `hil runs prune`, and repeat the command",
        )
    raise UnbuildableError(f"does not build: {_why(said, status)}")


def _why(said: str, status: int) -> str:
    """Return the line of a failed build's output that tells best why it failed."""
    told = [line.strip() for line in said.splitlines() if line.strip()]
    # Without an error of a compiler: what `hil kernel build` says, or else the last word.
    errors = [line for line in told if _ERROR.search(line)]
    ours = [line.removeprefix("hil: ") for line in told if line.startswith("hil: ")]
    return (errors or ours or told[-1:] or [f"status {status}"])[0]
