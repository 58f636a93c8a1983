"""Allure knows a test again by pytest's id, on whichever host it runs and with whichever workers,
and what failed or was not run is repeated by --lf."""

from __future__ import annotations

import json
from pathlib import Path

from tests.suite_run import results, run_suite, write_suite

#: The first test runs on the first host that may have a CMDQV, or on the one of --host. No host is
#: reached.
SUITE = """
from types import SimpleNamespace

import pytest

@pytest.fixture
def host(host_name): return SimpleNamespace(capabilities=("cmdqv",))

@pytest.fixture
def _ran_on(): pass

@pytest.mark.needs("cmdqv")
def test_on_some_host(host): pass

@pytest.mark.parametrize("one", [object(), object()], ids=["first", "second"])
def test_of_an_object(one): pass
"""


def identities(run: Path) -> dict[str, str]:
    """Return by what Allure knows each test again: see calculateHistoryId in the convert.js of
    @allurereport/core."""
    found = {}
    for file in run.glob("allure-results/*-result.json"):
        told = json.loads(file.read_text())
        counted = [one for one in told.get("parameters", ()) if not one.get("excluded")]
        found[told["name"]] = f"{told['testCaseId']} {counted}"
    return found


def test_the_history_of_a_test_is_the_same_everywhere(tmp_path: Path) -> None:
    seen = []
    for name, options in (
        ("any", ()),
        ("chosen", ("--host=vgrace",)),
        ("workers", ("-n2",)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        ended = run_suite(write_suite(folder, SUITE), *options)
        assert ended.returncode == 0, ended.stdout
        (run,) = (folder / "out").iterdir()
        seen.append(identities(run))
    assert set(seen[0]) == {
        "test_on_some_host",
        "test_of_an_object[first]",
        "test_of_an_object[second]",
    }
    assert len(set(seen[0].values())) == 3
    assert seen == [seen[0]] * 3


#: What fails on one host, and what is skipped because another was given up.
FAILS = """
import pytest

def test_passes(): pass

@pytest.mark.parametrize("one", [1, 2])
def test_fails(one): assert one == 2

def test_has_no_host(): pytest.skip("not run: host gone was given up")

def test_is_skipped(): pytest.skip("it needs more")
"""


def test_one_command_repeats_what_failed(tmp_path: Path) -> None:
    write_suite(tmp_path, FAILS)
    for options, said, out in (
        (("-n2",), " --numprocesses=2", "out"),
        (("--lf", "--host=vgrace", "--out=one"), " --host=vgrace --out=one", "one"),
        (("--lf", "-n2", "--out=many"), " --numprocesses=2 --out=many", "many"),
    ):
        ended = run_suite(tmp_path, *options)
        assert f"\nto repeat what failed: pytest suites --lf{said}\n" in ended.stdout
        (run,) = (tmp_path / out).iterdir()
        ran = {test.partition("::")[2] for test in results(run)}
        if "--lf" in options:
            assert ran == {"test_fails[1]", "test_has_no_host"}
        else:
            assert len(ran) == 5
