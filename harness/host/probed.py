"""What probing a host found, kept on the host until it boots again: a host that a run has opened in
this boot is not probed by the next one.

It does not hold any longer, either, once the host has loaded or unloaded a module of its kernel, or
has another file in a place that was looked at. `/run/hil/probed` has it; whoever changes a host by
hand in another way removes that file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.host.connection import CommandFailedError, Connection
from harness.host.session import ROOT

FILE = f"{ROOT}/probed"
_PARTS = "----"

# What an answer depends on, and what is known. stat tells of a file that is not there, too.
_LOOK = """\
cat /proc/sys/kernel/random/boot_id
cut -d' ' -f1 /proc/modules | sort
stat -Lc '%n %d:%i %s %Y' -- {files} 2>&1
echo {parts}
cat {file} 2>/dev/null
true"""


def remembered(
    connection: Connection,
    files: Sequence[str],
    about: object,
    probe: Callable[[], Mapping[str, Any]],
    *,
    file: str = FILE,
) -> dict[str, Any]:
    """Return what `probe` found on the host in this boot, or call it. What it returns must have a
    form in JSON, and depends on these files of the host, which are paths or programs in its PATH,
    and on what its questions are `about`. Raises LabError."""
    paths = " ".join(
        shlex.quote(one) if "/" in one else f'"$(command -v {shlex.quote(one)} || echo none)"'
        for one in files
    )
    look = _LOOK.format(files=paths, parts=_PARTS, file=shlex.quote(file))
    state, _, known = connection.run(look).text.partition(f"{_PARTS}\n")
    key = hashlib.sha256(f"{state}\n{about!r}".encode()).hexdigest()
    with contextlib.suppress(ValueError, TypeError, KeyError):
        record = json.loads(known)
        if record["key"] == key:
            return dict(record["found"])
    found = json.loads(json.dumps(probe()))
    # Its folder is made by the first session of a boot. Whoever only looks makes nothing.
    with contextlib.suppress(CommandFailedError):
        connection.write_file(file, json.dumps({"key": key, "found": found}).encode())
    return dict(found)
