"""Run a tool that ends with the process that started it, also when that is killed.

    python3 -I -S leash.py OWNER COMMAND …

OWNER is a descriptor of that process: pidfd_open(2). When it has ended, this program kills its own
process group, in which the tool is with all that it started; a make that went on alone would work
in the same folder as the next build. The exit status is the tool's, or 128 and the signal's number.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys


def main() -> int:
    owner = int(sys.argv[1])
    with subprocess.Popen(sys.argv[2:]) as tool:
        ended = os.pidfd_open(tool.pid)
        poll = select.poll()
        poll.register(owner, select.POLLIN)
        poll.register(ended, select.POLLIN)
        if ended not in (descriptor for descriptor, _ in poll.poll()):
            os.killpg(0, signal.SIGKILL)
        status = tool.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
