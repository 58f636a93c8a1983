"""Figures are compared with earlier ones; one that seems to have regressed is measured again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from benchmarks.runner import program, record, table
from benchmarks.runner.figure import Benchmark, Better, Figure, Samples, chosen, found
from benchmarks.runner.judge import Judgement, worsening
from benchmarks.runner.measure import Meter, Values
from benchmarks.runner.program import Call
from benchmarks.runner.record import Baseline, Earlier, Machine, Measured, Outcome, Record
from harness.errors import HarnessError, LabError
from harness.progress import Progress
from harness.waiting import wait_for

ROOT = Path(__file__).parents[1]
TIME = Figure("time", "a time", "s", limit=5)
RATE = Figure("rate", "a rate", "MB/s", limit=2, better=Better.LARGER)
COUNT = Figure("count", "a count", "of 60", limit=0, compared=False)
HERE = Machine("A CPU", 2, 0.5)


@pytest.mark.parametrize(
    ("figure", "now", "before", "regressed"),
    [
        (TIME, 1.15, 1.0, False),
        (TIME, 1.16, 1.0, True),
        (TIME, 0.5, 1.0, False),
        (RATE, 100.0, 115.0, False),
        (RATE, 100.0, 116.0, True),
        (RATE, 300.0, 116.0, False),
        (TIME, 1.0, 0.0, True),
        (TIME, 0.0, 0.0, False),
        (RATE, 0.0, 1.0, True),
        (COUNT, 5.0, 1.0, False),
    ],
)
def test_more_than_15_percent_is_a_regression(
    figure: Figure, now: float, before: float, regressed: bool
) -> None:
    assert Judgement(figure, now, before).regressed is regressed


def test_the_worsening_of_a_rate_is_its_inverse() -> None:
    assert worsening(TIME, 3.0, 2.0) == worsening(RATE, 2.0, 3.0) == 1.5


def test_without_an_earlier_value_nothing_regresses() -> None:
    assert not Judgement(TIME, 100.0).regressed
    assert not Judgement(TIME, None, 1.0).regressed


@pytest.mark.parametrize(
    ("figure", "value", "exceeds"),
    [
        *((TIME, 5.0, False), (TIME, 5.1, True), (RATE, 2.0, False), (RATE, 1.9, True)),
        (replace(TIME, limit=None), 100.0, False),
    ],
)
def test_a_limit_is_on_the_worse_side(figure: Figure, value: float, exceeds: bool) -> None:
    assert Judgement(figure, value).exceeds is exceeds


# -- records -------------------------------------------------------------------------------


def write(folder: Path, second: int, value: float, **changed: Any) -> Path:
    """Write a record whose figure `time` has this value, and return its path."""
    made = Record(
        started=f"2030-01-02T03:04:{second:02}",
        commit="abc",
        machine=HERE,
        versions={"python": "3"},
        figures={"time": Measured("s", (value, value + 1, value - 1))},
        problems={},
        outcome=Outcome.PASSED,
    )
    return replace(made, **changed).write(folder)


def known(folder: Path) -> Baseline:
    return record.baseline([*record.kept(folder)], HERE)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, 5, 2.0)
    assert path.name == "20300102-030405-abc.json"
    assert record.load(path).figures == {"time": Measured("s", (2.0, 3.0, 1.0))}
    assert json.loads(path.read_text())["figures"]["time"]["median"] == 2.0
    assert [*tmp_path.iterdir()] == [path]


def test_the_last_one_that_passed_counts(tmp_path: Path) -> None:
    write(tmp_path, 1, 1.0)
    last = write(tmp_path, 2, 2.0)
    write(tmp_path, 3, 3.0, outcome=Outcome.FAILED)
    assert known(tmp_path) == Baseline({"time": Earlier(2.0, "s", last)})


def test_an_accepted_one_counts_until_the_next_accepted_one(tmp_path: Path) -> None:
    accepted = write(tmp_path, 1, 1.0, outcome=Outcome.ACCEPTED)
    write(tmp_path, 2, 2.0)
    assert known(tmp_path).figures == {"time": Earlier(1.0, "s", accepted)}
    again = write(tmp_path, 3, 3.0, outcome=Outcome.ACCEPTED)
    assert known(tmp_path).figures == {"time": Earlier(3.0, "s", again)}


def test_a_record_of_some_figures_leaves_the_others(tmp_path: Path) -> None:
    first = write(tmp_path, 1, 1.0)
    second = write(tmp_path, 2, 0, figures={"rate": Measured("MB/s", (7.0,))})
    assert known(tmp_path).figures == {
        "time": Earlier(1.0, "s", first),
        "rate": Earlier(7.0, "MB/s", second),
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Invalid JSON"),
        ('{"started": "2030', "Invalid JSON"),
        ("[]", "Input should be an object"),
        ('{"format": 1}', "started: Field required"),
    ],
)
def test_a_damaged_record_is_told_and_not_compared(tmp_path: Path, text: str, why: str) -> None:
    good = write(tmp_path, 1, 1.0)
    (tmp_path / "20300102-030409-abc.json").write_text(text)
    found = known(tmp_path)
    assert found.figures["time"].file == good
    (note,) = found.notes
    assert "20300102-030409-abc.json is no record of figures" in note
    assert why in note


@pytest.mark.parametrize("samples", ["[]", '[null, "x"]', "[1e999]"])
def test_values_that_are_none_are_damage(tmp_path: Path, samples: str) -> None:
    body = json.loads(write(tmp_path, 1, 1.0).read_text())
    body["figures"]["time"]["samples"] = "HERE"
    [file] = tmp_path.iterdir()
    file.write_text(json.dumps(body).replace('"HERE"', samples))
    with pytest.raises(HarnessError, match="is no record of figures: figures"):
        record.load(file)


@pytest.mark.parametrize("other", [Machine("B CPU", 2), Machine("A CPU", 4)])
def test_a_record_of_another_machine_is_told_and_not_compared(
    tmp_path: Path, other: Machine
) -> None:
    write(tmp_path, 1, 1.0, machine=other)
    write(tmp_path, 2, 1.0, machine=other)
    assert known(tmp_path) == Baseline({}, (f"not compared: 2 of another machine ({other})",))


def test_load_is_no_other_machine(tmp_path: Path) -> None:
    write(tmp_path, 1, 1.0, machine=replace(HERE, load=9.0))
    assert "time" in known(tmp_path).figures


def test_a_value_in_another_unit_is_not_compared(tmp_path: Path) -> None:
    write(tmp_path, 1, 1.0)
    assert known(tmp_path).of(TIME) is not None
    assert known(tmp_path).of(replace(TIME, unit="ms")) is None


# -- measuring -----------------------------------------------------------------------------


class Scripted:
    """A meter whose values are given: for each call of `rounds` those of each checkout."""

    def __init__(self, *answers: Mapping[Path, Values] | LabError) -> None:
        self.answers = iter(answers)
        self.asked: list[tuple[str, list[Path]]] = []

    def rounds(self, name: str, one: Benchmark, called: str, into: Mapping[Path, Values]) -> None:
        self.asked.append((called, [*into]))
        answer = next(self.answers)
        if isinstance(answer, LabError):
            raise answer
        for checkout, values in into.items():
            values.update(answer[checkout])


def nothing(share: float) -> Samples:
    yield from ()


def measured(
    *answers: Mapping[Path, Values] | LabError, before: float | None = 1.0, base: Path | None = None
) -> tuple[Call, list[tuple[str, list[Path]]]]:
    """Measure a benchmark of one time, that was `before`; return the call, and what was asked of
    the meter."""
    earlier = {} if before is None else {"time": Earlier(before, "s", Path("earlier.json"))}
    meter = Scripted(*answers)
    only = {"one": Benchmark((TIME,), nothing, 1)}
    call = Call(only, cast(Meter, meter), Baseline(earlier), base)
    call.measure()
    return call, meter.asked


BASE = Path("/other")


def test_what_is_as_before_is_measured_once() -> None:
    call, asked = measured({ROOT: {"time": [1.0, 1.1, 9.0]}})
    assert not call.failed
    assert asked == [("1 of 1: one", [ROOT])]


def test_what_seems_to_have_regressed_is_measured_again() -> None:
    call, asked = measured({ROOT: {"time": [2.0]}}, {ROOT: {"time": [1.0, 1.1]}})
    assert not call.failed
    assert asked[1:] == [("1 of 1: one, again", [ROOT])]
    assert call.figures["time"] == Measured("s", (1.0, 1.1), limit=5, seemed=(2.0,))
    assert table.verdict(call.judgements()[0], call.figures["time"]) == "had seemed to regress"


def test_what_is_worse_again_has_regressed() -> None:
    call, asked = measured({ROOT: {"time": [2.0]}}, {ROOT: {"time": [6.0]}})
    assert call.failed
    assert len(asked) == 2
    [judged] = call.judgements()
    assert judged.ratio == 6.0
    assert table.verdict(judged, call.figures["time"]) == "REGRESSED, over its limit"


def test_doubts_are_decided_by_the_other_checkout() -> None:
    """The machine has become slower: the other checkout is as slow now."""
    call, asked = measured(
        {ROOT: {"time": [2.0]}}, {BASE: {"time": [2.1, 2.0]}, ROOT: {"time": [2.1]}}, base=BASE
    )
    assert not call.failed
    assert asked[1:] == [("1 of 1: one, in turn", [BASE, ROOT])]
    assert call.figures["time"].base == (2.1, 2.0)
    assert call.judgements() == [Judgement(TIME, 2.1, 2.05)]


def test_the_other_checkout_shows_a_regression() -> None:
    call, _ = measured(
        {ROOT: {"time": [2.0]}}, {BASE: {"time": [1.0]}, ROOT: {"time": [2.0]}}, base=BASE
    )
    assert call.failed


def test_without_a_record_all_is_measured_in_turn_with_the_other_checkout() -> None:
    call, asked = measured({BASE: {"time": [1.0]}, ROOT: {"time": [1.2]}}, before=None, base=BASE)
    assert asked == [("1 of 1: one, in turn", [BASE, ROOT])]
    assert call.failed


def test_what_cannot_be_measured_is_told() -> None:
    call, _ = measured(LabError("no lab", fix="build it"))
    assert call.failed
    assert call.problems == {"one": "no lab\n  fix: build it"}
    [line] = [*table.lines(call.judgements(), call.figures)][1:]
    assert line.endswith("NOT MEASURED")


def test_names_choose_benchmarks_and_figures() -> None:
    every = {
        "one": Benchmark((TIME, RATE), nothing, 1),
        "two": Benchmark((COUNT,), nothing, 1),
        "far": Benchmark((), nothing, 1, apart=True),
    }
    assert [*chosen(every, [])] == ["one", "two"]
    assert chosen(every, ["rate", "two"])["one"].figures == (RATE,)
    with pytest.raises(HarnessError, match="is called three"):
        chosen(every, ["one", "three"])


# -- the program ---------------------------------------------------------------------------


def bench(*options: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", f"--out={out}", *options],
        cwd=ROOT,
        env={**os.environ, "HIL_CACHE": str(out / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_call_is_compared_with_the_one_before(tmp_path: Path) -> None:
    first = bench("--only=help", out=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "nothing to compare with" in first.stdout
    [file] = tmp_path.glob("*.json")
    body = json.loads(file.read_text())
    assert body["outcome"] == "passed"
    assert body["machine"]["cores"] == os.cpu_count()
    # As if it had been ten times as fast.
    samples = body["figures"]["help"]["samples"]
    body["figures"]["help"]["samples"] = [one / 10 for one in samples]
    file.write_text(json.dumps(body))
    second = bench("--only=help", out=tmp_path)
    assert second.returncode == 1, second.stderr
    assert "REGRESSED" in second.stdout
    assert f"compared with {file}\nworse by more than 15 %: help\n" in second.stdout
    accepted = bench("--only=help", "--accept", out=tmp_path)
    assert accepted.returncode == 0, accepted.stderr
    outcomes = [record.load(one).outcome for one in record.kept(tmp_path)]
    assert outcomes == [Outcome.PASSED, Outcome.FAILED, Outcome.ACCEPTED]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--only=nonsense", "no benchmark and no figure is called nonsense"),
        ("--against=/nowhere", "--against: there is no file /nowhere"),
        ("--base=/", "--base: / is no checkout of this project"),
        (f"--base={ROOT}", "--base: that is this checkout"),
    ],
)
def test_a_wrong_call_is_told(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([f"--out={tmp_path}", option]) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cache = str(tmp_path / "cache")
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--only=decode", f"--out={tmp_path / 'out'}"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch), "HIL_CACHE": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        started = psutil.Process(process.pid)

        def decoding() -> list[psutil.Process]:
            """Return the processes that it has started, once one of them decodes."""
            every = started.children(recursive=True)
            return every if len(every) > 1 else []

        children = wait_for("`hil decode` to run", decoding, deadline=90)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.endswith("bench: interrupted; nothing is written\n")
    assert not any(one.is_running() for one in children)
    assert [*scratch.iterdir()] == []
    assert not (tmp_path / "out").exists()


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    """Return another checkout, whose `hil` takes longer."""
    for name in ("fixtures", "suites", "lab-inventory", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "harness", tmp_path / "harness", symlinks=True, ignore=ignored)
    cli = tmp_path / "harness" / "cli.py"
    cli.write_text(
        cli.read_text().replace(
            "import importlib\n", "import time; time.sleep(1)\nimport importlib\n", 1
        )
    )
    return tmp_path


def test_another_checkouts_harness_is_measured(slower: Path) -> None:
    theirs: Values = {}
    ours: Values = {}
    one = replace(found()["startup"], rounds=1)
    with Meter.ready(Progress(enabled=False)) as meter:
        meter.rounds("startup", one, "one", {slower: theirs, ROOT: ours})
    assert min(theirs["help"]) > 1
    assert min(theirs["help"]) - min(ours["help"]) > 0.7


def test_every_figure_is_in_the_documentation() -> None:
    said = (ROOT / "docs" / "benchmarks.md").read_text()
    figures = [figure for one in found().values() for figure in one.figures]
    # The last column is for a real run.
    rows = [
        row.rpartition("| ")[0].rpartition("|")[0] for row in table.markdown(figures, Baseline({}))
    ]
    missing = [row for row in rows[2:] if row not in said]
    assert missing == [], "renew the table by `python -m benchmarks --markdown`"
