"""Name the state of a Linux source tree as the kernel's own scripts/setlocalversion does."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from harness.errors import HarnessError, LabError

_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(.*?) *$", re.MULTILINE)
#: Whoever runs a command in a hook of git has these, and they are about another repository.
_OF_ANOTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def kernel_version(tree: Path) -> str:
    """Return the version that a tree's Makefile has, such as 7.3.0-rc2. Raises HarnessError if it
    has none."""
    try:
        found: dict[str, str] = dict(
            _VERSION.findall((tree / "Makefile").read_text(errors="replace"))
        )
        numbers = ".".join(found[part] for part in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
        return numbers + found["EXTRAVERSION"]
    except (OSError, KeyError):
        raise HarnessError(
            f"{tree} is no Linux source tree: its Makefile has no version of Linux",
            fix="name the top folder of a tree, which has Makefile, Kconfig and arch/arm64",
        ) from None


def commit_name(tree: Path) -> str:
    """Return what tells a tree's state from that of its version: `-00012-gabc123def456` at the
    twelfth commit after the version's tag, `-gabc123def456` where git does not know that tag, and
    `-dirty` if a file of git differs from its commit. It is empty at the tag itself, and for a tree
    that is not git's.

    Nothing is written to the tree. Raises HarnessError, and LabError if git fails.
    """
    version = kernel_version(tree)
    if not (tree / ".git").exists():
        return ""
    commit = _git(tree, "rev-parse", "--short=12", "HEAD")
    # 7.3.0-rc2 has the tag v7.3-rc2. Git prints v7.3-rc2-12-gabc123def456.
    tag = "v" + re.sub(r"^(\d+\.\d+)\.0(?!\d)", r"\1", version)
    try:
        described = _git(tree, "describe", "--tags", "--long", f"--match={tag}")
    except LabError:
        name = f"-g{commit}"
    else:
        after = int(described.split("-")[-2])
        name = f"-{after:05d}-g{commit}" if after else ""
    if _git(tree, "status", "--porcelain", "--untracked-files=no"):
        name += "-dirty"
    return name


def _git(tree: Path, *words: str) -> str:
    """Return what git prints. It takes no lock in the tree, which may be another user's."""
    options = ("--no-optional-locks", "-c", f"safe.directory={tree.resolve()}", "-C", str(tree))
    try:
        ended = subprocess.run(
            ["git", *options, *words],
            env={name: value for name, value in os.environ.items() if name not in _OF_ANOTHER},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
        )
    except FileNotFoundError:
        raise LabError(
            f"git is missing, which tells the commit of {tree}", fix="apt-get install git"
        ) from None
    except subprocess.CalledProcessError as failed:
        raise LabError(
            f"git does not tell the commit of {tree}: {failed.stderr.strip()}",
            fix=f"make `git -C {tree} status` work",
        ) from None
    return ended.stdout.strip()
