"""Nearly all behaviours can be checked on the bare-metal host of the example inventory, and
docs/lab.md says how many on hosts with less."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.checkout import SUITES
from harness.host.capability import words
from harness.lab import inventory
from harness.lab.inventory import Device
from harness.lab.offer import Offer, offer
from harness.report import behaviours
from harness.report.host_coverage import HostRow, host_coverage
from harness.report.requirements import Requirement, requirements

ROOT = Path(__file__).parents[1]
LAB = ROOT / "lab-inventory" / "grace.example.yaml"
ENTRY = inventory.load(LAB).host()
EXAMPLE = offer(ENTRY)
FEWEST = 60

SEGMENT, OTHER = "0002", "0009"


def with_devices(*devices: tuple[str, str]) -> Offer:
    """Return what the host of the example offers with other devices: pairs of segment and role."""
    listed = tuple(
        Device(bdf=f"{segment}:{bus:02x}:00.0", role=role)
        for bus, (segment, role) in enumerate(devices, start=1)
    )
    return offer(ENTRY.model_copy(update={"devices": listed}))


def without(capability: str) -> Offer:
    """Return what the host of the example offers if probing does not find a capability."""
    assert capability in EXAMPLE.unprobed
    return replace(EXAMPLE, unprobed=EXAMPLE.unprobed - {capability})


NVME, IGB = (SEGMENT, "nvme"), (SEGMENT, "igb")
#: Each row of the table in docs/lab.md.
HOSTS = {
    "no device": with_devices(),
    "one NVMe drive": with_devices(NVME),
    "one NVMe drive and an igb NIC behind one SMMU": with_devices(NVME, IGB),
    "two NVMe drives behind one SMMU": with_devices(NVME, NVME),
    "two NVMe drives behind two SMMUs": with_devices(NVME, (OTHER, "nvme")),
    "two NVMe drives and an igb NIC behind one SMMU": with_devices(NVME, NVME, IGB),
    "three NVMe drives behind one SMMU": with_devices(NVME, NVME, NVME),
    "the same, and a fourth drive or an igb NIC behind any SMMU": with_devices(
        NVME, NVME, NVME, (OTHER, "igb")
    ),
    "the example: the same, and both": EXAMPLE,
    "the example without a guest kernel with small queues": without("small-queues"),
    "the example without kernel probes": without("kprobe"),
    "the example without a CMDQV": without("cmdqv"),
}


@pytest.fixture(scope="module")
def tests() -> list[Requirement]:
    """Return what the tests of the suites need on the host of the example."""
    return requirements(SUITES, LAB, ENTRY.name)


def rows(tests: Sequence[Requirement], offered: Offer) -> list[HostRow]:
    return host_coverage(behaviours.catalogue().values(), tests, offered)


def running(tests: Sequence[Requirement], offered: Offer) -> int:
    """Return how many behaviours can be checked on a host."""
    return sum(bool(row.running) for row in rows(tests, offered))


def test_nearly_all_behaviours_can_be_checked(tests: list[Requirement]) -> None:
    missing = [f"{row.behaviour.id}: {row}" for row in rows(tests, EXAMPLE) if not row.running]
    assert running(tests, EXAMPLE) >= FEWEST, "\n".join(missing)


def test_every_behaviour_can_be_checked_on_the_virtual_hosts(tests: list[Requirement]) -> None:
    """The virtual hosts together have all that any test needs."""
    virtual = inventory.load(ROOT / "lab-inventory" / "virtual.yaml")
    never = {one.test for one in tests}
    for entry in virtual.hosts:
        there = rows(tests, offer(entry))
        never -= {verdict.test for row in there for verdict in row.running}
    assert never == set()


def test_every_capability_is_known(tests: list[Requirement]) -> None:
    asked = {name for one in tests for name in one.capabilities}
    assert {name for name in asked if words(name) == name} == set()


def test_the_documentation_names_what_the_look_alike_cannot_run(tests: list[Requirement]) -> None:
    lookalike = inventory.load(ROOT / "lab-inventory" / "lookalike.yaml").host()
    never = {row.behaviour.id for row in rows(tests, offer(lookalike)) if not row.running}
    page = (ROOT / "docs" / "lab.md").read_text()
    section = page.partition("cannot run on it:")[2].partition(". ")[0]
    assert set(re.findall(r"[A-Z]+-\d+", section)) == never


def test_the_documentation_has_the_numbers(tests: list[Requirement]) -> None:
    page = (ROOT / "docs" / "lab.md").read_text()
    section = page.partition("## What to plug in")[2].partition("\n## ")[0]
    said = re.findall(r"^\| .+ \| \d+ \|$", section, re.MULTILINE)
    right = [f"| {what} | {running(tests, offered)} |" for what, offered in HOSTS.items()]
    assert said == right, "\n".join(["the table is:", *right])
    total = str(len(behaviours.catalogue()))
    assert re.findall(r"of (\d+) behaviours", section) == [total] * 2


# -- the command -------------------------------------------------------------------------------


def coverage(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "coverage", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_a_row_for_each_behaviour(tests: list[Requirement]) -> None:
    ended = coverage(f"--host={ENTRY.name}", f"--lab={LAB}")
    assert ended.returncode == 0, ended.stderr
    head, *lines = ended.stdout.splitlines()
    assert head.split()[-2:] == ["on", ENTRY.name]
    assert [line.split()[0] for line in lines if re.match("[A-Z]+-[0-9]+ ", line)] == [
        *behaviours.catalogue()
    ]
    count, total = running(tests, EXAMPLE), len(behaviours.catalogue())
    assert lines[-1] == f"{count} of {total} behaviours can run on {ENTRY.name}"
    assert lines[-2] == "devices of one PCI segment are assumed to be behind one SMMU"
    assert "only if probing finds small-queues, a guest kernel with small queues: VEQ-14" in lines


def test_the_command_prints_json(tests: list[Requirement]) -> None:
    ended = coverage(f"--host={ENTRY.name}", f"--lab={LAB}", "--json")
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sum(one["runs"] for one in said) == running(tests, EXAMPLE)
    (full,) = (one for one in said if one["id"] == "VEQ-14")
    assert full["host"] == ENTRY.name
    ((test),) = full["tests"]
    assert (test["missing"], test["unprobed"]) == ([], ["small-queues"])


def test_an_unknown_host_is_refused() -> None:
    ended = coverage("--host=nobody", f"--lab={LAB}")
    assert ended.returncode == 2
    assert "lab grace has no host nobody" in ended.stderr
