"""What may happen to a run, when, and how the run must end.

To add a case, add one entry to CASES: what is done (actions.py), at which point of a run of which
test (suite.py), how the run must end and within which time, and what it must say. Each case then
asserts by itself that nothing is left behind and that the next run works.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from harness.report.blame import EXIT_STATUS, Blame
from tests.lab.chaos.actions import (
    Action,
    blink,
    cut_and_mend,
    cut_link,
    fill_here,
    fill_host,
    interrupt,
    interrupt_twice,
    kill_agent,
    kill_boundary,
    kill_guest,
    kill_harness,
    kill_host,
    kill_silicon,
    kill_sshd,
    kill_worker,
    out_of_memory,
    panic,
    reboot,
    restart_sshd,
    silence_for_long,
    silence_link,
    step_clock,
    step_host_clock,
    terminate_harness,
)


class Point(enum.Enum):
    """A moment of a run's life. stage.py and test_chaos.py know how it is recognised."""

    #: The run's environment is there, and pytest is about to start.
    START = "start"
    #: The agent is on the host, and the host is being probed.
    PROVISIONING = "provisioning"
    #: QEMU runs, and the guest is not at its prompt yet.
    BOOT = "boot"
    #: A test has all that it asked for, and runs.
    TEST = "test"
    #: A test has failed, and its evidence is being collected.
    EVIDENCE = "evidence"
    #: The agent is ending the session.
    TEAR_DOWN = "tear-down"


class Ends(enum.Enum):
    """How a run ends: its exit status, and the only part that is to blame."""

    GREEN = (0, "")
    PRODUCT = (EXIT_STATUS[Blame.PRODUCT], "product")
    HARNESS = (EXIT_STATUS[Blame.HARNESS], "harness")
    LAB = (EXIT_STATUS[Blame.LAB], "lab")
    INTERRUPTED = (2, "")
    KILLED = (-9, "")

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def blame(self) -> str:
        return self.value[1]


class Clean(enum.Enum):
    """When nothing of the run is left on the host any more."""

    AT_ONCE = 10.0
    #: Once the lease of a run that could not say farewell has run out.
    AFTER_LEASE = 60.0
    #: Once the next run has put right what nobody was left to put right.
    AFTER_NEXT = 0.0


class Reach(enum.Enum):
    """How a run reaches the host."""

    #: By its address, over a link that can break; nobody records its console.
    LINK = "link"
    #: By its name in lab.yaml, with its console.
    NAME = "name"
    #: By its name, and the host is down: the run boots it, and takes it down.
    OWN = "own"
    #: As by NAME; the host has a CMDQV.
    CMDQV = "cmdqv"


@dataclass(frozen=True)
class Case:
    """`action` is done at a point of a run of the suite's test `runs`; `ends` says how the run must
    end, within `seconds` after that. `says` are regular expressions that its report must match.
    `after` is the outcome of the test that the run has behind that one; None if it may be any, and
    "" if the run has no other."""

    action: Action
    point: Point
    runs: str
    ends: Ends
    seconds: float
    says: tuple[str, ...] = ()
    after: str | None = "passed"
    clean: Clean = Clean.AT_ONCE
    reach: Reach = Reach.LINK
    #: The folder of the run that is on a small disk of its own.
    disk: str | None = None
    #: Whether the run has a clock of its own.
    clock: bool = False
    options: tuple[str, ...] = ()
    #: Whether it is among the few cases that `make lab-test` plays.
    sample: bool = False

    def __str__(self) -> str:
        reach = "" if self.reach is Reach.LINK else f"-{self.reach.value}"
        return f"{self.action.__name__}-{self.point.value}-{self.runs}{reach}"


START, PROVISIONING, BOOT = Point.START, Point.PROVISIONING, Point.BOOT
TEST, EVIDENCE, TEAR_DOWN = Point.TEST, Point.EVIDENCE, Point.TEAR_DOWN
NAME, OWN, CMDQV = Reach.NAME, Reach.OWN, Reach.CMDQV
LEASE, NEXT = Clean.AFTER_LEASE, Clean.AFTER_NEXT

#: What reports say of a process that was killed, of a host that panicked, and of a full disk.
SIGKILL = r"signal 9 \(SIGKILL\)"
BOUNDARY = "the boundary of guest guest0 ended"
PANIC = "Kernel panic - not syncing: sysrq triggered crash"
FULL = "No space left on device"

CASES = [
    # The harness is killed: nobody is to blame. What it left ends with its lease, for which the
    # next run waits.
    Case(kill_harness, PROVISIONING, "opens", Ends.KILLED, 5, clean=NEXT),
    Case(kill_harness, BOOT, "boots", Ends.KILLED, 5, clean=LEASE),
    Case(kill_harness, TEST, "holds", Ends.KILLED, 5, clean=NEXT, sample=True),
    Case(kill_harness, TEST, "holds", Ends.KILLED, 5, reach=OWN),
    Case(kill_harness, EVIDENCE, "fails_with_guest", Ends.KILLED, 5, clean=NEXT),
    Case(kill_harness, TEAR_DOWN, "ends_slowly", Ends.KILLED, 5, clean=NEXT),
    Case(
        *(kill_worker, TEST, "holds", Ends.HARNESS, 90),
        says=("worker crashed: gw0",),
        options=("--numprocesses=1",),
    ),
    # Somebody interrupts it: it gives the host back, and blames nobody.
    Case(interrupt, PROVISIONING, "opens", Ends.INTERRUPTED, 40, sample=True),
    Case(interrupt, BOOT, "boots", Ends.INTERRUPTED, 40),
    Case(interrupt, TEST, "holds", Ends.INTERRUPTED, 30, sample=True),
    Case(interrupt, EVIDENCE, "fails_with_guest", Ends.INTERRUPTED, 40),
    Case(interrupt, TEAR_DOWN, "ends_slowly", Ends.INTERRUPTED, 30),
    Case(interrupt_twice, BOOT, "boots", Ends.INTERRUPTED, 40, clean=LEASE),
    Case(interrupt_twice, TEST, "holds", Ends.INTERRUPTED, 30, clean=LEASE, sample=True),
    Case(interrupt_twice, TEST, "holds", Ends.INTERRUPTED, 30, reach=OWN),
    Case(terminate_harness, TEST, "holds", Ends.INTERRUPTED, 30, sample=True),
    Case(terminate_harness, BOOT, "boots", Ends.INTERRUPTED, 40),
    # The agent dies, and with it everything that it has started.
    Case(kill_agent, PROVISIONING, "opens", Ends.LAB, 60, clean=NEXT),
    Case(kill_agent, BOOT, "boots", Ends.LAB, 60, clean=NEXT),
    Case(kill_agent, TEST, "holds", Ends.LAB, 60, clean=NEXT, sample=True),
    Case(kill_agent, TEAR_DOWN, "ends_slowly", Ends.LAB, 60, clean=NEXT),
    # A part of the product or of the harness dies on the host.
    Case(kill_guest, BOOT, "boots", Ends.PRODUCT, 60, says=(SIGKILL,)),
    Case(kill_guest, TEST, "holds_guest", Ends.PRODUCT, 60, says=(SIGKILL,)),
    Case(kill_guest, EVIDENCE, "fails_with_guest", Ends.PRODUCT, 60, says=("planted",)),
    Case(kill_boundary, BOOT, "boots_behind_boundary", Ends.HARNESS, 60, says=(BOUNDARY,)),
    Case(kill_boundary, TEST, "holds_guest_behind_boundary", Ends.HARNESS, 60, says=(BOUNDARY,)),
    Case(out_of_memory("guest"), TEST, "holds_guest", Ends.LAB, 60, says=("memory of host",)),
    Case(out_of_memory("agent"), TEST, "holds", Ends.LAB, 60, clean=NEXT),
    # The link is lost, for good or not. A silent host costs a timeout of 15 s for each attempt.
    Case(silence_link, PROVISIONING, "opens", Ends.LAB, 90, after="failed", clean=LEASE),
    Case(silence_link, BOOT, "boots", Ends.LAB, 240, after="", clean=LEASE),
    Case(silence_link, TEST, "holds", Ends.LAB, 240, after="failed", clean=LEASE),
    Case(silence_link, EVIDENCE, "fails", Ends.PRODUCT, 240, after="", clean=LEASE),
    Case(silence_link, TEAR_DOWN, "ends_slowly", Ends.LAB, 150, clean=LEASE),
    Case(cut_link, TEST, "holds", Ends.LAB, 90, after="failed", clean=LEASE),
    Case(cut_and_mend, TEST, "holds", Ends.GREEN, 40, sample=True),
    Case(cut_and_mend, BOOT, "boots", Ends.LAB, 60),
    Case(blink, TEST, "holds", Ends.GREEN, 60),
    Case(silence_for_long, TEST, "holds", Ends.LAB, 90),
    Case(restart_sshd, TEST, "holds", Ends.GREEN, 40),
    Case(kill_sshd, TEST, "holds", Ends.GREEN, 40, sample=True),
    # The host is gone. Only its console tells whether its kernel is to blame.
    Case(kill_host, PROVISIONING, "opens", Ends.LAB, 90, after="failed"),
    Case(kill_host, BOOT, "boots", Ends.LAB, 90, after="failed"),
    Case(kill_host, TEST, "holds", Ends.LAB, 90, after="failed"),
    Case(kill_host, TEST, "holds", Ends.LAB, 90, reach=NAME),
    Case(reboot, TEST, "holds", Ends.LAB, 90),
    Case(panic, TEST, "holds", Ends.LAB, 90, after="failed"),
    Case(panic, PROVISIONING, "opens", Ends.PRODUCT, 90, says=(PANIC,), reach=NAME),
    Case(panic, BOOT, "boots", Ends.PRODUCT, 90, says=(PANIC,), reach=NAME),
    Case(panic, TEST, "holds", Ends.PRODUCT, 90, says=(PANIC,), reach=NAME),
    Case(panic, TEAR_DOWN, "ends_slowly", Ends.PRODUCT, 90, says=(PANIC,), reach=NAME),
    # Clocks are set.
    Case(step_host_clock(1), TEST, "holds", Ends.GREEN, 40, sample=True),
    Case(step_host_clock(-1), TEST, "holds_guest", Ends.GREEN, 40),
    Case(step_clock(1), TEST, "holds", Ends.GREEN, 40, clock=True),
    Case(step_clock(-1), TEST, "holds", Ends.GREEN, 40, clock=True, sample=True),
    # Disks are full.
    # An agent that cannot write down what came of its undos leaves them to the next one.
    Case(
        *(fill_host("/run"), START, "opens", Ends.LAB, 60),
        says=(FULL,),
        after="failed",
        clean=NEXT,
        sample=True,
    ),
    Case(fill_host("/run"), TEST, "writes", Ends.LAB, 60, says=(FULL,), after=None, clean=NEXT),
    Case(
        *(fill_host("/run"), TEST, "holds_then_boots", Ends.LAB, 90),
        says=(FULL,),
        after=None,
        clean=NEXT,
    ),
    Case(fill_host("/tmp"), TEST, "copies", Ends.GREEN, 60),
    Case(
        *(fill_here("out"), TEST, "holds", Ends.LAB, 60),
        says=(FULL, "test_holds"),
        disk="out",
        sample=True,
    ),
    Case(
        *(fill_here("out"), TEST, "holds_and_fails", Ends.PRODUCT, 60),
        says=(FULL, "planted"),
        disk="out",
    ),
    Case(
        *(fill_here("cache"), START, "opens", Ends.LAB, 60),
        says=(FULL,),
        after="failed",
        disk="cache",
        sample=True,
    ),
    # The model of the CMDQV dies.
    Case(kill_silicon, BOOT, "boots_with_cmdqv", Ends.LAB, 120, reach=CMDQV),
    Case(kill_silicon, TEST, "holds_guest_with_cmdqv", Ends.LAB, 120, reach=CMDQV),
]
