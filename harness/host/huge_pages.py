"""Set huge pages of a host's memory aside, which needs the capability `huge-pages`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.errors import LabError
from harness.host.session import Session

#: The size of the pages, in MiB, and the file that holds how many of them the kernel sets aside.
MIB = 2
SETTING = f"/sys/kernel/mm/hugepages/hugepages-{MIB * 1024}kB/nr_hugepages"
_UNDO = "huge pages"


@contextlib.contextmanager
def set_aside(session: Session, count: int) -> Iterator[None]:
    """Have the host's kernel set `count` more huge pages aside while the body runs. Raises LabError
    if its memory has no room for them."""
    connection = session.connection
    before = int(connection.run(["cat", SETTING]).text)
    session.on_end(_UNDO, f"echo {before} >{SETTING}")
    try:
        # Caches are in the way of whole pages of this size.
        connection.run(
            f"echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory; "
            f"echo {before + count} >{SETTING}"
        )
        got = int(connection.run(["cat", SETTING]).text) - before
        if got < count:
            raise LabError(
                f"the host's memory has room for {got} huge pages of {MIB} MiB; needed: {count}",
                fix="end what uses memory on the host, or give a virtual host more `memory_mib`",
            )
        yield
    finally:
        session.undo_now([_UNDO])
