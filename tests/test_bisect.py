"""`hil bisect` finds the commit, whatever the commits beside it do, and goes on after a kill."""

from __future__ import annotations

import hashlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest

from harness.bisect import summary
from harness.bisect.builder import QemuBuilder
from harness.bisect.git import Repository
from harness.bisect.question import Judgement
from harness.bisect.state import StateFolder
from harness.bisect.trial import judge
from harness.checkout import ROOT
from harness.errors import HarnessError, LabError
from harness.waiting import wait_for
from tests.products import Product, git, product
from tests.suite_run import PLUGINS, write_suite

COUNT = 32


def words(first_bad: int, **others: str) -> list[str]:
    """Return the behaviours of commits: those from `first_bad` on fail. `others` are named after
    the commits that behave otherwise, such as c7, or c7_9 for all from 7 to 9."""
    told = ["passes"] * first_bad + ["fails"] * (COUNT - first_bad)
    for name, word in others.items():
        first, _, last = name.removeprefix("c").partition("_")
        for number in range(int(first), int(last or first) + 1):
            told[number] = word
    return told


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes a product whose commits have these behaviours."""

    def make(*behaviours: str) -> Product:
        one = product(tmp_path, behaviours)
        monkeypatch.setenv("CALLS", str(one.calls))
        return one

    return make


def numbers(one: Product, what: str) -> list[int]:
    """Return which commits were built, or tested, by their place in the history."""
    return [
        next(number for number, commit in enumerate(one.commits) if commit.startswith(said))
        for said in one.said(what)
    ]


def found(one: Product, folder: Path, **asked: Any) -> list[int]:
    """Return the commits of which one is the answer, by their places."""
    known = one.bisect(folder, one.question(**asked))
    return sorted(one.commits.index(commit.hash) for commit in known.answer)


# -- the answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("first_bad", [1, 16, 31])
def test_the_commit_is_found(made: Any, tmp_path: Path, first_bad: int) -> None:
    one = made(*words(first_bad))
    said: list[str] = []
    known = one.bisect(tmp_path / "out", one.question(), said=said)
    assert [commit.hash for commit in known.answer] == [one.commits[first_bad]]
    tested = numbers(one, "tested")
    assert tested[:2] == [31, 0]
    assert len(tested) == len(set(tested)) <= 8
    assert numbers(one, "built") == tested
    assert {first_bad - 1, first_bad} <= set(tested)
    assert said.pop(2) == "30 commits are between the two: about 4 steps"
    for number, line in zip(tested, said, strict=True):
        is_what = "bad" if number >= first_bad else "good"
        assert line.startswith(f"{one.commits[number][:12]} (commit {number}): {is_what}; built in")
    shown = summary.result(known)
    assert f"commit {one.commits[first_bad]}\n  author Ada <ada@example.org>\n" in shown
    for name, number in (("last good", first_bad - 1), ("first bad", first_bad)):
        run = re.search(rf"{name}: {one.commits[number][:12]} .*; its run: (.*)", shown)
        assert run is not None
        assert (Path(run[1]) / "result.json").exists()


def test_what_is_left_is_the_summary_with_the_last_two_products(made: Any, tmp_path: Path) -> None:
    one = made(*words(20))
    one.bisect(tmp_path / "out", one.question())
    text = (tmp_path / "out" / "bisect.md").read_text()
    assert text.startswith(f"**The first bad commit is {one.commits[20][:12]}**\n")
    assert text.count("| `commit ") == len(one.said("tested"))
    kept = {folder.name for folder in (tmp_path / "out" / "products").iterdir()}
    assert kept == {one.commits[number][:12] for number in (19, 20)}
    assert not (tmp_path / "out" / "worktree").exists()
    assert not (tmp_path / "out" / "build").exists()
    assert len(one.git("worktree", "list").splitlines()) == 1
    assert one.git("for-each-ref", "refs/bisect") == ""


@pytest.mark.parametrize(
    ("broken", "answer"),
    [
        ({"c12_15": "breaks-build", "c17_19": "breaks-build"}, [12, 13, 14, 15, 16]),
        ({"c12_14": "breaks-build", "c17_19": "breaks-build"}, [16]),
        ({"c1_15": "breaks-build"}, [*range(1, 17)]),
        ({"c14_16": "harness"}, [14, 15, 16, 17]),
        ({"c10": "skipped", "c18": "skipped", "c20": "none"}, [16]),
        ({"c15": "flaky-passes", "c16": "flaky-fails", "c23": "flaky-fails"}, [16]),
        ({"c13_14": "lab", "c17_23": "lab"}, [16]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_commits_that_cannot_be_told_are_left_out(
    made: Any, tmp_path: Path, broken: dict[str, str], answer: list[int]
) -> None:
    one = made(*words(16, **broken))
    known = one.bisect(tmp_path / "out", one.question())
    assert sorted(one.commits.index(commit.hash) for commit in known.answer) == answer
    if len(answer) > 1:
        assert f"one of {len(answer)}, of which" in summary.result(known)
    for step in known.steps.values():
        assert (step.judgement is Judgement.UNKNOWN) == bool(step.reason) or step.reason


def test_the_reason_is_kept(made: Any, tmp_path: Path) -> None:
    one = made(*words(14, c15="breaks-build", c23="lab"))
    said: list[str] = []
    known = one.bisect(tmp_path / "out", one.question(), said=said)
    reasons = {one.commits.index(name): step.reason for name, step in known.steps.items()}
    assert reasons[15] == "does not build: behaviour:1: error: no such word"
    assert any("cannot tell: does not build: behaviour:1: error" in line for line in said)
    log = Path(known.steps[one.commits[15]].log)
    assert log.read_text().endswith("1 error generated\nninja: build stopped: subcommand failed.\n")


def test_the_commit_that_repaired_it_is_found(made: Any, tmp_path: Path) -> None:
    one = made(*["fails"] * 9, *["passes"] * 23)
    known = one.bisect(tmp_path / "out", one.question(good=-1, bad=0, find_fix=True))
    assert [commit.hash for commit in known.answer] == [one.commits[9]]
    assert "the commit that repaired it:" in summary.result(known)
    assert re.search(rf"last bad: {one.commits[8][:12]}.*\nfirst good|", summary.result(known))


def test_only_a_failure_with_the_symptom_is_bad(made: Any, tmp_path: Path) -> None:
    one = made(*words(20, c13_15="fails-otherwise"))
    assert found(one, tmp_path / "without") == [13]
    assert found(one, tmp_path / "with", symptom=r"\d records are lost") == [20]


def test_a_branch_that_was_merged_is_searched(made: Any, tmp_path: Path) -> None:
    one = made(*words(16))
    # A side of commits that pass, merged into the last.
    one.git("checkout", "--quiet", "-b", "side", one.commits[5])
    for number in range(3):
        (one.source / "number").write_text(f"{100 + number}\n")
        one.git(*WHO, "commit", "--quiet", "--all", "--message", f"side {number}")
    one.git("checkout", "--quiet", "main")
    one.git(*WHO, "merge", "--quiet", "--strategy=ours", "--message=merged", "side")
    one.commits.append(one.git("rev-parse", "main").strip())
    assert found(one, tmp_path / "out") == [16]
    # The side is no ancestor of what it is compared with: git has their merge base tested.
    one.commits.append(one.git("rev-parse", "side").strip())
    assert found(one, tmp_path / "base", good=-1, bad=31) == [16]


@pytest.mark.parametrize("base", ["passes", "fails", "harness"])
def test_the_base_of_a_side_of_one_commit_is_tested(made: Any, tmp_path: Path, base: str) -> None:
    """The side fails and main passes. That is no fault of the side's own if their base fails."""
    one = made(base, "passes")
    one.git("checkout", "--quiet", "-b", "side", one.commits[0])
    (one.source / "behaviour").write_text("fails\n")
    (one.source / "number").write_text("100\n")
    one.git(*WHO, "commit", "--quiet", "--all", "--message=side")
    one.commits.append(one.git("rev-parse", "side").strip())
    if base == "fails":
        with pytest.raises(HarnessError, match="git cannot bisect between these commits"):
            found(one, tmp_path / "out", good=1, bad=2)
    else:
        assert found(one, tmp_path / "out", good=1, bad=2) == [2]
    assert numbers(one, "tested") == [2, 1, 0]


WHO = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")


# -- wrong calls -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        (0, 10, 'bad .* is not bad, but "good"'),
        (20, 31, 'good .* is not good, but "bad": AssertionError: 3 records are lost'),
        (0, 25, 'bad .* is not bad, but "cannot tell": does not build: behaviour:1: error'),
    ],
)
def test_an_end_that_is_not_what_it_is_said_to_be(
    made: Any, tmp_path: Path, good: int, bad: int, expected: str
) -> None:
    one = made(*words(16, c25="breaks-build"))
    for _ in range(2):
        with pytest.raises(HarnessError, match=f"^--{expected}(.|\n)*fix: see {tmp_path}/out"):
            one.bisect(tmp_path / "out", one.question(good, bad))
        assert len(one.git("worktree", "list").splitlines()) == 1
    # Nothing is believed of it: the next call asks again.
    assert len(one.said("tested")) == {10: 2, 31: 3, 25: 0}[bad]


def test_trusted_ends_are_not_tested(made: Any, tmp_path: Path) -> None:
    one = made(*words(16))
    known = one.bisect(tmp_path / "out", one.question(), trust=True)
    assert [commit.hash for commit in known.answer] == [one.commits[16]]
    assert not {0, 31} & set(numbers(one, "tested"))


@pytest.mark.parametrize(
    ("good", "bad", "find_fix", "expected"),
    [
        (31, 0, False, "the bad commit comes before the good one\n  fix: add --find-fix"),
        (0, 31, True, "the good commit comes before the bad one\n  fix: leave --find-fix out"),
        (3, 3, False, "are one commit"),
    ],
)
def test_ends_in_the_wrong_order(
    made: Any, tmp_path: Path, good: int, bad: int, find_fix: bool, expected: str
) -> None:
    one = made(*words(16))
    with pytest.raises(HarnessError, match=expected):
        one.bisect(tmp_path / "out", one.question(good, bad, find_fix=find_fix))
    assert one.said("built") == []


def test_a_call_that_pytest_refuses_builds_nothing(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTED", "4")
    one = made(*words(16))
    with pytest.raises(HarnessError, match="pytest cannot run these tests: status 4"):
        one.bisect(tmp_path / "out", one.question())
    assert one.said("built") == []
    # A folder in which nothing was found out takes another question.
    monkeypatch.setenv("COLLECTED", "0")
    assert found(one, tmp_path / "out", symptom="lost") == [16]


def test_a_folder_belongs_to_one_question(made: Any, tmp_path: Path) -> None:
    one = made(*words(16))
    one.bisect(tmp_path / "out", one.question())
    tested = one.said("tested")
    with pytest.raises(HarnessError, match=r"symptom was None and is 'lost'(.|\n)*--folder"):
        one.bisect(tmp_path / "out", one.question(symptom="lost"))
    # The same question is answered at once.
    again = one.bisect(tmp_path / "out", one.question())
    assert [commit.hash for commit in again.answer] == [one.commits[16]]
    assert one.said("tested") == tested
    with filelock.FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(HarnessError, match="another `hil bisect` works in"):
            one.bisect(tmp_path / "out", one.question())


# -- what is not touched -----------------------------------------------------------------------


def test_the_developers_checkout_is_not_touched(made: Any, tmp_path: Path) -> None:
    one = made(*words(16))
    for hook in ("post-checkout", "post-index-change"):
        (one.source / ".git/hooks" / hook).write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
        (one.source / ".git/hooks" / hook).chmod(0o755)
    # The developer bisects as well.
    one.git("bisect", "start", one.commits[-1], one.commits[0])
    (one.source / "number").write_text("changed\n")
    (one.source / "new").write_text("staged\n")
    one.git("add", "new")
    (one.source / "untracked").write_text("untracked\n")
    (tmp_path / "hooked").unlink(missing_ok=True)
    before = fingerprint(one)
    assert found(one, tmp_path / "out") == [16]
    assert fingerprint(one) == before
    assert not (tmp_path / "hooked").exists()


def fingerprint(one: Product) -> dict[str, str]:
    """Return a hash of each file of the developer's checkout and build folder, and of its git
    directory but the objects. Of files that are the developer's own, the time counts, too."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        + (str(path.stat().st_mtime_ns) if ".git" not in path.parts else "")
        for folder in (one.source, one.build)
        for path in folder.rglob("*")
        if path.is_file() and "objects" not in path.parts
    }


# -- interruptions -----------------------------------------------------------------------------

#: Answer a question in a process of its own.
DRIVER = """
import sys
from pathlib import Path
from tests.products import Product
folder, *commits = sys.argv[1:]
folder = Path(folder)
one = Product(
    folder / "source", folder / "developers-build", folder / "calls", folder / "tester", commits
)
known = one.bisect(folder / "out", one.question())
print(*(commit.hash for commit in known.answer))
"""


@contextmanager
def driver(one: Product) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that answers the question about a product. It is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(one.source.parent), *one.commits],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def hung(one: Product) -> bool:
    return (one.calls / "hung").exists()


def started_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def ended(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != "zombie" for one in processes)


@pytest.mark.parametrize("what", ["build", "test"])
@pytest.mark.parametrize("where", [31, 15, 23])
def test_it_goes_on_after_sigkill(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: int, what: str
) -> None:
    monkeypatch.setenv("HANG", f"{what} {where}")
    one = made(*words(16))
    with driver(one) as killed:
        wait_for("the step that hangs", lambda: hung(one), deadline=60)
        # A leash, the program, and what that has started.
        wait_for("all processes", lambda: len(started_by(killed)) >= 3, deadline=10)
        children = started_by(killed)
        killed.kill()
        wait_for("the end of all that was started", lambda: ended(children), deadline=10)
    # As a git that is killed leaves them.
    (private,) = (one.source / ".git/worktrees").iterdir()
    for lock in ("index.lock", "HEAD.lock", "refs/bisect/bad.lock"):
        (private / lock).parent.mkdir(parents=True, exist_ok=True)
        (private / lock).touch()
    assert found(one, tmp_path / "out") == [16]
    built, tested = numbers(one, "built"), numbers(one, "tested")
    assert len(built) == len(set(built))
    assert sorted(tested) == sorted(built)


@pytest.mark.parametrize("seed", range(2))
def test_it_goes_on_after_kills_at_any_time(made: Any, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    one = made(*words(11, c13="breaks-build", c9="flaky-passes"))
    halfway = 0
    for kills in range(200):
        with driver(one) as process:
            # From less than Python takes to start, so that a fast machine is killed halfway, too,
            # and longer and longer, so that there is an end on a slow one.
            patience = chance.uniform(0.1, 0.3) * 1.1**kills
            try:
                answer, errors = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                halfway += bool(numbers(one, "built"))
                continue
        assert process.returncode == 0, errors
        break
    assert answer.split() == [one.commits[11]]
    assert halfway > 1
    assert len(one.git("worktree", "list").splitlines()) == 1
    assert one.git("status", "--porcelain") == ""


def test_ctrl_c_lets_the_run_clean_up(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANG", "test 23")
    one = made(*words(16))
    with driver(one) as process:
        wait_for("the step that hangs", lambda: hung(one), deadline=60)
        children = started_by(process)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert ended(children)
    assert (one.calls / "ended").read_text() == "gave back\n"
    built = one.said("built")
    assert found(one, tmp_path / "out") == [16]
    assert one.said("built")[: len(built)] == built
    assert len(one.said("built")) == len(set(one.said("built")))


def test_a_lab_that_is_down_ends_the_call_and_no_commit_is_blamed(
    made: Any, tmp_path: Path
) -> None:
    one = made(*words(16))
    said: list[str] = []
    down = one.calls / "down"

    class Downed(list[str]):
        def append(self, line: str) -> None:
            said.append(line)
            if len(said) == 5:
                down.touch()

    with pytest.raises(LabError, match=r"the lab fails, also at .*no link(.|\n)*goes on where"):
        one.bisect(tmp_path / "out", one.question(), said=Downed())
    assert len(said) == 5
    down.unlink()
    assert found(one, tmp_path / "out") == [16]
    assert len(one.said("built")) == len(set(one.said("built")))


# -- what a run's results say ------------------------------------------------------------------


def result(outcome: str, blame: str = "", message: str = "") -> dict[str, str]:
    return {"id": "t", "outcome": outcome, "blame": blame, "message": message}


@pytest.mark.parametrize(
    ("tests", "broken", "expected"),
    [
        ([result("passed")], "", ("good", "", False)),
        ([result("passed"), result("failed", "product", "E  x")], "", ("bad", "x", False)),
        # A known defect fails its test as expected: the product is bad here.
        ([result("known defect", "", "VEQ-06: lost")], "", ("bad", "VEQ-06: lost", False)),
        ([result("known defect fixed", "product", "[XPASS(strict)]")], "", ("good", "", False)),
        ([result("passed"), result("skipped")], "", ("cannot tell", "skipped: t", False)),
        (
            [result("failed", "lab", "gone"), result("failed", "harness", "y")],
            "",
            ("cannot tell", "the lab failed: gone", True),
        ),
        (
            [result("not run", "", "not run: h")],
            "",
            ("cannot tell", "the lab failed: not run: h", True),
        ),
        (
            [result("failed", "harness", "y\nE   KeyError: 1")],
            "",
            ("cannot tell", "the harness failed: KeyError: 1", False),
        ),
        ([result("failed", "lab"), result("failed", "product", "z")], "", ("bad", "z", False)),
        ([result("passed")], "interrupted", ("cannot tell", "interrupted", False)),
        ([], "", ("cannot tell", "nothing ran", False)),
    ],
)
def test_results_are_judged(
    tests: list[dict[str, str]], broken: str, expected: tuple[str, str, bool]
) -> None:
    assert judge({"tests": tests, "broken": broken}, None) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"), [("(?i)LOST", "bad"), ("lost twice", "cannot tell")]
)
def test_any_failure_may_have_the_symptom(pattern: str, expected: str) -> None:
    tests = [result("failed", "product", "other"), result("failed", "product", "a\n3 lost")]
    assert judge({"tests": tests}, re.compile(pattern))[0] == expected


# -- QEMU's build folder -----------------------------------------------------------------------


def test_qemu_is_configured_as_the_developers(made: Any, tmp_path: Path) -> None:
    one = made(*words(16))
    one.git("rm", "--quiet", "--cached", "number")  # an index of the developer's own
    downloaded = one.source / "subprojects" / "dtc"
    downloaded.mkdir(parents=True)
    (downloaded / "meson.build").write_text("project('dtc')\n")
    worktree, build = tmp_path / "worktree", tmp_path / "build"
    git(one.source, "worktree", "add", "--quiet", "--detach", str(worktree), one.commits[20])
    build.mkdir()
    builder, log = QemuBuilder(one.build), tmp_path / "log"
    assert builder.repository == one.source

    def built() -> str:
        builder.build(worktree, build, tmp_path / "qemu", log, lambda fraction: None)
        return subprocess.run([tmp_path / "qemu"], capture_output=True, text=True).stdout

    assert built() == "fails 20\n"
    status = (build / "config.status").read_text()
    assert f"exec '{worktree}/configure' '--disable-docs' '--cc=two words' \"$@\"\n" in status
    assert "CC='a compiler'" in status
    assert (worktree / "subprojects/dtc/meson.build").exists()
    git(worktree, "checkout", "--quiet", one.commits[3])
    assert built() == "passes 3\n"
    assert (build / "configured").read_text() == "configured\n"
    with (worktree / "configure").open("a") as configure:
        configure.write("# another commit's\n")
    assert built() == "passes 3\n"
    assert (build / "configured").read_text() == "configured\n" * 2


def test_what_was_copied_in_part_is_copied_again(made: Any, tmp_path: Path) -> None:
    """As after Ctrl-C: files above the limit of this process are cut."""
    one = made(*words(16))
    downloaded = one.source / "subprojects" / "dtc"
    downloaded.mkdir(parents=True)
    (downloaded / "large").write_bytes(bytes(1 << 20))
    worktree, build = tmp_path / "worktree", tmp_path / "build"
    git(one.source, "worktree", "add", "--quiet", "--detach", str(worktree), one.commits[20])
    build.mkdir()
    builder = QemuBuilder(one.build)

    def built() -> None:
        builder.build(worktree, build, tmp_path / "qemu", tmp_path / "log", lambda fraction: None)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            built()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    built()
    assert (worktree / "subprojects/dtc/large").stat().st_size == 1 << 20


def test_a_full_disk_is_no_commits_fault(made: Any, tmp_path: Path) -> None:
    one, folder = made(*words(16, c4_28="fills-disk")), tmp_path / "bisection"
    with pytest.raises(LabError, match=r"disk full while building .*(.|\n)*free some space"):
        one.bisect(folder, one.question())
    known = StateFolder(folder).load()
    assert known is not None
    assert [step.judgement for step in known.steps.values()] == [Judgement.BAD, Judgement.GOOD]


@pytest.mark.parametrize("owner", [0, 12345])
def test_why_a_folder_is_no_checkout_is_told(tmp_path: Path, owner: int) -> None:
    if owner:
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        git(tmp_path, "init", "--quiet")
        os.chown(tmp_path, owner, owner)
    why = "dubious ownership" if owner else "not a git repository"
    with pytest.raises(HarnessError, match=f"is no git checkout: .*{why}"):
        Repository(tmp_path)


def test_a_developer_who_sees_signatures_is_told_commits(made: Any, tmp_path: Path) -> None:
    one = made("passes", "fails")
    signer = tmp_path / "gpg"
    signer.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--verify*) echo "gpg: Good signature" >&2; exit 0 ;; esac\n'
        "cat >/dev/null; echo '[GNUPG:] SIG_CREATED ' >&2\n"
        "echo '-----BEGIN PGP SIGNATURE-----'; echo '-----END PGP SIGNATURE-----'\n"
    )
    signer.chmod(0o755)
    for name, value in (
        *(("user.name", "Ada"), ("user.email", "ada@example.org")),
        *(("gpg.program", str(signer)), ("log.showSignature", "true")),
    ):
        one.git("config", name, value)
    one.git("commit", "--quiet", "-S", "--allow-empty", "--message=signed")
    found = Repository(one.source).commit("HEAD")
    assert (found.hash, found.subject) == (one.git("rev-parse", "HEAD").strip(), "signed")


def test_a_folder_that_is_not_configured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"--qemu-build: .* is not configured(.|\n)*configure$"):
        QemuBuilder(tmp_path)


# -- the command -------------------------------------------------------------------------------

#: The test fails if what the product prints does not have "passes".
SUITE = """
import subprocess

def test_product(pytestconfig):
    said = subprocess.run([pytestconfig.getoption("--qemu")], capture_output=True, text=True).stdout
    assert "passes" in said
"""


def hil(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "bisect", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_with_the_real_pytest(made: Any, tmp_path: Path) -> None:
    one = made("passes", "breaks-build", "fails")
    suite = tmp_path / "suite"
    suite.mkdir()
    write_suite(suite, SUITE)
    asked = ("--qemu-build", str(one.build), "--good", one.commits[0][:9], "--bad", "main")
    tests = ("suites/test_suite.py::test_product", *PLUGINS, "--host", "vgrace")
    done = hil(suite, *asked, f"--folder={tmp_path / 'out'}", *tests)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the first bad commit is one of 2, of which 1 cannot be told" in done.stdout
    assert f"{one.commits[1][:12]} (commit 1): does not build: behaviour:1" in done.stdout
    again = hil(suite, *asked, f"--folder={tmp_path / 'out'}", *tests, "--symptom=passes")
    assert (again.returncode, "is of another bisection" in again.stderr) == (2, True)
    wrong = hil(suite, *asked, f"--folder={tmp_path / 'x'}", "suites/nosuch.py", *PLUGINS)
    assert (wrong.returncode, "file or directory not found" in wrong.stderr) == (2, True), wrong


def test_ctrl_c_says_how_to_go_on(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANG", "build 2")
    one = made("passes", "fails", "fails")
    suite = tmp_path / "suite"
    suite.mkdir()
    write_suite(suite, SUITE)
    arguments = ["bisect", f"--qemu-build={one.build}", "--good=main~2", "--bad=main"]
    arguments += [f"--folder={tmp_path / 'out'}", "suites", *PLUGINS]
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *arguments],
        cwd=suite,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for("the build that hangs", lambda: hung(one), deadline=120)
        children = started_by(process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130
    assert f"stopped; to go on, repeat `hil bisect --qemu-build={one.build} '--good=main" in said
    assert ended(children)
    # What is told for giving it up does so.
    give_up = said.partition("to give it up: ")[2].splitlines()[0]
    subprocess.run(["sh", "-e", "-c", give_up], check=True)
    assert not (tmp_path / "out").exists()
    assert len(one.git("worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "what is to be bisected is not told"),
        (["--kernel-tree=a", "--qemu-build=b"], "two products are told"),
        (["--kernel-tree=a", "--kernel-of=hst"], "--kernel-of: hst has no kernel"),
        (["--kernel-tree=a", "--host-kernel=x"], "--host-kernel: each step of the bisection has"),
        (["--kernel-tree=/proc"], "/proc is no git checkout"),
        (["--kernel-tree=/proc", "--symptom=("], "--symptom: '[(]' is no regular expression"),
        (["--kernel-tree=/proc", "--folder=/tmp/a b"], "--folder: nothing can be built in"),
        (["--qemu-build=/proc"], "--qemu-build: /proc is not configured"),
    ],
)
def test_wrong_calls(tmp_path: Path, arguments: list[str], expected: str) -> None:
    told = hil(tmp_path, "--good=a", "--bad=b", "suites/t.py::t", *arguments)
    assert told.returncode == 2
    assert re.search(expected, told.stderr), told.stderr
