"""A guest works and leaks nothing while actions on it follow in random order, for a given time.

make soak MINUTES=60
make soak MINUTES=60 SEED=1234      repeats the order of an earlier run
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from harness.devices import kind, source_of
from harness.devices.dma import DOORBELLS
from harness.devices.nvme import Disk
from harness.devices.source import FaultSource
from harness.errors import ProductError
from harness.fixtures.soak import Soak
from harness.guest.census import Census, Counting
from harness.guest.description import AssignedDevice, GuestSpec, SmmuSpec
from harness.guest.guest import Guest
from harness.guest.hotplug import eject, plug, unplug, wait_ready
from harness.host.ability import ANY, DISK, FLOODER, Ability
from harness.host.host import Host
from harness.progress import Progress
from harness.steps import step
from suites.hotplug.left import BUSY, dma_bufs, unexplained

#: Three SMMUs, one with a CMDQV. One device of that and of another stays plugged; the third one's
#: only device comes and goes, and QEMU's vIOMMU with it.
GUEST = GuestSpec(
    smmus=(
        SmmuSpec(devices=(ANY,), hot=(ANY, DISK), properties=(("cmdqv", "on"),)),
        SmmuSpec(devices=(FLOODER,), hot=(ANY, DISK)),
        SmmuSpec(hot=(ANY,), properties=(("cmdqv", "off"),)),
    ),
    cpus=2,
)
STORM_EVENTS = 4096


class Soaker:
    """Perform actions on a guest in a random order that a seed determines."""

    def __init__(self, guest: Guest, seed: int) -> None:
        self.guest, self.seed, self.random = guest, seed, random.Random(seed)
        self.hot = [device for device in guest.devices if not device.cold]
        self.plugged: list[AssignedDevice] = []
        #: How often each device was plugged, and how many dma-bufs come with it, by its id.
        self.plugs: Counter[str] = Counter()
        self.dma_bufs: Counter[str] = Counter()
        self.rounds = 0
        #: The names of the actions of the current round so far.
        self.done: list[str] = []
        self.actions: list[Callable[[], None]] = [
            *([self.plug] * 4),
            *([self.eject] * 2),
            *([self.fault] * 4),
            *([self.data] * 2),
            *(self.unplug, self.storm, self.pause, self.reboot),
        ]

    def round(self, until: float) -> None:
        """Perform all actions in a random order, then eject what is still plugged. Begin no action
        at `until` or later (seconds of the monotonic clock)."""
        self.rounds, self.done = self.rounds + 1, []
        for action in self.random.sample(self.actions, len(self.actions)):
            if time.monotonic() >= until:
                break
            self.done.append(action.__name__)
            action()
        if self.plugged:
            eject(self.guest, *self.plugged)
            self.plugged = []

    @contextlib.contextmanager
    def replayable(self) -> Iterator[None]:
        """Add a note to any error of the body: the seed, and the actions of the round so far."""
        try:
            yield
        except Exception as problem:
            done = " ".join(self.done)
            problem.add_note(f"repeat with --soak-seed={self.seed}; of round {self.rounds}: {done}")
            raise

    def count_dma_bufs(self, counting: Counting) -> None:
        """Plug each device alone, and note how many dma-bufs come with it."""
        for device in self.hot:
            before = dma_bufs(counting.take())
            self._plug(device)
            self.dma_bufs[device.id] = dma_bufs(counting.take()) - before
            eject(self.guest, device)

    def plugged_dma_bufs(self) -> int:
        """Return how many dma-bufs came with devices so far."""
        return sum(self.dma_bufs[name] * times for name, times in self.plugs.items())

    def census(self, counting: Counting) -> Census:
        """Count what the guest holds, always after the same work, so that counts can be
        compared."""
        counting.take()
        self._plug(*self.hot)
        eject(self.guest, *self.hot)
        return counting.take()

    # -- actions ---------------------------------------------------------------------------

    def _writers(self) -> list[AssignedDevice]:
        """Return the devices that the guest has and that can write, except its disks: a device
        that performs DMA for us is taken from the driver that makes it a disk."""
        present = [device for device in self.guest.devices if device.cold] + self.plugged
        return [
            device
            for device in present
            if device.need != DISK and Ability.WRITE in kind(device.role).can
        ]

    def _plug(self, *devices: AssignedDevice) -> None:
        self.plugs.update(device.id for device in devices)
        plug(self.guest, *devices)

    def plug(self) -> None:
        away = [device for device in self.hot if device not in self.plugged]
        if away:
            chosen = self.random.sample(away, self.random.randint(1, min(2, len(away))))
            self._plug(*chosen)
            self.plugged += chosen

    def _take_one(self) -> AssignedDevice:
        return self.plugged.pop(self.random.randrange(len(self.plugged)))

    def eject(self) -> None:
        if self.plugged:
            eject(self.guest, self._take_one())

    def unplug(self) -> None:
        if self.plugged:
            unplug(self.guest, self._take_one())

    def _faults(self, source: FaultSource, count: int) -> None:
        step_bytes = max(source.grain, source.alignment)
        dma = source.burst(count, self.random.randrange(DOORBELLS.stop, 1 << 36, step_bytes))
        queue = self.guest.event_queue(source.assigned.smmu)
        mark = queue.mark()
        source.perform(dma)
        queue.expect(source.expected(dma), mark, deadline=30)

    def fault(self) -> None:
        device = self.random.choice(self._writers())
        self._faults(source_of(self.guest, device, Ability.WRITE), self.random.randint(1, 256))

    def storm(self) -> None:
        device = self.guest.device(FLOODER)
        source = source_of(self.guest, device, Ability.WRITE, Ability.FLOOD)
        self._faults(source, STORM_EVENTS)

    def data(self) -> None:
        for device in self.plugged:
            if device.need == DISK:
                disk, at = Disk(self.guest, device), self.random.randrange(200)
                written = disk.write_random(mib=1, at_mib=at)
                if disk.digest(mib=1, at_mib=at) != written:
                    raise ProductError(f"{device.id}: what was written at {at} MiB is not there")

    def pause(self) -> None:
        self.guest.monitor.execute("stop")
        self.guest.monitor.execute("cont")

    def reboot(self) -> None:
        self.guest.console.send("reboot -f")
        self.guest.wait_ready()
        for device in self.plugged:
            wait_ready(self.guest, device)


@pytest.mark.covers("HOT-03", "VEQ-16")
@pytest.mark.needs("cmdqv")
@pytest.mark.guest(GUEST)
def test_soak(guest: Guest, host: Host, soak: Soak, progress: Progress) -> None:
    soaker, counting = Soaker(guest, soak.seed), Counting(guest)
    until = time.monotonic() + soak.seconds
    with progress.step(f"soak, seed {soak.seed}", soak.seconds), soaker.replayable():
        # QEMU and the kernel keep some objects from the first use on; they are no leak.
        soaker.round(until)
        soaker.count_dma_bufs(counting)
        first, dma_bufs_then = soaker.census(counting), soaker.plugged_dma_bufs()
        early = guest.qemu_messages()
        assert [one for one in early.splitlines() if not BUSY.explains(one)] == []
        # Even a short soak compares two counts.
        while soaker.rounds == 1 or time.monotonic() < until:
            with step(f"soak, round {soaker.rounds + 1}"):
                soaker.round(until)
                now = soaker.census(counting)
            said = guest.qemu_messages()[len(early) :].splitlines()
            came = soaker.plugged_dma_bufs() - dma_bufs_then
            leaks = unexplained(
                host.facts, now, first, said, plugs=soaker.plugs.total(), plugged_dma_bufs=came
            )
            if leaks:
                raise ProductError("\n".join(leaks))
