"""A tree's release tells its state, and nothing is written to it for that."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.artifacts.kernel_name import commit_name, kernel_version
from harness.errors import HarnessError, LabError

MAKEFILE = """\
# SPDX-License-Identifier: GPL-2.0
VERSION = {0}
PATCHLEVEL = {1}
SUBLEVEL = {2}
EXTRAVERSION ={3}
NAME = Baby Opossum Posse
"""


def git(tree: Path, *words: str) -> str:
    who = ["-c", "user.name=hil", "-c", "user.email=hil@example.com"]
    argv = ["git", "-C", str(tree), *who, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def commit(tree: Path, text: str) -> str:
    (tree / "file.c").write_text(text)
    git(tree, "add", ".")
    git(tree, "commit", "-qm", text)
    return git(tree, "rev-parse", "--short=12", "HEAD")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return a tree of 7.3.0-rc2 that is not git's."""
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE.format(7, 3, 0, " -rc2"))
    return tree


@pytest.fixture
def tree(plain: Path) -> Path:
    """Return the same tree with one commit, which has no tag."""
    git(plain, "init", "-q")
    commit(plain, "first")
    return plain


@pytest.mark.parametrize(
    ("parts", "version"),
    [((7, 3, 0, " -rc2"), "7.3.0-rc2"), ((7, 3, 4, ""), "7.3.4"), ((7, 3, 0, ""), "7.3.0")],
)
def test_the_version_is_the_makefiles(plain: Path, parts: tuple[object, ...], version: str) -> None:
    (plain / "Makefile").write_text(MAKEFILE.format(*parts))
    assert kernel_version(plain) == version


def test_a_folder_that_is_no_tree_is_told(tmp_path: Path) -> None:
    for text in (None, "all:\n"):
        if text:
            (tmp_path / "Makefile").write_text(text)
        with pytest.raises(HarnessError, match=r"no Linux source tree(.|\n)*name the top folder"):
            kernel_version(tmp_path)


def test_a_tree_that_is_not_gits_has_its_version_only(plain: Path) -> None:
    git(plain.parent, "init", "-q")  # a repository around it says nothing of it
    commit(plain.parent, "around")
    assert commit_name(plain) == ""


def test_a_commit_without_tags_has_its_hash(tree: Path) -> None:
    assert commit_name(tree) == f"-g{git(tree, 'rev-parse', '--short=12', 'HEAD')}"


@pytest.mark.parametrize(
    ("parts", "tag"),
    [
        ((7, 3, 0, " -rc2"), "v7.3-rc2"),
        ((7, 3, 0, ""), "v7.3"),
        ((7, 3, 4, ""), "v7.3.4"),
        ((7, 10, 0, ""), "v7.10"),
    ],
)
@pytest.mark.parametrize("annotated", [("-m", "a version"), ()], ids=["annotated", "lightweight"])
def test_the_tag_of_the_version_adds_nothing_and_commits_are_counted_from_it(
    tree: Path, parts: tuple[object, ...], tag: str, annotated: tuple[str, ...]
) -> None:
    (tree / "Makefile").write_text(MAKEFILE.format(*parts))
    commit(tree, "version")
    git(tree, "tag", *annotated, tag)
    assert commit_name(tree) == ""
    git(tree, "tag", "-m", "a series", "my-series-v2")
    commit(tree, "one")
    last = commit(tree, "two")
    assert commit_name(tree) == f"-00002-g{last}"


def test_a_tag_of_another_version_does_not_count(tree: Path) -> None:
    git(tree, "tag", "-m", "older", "v7.3-rc1")
    assert commit_name(tree) == f"-g{git(tree, 'rev-parse', '--short=12', 'HEAD')}"


def test_a_changed_file_makes_it_dirty_and_a_new_one_does_not(tree: Path) -> None:
    git(tree, "tag", "-m", "version", "v7.3-rc2")
    (tree / "new.c").touch()
    assert commit_name(tree) == ""
    (tree / "file.c").write_text("changed")
    assert commit_name(tree) == "-dirty"
    git(tree, "add", "file.c")
    assert commit_name(tree) == "-dirty"
    last = commit(tree, "changed")
    (tree / "file.c").unlink()
    assert commit_name(tree) == f"-00001-g{last}-dirty"


def test_a_file_that_is_only_touched_is_not_dirty(tree: Path) -> None:
    git(tree, "tag", "-m", "version", "v7.3-rc2")
    os.utime(tree / "file.c", (1, 1))
    assert commit_name(tree) == ""


def test_a_worktree_is_named_as_its_own(tree: Path) -> None:
    git(tree, "tag", "-m", "version", "v7.3-rc2")
    git(tree, "worktree", "add", "-q", "--detach", "../other")
    last = commit(tree.parent / "other", "there")
    assert commit_name(tree.parent / "other") == f"-00001-g{last}"
    assert commit_name(tree) == ""


def test_nothing_is_written_to_the_tree(tree: Path) -> None:
    git(tree, "tag", "-m", "version", "v7.3-rc2")
    # Git would like to note in its index that this file is as it was.
    os.utime(tree / "file.c", (1, 1))

    def state() -> dict[Path, tuple[int, int]]:
        found = {path: path.lstat() for path in tree.rglob("*")}
        return {path: (one.st_mtime_ns, one.st_ino) for path, one in found.items()}

    before = state()
    commit_name(tree)
    assert state() == before


def test_the_repository_of_a_hook_is_another(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = commit_name(tree)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert commit_name(tree) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_tree_is_named(tree: Path) -> None:
    expected = commit_name(tree)
    for path in (tree, *tree.rglob("*")):
        os.chown(path, 65534, 65534)
    assert commit_name(tree) == expected


def test_what_git_says_of_a_broken_repository_is_told(tree: Path) -> None:
    (tree / ".git/HEAD").write_text("ref: refs/heads/none\n")
    with pytest.raises(LabError, match=r"does not tell the commit of .*: fatal: "):
        commit_name(tree)
