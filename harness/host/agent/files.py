"""Files of the host that the harness reads."""

from __future__ import annotations

import binascii
import os
import stat
from typing import Any

#: How much of a file is in one answer at most.
READ_BYTES = 1 << 18


def read(path: str, offset: int) -> dict[str, Any]:
    """Return the answer with a part of a regular file, or why there is none."""
    try:
        # Whoever opens a FIFO would wait for its writer.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                return {"unreadable": "no regular file"}
            start = offset if offset >= 0 else max(0, found.st_size + offset)
            data = binascii.b2a_base64(os.pread(file, READ_BYTES, start), newline=False)
        finally:
            os.close(file)
    except OSError as problem:
        return {"unreadable": str(problem)}
    return {"start": start, "data": data.decode(), "size": found.st_size}
