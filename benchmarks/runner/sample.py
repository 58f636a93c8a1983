"""One round of one benchmark, in a process of its own: `python -m benchmarks.runner.sample NAME`.

It prints each value when it is there, as a line of JSON, and a last line that tells how the round
ended. Whatever else is printed here goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

from benchmarks.runner.figure import found
from harness.errors import HilError


def main(name: str, share: float) -> int:
    """Run a round; return the exit status."""
    # What SIGTERM ends cleans up as what Ctrl-C ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        with contextlib.closing(found()[name].measure(share)) as samples:
            for figure, value in samples:
                out.write(json.dumps({"figure": figure.name, "value": value}) + "\n")
    except HilError as problem:
        out.write(json.dumps({"problem": str(problem)}) + "\n")
        return 1
    except KeyboardInterrupt:
        return 130
    out.write(json.dumps({"done": True}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
