"""Whatever happens to a run, it ends in time, blames the right part, leaves nothing behind, and the
next run works: see cases.py."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.artifacts.store import Store
from harness.errors import LabError
from harness.lab import inventory
from harness.virtual.running import Running
from harness.waiting import wait_for
from tests.lab.chaos.actions import Scene
from tests.lab.chaos.cases import CASES, Case, Clean, Ends, Point, Reach
from tests.lab.chaos.run import SUFFIX, Conditions, Run
from tests.lab.chaos.stage import Stage

pytestmark = [pytest.mark.lab, pytest.mark.chaos]

LAB = Path(__file__).with_name("lab.yaml")
POINT_SECONDS = 120.0
#: The longest that the next run takes: it may wait for a lease to run out, and boot a guest.
NEXT_SECONDS = 150.0
#: The longest that a virtual host outlives the run that brought it up.
ENDING_SECONDS = 10.0
#: The other user; nobody's files are this one's, on any machine.
NOBODY = 65534
UNDISTURBED = Conditions()


def as_parameter(case: Case) -> object:
    return pytest.param(case, id=str(case), marks=[pytest.mark.sample] if case.sample else [])


def write_lab(folder: Path) -> Path:
    """Write the inventory of this process's hosts into `folder`, and return its path."""
    path = folder / "lab.yaml"
    path.write_text(re.sub(r"name: \S+", rf"\g<0>{SUFFIX}", LAB.read_text()))
    return path


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Stage]]:
    """Yield a function that brings a host up: the one with a CMDQV, or the other. There is one at a
    time."""
    lab = inventory.load(write_lab(tmp_path_factory.mktemp("lab")))
    with contextlib.ExitStack() as stack:
        up: list[Stage] = []

        def get(cmdqv: bool) -> Stage:
            entry = lab.hosts[cmdqv]
            if not up or up[0].entry.name != entry.name:
                stack.close()
                up[:] = [stack.enter_context(Stage.up(entry, Store()))]
            else:
                up[0].renew()
            return up[0]

        yield get


def reached(case: Case, scene: Scene) -> bool:
    """Return whether the run is at the point of its case."""
    if scene.run.ended():
        raise LabError(f"the run ended before it was there:\n{scene.run.output}")
    match case.point:
        case Point.START | Point.TEST:
            return scene.file("reached") is not None
        case Point.PROVISIONING:
            return _there(scene, "/run/hil/*/agent.pid")
        case Point.BOOT:
            return _there(scene, "/run/hil/*/guest0/uart.log")
        case Point.EVIDENCE:
            return any(path.is_dir() for path in scene.run.folder.glob("out/*/logs/*"))
        case Point.TEAR_DOWN:
            return _there(scene, "/tmp/undoing")


def _there(scene: Scene, pattern: str) -> bool:
    """Return whether there is such a file on the host that is not empty, or marks an undo."""
    return bool(scene.stage.do(f"ls -d {pattern} 2>/dev/null || true").strip())


@pytest.mark.parametrize("case", [as_parameter(case) for case in CASES])
def test_case(case: Case, stages: Callable[[bool], Stage], tmp_path: Path) -> None:
    begun = time.monotonic()
    stage = stages(case.reach is Reach.CMDQV)
    before = Counter(stage.census())
    if case.reach is Reach.OWN:
        stage.take_down()
    machine = stage.vm.running()
    problems: list[str] = []
    marks = f"ready {time.monotonic() - begun:.1f}"
    # The session ends behind the last test.
    alone = case.after == "" or case.point is Point.TEAR_DOWN
    tests = [case.runs] if alone else [case.runs, "after"]
    with start(case, stage, tmp_path / "run", tests) as run:
        scene = Scene(stage, run)
        with scene.afterwards:
            wait_for(
                f"the point {case.point.value}",
                lambda: reached(case, scene),
                deadline=POINT_SECONDS,
            )
            case.action(scene)
            (run.folder / "go on").touch()
            started = time.monotonic()
            marks += f", acted {time.monotonic() - begun:.1f}"
            status = run.wait(case.seconds)
            took = time.monotonic() - started
        if status is None:
            problems.append(f"it had not ended after {case.seconds:.0f} s")
        problems += judged(case, run, status)
        marks += f", ended {time.monotonic() - begun:.1f}"
        if case.reach is not Reach.LINK and not ended(stage, machine):
            problems.append(f"left here: the virtual host {stage.vm.running()}")
        problems += [f"left here: {one}" for one in run.left()]
        stage.relay.reset()
        stage.bring_back()
        if case.clean is not Clean.AFTER_NEXT:
            problems += left(stage, before, case.clean.value)
        report = run.report()
    marks += f", clean {time.monotonic() - begun:.1f}"
    next_test = "boots" if "guest" in case.runs or "boots" in case.runs else "opens"
    with start(case, stage, tmp_path / "next", [next_test], disturbed=False) as following:
        if following.wait(NEXT_SECONDS) != 0:
            problems.append(f"the next run is not green:\n{following.report()}")
        problems += [f"left by the next run: {one}" for one in following.left()]
    problems += [f"after the next run: {one}" for one in left(stage, before, Clean.AT_ONCE.value)]
    print(f"{marks}; it took {took:.1f} s to end; it said:\n{report}")
    assert not problems, "\n".join(problems)


def ended(stage: Stage, machine: Running | None) -> bool:
    """Return whether the virtual host that a run has brought up is gone, after ENDING_SECONDS at
    most. `machine` is the one that ran before."""
    with contextlib.suppress(LabError):
        return wait_for(
            "the run's virtual host to be gone",
            lambda: stage.vm.running() in (None, machine),
            deadline=ENDING_SECONDS,
        )
    return False


def start(
    case: Case, stage: Stage, folder: Path, tests: list[str], *, disturbed: bool = True
) -> contextlib.AbstractContextManager[Run]:
    folder.mkdir()
    if case.reach is Reach.LINK:
        # A run finds the cache as the run before left it, unless that was on a disk of its own.
        own = case.disk == "cache" and disturbed
        cache = (folder if own else folder.parent) / "cache"
        lab = [f"--lab={stage.inventory(folder)}"]
    else:
        lab, cache = [f"--lab={write_lab(folder)}", f"--host={stage.entry.name}"], stage.store.root
    conditions = Conditions(case.disk, case.clock, case.point is Point.START)
    options = [*lab, *(case.options if disturbed else ())]
    return Run.start(
        folder,
        tests,
        cache=cache,
        options=options,
        conditions=conditions if disturbed else UNDISTURBED,
    )


def judged(case: Case, run: Run, status: int | None) -> Iterator[str]:
    """Yield what is wrong with the end of a run."""
    if status not in (None, case.ends.status):
        yield f"its exit status is {status}, should be {case.ends.status}"
    if case.ends is Ends.KILLED:
        return
    report = run.report()
    yield from (f"it does not say {words!r}" for words in case.says if not re.search(words, report))
    results = run.results()
    if case.ends is Ends.INTERRUPTED:
        if "FAILED (interrupted)" not in report:
            yield "its summary does not say that it was interrupted"
        return
    # What the test after it meets, such as a host that is gone, is judged by its outcome.
    blamed = {one["blame"] for one in results if not one["id"].endswith("::test_after")} - {""}
    # Where only the results had no room, every test may have passed.
    passed = case.disk == "out" and not blamed
    if blamed != {case.ends.blame} - {""} and not passed:
        yield f"it blames {blamed or 'nobody'}, should blame {case.ends.blame or 'nobody'}"
    outcomes = {one["id"].rpartition("::test_")[2]: one["outcome"] for one in results}
    if case.after and case.point is not Point.TEAR_DOWN and outcomes.get("after") != case.after:
        yield f"the test after it: {outcomes.get('after')}, should be {case.after}"


def left(stage: Stage, before: Counter[str], seconds: float) -> list[str]:
    """Return how the host differs from what it was, after so many seconds at most."""
    found: list[str] = []

    def same() -> bool:
        now = Counter(stage.census())
        found[:] = [f"on the host, more: {one}" for one in (now - before).elements()]
        found.extend(f"on the host, no more: {one}" for one in (before - now).elements())
        return not found

    with contextlib.suppress(LabError):
        wait_for("the host to be as it was", same, deadline=seconds, interval=1.0)
    return found


@pytest.fixture
def for_all() -> Iterator[Path]:
    """Yield a folder that another user may look for; pytest's own are for this user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_two_users_meet_at_a_host(stages: Callable[[bool], Stage], for_all: Path) -> None:
    """Runs of two users of this machine share no cache, so that only the host keeps them apart: the
    second one waits for the first."""
    stage = stages(False)
    before = Counter(stage.census())
    for folder in (first := for_all / "first", second := for_all / "second"):
        folder.mkdir()
    options = {one: [f"--lab={stage.inventory(one)}"] for one in (first, second)}
    with Run.start(first, ["holds"], cache=first / "cache", options=options[first]) as one:
        scene = Scene(stage, one)
        wait_for("the first run to have the host", lambda: scene.file("reached"), deadline=60)
        with Run.start(
            *(second, ["opens"]),
            cache=second / "cache",
            options=options[second],
            conditions=Conditions(user=NOBODY),
        ) as other:
            wait_for(
                "the second run to meet the first",
                lambda: other.ended() or "is in use by" in other.output,
                deadline=60,
            )
            (first / "go on").touch()
            statuses = one.wait(60), other.wait(60)
            assert statuses == (0, 0), one.report() + other.report()
            assert [*one.left(), *other.left()] == []
    assert left(stage, before, Clean.AT_ONCE.value) == []
