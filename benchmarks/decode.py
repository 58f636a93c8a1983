"""Measure how long `hil decode` takes for a million events, in seconds of CPU, and how much memory.
Needs no lab."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.runner.call import call, hil
from benchmarks.runner.figure import Benchmark, Figure, Samples
from benchmarks.runner.program import alone

_EVENTS = 1_000_000
_DEVICE = "arm-smmu-v3 arm-smmu-v3.0.auto:"
_WORDS = (0x0000_2100_0000_0010, 0x0000_0208_0000_0000)


def words(number: int) -> str:
    """Return an event as a line of words."""
    return f"{_WORDS[0]:#018x} {_WORDS[1]:#018x} {4 * number:#018x} 0x0\n"


def logged(number: int) -> str:
    """Return an event as a kernel logs it."""
    stamp = f"[{number / 1000:12.6f}] {_DEVICE}"
    record = (*_WORDS, 4 * number, 0)
    lines = "".join(f"{stamp} \t{word:#018x}\n" for word in record)
    return f"{stamp} event 0x10 received:\n{lines}"


def logged_with_text(number: int) -> str:
    """Return an event as a newer kernel logs it."""
    stamp = f"[{number / 1000:12.6f}] {_DEVICE}"
    where = f"sid: 0x2100 ssid: 0x0 iova: {4 * number:#x} ipa: 0x0"
    return (
        f"{logged(number)}{stamp} event: F_TRANSLATION client: 0000:21:00.0 {where}\n"
        f'{stamp} unpriv data read s1 "Input address caused fault" stag: 0x0\n'
    )


#: The forms of events: a word for the figures' names, what they are, the maker, and the limit.
FORMS: Sequence[tuple[str, str, Callable[[int], str], float]] = (
    ("words", "lines of words", words, 4.0),
    ("logs", "as a kernel logs them", logged, 8.0),
    ("long-logs", "as a newer kernel logs them, with text", logged_with_text, 12.0),
)
OUTPUTS = (("text", ()), ("json", ("--json",)), ("summary", ("--summary",)))
FIGURES = {
    (form, output): Figure(
        f"decode-{form}-{output}", f"a million events, {what}: to {output}", "s of CPU", limit
    )
    for form, what, _, limit in FORMS
    for output, _ in OUTPUTS
}
MEMORY = Figure("decode-memory", "the most memory that any of these took", "MiB", limit=150)


def measure(share: float) -> Samples:
    """Yield the figures of each form and output."""
    with tempfile.TemporaryDirectory() as scratch:
        for form, _, make, _ in FORMS:
            file = Path(scratch, form)
            with file.open("w") as out:
                out.writelines(map(make, range(int(_EVENTS * share))))
            for output, options in OUTPUTS:
                yield FIGURES[form, output], cpu_seconds(file, *options)
            file.unlink()
    # Of all programs that have ended, the one that took most.
    yield MEMORY, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def cpu_seconds(file: Path, *options: str) -> float:
    """Decode a file; return the seconds of CPU that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call(hil("decode", *options, str(file)))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


BENCHMARK = Benchmark((*FIGURES.values(), MEMORY), measure, seconds=75)

if __name__ == "__main__":
    sys.exit(alone(__file__))
