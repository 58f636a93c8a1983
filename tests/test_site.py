"""Allure gets the history and the configuration of a run. Tests in tests/lab open its pages in a
browser."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest

from harness.artifacts.store import Store
from harness.errors import HarnessError, LabError
from harness.progress import Progress
from harness.report import site
from harness.report.run import Result, Run
from harness.report.site import allure, configuration, generate


def test_runs_share_a_history_and_tell_their_versions(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path) for _ in range(2)]
    for run in runs:
        run.ran_on("virtual", {"QEMU": "11.1.3"})
        run.record(Result("t", "passed", 1.0, ()))
        run.write()
    told = [configuration(run.folder, run.folder / "report", "") for run in runs]
    assert told[0]["historyPath"] == told[1]["historyPath"] == str(tmp_path / ".history.jsonl")
    assert told[0]["output"] != told[1]["output"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="has no Allure results"):
        generate(tmp_path, Store(tmp_path), Progress(enabled=False))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run that ended, with one result for Allure."""
    made = Run.create(tmp_path)
    made.write()
    (made.allure_results / "1-result.json").write_text("{}")
    return made.folder


def test_a_run_that_did_not_end_is_refused(run: Path, tmp_path: Path) -> None:
    (run / "result.json").unlink()
    with pytest.raises(HarnessError, match=r"result\.json is no run's result"):
        generate(run, Store(tmp_path), Progress(enabled=False))


def test_a_damaged_history_is_named_and_kept(run: Path, tmp_path: Path) -> None:
    history = tmp_path / ".history.jsonl"
    history.write_text('{"name": "a"}\n{"na')
    with pytest.raises(HarnessError, match=r"history\.jsonl:2 is no line"):
        generate(run, Store(tmp_path), Progress(enabled=False))
    assert history.read_text() == '{"name": "a"}\n{"na'


def test_a_message_may_have_any_character(tmp_path: Path) -> None:
    """JSON has U+2028 and its like as they are, and no line ends there."""
    history = tmp_path / ".history.jsonl"
    lines = [json.dumps({"name": name, "m": "a\u2028b\x85c"}, ensure_ascii=False) for name in "ab"]
    history.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with site._without(history, "a"):
        assert history.read_text(encoding="utf-8") == f"{lines[1]}\n"


def test_a_report_that_does_not_end_is_waited_for_with_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "TURN_SECONDS", 0.3, raising=False)
    history = tmp_path / ".history.jsonl"
    with ThreadPoolExecutor(1) as pool, filelock.FileLock(tmp_path / ".history.jsonl.lock"):
        entered = pool.submit(contextlib.ExitStack().enter_context, site._without(history, "a"))
        with pytest.raises(LabError, match=r"history\.jsonl is in use"):
            entered.result(5)


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    """Return the path of a program that does not end."""
    program = tmp_path / "node_modules" / ".bin" / "allure"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    program.chmod(0o755)
    return program


def test_an_allure_that_does_not_end_is_ended(
    run: Path, tmp_path: Path, stuck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "ALLURE_SECONDS", 0.3, raising=False)
    monkeypatch.setattr(Store, "get", lambda *_: tmp_path)
    history = tmp_path / ".history.jsonl"
    history.write_text('{"name": "an older run"}\n')
    with pytest.raises(LabError, match=f"no report of {run}: it did not end within 0 s"):
        generate(run, Store(tmp_path), Progress(enabled=False))
    assert history.read_text() == '{"name": "an older run"}\n'


def test_an_npm_that_does_not_end_is_ended(
    tmp_path: Path, stuck: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "NPM_SECONDS", 0.3, raising=False)
    monkeypatch.setattr("shutil.which", lambda _: str(stuck))
    with pytest.raises(LabError, match="npm does not install Allure: it did not end within 0 s"):
        allure().build(tmp_path, tmp_path)


def test_a_report_that_fails_leaves_the_history(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Allure fails, the history is unchanged, and still has the run's own earlier entry."""
    history = tmp_path / ".history.jsonl"
    history.write_text(f'{{"name": "none, {run.name}"}}\n')
    program = tmp_path / "node_modules" / ".bin" / "allure"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(Store, "get", lambda *_: tmp_path)
    with pytest.raises(LabError, match="out of memory"):
        generate(run, Store(tmp_path), Progress(enabled=False))
    assert history.read_text() == f'{{"name": "none, {run.name}"}}\n'


def test_reports_at_the_same_time_keep_each_others_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This Allure reads the history when it starts, and writes it when it ends."""
    program = tmp_path / "node_modules" / ".bin" / "allure"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\nold=$(cat ../.history.jsonl)\nsleep 0.2\n"
        'printf \'%s\\n{"name": "none, %s"}\\n\' "$old" "${PWD##*/}" | grep . >../.history.jsonl\n'
        "mkdir report && echo '<body></body>' >report/index.html\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(Store, "get", lambda *_: tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".history.jsonl").write_text('{"name": "an older run"}\n')
    runs = []
    for _ in range(4):
        made = Run.create(tmp_path / "out")
        made.write()
        (made.allure_results / "1-result.json").write_text("{}")
        runs.append(made.folder)

    def report(run: Path) -> Path:
        return generate(run, Store(tmp_path), Progress(enabled=False))

    with ThreadPoolExecutor() as pool:
        list(pool.map(report, runs))
    lines = (tmp_path / "out" / ".history.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert sorted(names) == sorted(["an older run", *(f"none, {run.name}" for run in runs)])


@pytest.mark.parametrize("changed", ["package.json", "package-lock.json"])
def test_another_lock_is_another_allure(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("package.json", "package-lock.json"):
        (tmp_path / name).write_bytes((site._PACKAGES / name).read_bytes())
    ours = allure().key
    monkeypatch.setattr(site, "_PACKAGES", tmp_path)
    assert allure().key == ours
    (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n")
    assert allure().key != ours


def test_npm_installs_what_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """npm installs exactly what is locked: `npm ci` follows the lock or fails."""
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nfor last; do :; done\ncd "${last#--prefix=}" && echo "$@" >called\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = Store(tmp_path / "cache").get(allure(), Progress(enabled=False))
    assert (made / "called").read_text().startswith("ci --ignore-scripts ")
    for name in ("package.json", "package-lock.json"):
        assert (made / name).read_bytes() == (site._PACKAGES / name).read_bytes()
