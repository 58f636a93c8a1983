"""The catalogue of mutants is sound, and what a run says of a mutant is judged rightly."""

from __future__ import annotations

import ast
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from harness.artifacts import leashed
from harness.artifacts.store import Store
from harness.checkout import ROOT
from harness.errors import HarnessError
from harness.lab import inventory
from harness.progress import Progress
from harness.report.requirements import Requirement
from harness.waiting import wait_for
from tests.mutants import __main__ as program
from tests.mutants.benches import Benches, StoppedError, write_lab
from tests.mutants.book import Book, html, markdown
from tests.mutants.catalogue import HOST, LAB, Choice, Edit, Kind, Mutant, load, mutants
from tests.mutants.trial import Outcome, Verdict, judged, named, tried
from tests.mutants.workshop import ORIGINAL, Subject, Workshop

FEWEST, SAMPLE = 60, 10
EVERY = mutants()
OURS = [one for one in EVERY if not one.kind.of_linux]


def mutant(name: str) -> Mutant:
    (found,) = (one for one in EVERY if one.id == name)
    return found


# -- the catalogue -------------------------------------------------------------------------------


def test_there_are_enough_of_each_kind() -> None:
    assert len(EVERY) >= FEWEST
    assert {one.kind for one in EVERY} == set(Kind)
    assert len({one.id for one in EVERY}) == len(EVERY)
    sample = Choice(sample=True).of(EVERY)
    assert len(sample) == SAMPLE
    assert {one.kind for one in sample} == set(Kind)
    assert not [one.id for one in sample if one.unreachable]


def test_no_two_are_the_same() -> None:
    edits = [(one.kind, one.edits) for one in EVERY]
    assert [one.id for one in EVERY if edits.count((one.kind, one.edits)) > 1] == []


@pytest.mark.parametrize("one", OURS, ids=lambda one: one.id)
def test_one_of_ours_fits_its_source_and_is_python(one: Mutant) -> None:
    changed = one.apply(ROOT)
    for path, text in changed.items():
        assert text != path.read_text()
        ast.parse(text)


def test_the_lab_is_one() -> None:
    assert {one.name for one in inventory.load(LAB).hosts} >= {HOST}


@pytest.mark.parametrize(
    ("times", "text"), [(0, "one\n"), (2, "two\ntwo\n")], ids=["missing", "twice"]
)
def test_a_text_that_is_not_there_once_is_refused(times: int, text: str) -> None:
    edit = Edit(file="a.c", find="two\n", replace="")
    with pytest.raises(HarnessError, match=f"{times} times, not once: 'two'"):
        edit.apply(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("behaviours: [VEQ-07]", "behaviours: [VEQ-99]"), "found VEQ-99"),
        (("breaks: a", "brakes: a"), "brakes"),
        (("edits:", "edits: []\nmore:"), "edits"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    text = "breaks: a\nbehaviours: [VEQ-07]\nhow: b\nedits:\n  - {file: c, find: d, replace: e}\n"
    path = tmp_path / "qemu" / "one.yaml"
    path.parent.mkdir()
    path.write_text(text)
    assert load(path).id == "qemu/one"
    path.write_text(text.replace(*change))
    with pytest.raises(HarnessError, match=said):
        load(path)


def test_a_name_that_no_mutant_has_is_refused() -> None:
    assert [one.id for one in Choice("silicon/no-vmid").of(EVERY)] == ["silicon/no-vmid"]
    with pytest.raises(HarnessError, match="no mutant is named 'nonsense'"):
        Choice("nonsense").of(EVERY)


# -- what a mutant is made of --------------------------------------------------------------------


def test_a_copy_differs_by_the_mutant_alone_and_is_removed(tmp_path: Path) -> None:
    one = mutant("silicon/atc-inv-ignored")
    workshop = Workshop(tmp_path, Store(tmp_path), Progress())
    (file,) = (edit.file for edit in one.edits)
    with workshop.made(one) as subject:
        assert (subject.checkout / file).read_text() != (ROOT / file).read_text()
        assert (subject.checkout / "conftest.py").read_text() == (ROOT / "conftest.py").read_text()
        assert subject.environment["PYTHONPATH"] == str(subject.checkout)
        copy = subject.checkout
    assert not copy.exists()


def test_a_killed_calls_change_is_put_back(tmp_path: Path) -> None:
    source = tmp_path / "driver.c"
    source.write_text("as it was\n")
    workshop = Workshop(tmp_path, Store(tmp_path), Progress())
    with workshop._changed({source: "changed\n"}):
        assert source.read_text() == "changed\n"
        left = (tmp_path / "changed.json").read_text()
    assert source.read_text() == "as it was\n"
    # As if the process had been killed in between.
    source.write_text("changed\n")
    (tmp_path / "changed.json").write_text(left)
    Workshop(tmp_path, Store(tmp_path), Progress())._restore()
    assert source.read_text() == "as it was\n"


# -- the verdict ---------------------------------------------------------------------------------

TESTS = [
    Requirement("suites/a.py::test_x[1]", ("VEQ-07",), (), ()),
    Requirement("suites/a.py::test_y", ("VEQ-08", "VEQ-09"), (), ()),
    Requirement("suites/b.py::test_z", ("HOT-01",), (), ()),
]


def result(test: str, outcome: str = "passed", blame: str = "") -> dict[str, Any]:
    message = "" if outcome == "passed" else "E  AssertionError: no"
    return {
        "id": test,
        "outcome": outcome,
        "seconds": 1.0,
        "covers": [],
        "message": message,
        "blame": blame,
    }


def test_the_tests_of_its_behaviours_are_named_in_their_order() -> None:
    one = mutant("host-kernel/vsid-of-the-neighbour")
    assert one.behaviours == ("VEQ-07", "VEQ-09")
    assert named(one, TESTS) == ["suites/a.py::test_x[1]", "suites/a.py::test_y"]


@pytest.mark.parametrize(
    ("blame", "outcome"),
    [
        ("product", Outcome.KILLED),
        ("harness", Outcome.WRONGLY_BLAMED),
        ("lab", Outcome.WRONGLY_BLAMED),
    ],
)
def test_a_failure_kills_if_it_blames_the_product(blame: str, outcome: Outcome) -> None:
    body = {"tests": [result("a"), result("b", "failed", blame), result("c", "failed", "lab")]}
    verdict = judged(body, 3.0, Path("run"))
    assert verdict == Verdict(outcome, "b", 3.0, blame, "AssertionError: no", "run")


def test_passed_is_no_verdict_and_a_broken_run_is_one() -> None:
    assert judged({"tests": [result("a")]}, 3.0, Path("run")) is None
    broken = judged({"tests": [], "broken": "pytest failed"}, 3.0, Path("run"))
    assert broken
    assert (broken.outcome, broken.why) == (Outcome.BROKEN, "pytest failed")


class Pytest:
    """What stands for pytest: each call has the next of these results, or chooses no test."""

    def __init__(self, *calls: list[dict[str, Any]] | None) -> None:
        self.calls, self.asked = list(calls), list[list[str]]()

    def run(self, argv: list[str], log: Path, **more: Any) -> int:
        self.asked.append(argv[3:])
        log.write_text("")
        tests = self.calls.pop(0)
        if tests is None:
            return 5
        (out,) = (one.removeprefix("--out=") for one in argv if one.startswith("--out="))
        run = Path(out) / f"run-{len(self.asked)}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"environment": {}, "tests": tests}))
        return 0


PASSED = [result("suites/a.py::test_x[1]")]
FAILED = [result("suites/b.py::test_z", "failed", "product")]


@pytest.mark.parametrize(
    ("calls", "rest", "outcome", "why"),
    [
        ([FAILED], True, Outcome.KILLED, "AssertionError: no"),
        ([PASSED, FAILED], True, Outcome.KILLED, "AssertionError: no"),
        ([PASSED, None, FAILED], True, Outcome.KILLED, "AssertionError: no"),
        ([PASSED, None, PASSED], True, Outcome.SURVIVED, "all suites passed"),
        ([PASSED, None], False, Outcome.SURVIVED, "the tests of its behaviours passed"),
        ([None, None], False, Outcome.BROKEN, "no test could run"),
        ([[result("x", "skipped")], None], False, Outcome.BROKEN, "no test could run"),
    ],
)
def test_the_suites_go_on_until_a_test_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[list[dict[str, Any]] | None],
    rest: bool,
    outcome: Outcome,
    why: str,
) -> None:
    pytest_ = Pytest(*calls)
    monkeypatch.setattr(leashed, "run", pytest_.run)
    one = mutant("host-kernel/vsid-of-the-neighbour")
    subject = Subject(ROOT, ("--host-kernel=Image",))
    verdict = tried(one, TESTS, subject, tmp_path, lambda part: None, rest=rest)
    assert (verdict.outcome, verdict.why) == (outcome, why)
    assert not pytest_.calls
    first, *_ = pytest_.asked
    assert first[:4] == ["suites/a.py::test_x[1]", "suites/a.py::test_y", "-m", "not long"]
    assert {"--host-kernel=Image", "--maxfail=1"} <= {*first}
    if rest and outcome is Outcome.SURVIVED:
        assert "--deselect=suites/a.py::test_x" in pytest_.asked[2]


def test_pytest_that_leaves_nothing_is_a_broken_mutant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leashed, "run", lambda *argv, **more: 3)
    one = mutant("host-kernel/vsid-of-the-neighbour")
    verdict = tried(one, TESTS, ORIGINAL, tmp_path, lambda part: None, rest=False)
    assert verdict.outcome is Outcome.BROKEN
    assert "pytest left no results, status 3" in verdict.why


# -- several at a time ---------------------------------------------------------------------------


class Copies:
    """A workshop in which each mutant is a folder while it is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def made(self, one: Mutant) -> Iterator[Subject]:
        copy = self.folder / one.name
        copy.mkdir()
        yield Subject(copy)
        copy.rmdir()


def benches(tmp_path: Path, number: int) -> Benches:
    labs = [Path(f"lab-{bench}") for bench in range(number)]
    return Benches(cast(Workshop, Copies(tmp_path)), TESTS, tmp_path, labs, rest=False)


def test_each_bench_has_a_lab_of_its_own(tmp_path: Path) -> None:
    one = inventory.load(write_lab(tmp_path / "labs" / "2.yaml", [2]))
    own = inventory.load(LAB)
    assert [host.name for host in one.hosts] == [f"{host.name}-2" for host in own.hosts]
    assert [host.virtual for host in one.hosts] == [host.virtual for host in own.hosts]
    every = inventory.load(write_lab(tmp_path / "labs" / "all.yaml", [1, 2]))
    assert len(every.hosts) == 2 * len(own.hosts)


def test_as_many_run_at_a_time_as_there_are_labs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, used = threading.Barrier(2, timeout=60), set[str]()
    made = OURS[:4]

    def run(argv: list[str], log: Path, **more: Any) -> int:
        both.wait()
        (lab,) = (one for one in argv if one.startswith("--lab="))
        used.add(lab)
        return 3

    monkeypatch.setattr(leashed, "run", run)
    told: list[float] = []
    verdicts = dict(benches(tmp_path, 2).verdicts(made, told.append))
    assert set(verdicts) == {*made}
    assert used == {"--lab=lab-0", "--lab=lab-1"}


def test_whoever_stops_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    first, second, never = OURS[:3]
    begun = threading.Event()

    def run(argv: list[str], log: Path, *, folder: Path, look: Any, **more: Any) -> int:
        if folder.name == first.name:
            begun.wait(60)
            return 3
        log.write_text("[ 50%]")
        begun.set()
        try:
            wait_for("the end of the call", look, deadline=60)
        except StoppedError:
            ended.append(folder.name)
            raise
        return 3

    monkeypatch.setattr(leashed, "run", run)
    coming = benches(tmp_path, 2).verdicts([first, second, never], lambda part: None)
    assert next(coming)[0] is first
    coming.close()
    assert second.name in ended


# -- what is kept and shown ----------------------------------------------------------------------


def test_a_verdict_holds_for_its_file_and_state(tmp_path: Path) -> None:
    one, verdict = EVERY[0], Verdict(Outcome.KILLED, "suites/a.py::test_x", 12.5, "product")
    Book(tmp_path, "state").write(one, verdict)
    assert Book(tmp_path, "state").known(one) == verdict
    assert Book(tmp_path, "another").known(one) is None
    assert Book(tmp_path, "state").known(one.model_copy(update={"digest": "0" * 12})) is None
    assert Book(tmp_path, "state").known(EVERY[1]) is None


def test_the_table_has_each_verdict(tmp_path: Path) -> None:
    killed, blamed, survived = EVERY[:3]
    verdicts = {
        killed.id: Verdict(Outcome.KILLED, "suites/a.py::test_x", 12.4, "product"),
        blamed.id: Verdict(Outcome.WRONGLY_BLAMED, "suites/<b>", 2.0, "lab", "a | link"),
        survived.id: Verdict(Outcome.SURVIVED, why="all suites passed"),
    }
    text = markdown(EVERY, verdicts)
    assert text.startswith("3 mutants: 1 killed, 1 wrongly blamed, 1 survived\n")
    assert text.count("\n| ") == 1 + 3
    assert "blames the lab" in text
    page = html(EVERY, verdicts, tmp_path)
    assert 'class="passed">killed' in page
    assert 'class="product">survived' in page
    assert "suites/&lt;b&gt;" in page
    Book(tmp_path, "state").publish(EVERY, verdicts)
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["counts"] == {"killed": 1, "wrongly blamed": 1, "survived": 1}
    assert list(json.loads(line)["not_good"]) == [blamed.id, survived.id]


class Unbuilt:
    """A workshop without Linux, whose mutants cost nothing."""

    linux = "linux 7.3"

    def __init__(self, *arguments: Any) -> None: ...

    def tidy(self) -> None: ...

    def linux_tree(self) -> Path:
        raise HarnessError("no Linux is wanted")


def test_a_stopped_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def verdict_on(self: Benches, one: Mutant, *more: Any) -> Verdict:
        asked.append(one.id)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Verdict(Outcome.KILLED, "suites/a.py::test_x", 1.0, "product")

    monkeypatch.setattr(program, "Workshop", Unbuilt)
    monkeypatch.setattr(program, "requirements", lambda *asked: TESTS)
    monkeypatch.setattr(Benches, "verdict_on", verdict_on)
    monkeypatch.setattr(program, "controlled", lambda *asked: {})
    call = ["--only=silicon/no-", f"--out={tmp_path}", "--workers=1"]
    with pytest.raises(KeyboardInterrupt):
        program.main(call)
    first, second = asked
    assert program.main(call) == 0
    assert asked.count(first) == 1
    assert asked.count(second) == 2
    assert "3 mutants: 3 killed" in capsys.readouterr().out


def test_two_calls_do_not_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with program.alone(tmp_path):
        assert program.main(["--only=silicon/no-vmid", f"--out={tmp_path}"]) == 2
    assert f"another call works in {tmp_path}" in capsys.readouterr().err


def test_a_test_that_fails_without_mutants_has_killed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = Verdict(Outcome.KILLED, "suites/a.py::test_x", 1.0, "product")
    monkeypatch.setattr(program, "Workshop", Unbuilt)
    monkeypatch.setattr(program, "requirements", lambda *asked: TESTS)
    monkeypatch.setattr(Benches, "verdict_on", lambda *asked: killed)
    monkeypatch.setattr(program, "controlled", lambda *asked: {"suites/a.py::test_x": "no"})
    assert program.main(["--only=silicon/no-vmid", f"--out={tmp_path}"]) == 1
    assert "1 mutants: 1 broken" in capsys.readouterr().out
    assert "fails without it, too: no" in (tmp_path / "mutants.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--list", "--sample"], 0, "silicon/atc-inv-ignored: "),
        (["--list", "--only=nonsense"], 2, ""),
    ],
)
def test_the_list(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert program.main(arguments) == status
    assert said in capsys.readouterr().out
