"""Run streams of random input against a part of the project, and say what became of them.

A stream is made from a seed of its own: the first from the campaign's, each further one from the
next number. So `--messages 1 --seed N` repeats the one stream that failed.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

#: The most seconds that a stream may take, of the processor's time and of the wall clock's. The
#: second is longer because the machine may have other things to do. Whoever waits for a socket has
#: a timeout of a second there.
LONGEST_WORK, LONGEST_WAIT = 1.0, 30.0
#: How much memory a campaign may take, in MiB, beyond what it has after its first streams.
MOST_GROWTH, FIRST_STREAMS = 16.0, 500
#: How much of an input is shown, in characters.
_SHOWN = 20_000


@dataclass
class Stream:
    """One stream: its source of chance, what it sent, for whoever has to repeat it, and how many of
    its messages were served and refused. Messages that were neither ended their connection."""

    random: random.Random
    sent: list[str] = field(default_factory=list)
    messages: int = 0
    served: int = 0
    refused: int = 0


class HangError(BaseException):
    """A stream takes too long. Not an Exception: what is tested must not catch it."""


class LeakError(Exception):
    """A stream has left descriptors open, or a campaign has taken memory."""


def main(name: str, run: Callable[[Stream], None]) -> None:
    """Run a campaign as the command line says, and print its figures; exit with 1 and print the
    seed and the input of the first stream that raises anything, hangs or leaks. Of one that ends
    the process by a signal, only the seed is known."""
    parser = argparse.ArgumentParser(description=f"Send random messages to: {name}.")
    parser.add_argument("--messages", type=int, default=100_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    current = mmap.mmap(-1, 8)  # the seed of the child's stream
    child = os.fork()
    if child == 0:
        code = _campaign(name, run, options.messages, options.seed, current)
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"{name}: ended by {signal.Signals(-code).name}")
        _repeat(int.from_bytes(current[:], "little"))
    sys.exit(1 if code else 0)


def _repeat(seed: int) -> None:
    print(f"to repeat: --messages 1 --seed {seed}")


def _campaign(
    name: str, run: Callable[[Stream], None], messages: int, seed: int, current: mmap.mmap
) -> int:
    streams = sent = served = refused = 0
    descriptors, first_memory, started = open_descriptors(), memory(), time.monotonic()
    while sent < messages:
        stream = Stream(random.Random(seed + streams))
        current[:] = (seed + streams).to_bytes(8, "little")
        try:
            with _deadline():
                run(stream)
            if open_descriptors() != descriptors:
                raise LeakError(f"{descriptors} descriptors before, {open_descriptors()} after")
        except (Exception, HangError) as problem:
            print(f"{name}: {_told(problem)}\ninput:")
            for line in stream.sent:
                print(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}… ({len(line)} characters)")
            _repeat(seed + streams)
            return 1
        streams += 1
        sent, served = sent + max(1, stream.messages), served + stream.served
        refused += stream.refused
        if streams == FIRST_STREAMS:
            first_memory = memory()
    grown = memory() - first_memory if streams > FIRST_STREAMS else 0.0
    print(
        f"{name}: {sent} messages in {streams} streams from seed {seed}: {served} served, "
        f"{refused} refused, {time.monotonic() - started:.1f} s, descriptors {descriptors} -> "
        f"{open_descriptors()}, RSS {first_memory:.1f} -> {memory():.1f} MiB"
    )
    if grown > MOST_GROWTH:
        print(f"{name}: {grown:.1f} MiB more at the end  limit {MOST_GROWTH}  LEAK")
        return 1
    return 0


def _told(problem: BaseException) -> str:
    return "".join(traceback.format_exception(problem)).rstrip()


@contextmanager
def _deadline() -> Iterator[None]:
    def expired(number: int, frame: FrameType | None) -> None:
        raise HangError(f"over {LONGEST_WORK} s of work, or {LONGEST_WAIT} s of waiting")

    signal.signal(signal.SIGPROF, expired)
    signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_WORK)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - a list is made for each stream


def memory() -> float:
    """Return the resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)
