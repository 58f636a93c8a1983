"""Mutants of the harness are made as the plan says, tried apart from the checkout, and judged with
what was argued of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cosmic_ray.commands.init import init
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

from harness.checkout import ROOT
from harness.errors import HarnessError
from tests.mutation import bench, session
from tests.mutation.__main__ import Score, judged, table
from tests.mutation.bench import Ended, Job, Limit, Tree
from tests.mutation.plan import (
    Change,
    Equivalent,
    Mutant,
    chosen,
    equivalents,
    mutant,
    plan,
    quiet_spans,
)
from tests.mutation.session import Session, Verdict

BLAME, ITS_TESTS = "harness/report/blame.py", ("tests/test_blame.py",)


def specs(text: str, folder: Path) -> list[MutationSpec]:
    """Return how all mutants of a text are made, whatever the plan says."""
    module = folder / "module.py"
    module.write_text(text)
    with use_db(folder / "base.sqlite") as base:
        init([module], base, {})
        return [item.mutations[0] for item in base.work_items]


def changes(text: str, folder: Path) -> set[Change]:
    """Return what the mutants of a text change that the plan has tried."""
    quiet = quiet_spans(text)
    return {
        mutant(spec, text).change
        for spec in specs(text, folder)
        if chosen(spec, plan().operators, quiet)
    }


def test_the_plan_has_one_change_for_each_operator(tmp_path: Path) -> None:
    text = "def double(one: int | None = 4) -> int | None:\n    return one and one << 1\n"
    assert changes(text, tmp_path) == {
        *(
            Change("double", "def double(one: int | None = 4) -> int | None:", now)
            for now in (
                "def double(one: int | None = 5) -> int | None:",
                "def double(one: int | None = 3) -> int | None:",
            )
        ),
        *(
            Change("double", "return one and one << 1", now)
            for now in (
                "return one or one << 1",
                "return one and one >> 1",
                "return one and one << 2",
                "return one and one << 0",
            )
        ),
    }


def test_what_mypy_checks_is_left_alone(tmp_path: Path) -> None:
    text = "@dataclass(frozen=True)\nclass One:\n    size: int | None\n"
    (only,) = changes(text, tmp_path)
    assert only == Change("", "@dataclass(frozen=True)", "")


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        '[tool.mutation]\nleast = 90\noperators = ["AddNot"]\n'
        '[tool.mutation.modules]\n"gone.py" = ["tests/test_gone.py"]\n'
    )
    with pytest.raises(HarnessError, match=r"is not there: gone\.py, tests/test_gone\.py"):
        plan(path)
    with pytest.raises(HarnessError, match="no module has 'gone' in its path"):
        plan().named("gone")


@pytest.mark.parametrize("module", equivalents())
def test_what_is_argued_is_of_a_line_that_exists(module: str) -> None:
    """Whether the mutant exists, and survives, is for `make mutation` to say."""
    assert module in plan().modules
    # A change of several lines has them as one.
    text = " ".join((ROOT / module).read_text().split())
    argued = [one.change for one in equivalents()[module]]
    assert [str(one) for one in argued if " ".join(one.was.split()) not in text] == []
    assert len(set(argued)) == len(argued)


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    with bench.trees(1) as (one,):
        yield one


def ended(tree: Tree, text: str | None, limit: Limit) -> Ended:
    """Try a text of the module that decides on blame."""
    found: list[Ended] = []
    job = Job(BLAME, text, ITS_TESTS, limit)
    bench.run([tree], iter([job]), lambda _, one: found.append(one))
    (one,) = found
    return one


def test_a_mutant_is_killed_by_the_test_that_fails(tree: Tree) -> None:
    limit = bench.without_mutant([tree], BLAME, ITS_TESTS)
    text = (ROOT / BLAME).read_text()
    killed = ended(tree, text.replace("Blame.LAB: 11", "Blame.LAB: 12"), limit)
    assert killed.killer.startswith("tests/test_blame.py::test_each_kind_of_failure_has_a_status")
    assert ended(tree, text.replace("\n\n\n", "\n\n\n\n"), limit).killer == ""
    assert ended(tree, text + "raise OSError\n", limit).killer == "tests/test_blame.py"
    assert (ROOT / BLAME).read_text() == text == (tree.folder / BLAME).read_text()


def test_a_mutant_that_does_not_end_is_ended(tree: Tree) -> None:
    text = (ROOT / BLAME).read_text()
    for endless, limit in (
        ("while True:\n    pass\n", Limit(600.0, 2)),
        ("import time\ntime.sleep(600)\n", Limit(5.0, 600)),
    ):
        assert ended(tree, text + endless, limit).late


def test_a_test_that_fails_without_a_mutant_is_told(tree: Tree) -> None:
    (tree.folder / "tests/test_broken.py").write_text("def test_it(): assert False\n")
    with pytest.raises(HarnessError, match=r"test_broken\.py::test_it: it fails without a mutant"):
        bench.without_mutant([tree], BLAME, ("tests/test_broken.py",))


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Session]:
    with session.session(tmp_path, BLAME, ("AddNot",), "tests", fresh=False) as one:
        yield one


def test_a_survivor_is_tried_again_when_its_tests_have_changed(
    known: Session, tmp_path: Path
) -> None:
    first, second, *rest = known.pending()
    tried = Mutant(1, Change("", "was", "now"), "")
    known.write(first[0], tried, Ended("tests/test_blame.py::test_blame", 1.0))
    known.write(second[0], tried, Ended("", 1.0))
    assert [*known.pending()] == rest
    with session.session(tmp_path, BLAME, ("AddNot",), "others", fresh=False) as later:
        assert {key for key, _ in later.pending()} == {key for key, _ in (second, *rest)}
    with session.session(tmp_path, BLAME, ("AddNot",), "tests", fresh=True) as fresh:
        assert len([*fresh.pending()]) == len(rest) + 2


def test_an_argument_holds_for_a_survivor_only(known: Session) -> None:
    text = (ROOT / BLAME).read_text()
    pending = [*known.pending()]
    made = [mutant(spec, text) for _, spec in pending]
    killers = ["", "", "some test", *(["some test"] * len(pending))]
    for (key, _), one, killer in zip(pending, made, killers, strict=False):
        known.write(key, one, Ended(killer, 1.0))

    def argument(change: Change) -> Equivalent:
        return Equivalent(within=change.within, was=change.was, now=change.now, why="it is so")

    gone = Change("", "was", "now")
    arguments = [argument(one) for one in (made[0].change, made[2].change, gone, gone)]
    score = judged(BLAME, known, arguments)
    assert score.equivalent == 1
    assert score.survivors == [Verdict(made[1].line, made[1].change, "")]
    assert score.killed == len(pending) - 2
    assert sorted(score.wrong) == [
        f"equivalent.yaml argues of a mutant that does not exist: {gone}",
        f"equivalent.yaml argues of a mutant that is killed: {made[2].change}",
        f"equivalent.yaml argues twice: {gone}",
    ]
    assert not score.good(0)


def test_a_score_counts_what_can_be_killed() -> None:
    one = Verdict(1, Change("", "a", "b"), "")
    score = Score("m.py", killed=17, late=1, equivalent=5, survivors=[one, one])
    assert (score.percent, score.good(90), score.good(90.1)) == (90.0, True, False)
    assert Score("m.py").percent == 100.0
    assert table([score]).splitlines() == [
        "module  killed  late  survived  equivalent   score",
        "m.py        17     1         2           5  90.0 %",
    ]
