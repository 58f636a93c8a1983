"""A comparison of two counts reports what grew, and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import LabError, ProductError
from harness.guest import census
from harness.guest.census import ID_SLACK, MEMORY_KIB, STUCK, Census, Held, note
from harness.smmu import trace

BEFORE = Census(
    objects=Counter({"iommufd_backend_alloc_hwpt": 3}),
    stuck=Counter(),
    highest_id=9,
    descriptors=Counter({"socket:[N]": 5, "/dmabuf:": 1}),
    resident_kib=500_000,
    kernel_kib=40_000,
    vfio=("/sys/class/vfio-dev/vfio0",),
)


def test_the_same_is_no_growth() -> None:
    assert BEFORE.growth(BEFORE) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            {"objects": Counter({"iommufd_backend_alloc_hwpt": 4})},
            "IOMMU objects: iommufd_backend_alloc_hwpt: 3 to 4",
        ),
        (
            {"objects": BEFORE.objects + Counter(["iommufd_viommu_alloc_eventq"])},
            "IOMMU objects: iommufd_viommu_alloc_eventq: 0 to 1",
        ),
        ({"highest_id": 10 + ID_SLACK}, f"highest IOMMU object: 9 to {10 + ID_SLACK}"),
        (
            {"descriptors": Counter({"socket:[N]": 5, "/dmabuf:": 3})},
            "descriptors: /dmabuf:: 1 to 3",
        ),
        (
            {"resident_kib": 500_001 + MEMORY_KIB},
            f"QEMU's memory: 500000 to {500_001 + MEMORY_KIB} KiB",
        ),
        (
            {"kernel_kib": 40_001 + MEMORY_KIB},
            f"the kernel's memory: 40000 to {40_001 + MEMORY_KIB} KiB",
        ),
        ({"vfio": ()}, "vfio devices: ('/sys/class/vfio-dev/vfio0',) to ()"),
    ],
)
def test_growth_is_told(now: dict[str, object], said: str) -> None:
    assert replace(BEFORE, **now).growth(BEFORE) == [said]  # type: ignore[arg-type]


def test_what_is_less_is_not() -> None:
    less = replace(BEFORE, descriptors=Counter({"socket:[N]": 4}), resident_kib=1, highest_id=1)
    assert less.growth(BEFORE) == []
    assert replace(BEFORE, highest_id=9 + ID_SLACK).growth(BEFORE) == []


def test_what_could_not_be_freed_is_still_there() -> None:
    alive: dict[int, str] = {}
    stuck: set[int] = set()
    said = [
        "iommufd_viommu_alloc_eventq iommufd=25 viommu_id=4 type=1 veventq_id=7 veventq_fd=32 (0)",
        "iommufd_backend_alloc_vdev iommufd=25 dev_id=1 viommu_id=4 virt_id=0x2200 vdev_id=8 (0)",
        "iommufd_backend_alloc_vdev iommufd=25 dev_id=1 viommu_id=4 virt_id=0x2300 vdev_id=9 (-1)",
        "iommufd_backend_free_id iommufd=25 id=8 (0)",
        "iommufd_backend_free_id iommufd=25 id=7 (-16)",
        # An object of no kind that is counted, such as an IOAS.
        "iommufd_backend_free_id iommufd=25 id=2 (-16)",
    ]
    assert note(trace.parse(said), alive, stuck) == 8
    assert alive == {7: "iommufd_viommu_alloc_eventq"}
    assert stuck == {7}
    assert note(trace.parse(["iommufd_backend_free_id iommufd=25 id=7 (0)"]), alive, stuck) == 0
    assert (alive, stuck) == ({}, set())


def test_what_is_stuck_has_lines_of_its_own_and_explains_no_more_than_itself() -> None:
    queue = "iommufd_viommu_alloc_eventq"
    now = replace(
        BEFORE,
        objects=BEFORE.objects + Counter({queue: 2}),
        stuck=Counter({queue: 1}),
        highest_id=10 + ID_SLACK,
    )
    assert now.growth(BEFORE) == [
        f"IOMMU objects: {queue}: 0 to 1",
        f"{STUCK}: {queue}: 0 to 1",
    ]
    assert now.growth(replace(BEFORE, highest_id=8))[-1] == (
        f"highest IOMMU object: 8 to {10 + ID_SLACK}"
    )


# -- the host's answer ---------------------------------------------------------------------------

SAID = """\
file socket:[4711]
file socket:[4712]
file /tmp/9 kB
VmRSS:\t  500000 kB
SUnreclaim:       40000 kB
vfio /sys/class/vfio-dev/vfio0
"""


def test_what_the_host_says_is_counted() -> None:
    assert Held.of(SAID) == Held(
        Counter({"socket:[N]": 2, "/tmp/N kB": 1}), 500_000, 40_000, ("/sys/class/vfio-dev/vfio0",)
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("VmRSS:\t  500000 kB\n", ""), "has no VmRSS"),
        (("SUnreclaim:       40000", "SUnreclaim: many"), "an unknown line: 'SUnreclaim: many kB'"),
        (("file ", "ls: cannot open "), "an unknown line: 'ls: cannot open "),
    ],
)
def test_an_answer_with_a_hole_is_refused(change: tuple[str, str], said: str) -> None:
    assert change[0] in SAID
    with pytest.raises(LabError, match=said):
        Held.of(SAID.replace(*change))


@given(st.integers(0, len(SAID)), st.integers(0, len(SAID)), st.text(max_size=5))
def test_damaged_answers_raise_only_what_is_documented(start: int, end: int, text: str) -> None:
    with contextlib.suppress(LabError):
        Held.of(SAID[:start] + text + SAID[end:])


def test_the_host_is_asked_for_what_is_read() -> None:
    """This process is counted here, as QEMU is on a host."""
    command = census._HELD.format(pid=os.getpid())
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    held = Held.of(said)
    assert held.descriptors
    assert held.resident_kib > 1000
    assert held.kernel_kib > 1000


def test_a_damaged_line_of_the_trace_is_quoted() -> None:
    line = "iommufd_backend_free_id iommufd=25 i (0)"
    with pytest.raises(ProductError, match=r"without a number id: .* i \(0\)"):
        note(trace.parse([line]), {}, set())
