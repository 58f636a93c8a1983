"""What a known defect leaves of an unplugged device is explained so far, and no further."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from harness.guest.census import Census
from harness.host.host import Facts
from suites.hotplug.left import unexplained

QUEUE, VIOMMU = "iommufd_viommu_alloc_eventq", "iommufd_backend_alloc_viommu"
HWPT, VDEVICE = "iommufd_backend_alloc_hwpt", "iommufd_backend_alloc_vdev"
BEFORE = Census(
    objects=Counter({HWPT: 3}),
    stuck=Counter(),
    highest_id=9,
    descriptors=Counter({"socket:[N]": 5, "/dmabuf:": 2}),
    resident_kib=500_000,
    kernel_kib=40_000,
    vfio=(),
)
BUSY = "2026-11-29T00:00:00Z qemu-system-aarch64: Failed to free id: {} Device or resource busy"


def facts(qemu: str = "11.1.3") -> Facts:
    return Facts("7.3.4", qemu, "7.3.4", frozenset())


def stuck(**kinds: int) -> Census:
    names = {"queue": QUEUE, "viommu": VIOMMU, "hwpt": HWPT, "vdevice": VDEVICE}
    left = Counter({names[name]: count for name, count in kinds.items()})
    return replace(BEFORE, objects=BEFORE.objects + left, stuck=left)


def left(
    now: Census, *said: str, plugs: int = 20, dma_bufs: int = 0, qemu: str = "11.1.3"
) -> list[str]:
    return unexplained(facts(qemu), now, BEFORE, said, plugs=plugs, plugged_dma_bufs=dma_bufs)


def test_nothing_is_left() -> None:
    assert left(BEFORE) == []


@pytest.mark.parametrize(
    ("more", "plugged", "qemu", "explained"),
    [
        (2, 2, "11.1.3", True),
        (3, 2, "11.1.3", False),
        (1, 2, "11.1.3", True),
        (2, 2, "11.2.0", False),
    ],
    ids=["all-of-a-plug", "one-more", "fewer", "no-defect"],
)
def test_dma_bufs(more: int, plugged: int, qemu: str, explained: bool) -> None:
    now = replace(BEFORE, descriptors=BEFORE.descriptors + Counter({"/dmabuf:": more}))
    grown = f"descriptors: /dmabuf:: 2 to {2 + more}"
    assert left(now, dma_bufs=plugged, qemu=qemu) == ([] if explained else [grown])


@pytest.mark.parametrize(
    ("now", "messages", "explained"),
    [
        (stuck(queue=1, viommu=1), 2, True),
        (stuck(queue=1, viommu=1, hwpt=1), 3, True),
        (stuck(queue=2, viommu=2), 4, True),
        (stuck(queue=1, viommu=1), 3, False),
        (stuck(queue=1, viommu=1), 1, False),
        (stuck(viommu=1), 1, False),
        (stuck(queue=1, viommu=2), 3, False),
        (stuck(queue=1, viommu=1, hwpt=2), 4, False),
        (stuck(queue=1, viommu=1, vdevice=1), 3, False),
        (stuck(hwpt=1), 1, False),
    ],
)
def test_busy_objects(now: Census, messages: int, explained: bool) -> None:
    said = [BUSY.format(number) for number in range(messages)]
    found = left(now, *said)
    assert (found == []) is explained
    if not explained:
        assert found == [*now.growth(BEFORE), *said]


@pytest.mark.parametrize(
    ("queues", "plugs", "explained"), [(1, 2, True), (2, 2, False), (2, 20, True), (3, 20, False)]
)
def test_busy_queues_are_rare(queues: int, plugs: int, explained: bool) -> None:
    now = stuck(queue=queues, viommu=queues)
    said = [BUSY.format(number) for number in range(2 * queues)]
    assert (left(now, *said, plugs=plugs) == []) is explained


def test_what_qemu_did_not_want_to_free_is_never_explained() -> None:
    now = stuck(queue=1, viommu=1)
    now = replace(now, objects=now.objects + Counter([VIOMMU]))
    said = [BUSY.format(7), BUSY.format(5)]
    assert left(now, *said) == [f"IOMMU objects: {VIOMMU}: 0 to 1"]


def test_any_other_message_is_told() -> None:
    assert left(BEFORE, "qemu: something else") == ["qemu: something else"]
