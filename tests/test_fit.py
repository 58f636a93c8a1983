"""A test runs on hosts that have what it needs, and on the least special of them, wherever they are
in the inventory."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.checkout import DEFAULT_LAB
from harness.errors import LabError
from harness.host.capability import met, words
from harness.host.host import Facts, Host, HostDescription
from harness.lab.fit import fitting
from harness.lab.inventory import CmdqvEntry, Device, HostEntry, Virtual, load
from harness.lab.offer import ask, offer
from harness.progress import Progress

PLAIN = {"vgrace", "vgrace-2"}
VIRTUAL = [offer(entry) for entry in load(DEFAULT_LAB).hosts]


@pytest.mark.parametrize(
    ("needed", "hosts"),
    [
        ((), PLAIN),
        (("snapshot", "kprobe"), PLAIN),
        (("no-cmdqv",), PLAIN),
        (("cmdqv",), {"vgrace-cmdqv"}),
        (("cmdqv-model", "huge-pages"), {"vgrace-cmdqv"}),
        (("cmdqv-vintfs:2",), {"vgrace-one-guest"}),
        (("cmdqv-vintfs:4", "cmdqv-vcmdqs:4"), {"vgrace-few-queues"}),
        (("cmdqv-sids:8",), {"vgrace-few-sids"}),
        (("cmdqv-sids<=8",), {"vgrace-few-sids"}),
        (("cmdqv", "cmdqv-vcmdqs>=8"), {"vgrace-cmdqv"}),
        (("cmdqv-version:2",), {"vgrace-other-version"}),
        (("iommufd-test", "huge-pages"), {"vgrace-debug"}),
        (("failslab",), PLAIN),
        (("slab-poisoning",), {"vgrace-debug"}),
        (("telepathy",), {"vgrace"}),
    ],
)
def test_what_needs_a_special_host_finds_it_and_nothing_else_does(
    needed: tuple[str, ...], hosts: set[str]
) -> None:
    assert set(fitting(needed, (), VIRTUAL)) == hosts
    assert set(fitting(needed, (), [*VIRTUAL[:1], *VIRTUAL[:0:-1]])) == hosts


def real(name: str, *roles: str, **more: object) -> HostEntry:
    devices = tuple(
        Device(bdf=f"0002:{bus + 1:02x}:00.0", role=role) for bus, role in enumerate(roles)
    )
    given = {"name": name, "address": f"{name}.lab", "key": "/key", "known_hosts": "/known"}
    return HostEntry.model_validate({**given, "devices": devices, **more})


def test_what_is_special_stays_free() -> None:
    rich, poor = real("rich", "nvme", "igb", "edu"), real("poor", "nvme")
    offers = [offer(one, ["kprobe", "cmdqv"]) for one in (rich, poor)]
    assert fitting(("device:nvme",), (), offers) == ("poor", "rich")
    assert fitting(("device:igb",), (), offers) == ("rich",)
    assert fitting(("kprobe",), (), offers) == ("poor", "rich")


def test_a_host_can_be_kept_for_few_tests() -> None:
    kept, other = real("kept", tags=["slow"], only_for=["tag:slow", "cmdqv"]), real("other")
    offers = [offer(kept, ["cmdqv"]), offer(other, ["cmdqv"])]
    assert fitting((), (), offers) == ("other",)
    assert fitting(("tag:slow",), (), offers) == ("kept",)
    assert set(fitting(("cmdqv",), (), offers)) == {"kept", "other"}
    # A lab that has no other hosts uses them.
    assert fitting((), (), offers[:1]) == ("kept",)


@pytest.mark.parametrize(
    ("virtual", "kept"),
    [
        (Virtual(), set()),
        (Virtual(cmdqv=CmdqvEntry()), set()),
        (Virtual(cmdqv=CmdqvEntry(sids=4, version=3)), {"cmdqv-sids:4", "cmdqv-version:3"}),
        (Virtual(debug_kernel=True), {"iommufd-test", "slab-poisoning"}),
    ],
)
def test_a_virtual_host_that_is_odd_is_kept(virtual: Virtual, kept: set[str]) -> None:
    assert HostEntry(name="odd", virtual=virtual).kept_for == kept
    assert not HostEntry(name="odd", virtual=virtual, only_for=()).kept_for


def test_a_probed_host_is_better_than_one_that_may_have_it() -> None:
    silent, lacking, has = (real(name, "nvme") for name in ("silent", "lacking", "has"))
    offers = [offer(silent), offer(lacking, ["kprobe"]), offer(has, ["cmdqv", "kprobe"])]
    assert fitting(("cmdqv",), (), offers) == ("has", "silent")
    assert fitting(("cpus>=4",), (), offers) == ("silent",)


def test_hosts_are_asked_and_one_that_does_not_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(description: HostDescription) -> Facts:
        if description.name == "gone":
            raise LabError("no route to it")
        return Facts("7.2", "11.1", "7.2", frozenset({"kprobe", f"tag:{description.name}"}))

    monkeypatch.setattr(Host, "look", look)
    entries = [real("here"), real("gone"), HostEntry(name="virtual", virtual=Virtual())]
    assert ask(entries, Progress()) == {"here": ["kprobe", "tag:here"]}
    assert "host gone does not say what it has: no route to it" in capsys.readouterr().err
    assert ask(entries[2:], Progress()) == {}


@pytest.mark.parametrize(
    ("need", "is_met"),
    [
        ("cpus:8", True),
        ("cpus>=8", True),
        ("cpus>=9", False),
        ("cpus<=8", True),
        ("cpus<=7", False),
        ("cpus", False),
        ("cmdqv-vintfs>=2", True),
        ("device>=1", False),
        ("telepathy>=1", False),
    ],
)
def test_sizes_are_numbers(need: str, is_met: bool) -> None:
    assert met(need, {"cpus:8", "cmdqv-vintfs:4", "device:igb"}) is is_met


def test_needs_are_told_in_words() -> None:
    assert words("cpus>=8") == "CPUs, at least 8"
    assert words("memory-mib:4096") == "memory in MiB, 4096"
    assert words("cmdqv-sids<=8") == "StreamIDs of a model of a CMDQV, at most 8"
    assert words("tag:slow") == "the tag slow in the inventory"


def test_tags_are_words(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("lab: mine\nhosts:\n- name: one\n  virtual: {}\n  tags: [Not a word]\n")
    with pytest.raises(LabError, match="tags"):
        load(file)
    file.write_text("lab: mine\nhosts:\n- name: one\n  virtual: {}\n  tags: [rack-3]\n")
    (entry,) = load(file).hosts
    assert "tag:rack-3" in offer(entry).capabilities
