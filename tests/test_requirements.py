"""What a test needs of a host is known when pytest has collected it, however it says so, and a test
that asks for more is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checkout import DEFAULT_LAB, SUITES
from harness.errors import HarnessError
from harness.guest.choice import Needs
from harness.guest.description import GuestSpec, SmmuSpec
from harness.guest.fleet import Fleet
from harness.host.ability import ANY, DISK, FLOODER, READER, WRITER, Need
from harness.report.requirements import REQUIREMENTS, requirements
from tests.suite_run import run_suite
from tests.test_fleet import fleet_of

SUITE = """
import pytest
from harness.guest.description import GuestSpec, SmmuSpec
from harness.host.ability import ANY, DISK, FLOODER, READER, WRITER

DISKS = GuestSpec(smmus=(SmmuSpec(devices=(DISK,), hot=(ANY,)), SmmuSpec()))
ONE = GuestSpec(smmus=(SmmuSpec(devices=(WRITER,)),))

@pytest.mark.covers("VEQ-01", "VEQ-02")
@pytest.mark.needs("kprobe", "cmdqv")
@pytest.mark.guest(DISKS, ONE)
def test_marked(guests): ...

def test_default(guest): ...

def test_by_a_source(reader): ...

@pytest.mark.guest(ONE)
def test_fleet(fleet): ...

@pytest.mark.guest(ONE)
@pytest.mark.parametrize("spec", [DISKS])
def test_parameter(fleet, spec): ...

@pytest.mark.parametrize("spec", [DISKS])
def test_both(fleet, guest, spec): ...

def test_no_guest(fleet, host): ...

@pytest.mark.needs("kvm")
class Base:
    @pytest.mark.covers("VEQ-03")
    @pytest.mark.needs("kprobe")
    def test_in_class(self, guest): ...

@pytest.mark.guest(ONE)
class TestOne(Base): ...
"""
BY_DEFAULT: Needs = ((READER, FLOODER),)
DISKS: Needs = ((DISK, ANY), ())
ONE: Needs = ((WRITER,),)


def test_it_is_known_once_tests_are_collected(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites/test_x.py").write_text(SUITE)
    markers = [f"{name}: as in the project" for name in ("covers", "guest", "needs")]
    ini = "".join(f"    {one}\n" for one in markers)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{ini}")
    file = tmp_path / "needed.json"
    ended = run_suite(tmp_path, "--collect-only", f"--requirements={file}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = REQUIREMENTS.validate_json(file.read_bytes())
    assert {one.test.rpartition("::")[2].partition("[")[0]: one.guests for one in found} == {
        "test_marked": (DISKS, ONE),
        "test_default": (BY_DEFAULT,),
        "test_by_a_source": (BY_DEFAULT,),
        "test_fleet": (ONE,),
        "test_parameter": (DISKS,),
        "test_both": (DISKS, BY_DEFAULT),
        "test_no_guest": (),
        "test_in_class": (ONE,),
    }
    marked, *_, in_class = found
    assert (marked.covers, marked.capabilities) == (("VEQ-01", "VEQ-02"), ("cmdqv", "kprobe"))
    assert (in_class.covers, in_class.capabilities) == (("VEQ-03",), ("kprobe", "kvm"))


def test_a_file_that_cannot_be_written_is_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites/test_x.py").write_text("def test_x(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    ended = run_suite(tmp_path, "--collect-only", "--requirements=none/x")
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR, ended.stdout
    assert ended.stderr == (
        "ERROR: --requirements: none/x cannot be written: No such file or directory; "
        "name another file\n\n"
    )


def test_suites_that_cannot_be_collected_are_refused_with_what_pytest_says() -> None:
    with pytest.raises(HarnessError, match=r"file or directory not found: .*/suites/nothing"):
        requirements(SUITES / "nothing", DEFAULT_LAB, "vgrace")


# -- what is declared --------------------------------------------------------------------------


def guest(*needs: tuple[Need, ...], cpus: int = 1) -> GuestSpec:
    return GuestSpec(smmus=tuple(SmmuSpec(devices=one) for one in needs), cpus=cpus)


@pytest.fixture
def two_drives() -> Fleet:
    """Return the fleet of a host with two drives."""
    return fleet_of({"a": "nvme", "b": "nvme"})


@pytest.mark.parametrize(
    ("declared", "asked"),
    [
        ([guest((READER,))], [guest((READER,), cpus=2)]),
        ([guest((READER,)), guest((WRITER,))], [guest((WRITER,))]),
        ([guest((READER,)), guest((READER,))], [guest((READER,))] * 2),
        ([], [guest(), guest(())]),
    ],
)
def test_guests_may_have_the_devices_that_are_declared(
    two_drives: Fleet, declared: list[GuestSpec], asked: list[GuestSpec]
) -> None:
    with two_drives.only(declared):
        assert len(two_drives.choose(asked)) == len(asked)


@pytest.mark.parametrize(
    ("declared", "asked", "devices"),
    [
        ([], [guest((READER,))], "a device that can read"),
        ([guest((READER,))], [guest((WRITER,))], "a device that can write"),
        ([guest((READER,))], [guest((READER,))] * 2, "a device that can read"),
        ([guest((ANY, DISK))], [guest((ANY,), (DISK,))], "a device; a device that can be a disk"),
    ],
)
def test_other_devices_are_refused(
    two_drives: Fleet, declared: list[GuestSpec], asked: list[GuestSpec], devices: str
) -> None:
    with two_drives.only(declared), pytest.raises(HarnessError) as refused:
        two_drives.choose(asked)
    assert refused.value.message.endswith(f"with other devices than it declares: {devices}")
    assert "@pytest.mark.guest(" in str(refused.value.fix)
    two_drives.choose([guest((ANY,))])  # the fleet refuses nothing outside a test
