"""One pattern for a kernel's reports of its own problems works in Python and in grep."""

from __future__ import annotations

import re
import subprocess

import pytest

from harness import kernel_log

CRASHES = [
    "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    "Internal error: synchronous external abort: 0000000096000010 [#1] SMP",
    "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
    "BUG: KASAN: slab-use-after-free in iommufd_veventq_fops_read+0x20/0x30",
    "rcu: INFO: rcu_sched self-detected stall on CPU",
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:1]",
    "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1",
    "INFO: task kworker/0:1:12 blocked for more than 120 seconds.",
    "kernel BUG at drivers/iommu/iommufd/main.c:12!",
    "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-... } 21 jiffies s: 1",
    "SError Interrupt on CPU2, code 0x00000000be000011 -- SError",
]
BUGS = [
    "WARNING: CPU: 0 PID: 1 at drivers/iommu/iommufd/main.c:1 iommufd_fops_release+0x1/0x2",
    "WARNING: drivers/iommu/iommufd/main.c:1 at iommufd_fops_release+0x1/0x2, CPU#0: qemu/71",
    "WARNING: possible circular locking dependency detected",
    "refcount_t: underflow; use-after-free.",
    "UBSAN: array-index-out-of-bounds in drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c:1:2",
    "BUG kmalloc-64 (Tainted: G    B): Poison overwritten",
    "list_del corruption. prev->next should be ffff000003, but was ffff000004",
]
HARMLESS = [
    "arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:",
    "EFI stub: Booting Linux Kernel...",
    "rcu: Hierarchical RCU implementation.",
    "Kernel command line: panic=-1 oops=panic",
    '"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.',
    # A kernel whose memory is used up shows where it was, which is no bug.
    "Call trace:",
    "Out of memory: Killed process 312 (qemu-system-aar) total-vm:1024kB, anon-rss:10kB",
]


def found(pattern: str, lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the lines that Python finds, and those that grep finds."""
    text = "\n".join(lines)
    grep = ["grep", "-E", pattern]
    ended = subprocess.run(grep, input=text, capture_output=True, text=True, check=False)
    return [line for line in lines if re.search(pattern, line)], ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [(kernel_log.CRASH, CRASHES), (kernel_log.BUG, CRASHES + BUGS)],
    ids=["crash", "bug"],
)
def test_python_and_grep_find_the_same(pattern: str, lines: list[str]) -> None:
    everything = CRASHES + BUGS + HARMLESS
    assert found(pattern, everything) == (lines, lines)


def test_a_process_that_was_killed_for_its_memory_is_named() -> None:
    found = re.search(kernel_log.OUT_OF_MEMORY, HARMLESS[-1])
    assert found
    assert found.groups() == ("312", "qemu-system-aar")
