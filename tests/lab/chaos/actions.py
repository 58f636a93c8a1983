"""What is done to a run. Each action is a function that takes the scene; what has to be put right
after the run, it registers with the scene's `afterwards`."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.waiting import wait_for
from tests.lab.chaos.run import Run
from tests.lab.chaos.stage import Stage

BOUNDARY = "/boundary.pyz"
QEMU = "qemu-system-aarch64"
#: The longest that a link may be silent without an effect: the lease lasts 30 s, and is renewed
#: every 7.5 s.
BLINK_SECONDS = 12.0
#: Longer than the lease.
LONG_SECONDS = 45.0


@dataclass
class Scene:
    """A run, and the host that it uses."""

    stage: Stage
    run: Run
    afterwards: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def file(self, pattern: str) -> Path | None:
        """Return the first file in the run's folder that matches, if there is one."""
        return next(self.run.folder.glob(pattern), None)


Action = Callable[[Scene], None]


# -- the harness ---------------------------------------------------------------------------------


def kill_harness(scene: Scene) -> None:
    """Kill pytest, as the machine's OOM killer does."""
    scene.run.process.kill()


def kill_worker(scene: Scene) -> None:
    """Kill the worker of pytest-xdist that runs a test."""
    (worker,) = psutil.Process(scene.run.process.pid).children()
    worker.kill()


def terminate_harness(scene: Scene) -> None:
    """End the run as a CI system does."""
    scene.run.process.terminate()


def interrupt(scene: Scene) -> None:
    """Press Ctrl-C."""
    scene.run.signal(signal.SIGINT)


def interrupt_twice(scene: Scene) -> None:
    """Press Ctrl-C, and again while the run gives its host back."""
    interrupt(scene)
    wait_for(
        "the run to give its host back",
        lambda: scene.file("cleaning") or scene.run.ended(),
        deadline=30,
        interval=0.01,
    )
    with contextlib.suppress(ProcessLookupError):
        interrupt(scene)


def step_clock(hours: int) -> Action:
    """Return an action that steps the clock of this machine as the run sees it."""

    def step(scene: Scene) -> None:
        (scene.run.folder / "clock").write_text(str(hours * 3600))

    step.__name__ = f"step_clock_{'forth' if hours > 0 else 'back'}"
    return step


# -- the link ------------------------------------------------------------------------------------


def silence_link(scene: Scene) -> None:
    """Lose the link without a word, for good."""
    scene.stage.relay.silence()
    scene.afterwards.callback(scene.stage.relay.mend)


def _silent(seconds: float) -> Action:
    def silence(scene: Scene) -> None:
        scene.stage.relay.silence()
        threading.Event().wait(seconds)
        scene.stage.relay.mend()

    return silence


def blink(scene: Scene) -> None:
    """Lose the link without a word, for less than the lease."""
    _silent(BLINK_SECONDS)(scene)


def silence_for_long(scene: Scene) -> None:
    """Lose the link without a word, for longer than the lease."""
    _silent(LONG_SECONDS)(scene)


def cut_link(scene: Scene) -> None:
    """Cut the link for good: connections are reset, and no new ones can be made."""
    scene.stage.relay.cut()
    scene.afterwards.callback(scene.stage.relay.mend)


def cut_and_mend(scene: Scene) -> None:
    """Reset all connections once."""
    scene.stage.relay.reset()


# -- processes on the host -----------------------------------------------------------------------


def kill_agent(scene: Scene) -> None:
    scene.stage.do("kill -9 $(cat /run/hil/*/agent.pid)")


def kill_guest(scene: Scene) -> None:
    """Kill the guest's QEMU, as a stranger does."""
    scene.stage.do(f"pkill -9 -x {QEMU[:15]}")


def kill_boundary(scene: Scene) -> None:
    scene.stage.do(f"pkill -9 -f '^[^ ]*python3 .*{BOUNDARY}'")


def restart_sshd(scene: Scene) -> None:
    """Restart the listening sshd, which leaves the connections that there are."""
    _sshd(scene, "pkill -x -o sshd")


def kill_sshd(scene: Scene) -> None:
    """Kill sshd and all its sessions, and start it again."""
    _sshd(scene, "pkill -9 sshd")


def _sshd(scene: Scene, end: str) -> None:
    again = "exec /usr/sbin/sshd -D -e 2>/dev/ttyAMA0"
    gone = "while pgrep -x sshd; do sleep 0.1; done"
    script = f"{end}; {gone}; {again}"
    scene.stage.do(f"setsid sh -c '{script}' >/dev/null 2>&1 </dev/null &")
    scene.stage.disconnect()

    def answers() -> bool:
        with contextlib.suppress(Exception):
            scene.stage.do("true")
            return True
        scene.stage.disconnect()
        return False

    wait_for("the host's sshd to answer again", answers, deadline=30, interval=0.2)


def out_of_memory(program: str) -> Action:
    """Return an action that has the host's kernel kill a program for its memory."""

    def kill(scene: Scene) -> None:
        find = {"agent": "cat /run/hil/*/agent.pid", "guest": f"pgrep -x {QEMU[:15]}"}[program]
        scene.stage.do(f"echo 1000 >/proc/$({find})/oom_score_adj && echo f >/proc/sysrq-trigger")

    kill.__name__ = f"out_of_memory_{program}"
    return kill


# -- the host ------------------------------------------------------------------------------------


def panic(scene: Scene) -> None:
    """Have the host's kernel panic."""
    _last_words(scene, "echo c >/proc/sysrq-trigger")


def reboot(scene: Scene) -> None:
    """Reboot the host without a word, and have it come back."""
    _last_words(scene, "echo b >/proc/sysrq-trigger")
    scene.stage.bring_back()


def kill_host(scene: Scene) -> None:
    """Kill the virtual host's own QEMU: to the run its host is gone without a word."""
    _kill(f"hil-{scene.stage.vm.name}")
    _gone(scene)


def kill_silicon(scene: Scene) -> None:
    """Kill the model of the host's CMDQV."""
    _kill("harness.virtual.silicon.process", str(scene.stage.vm.folder))


def _kill(*words: str) -> None:
    """Kill the process of this machine that has each of these words in an argument of its own."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if all(any(word in one for one in process.info["cmdline"] or []) for word in words)
    ]
    assert found, words
    for process in found:
        process.kill()


def _last_words(scene: Scene, command: str) -> None:
    scene.stage.do(f"setsid sh -c 'sleep 0.1; {command}' >/dev/null 2>&1 </dev/null &")
    scene.stage.disconnect()
    _gone(scene)


def _gone(scene: Scene) -> None:
    scene.stage.disconnect()
    vm = scene.stage.vm
    wait_for("the virtual host to be gone", lambda: not vm.running(), deadline=30)


def step_host_clock(hours: int) -> Action:
    """Return an action that steps the host's clock."""

    def step(scene: Scene) -> None:
        scene.stage.do(f"date -s '{hours:+d} hour'")

    step.__name__ = f"step_host_clock_{'forth' if hours > 0 else 'back'}"
    return step


# -- disks ---------------------------------------------------------------------------------------


def fill_host(folder: str) -> Action:
    """Return an action that fills a tmpfs of the host. 64 MiB of it take long enough to write."""

    def fill(scene: Scene) -> None:
        scene.stage.do(
            f"mount -o remount,size=64m {folder}; "
            f"dd if=/dev/zero of={folder}/full bs=64k 2>/dev/null; test -s {folder}/full"
        )
        empty = f"rm {folder}/full; mount -o remount,size=50% {folder}"
        scene.afterwards.callback(lambda: scene.stage.do(empty))

    fill.__name__ = f"fill_host_{folder.strip('/')}"
    return fill


def fill_here(folder: str) -> Action:
    """Return an action that fills the small disk of the run's `folder` on this machine."""

    def fill(scene: Scene) -> None:
        # The disk is in the mount namespace of the run.
        inside = Path(f"/proc/{scene.run.process.pid}/root{scene.run.folder / folder}")
        with contextlib.suppress(OSError), (inside / "full").open("wb", buffering=0) as file:
            while True:
                file.write(b"full" * 1024)

    fill.__name__ = f"fill_{folder}"
    return fill
