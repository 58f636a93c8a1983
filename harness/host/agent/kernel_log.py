"""What the host's kernel says while the session lasts."""

from __future__ import annotations

import os
import re


class KernelLog:
    """The messages of the host's kernel from now on that a pattern is found in.

    A record of /dev/kmsg is "PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT" (Documentation/ABI/testing/
    dev-kmsg). Raises OSError if the log cannot be read.
    """

    MOST_KEPT = 500

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)
        self.kept: list[tuple[float, str]] = []
        self.file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self.file, 0, os.SEEK_END)

    def read(self) -> None:
        """Read what has come since the last call."""
        while True:
            try:
                record = os.read(self.file, 1 << 13).decode(errors="replace")
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before they were read: go on with the oldest
            head, _, text = record.partition(";")
            priority, _, microseconds = head.split(",")[:3]
            # A priority below 8 is the kernel's own message: any process may write to /dev/kmsg.
            if int(priority) < 8 and self.pattern.search(text):
                self.keep(int(microseconds) / 1e6, text.split("\n")[0])

    def keep(self, seconds: float, line: str) -> None:
        """Keep a message, or say in the last one's place that no more are kept."""
        if len(self.kept) < self.MOST_KEPT - 1:
            self.kept.append((seconds, line))
        elif len(self.kept) < self.MOST_KEPT:
            self.kept.append((seconds, f"{line} (no more than {self.MOST_KEPT} are kept)"))
