"""A behaviour can be checked on a host if one of its tests has there all that it needs; if none
has, what is missing is said in words."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.guest.choice import Needs
from harness.host.ability import ANY, DISK, FLOODER, READER, WRITER, of_role
from harness.lab.inventory import Device, HostEntry, Virtual
from harness.lab.offer import Offer, offer
from harness.report.behaviours import Behaviour
from harness.report.host_coverage import HostRow, host_coverage, judge
from harness.report.requirements import Requirement

ONE = Behaviour("VEQ-07", "one faulting DMA", "VEQ", "vEVENTQ")


def host(*devices: tuple[str, str]) -> Offer:
    """Return what a bare-metal host with these devices offers: pairs of address and role."""
    return offer(
        HostEntry.model_construct(
            name="grace-1",
            virtual=None,
            devices=tuple(Device(bdf=bdf, role=role) for bdf, role in devices),
        )
    )


def needing(*guests: Needs, capabilities: tuple[str, ...] = ()) -> Requirement:
    return Requirement("suites/test_x.py::test_x", (ONE.id,), capabilities, guests)


def row(offered: Offer, *tests: Requirement) -> HostRow:
    (found,) = host_coverage([ONE], tests, offered)
    return found


NVME, SECOND, ELSEWHERE = (f"{bdf}:00.0" for bdf in ("0002:03", "0002:04", "0009:01"))
TWO = host((NVME, "nvme"), (SECOND, "nvme"))


@pytest.mark.parametrize(
    ("guests", "lacking"),
    [
        ([((READER, FLOODER),)], None),
        ([((READER,),), ((FLOODER,),)], None),
        ([((READER, FLOODER, DISK),)], "one more device that can be a disk, behind the same SMMU"),
        ([((of_role("edu"),),)], "a device of role edu"),
        ([((ANY, ANY),), ((WRITER,),)], "one more device that can write"),
        ([((ANY,) * 4,)], "2 more devices, behind the same SMMU"),
        ([((of_role("igb"), ANY, of_role("igb")),)], "2 devices of role igb, behind the same SMMU"),
        ([()], None),
        ([((),)], None),
        ([], None),
    ],
)
def test_missing_devices_are_named(guests: list[Needs], lacking: str | None) -> None:
    assert judge(needing(*guests), TWO).missing == ((lacking,) if lacking else ())


def test_a_host_without_devices_runs_what_needs_none() -> None:
    assert judge(needing(((),)), host()).runs
    assert judge(needing(((ANY,),)), host()).missing == ("a device",)


def test_devices_of_one_segment_are_behind_one_smmu() -> None:
    both = needing(((READER, FLOODER),))
    apart = host((NVME, "nvme"), (ELSEWHERE, "nvme"))
    assert apart.guessed
    assert judge(both, TWO).runs
    assert not judge(both, apart).runs


def test_only_probing_tells_some_capabilities() -> None:
    found = judge(needing(capabilities=("cmdqv", "kprobe", "device:nvme")), TWO)
    assert found.runs
    assert found.unprobed == {"cmdqv", "kprobe"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cmdqv-model", "a CMDQV that is a model"),
        ("cmdqv-vintfs:2", "a model of a CMDQV with vintfs 2"),
        ("device:igb", "a device of role igb"),
        ("no-cmdqv", "no Tegra241 CMDQV"),
        ("snapshot", "snapshots of the whole host"),
        ("exact-events", "an SMMU that merges no events and leaves no field of a record UNKNOWN"),
        ("telepathy", "telepathy"),
    ],
)
def test_missing_capabilities_are_named(name: str, words: str) -> None:
    assert judge(needing(capabilities=(name,)), TWO).missing == (f"capability {name}: {words}",)


def test_a_virtual_host_has_what_it_is_built_with() -> None:
    built = offer(HostEntry(name="one", virtual=Virtual()))
    assert built.unprobed == {"memory-mib"}
    assert not built.guessed
    has = {"kvm", "kprobe", "small-queues", "huge-pages", "snapshot", "exact-events", "no-cmdqv"}
    assert built.capabilities == has | {"failslab", "selftests", "cpus:2"} | {
        f"device:{role}" for role in ("edu", "igb", "nvme", "iommu-testdev")
    }
    assert judge(needing(((READER, FLOODER, DISK),), ((READER, FLOODER, DISK),)), built).runs
    assert not judge(needing(*[((of_role("edu"),),)] * 3), built).runs


# -- rows ------------------------------------------------------------------------------------

RUNS, PROBED = needing(((READER,),)), needing(capabilities=("kprobe",))
EDU, MODEL = needing(((of_role("edu"),),)), needing(capabilities=("cmdqv-model",))
BOTH = needing(((of_role("edu"),),), capabilities=("cmdqv-model",))


@pytest.mark.parametrize(
    ("tests", "text"),
    [
        ((), "no test"),
        ((RUNS,), "runs (1 of 1 tests)"),
        ((RUNS, EDU, PROBED), "runs (2 of 3 tests)"),
        ((EDU, PROBED), "runs (1 of 2 tests), if probing finds kprobe"),
        ((EDU, EDU), "a device of role edu"),
        ((BOTH,), "capability cmdqv-model: a CMDQV that is a model and a device of role edu"),
        ((BOTH, EDU), "a device of role edu"),
        ((MODEL, EDU), "capability cmdqv-model: a CMDQV that is a model; or a device of role edu"),
    ],
)
def test_a_row_says_what_runs_or_what_is_missing(tests: tuple[Requirement, ...], text: str) -> None:
    assert str(row(TWO, *tests)) == text


def test_a_behaviour_that_nobody_knows_is_refused() -> None:
    with pytest.raises(HarnessError, match="test_x covers VEQ-07, which is not in the catalogue"):
        host_coverage([], [RUNS], TWO)
