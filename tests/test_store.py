"""The artifact cache is atomic and locked, resumes builds, and is clean after a build fails, is
killed or is interrupted."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness.artifacts import tools
from harness.artifacts.store import Recipe, Store, content_key
from harness.errors import LabError
from harness.progress import Progress
from harness.waiting import wait_for
from tests.processes import interruptible

ROOT = Path(__file__).parents[1]
QUIET = Progress(enabled=False)
Build = Callable[[Path, Path], dict[str, object]]


def recipe(build: Build, key: str = "k", needs: int = 0) -> Recipe:
    return Recipe("thing", key, build, needs_bytes=needs, expected_seconds=1)


def good(out: Path, work: Path) -> dict[str, object]:
    (out / "file").write_text("content")
    return {"version": "1"}


def entries(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.endswith(".lock")} - {
        "unfinished"
    }


def test_built_once(tmp_path: Path) -> None:
    calls = []

    def build(out: Path, work: Path) -> dict[str, object]:
        calls.append(1)
        return good(out, work)

    store, made = Store(tmp_path), recipe(build)
    assert store.get(made, QUIET) == store.get(made, QUIET) == tmp_path / "thing-k"
    assert (len(calls), store.manifest(made)) == (1, {"version": "1"})
    assert entries(tmp_path) == {"thing-k"}


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(recipe(good, "a"), QUIET) != store.get(recipe(good, "b"), QUIET)
    assert content_key("ab", "c") != content_key("a", "bc")


def test_a_failed_build_leaves_work_but_no_entry(tmp_path: Path) -> None:
    def half(out: Path, work: Path) -> dict[str, object]:
        (out / "file").write_text("half")
        (work / "progress").write_text("so far")
        raise LabError("no")

    store = Store(tmp_path)
    with pytest.raises(LabError, match="no"):
        store.get(recipe(half), QUIET)
    assert entries(tmp_path) == set()

    def rest(out: Path, work: Path) -> dict[str, object]:
        assert (work / "progress").read_text() == "so far"
        return good(out, work)

    store.get(recipe(rest), QUIET)
    assert not (tmp_path / "unfinished/thing-k").exists()


@pytest.mark.parametrize("leftover", ["thing-k.tmp-abc", "thing-k"])
def test_what_a_killed_build_left_is_replaced(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).mkdir()
    (tmp_path / leftover / "file").write_text("half")
    store = Store(tmp_path)
    assert not store.has(recipe(good))
    assert (store.get(recipe(good), QUIET) / "file").read_text() == "content"
    assert entries(tmp_path) == {"thing-k"}


def test_too_small_a_disk_is_told_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"needs \d+\.\d GiB in .*: the file system at /.* free\)"):
        Store(tmp_path).get(recipe(good, needs=1 << 60), QUIET)


def test_a_disk_that_fills_up_is_told(tmp_path: Path) -> None:
    def full(out: Path, work: Path) -> dict[str, object]:
        raise OSError(errno.ENOSPC, "No space left on device")

    said = r"disk full while building thing, which needs 5\.0 MiB: the file system at /(.|\n)*HIL_C"
    with pytest.raises(LabError, match=said):
        Store(tmp_path).get(recipe(full, needs=5 << 20), QUIET)
    assert entries(tmp_path) == set()
    assert not list((tmp_path / "unfinished").iterdir()), "the disk stays full otherwise"


#: A build whose tool fills a file system of 2 MiB, or of 20 files, and removes what it wrote.
FULL = """
import sys
from pathlib import Path
from harness.artifacts import tools
from harness.artifacts import tools
from harness.artifacts.store import Recipe, Store
from harness.errors import LabError
from harness.progress import Progress

def build(out, work):
    (work / "source").touch()
    tools.run(["sh", "-c", sys.argv[2]], folder=work)
    return {}

try:
    Store(Path(sys.argv[1])).get(Recipe("thing", "k", build, 1 << 20, 1), Progress(enabled=False))
except LabError as problem:
    print(problem)
"""


@pytest.mark.parametrize(
    ("options", "tool"),
    [
        ("size=2m", "dd if=/dev/zero of=big bs=1M count=3 || { rm big; exit 1; }"),
        ("size=2m,nr_inodes=20", "for n in $(seq 30); do touch $n || exit 1; done"),
    ],
)
def test_a_tool_that_fills_the_disk_is_told_with_the_file_system(
    tmp_path: Path, options: str, tool: str
) -> None:
    script = (
        f'mount -t tmpfs -o {options} none "$1" && '
        f'{sys.executable} -c "$2" "$1" "$3"; ls -A "$1" "$1"/unfinished'
    )
    ended = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user"),
            "sh",
            "-c",
            script,
            "sh",
            tmp_path,
            FULL,
            tool,
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    said, _, left = ended.stdout.partition("\n  fix: ")
    assert said.startswith("disk full while building thing, which needs 1.0 MiB: the file system ")
    assert f"at {tmp_path} (tmpfs, " in said
    assert "hil lab prune" in left
    assert left.splitlines()[1:] == [
        f"{tmp_path}:",
        "thing-k.lock",
        "unfinished",
        "",
        f"{tmp_path}/unfinished:",
    ]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda entry: (entry / "file").unlink(), "its file file is missing"),
        (lambda entry: (entry / "file").write_text("co"), "its file file has 2 bytes instead of 7"),
        (lambda entry: (entry / "sub/link").unlink(), "its file sub/link is missing"),
        (lambda entry: (entry / "manifest.json").write_text(""), "its manifest is damaged"),
        (lambda entry: (entry / "manifest.json").write_text("{}"), "its manifest is empty"),
        (lambda entry: (entry / "manifest.json").write_text("[1]"), "its manifest is empty"),
        (lambda entry: (entry / "manifest.json").unlink(), "it has no manifest"),
    ],
)
def test_a_damaged_entry_is_built_again(
    tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    def build(out: Path, work: Path) -> dict[str, object]:
        (out / "sub").mkdir()
        (out / "sub/link").symlink_to("nowhere")
        return good(out, work)

    store, made = Store(tmp_path), recipe(build)
    entry = store.get(made, QUIET)
    assert store.has(made)
    harm(entry)
    assert not store.has(made)
    with pytest.raises(LabError, match=f"is not usable: {said}"):
        store.manifest(made)
    assert (store.get(made, QUIET) / "file").read_text() == "content"
    assert (entry / "sub/link").is_symlink()


def test_an_entry_from_before_sizes_were_recorded_is_used(tmp_path: Path) -> None:
    (tmp_path / "thing-k").mkdir()
    (tmp_path / "thing-k/manifest.json").write_text('{"version": "0"}')
    assert Store(tmp_path).manifest(recipe(good)) == {"version": "0"}
    Store(tmp_path).get(recipe(good), QUIET)
    assert not (tmp_path / "thing-k/file").exists()


def test_a_relative_cache_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this process starts means the same folder, wherever it works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIL_CACHE", "cache")
    store = Store()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.root == Store().root == tmp_path / "cache"
    print_root = "from harness.artifacts.store import Store; print(Store().root)"
    asked = subprocess.run(
        [sys.executable, "-c", print_root],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == f"{tmp_path / 'cache'}\n"


@pytest.mark.parametrize("name", ["a b", "a:b", "a,b", "a\nb"])
def test_a_path_that_tools_do_not_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / name))
    with pytest.raises(LabError, match="a space, a colon or a comma"):
        Store()


@pytest.mark.parametrize("root", ["/proc/none/cache", "/dev/null/cache", "/dev/null"])
def test_a_cache_that_cannot_be_made_is_told(root: str) -> None:
    with pytest.raises(LabError, match=r"cache /.* cannot be made: .*(.|\n)*HIL_CACHE"):
        Store(Path(root)).get(recipe(good), QUIET)


#: Reserve a host, build, and make a host's folder, as another user than the one who runs this.
AS_ANOTHER = """
import os, sys
from pathlib import Path
from harness.artifacts.store import Recipe, Store
from harness.errors import LabError
from harness.lab.inventory import HostEntry, Virtual
from harness.lab.reservation import reserved
from harness.progress import Progress
from harness.virtual.machine import VirtualMachine
from harness.virtual.topology import Topology

store, quiet = Store(Path(sys.argv[1])), Progress(enabled=False)
def build(out, work):
    return {"a": 1}
def reserve():
    with reserved(HostEntry(name="h", virtual=Virtual()), store.root, quiet): pass
machine = VirtualMachine("h", Topology(), store, quiet)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for use in (reserve, lambda: store.get(Recipe("thing", "k", build, 0, 1), quiet), machine.up):
    try:
        use()
    except LabError as problem:
        print(problem.message)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (0o755, "the cache {0} cannot be written: it is root's"),
        (0o700, "the cache {0} cannot be written: it is root's"),
        (0o1777, "the cache {0} is used by root, who has thing-k there"),
    ],
)
def test_another_users_cache_is_refused(mode: int, said: str) -> None:
    with tempfile.TemporaryDirectory(prefix="hil-") as folder:  # pytest's is for one user only
        root = Path(folder) / "cache"
        root.parent.chmod(0o755)
        Store(root).get(recipe(good), QUIET)
        root.chmod(mode)
        asked = [sys.executable, "-c", AS_ANOTHER, str(root)]
        ended = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
        assert ended.stdout.splitlines() == [said.format(root)] * 3


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_have_the_same_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    def build(out: Path, work: Path) -> dict[str, object]:
        (out / "tree").mkdir()
        (out / "tree/file").touch()
        tools.run(["sh", "-c", f"touch {out}/tree/tool; mkdir {out}/tree/folder"])
        return {}

    before = os.umask(umask)
    try:
        made = Store(tmp_path / "cache").get(recipe(build), QUIET)
    finally:
        assert os.umask(before) == umask
    assert {path.name: oct(path.stat().st_mode & 0o7777) for path in made.rglob("*")} == {
        "tree": "0o755",
        "file": "0o644",
        "tool": "0o644",
        "folder": "0o755",
        "manifest.json": "0o644",
    }


BUILDER = """
import subprocess, sys
from pathlib import Path
from harness.progress import Progress
from harness.artifacts import tools
from harness.artifacts import tools
from harness.artifacts.store import Recipe, Store

def build(out, work):
    (Path(sys.argv[1]) / "started").touch()
    tools.run(["sh", "-c", "(echo 1; sleep " + sys.argv[2] + ") & echo $! >pid; wait"], folder=work)
    return {}

Store(Path(sys.argv[1])).get(Recipe("thing", "k", build, 0, 1), Progress(enabled=False))
"""


def builder(root: Path, seconds: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return interruptible([sys.executable, "-c", BUILDER, str(root), seconds])


def test_a_second_build_waits_for_the_first(tmp_path: Path) -> None:
    with builder(tmp_path, "1") as first:
        wait_for("the first to start", (tmp_path / "started").exists, deadline=20)
        started = time.monotonic()
        Store(tmp_path).get(recipe(good), QUIET)
        assert time.monotonic() - started > 0.5
        assert first.wait() == 0
    assert not (tmp_path / "thing-k/file").exists(), "the first one's result was used"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_a_build_that_is_ended_ends_its_tools(tmp_path: Path, number: signal.Signals) -> None:
    """And what they started: it would work in the same folder as the next build."""
    with builder(tmp_path, "600") as process:
        pid = tmp_path / "unfinished/thing-k/pid"
        wait_for("the tool to run", lambda: pid.exists() and pid.read_text(), deadline=20)
        process.send_signal(number)
        process.wait(timeout=20)
    tool = int(pid.read_text())
    wait_for("the tool to end", lambda: not Path(f"/proc/{tool}").exists(), deadline=5)
    if number == signal.SIGINT:
        assert entries(tmp_path) == {"started"}
    assert Store(tmp_path).get(recipe(good), QUIET), "the lock is free"
    assert entries(tmp_path) == {"started", "thing-k"}


def test_an_interruption_ends_a_tool_in_a_group_of_its_own(tmp_path: Path) -> None:
    """As timeout(1) makes one, under which the guests' firmware boots."""

    def interrupt(line: int) -> None:
        raise KeyboardInterrupt

    script = "echo $$ >pid; echo started; sleep 600; echo slept"
    with pytest.raises(KeyboardInterrupt):
        tools.run(["timeout", "600", "sh", "-c", script], folder=tmp_path, each_line=interrupt)
    tool = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{tool}").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["no-such-tool"], "no-such-tool is missing(.|\n)*make setup"),
        (
            ["sh", "-c", "echo one; echo two >&2; exit 3"],
            "failed with status 3:\n  one\n  two\n  fix: so",
        ),
        (["sh", "-c", "kill -9 $$"], "failed with status 137"),
    ],
)
def test_a_tool_that_fails_says_why(argv: list[str], said: str) -> None:
    with pytest.raises(LabError, match=said):
        tools.run(argv, fix="so")


def test_a_tool_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are found by their words. Linux's Makefile drops LC_ALL, so LANG counts as well."""
    for name in ("LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    for name in ("LANG", "LC_MESSAGES"):
        with pytest.raises(LabError, match=f"{name}=C\n"):
            tools.run(["sh", "-c", f"echo {name}=${name}; exit 1"], fix="so")
