"""Measure how many events `hil decode` reads in a second of one CPU, and how much memory it takes.
`make bench`.

Needs no lab. `python benchmarks/decode.py 50000` measures with so many events, for a quick look.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

EVENTS = 1_000_000
_DEVICE = "arm-smmu-v3 arm-smmu-v3.0.auto:"
_WORDS = (0x0000_2100_0000_0010, 0x0000_0208_0000_0000)
#: The most seconds of CPU for a million events, in each form.
_LIMITS = {"words": 4.0, "log": 8.0, "log with text": 12.0}
#: The seconds that a call takes for no event. They count in full only for few events.
_START = 1.5
#: The most memory that reading takes, in MiB, whatever the size of the input.
_MEMORY = 150


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


FORMS: dict[str, Callable[[int], str]] = {
    "words": words,
    "log": logged,
    "log with text": logged_with_text,
}


def measured(file: Path, *options: str) -> tuple[float, float]:
    """Decode a file; return the seconds of CPU that it took, and the most memory, in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "harness.cli", "decode", *options, str(file)]
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, env=os.environ
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_maxrss / 1024


def rows(events: int) -> Iterator[str]:
    """Measure each form and output, and yield a line of figures for each."""
    with tempfile.TemporaryDirectory() as scratch:
        for form, make in FORMS.items():
            file = Path(scratch, form)
            with file.open("w") as out:
                out.writelines(map(make, range(events)))
            for name, options in (("text", ()), ("JSON", ("--json",)), ("summary", ("--summary",))):
                seconds, memory = measured(file, *options)
                limit = _LIMITS[form] * events / EVENTS + _START * (1 - events / EVENTS)
                verdict = "ok" if seconds <= limit and memory <= _MEMORY else "OVER"
                yield (
                    f"{f'decode: {form} to {name}':44} {events / seconds:8.0f} events/s  "
                    f"({events} in {seconds:.1f} s of CPU, {memory:.0f} MiB)  "
                    f"limit {limit:.1f} s, {_MEMORY} MiB  {verdict}"
                )
            file.unlink()


def main() -> None:
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS):
        print(row, flush=True)


if __name__ == "__main__":
    main()
