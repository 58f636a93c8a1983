"""A known defect is listed with the versions that have it, and a test marked with it must fail as
the mark says, on those versions only."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version
from typer.testing import CliRunner

from harness.commands import reproduce
from harness.errors import HarnessError
from harness.host.host import Facts
from harness.report import behaviours, defects
from harness.report.defects import Affected, Component, Defect, KnownDefect
from harness.reproduce import reproducer, reproducers

SUITES = Path(__file__).parent.parent / "suites"


# -- the catalogue -----------------------------------------------------------------------------


def test_every_defect_stands_in_the_way_of_a_behaviour() -> None:
    assert set(defects.catalogue()) <= set(behaviours.catalogue())


def test_every_defect_has_a_reproducer_and_every_reproducer_a_defect() -> None:
    named = [one.reproducer for one in defects.catalogue().values()]
    assert sorted(named) == sorted(reproducers())


def test_every_defect_has_its_section_in_the_documentation() -> None:
    page = (SUITES.parent / "docs" / "defects.md").read_text()
    sections = re.findall(r"^### ([A-Z]+-\d+)$", page, re.MULTILINE)
    listed = re.findall(r"^\| \[([A-Z]+-\d+)\]\(#", page, re.MULTILINE)
    assert sorted(sections) == sorted(listed) == sorted(defects.catalogue())


def test_every_defect_has_a_test() -> None:
    met = {one for carrier in behaviours.carriers(SUITES, SUITES.parent) for one in carrier.defects}
    assert met == set(defects.catalogue().values())


GOOD = """\
LOSS-05:
  title: it is wrong
  why: this line of code
  affects:
    - component: qemu
      versions: "==11.1.*"
  reproducer: wrap
"""
AFFECTS = """\
  affects:
    - component: qemu
      versions: "==11.1.*"
"""


def load(folder: Path, text: str) -> dict[str, Defect]:
    path = folder / "defects.yaml"
    path.write_text(text)
    return defects.load(path)


def test_a_defect_is_what_its_entry_says(tmp_path: Path) -> None:
    wanted = Defect(
        id="LOSS-05",
        title="it is wrong",
        why="this line of code",
        affects=(Affected(component=Component.QEMU, versions="==11.1.*"),),
        reproducer="wrap",
    )
    assert load(tmp_path, GOOD) == {"LOSS-05": wanted}
    assert str(wanted) == "LOSS-05: it is wrong (QEMU ==11.1.*)"


def test_there_may_be_no_defects(tmp_path: Path) -> None:
    assert load(tmp_path, "{}\n") == {}


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (
            (": qemu", ": libvirt"),
            5,
            "LOSS-05.affects[0].component: found 'libvirt'; allowed: one of qemu, host-kernel, ",
        ),
        (('"==11.1.*"', '"11.1"'), 6, "LOSS-05.affects[0].versions: found '11.1'; allowed: a sp"),
        (('"==11.1.*"', "11.1"), 6, "LOSS-05.affects[0].versions: found 11.1; allowed: a speci"),
        (('"==11.1.*"', '""'), 6, "LOSS-05.affects[0].versions: found ''; allowed: a specifier"),
        (("    - component: qemu\n", "    - "), 5, "LOSS-05.affects[0].component: missing; needed"),
        ((AFFECTS, "  affects: []\n"), 4, "LOSS-05.affects: found []; allowed: a list of mappin"),
        ((AFFECTS, "  affects: qemu\n"), 4, "LOSS-05.affects: found 'qemu'; allowed: a list of m"),
        ((AFFECTS, "  affects: [qemu]\n"), 4, "LOSS-05.affects[0]: found 'qemu'; allowed: a map"),
        ((AFFECTS, ""), 1, "LOSS-05.affects: missing; needed: a list of mappings of component and"),
        (
            (AFFECTS, '  component: qemu\n  versions: "==11.1.*"\n'),
            4,
            "LOSS-05.component: unknown field; allowed: one of title, why, affects, reproducer",
        ),
        (
            (AFFECTS, AFFECTS + AFFECTS.partition("\n")[2]),
            4,
            "LOSS-05.affects: found qemu twice; allowed: each component once, with all conditions",
        ),
        (("it is wrong", '""'), 2, "LOSS-05.title: found ''; allowed: what is wrong"),
        (("  why: this line of code\n", ""), 1, "LOSS-05.why: missing; needed: the mechanism"),
        (("reproducer:", "reproduce:"), 7, "LOSS-05.reproduce: unknown field; did you mean reprod"),
        ((GOOD, "LOSS-05: 5\n"), 1, "LOSS-05: found 5; allowed: a mapping of title, why, affe"),
        ((GOOD, "- LOSS-05\n"), 1, "found ['LOSS-05']; allowed: a mapping"),
        ((GOOD, ""), 1, "found None; allowed: a mapping"),
        ((GOOD, GOOD + GOOD), 8, 'not valid YAML: found duplicate key "LOSS-05"'),
    ],
)
def test_a_bad_catalogue_is_refused_with_the_place(
    tmp_path: Path, change: tuple[str, str], line: int, said: str
) -> None:
    assert change[0] in GOOD
    with pytest.raises(HarnessError) as caught:
        load(tmp_path, GOOD.replace(*change))
    assert f"{tmp_path}/defects.yaml:{line}: {said}" in str(caught.value)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"none\.yaml cannot be read: No such file"):
        defects.load(tmp_path / "none.yaml")


def test_an_unknown_id_is_answered_with_the_known_ones() -> None:
    with pytest.raises(HarnessError, match=r"no defect LOSS-99 in .*\n.*choose LOSS-05, LOSS-07"):
        defects.defect("LOSS-99")


def test_what_breaks_unexpectedly_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`git bisect run` takes the status 1 for a commit that has the defect."""

    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("harness.commands.reproduce.reproducers.reproducer", broken)
    ended = CliRunner().invoke(reproduce.app, ["VEQ-20"])
    assert ended.exit_code == 2
    assert "ZeroDivisionError" in ended.stderr


def test_an_unknown_reproducer_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    (one,) = load(tmp_path, GOOD.replace("wrap", "warp")).values()
    with pytest.raises(HarnessError, match=r"LOSS-05: found 'warp' as .*; allowed: .*busy_queue, "):
        reproducer(one)


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)", "11.1.3"),
        ("11.0.92", "11.0.92"),
        ("11.0.92 (v11.1.0-rc2-15-g0123456789)", "11.0.92"),
        ("12.0.0rc1 (v12.0.0-rc1)", "12.0.0rc1"),
        ("7.2.12-vgrace", "7.2.12"),
        ("7.3.0-rc2-next", "7.3.0rc2"),
        ("7.3.0-rc2vgrace", "7.3.0rc2"),
        ("7.3-rc10", "7.3rc10"),
        ("7.2.12+deb13-arm64", "7.2.12"),
        ("6.17.0-1008-nvidia-64k", "6.17.0"),
        ("6.18.0+", "6.18.0"),
    ],
)
def test_a_version_is_read(text: str, version: str) -> None:
    assert defects.version_in(text) == Version(version)


@pytest.mark.parametrize("text", ["", "of my own", "/boot/vmlinuz-7.2.12", "v7.2", "64k", "٧.٢"])
def test_a_version_that_cannot_be_read_is_none(text: str) -> None:
    assert defects.version_in(text) is None


@given(st.text(alphabet=st.one_of(st.sampled_from("0123456789.-~rc+ "), st.characters())))
def test_no_text_is_an_error(text: str) -> None:
    defects.version_in(text)


@given(
    st.lists(st.integers(0, 999), min_size=2, max_size=4),
    st.none() | st.integers(0, 99),
    st.sampled_from(["", "+", "-vgrace", "vgrace", "-next-20261101", "+deb13-arm64", " (Debian)"]),
)
def test_what_is_added_to_a_version_does_not_matter(
    numbers: list[int], candidate: int | None, added: str
) -> None:
    release = ".".join(map(str, numbers))
    text = release if candidate is None else f"{release}-rc{candidate}"
    version = defects.version_in(text + added)
    assert version == Version(text)
    assert version.is_prerelease is (candidate is not None)


QEMU, HOST_KERNEL, GUEST_KERNEL = "11.1.3 (Debian)", "7.2.12-vgrace", "7.3.0-rc2-next"


@pytest.mark.parametrize(
    ("component", "versions", "concerned"),
    [
        ("qemu", "==11.1.*", True),
        ("qemu", "==11.2.*", False),
        ("qemu", ">=11.1,<12", True),
        ("host-kernel", "==7.2.*", True),
        ("host-kernel", ">=7.3", False),
        # A release candidate belongs to its series and comes before the series' first release.
        ("guest-kernel", "==7.3.*", True),
        ("guest-kernel", ">=7.3", False),
        ("guest-kernel", "<=7.2", False),
    ],
)
def test_a_defect_concerns_versions_of_its_component(
    component: str, versions: str, concerned: bool
) -> None:
    facts = Facts(HOST_KERNEL, QEMU, GUEST_KERNEL, frozenset())
    assert defect(component, versions).concerns(facts) is concerned


@pytest.mark.parametrize("component", Component)
def test_a_version_that_cannot_be_read_has_no_known_defects(component: str) -> None:
    facts = Facts("of my own", "", "/usr/share/hil/Image", frozenset())
    assert not defect(component, ">=0").concerns(facts)


#: A defect of a device that is plugged into a port that sleeps, say.
BOTH = {"qemu": "==11.1.*", "guest-kernel": ">=7.3"}


@pytest.mark.parametrize(
    ("qemu", "guest_kernel", "concerned"),
    [
        ("11.1.3", "7.3.4", True),
        ("11.1.3", "7.2.12", False),
        ("11.2.0", "7.3.4", False),
        ("11.2.0", "7.2.12", False),
        ("11.1.3", "of my own", False),
    ],
)
@pytest.mark.parametrize("host_kernel", ["7.2.12", "7.3.4"])
def test_a_defect_of_two_components_needs_both(
    qemu: str, guest_kernel: str, host_kernel: str, concerned: bool
) -> None:
    facts = Facts(host_kernel, qemu, guest_kernel, frozenset())
    assert affecting(**BOTH).concerns(facts) is concerned


@pytest.mark.parametrize("name", defects.catalogue())
def test_each_known_defect_goes_by_the_versions_of_its_own_components(name: str) -> None:
    """On crossed stacks, a component that has the defect may run with any other ones."""
    known = defects.defect(name)
    # Some defects of the host's kernel are repaired in 7.3, others are new there.
    stacks = [
        Facts(host_kernel, "11.1.3 (Debian)", "7.3.4-hil", frozenset())
        for host_kernel in ("7.2.12-vgrace", "7.3.4-vgrace")
    ]
    has = next(one for one in stacks if known.concerns(one))
    affected = {one.component for one in known.affects}
    for component, field in (
        (Component.HOST_KERNEL, "host_kernel"),
        (Component.QEMU, "qemu"),
        (Component.GUEST_KERNEL, "guest_kernel"),
    ):
        other = dataclasses.replace(has, **{field: "0.1"})  # type: ignore[arg-type]
        assert known.concerns(other) is (component not in affected)


def defect(component: str, versions: str) -> Defect:
    return affecting(**{component: versions})


def affecting(**versions: str) -> Defect:
    return Defect(
        id="LOSS-05",
        title="it is wrong",
        why="why",
        affects=tuple(
            Affected(component=Component(name), versions=one) for name, one in versions.items()
        ),
        reproducer="wrap",
    )


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ("qemu", "QEMU ==11.1.*"),
        ("host-kernel", "host kernel ==11.1.*"),
        ("guest-kernel", "guest kernel ==11.1.*"),
    ],
)
def test_people_are_told_which_versions_of_what(component: str, said: str) -> None:
    assert defect(component, "==11.1.*").concerned == said


def test_people_are_told_that_two_components_must_meet() -> None:
    both = affecting(**BOTH)
    assert both.concerned == "QEMU ==11.1.* with guest kernel >=7.3"
    assert both.components == "QEMU and guest kernel"


# -- marks -------------------------------------------------------------------------------------


def test_a_symptom_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"symptom '\(' is not a regular expression: .*\n.*fix"):
        KnownDefect(defect("qemu", "==11.1.*"), "(")


def test_coverage_lists_known_defects() -> None:
    rows = {
        row.behaviour.id: row for row in behaviours.coverage(SUITES, SUITES.parent, Path("/none"))
    }
    # Two tests have this mark, and the defect is listed once.
    assert rows["LOSS-07"].defects == [defects.defect("LOSS-07")]
    assert rows["LOSS-01"].defects == []


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('"LOSS-99", symptom="x"', r"no defect LOSS-99 in .*\n.*fix: choose LOSS-05, "),
        ('"LOSS-05"', r".*symptom"),
        ('"LOSS-05", symptom="("', r"LOSS-05: symptom '\(' is not a regular expression"),
        ('"LOSS-05", symptom=SYMPTOM', r".*\n.*fix: write the id and the symptom as literal"),
        ('"LOSS-05", versions=">=1", symptom="x"', r".*versions"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(tmp_path: Path, mark: str, said: str) -> None:
    test = tmp_path / "suites" / "test_x.py"
    test.parent.mkdir()
    test.write_text(f"import pytest\n@pytest.mark.known_defect({mark})\ndef test_a(): pass\n")
    with pytest.raises(HarnessError, match=rf"test_x\.py:2: known_defect: {said}"):
        list(behaviours.carriers(test.parent, tmp_path))


#: A conftest.py with a made-up host and a catalogue of its own.
STAND_IN = f"""
import types
from pathlib import Path
import pytest
from harness.host.host import Facts
from harness.report import defects

pytest_plugins = ["harness.fixtures.defects"]
defects.DEFECTS = Path(__file__).parent / "defects.yaml"

@pytest.fixture(scope="session")
def host():
    facts = Facts({HOST_KERNEL!r}, {QEMU!r}, {GUEST_KERNEL!r}, frozenset())
    return types.SimpleNamespace(facts=facts)
"""
CATALOGUE = "".join(
    GOOD.replace("LOSS-05", name).replace("qemu", component).replace("==11.1.*", versions)
    for name, component, versions in (
        ("HERE", "qemu", "==11.1.*"),
        ("HERE-TOO", "qemu", ">=11"),
        ("ELSEWHERE", "qemu", ">=12"),
        ("HOST", "host-kernel", "==7.2.*"),
        ("NEWER-HOST", "host-kernel", ">=11"),
        ("GUEST", "guest-kernel", "==7.3.*"),
        ("OLDER-GUEST", "guest-kernel", "==7.2.*"),
    )
)
TESTS = """
import pytest
from harness.errors import LabError, ProductError

def mark(id, symptom="wrong"):
    return pytest.mark.known_defect(id, symptom=symptom)

@mark("HERE", symptom="assert 1 == 2")
def test_expected(): assert 1 == 2

@mark("HERE")
def test_expected_too(): raise ProductError("all is wrong")

@mark("HERE", symptom="other")
@mark("HERE-TOO")
def test_one_of_two(): raise ProductError("all is wrong")

@mark("HERE")
def test_something_else(): assert 1 == 2

@pytest.fixture
def broken_at_the_end():
    yield
    raise ProductError("QEMU died")

@mark("HERE")
def test_end(broken_at_the_end): raise ProductError("all is wrong")

@mark("HERE")
def test_fixed(): pass

@mark("HERE")
def test_lab(): raise LabError("wrong link")

@mark("ELSEWHERE", symptom="assert")
def test_elsewhere(): assert 1 == 2

@mark("ELSEWHERE")
def test_right(): pass

@mark("HOST")
def test_host_kernel(): raise ProductError("all is wrong")

@mark("NEWER-HOST")
def test_other_host_kernel(): raise ProductError("all is wrong")

@mark("GUEST")
def test_guest_kernel(): raise ProductError("all is wrong")

@mark("OLDER-GUEST")
def test_other_guest_kernel(): raise ProductError("all is wrong")
"""


def run_marked(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(STAND_IN)
    (folder / "defects.yaml").write_text(CATALOGUE)
    (folder / "test_marked.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = known_defect: x\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_known_defect_is_expected_strictly_and_to_fail_as_it_does(tmp_path: Path) -> None:
    said = run_marked(tmp_path, TESTS).stdout
    outcomes = dict(re.findall(r"test_marked\.py::(\w+) (\w+)", said.partition("short test")[0]))
    assert outcomes == {
        "test_expected": "XFAIL",
        "test_expected_too": "XFAIL",
        "test_one_of_two": "XFAIL",
        "test_something_else": "FAILED",
        "test_end": "ERROR",
        "test_fixed": "FAILED",
        "test_lab": "FAILED",
        "test_elsewhere": "FAILED",
        "test_right": "PASSED",
        "test_host_kernel": "XFAIL",
        "test_other_host_kernel": "FAILED",
        "test_guest_kernel": "XFAIL",
        "test_other_guest_kernel": "FAILED",
    }
    assert "[XPASS(strict)] HERE: it is wrong (QEMU ==11.1.*)" in said
    # Both tests that fail with another symptom say so; the one that fails for the lab does not.
    assert len(re.findall(r"E +the test has a known defect, HERE, but this failure", said)) == 2


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ('"THERE", symptom="x"', "no defect THERE in "),
        ('"HERE"', "known_defect() missing 1 required keyword-only argument: 'symptom'"),
        ('"HERE", symptom="("', "HERE: symptom '(' is not a regular expression"),
    ],
)
def test_nothing_runs_with_a_mark_that_makes_no_sense(tmp_path: Path, mark: str, said: str) -> None:
    tests = f"import pytest\n@pytest.mark.known_defect({mark})\ndef test_marked(): pass\n"
    ended = run_marked(tmp_path, tests)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"test_marked: known_defect: {said}" in ended.stderr
