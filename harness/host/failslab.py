"""Make allocations of memory fail in a host's kernel, which needs the capability `failslab`.

Source: Documentation/fault-injection/fault-injection.rst in Linux.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.errors import LabError
from harness.host.session import Session
from harness.waiting import wait_for

FAILSLAB = "/sys/kernel/debug/failslab"
PROC = "/proc"
#: How long the kernel may take to report events that a device has raised.
SECONDS = 10.0
_UNDO = "failslab"
_SETTINGS = "probability times interval space verbose task-filter ignore-gfp-wait"
#: Have the threads that read the event queues of the host's SMMUs fail, or not: {value} is 1 or 0.
#: The kernel names a thread after its interrupt.
_THREADS = """\
for name in $(grep -lE '^irq/[0-9]+-arm-smmu-v3-(evtq|combined)' {proc}/[0-9]*/comm 2>/dev/null); do
  echo {value} >${{name%/comm}}/make-it-fail
done"""
#: Only these threads' allocations fail, and of them only those that must not wait for memory, as
#: that of a record.
_ON = """\
set -e
cd {folder}
echo 0 >probability; echo {count} >times; echo 1 >interval; echo 0 >space; echo 0 >verbose
echo Y >task-filter; echo Y >ignore-gfp-wait
{threads}
echo 100 >probability"""
#: Print the command that has all be as it is now.
_AS_IT_IS = f"""\
cd {{folder}} || exit
for name in {_SETTINGS}; do echo "echo '$(cat $name)' >$name"; done"""
_OFF = """\
cd {folder} || exit 0
echo 0 >probability
{threads}
{as_it_was}"""


@contextlib.contextmanager
def no_memory_for_events(session: Session, count: int) -> Iterator[None]:
    """Have the host's kernel find no memory for the next `count` events of its SMMUs that it
    reports to guests: the body must cause at least so many.

    Raises LabError if fewer have failed some seconds after the body.
    """
    as_it_was = session.connection.run(_AS_IT_IS.format(folder=FAILSLAB)).text
    threads = _THREADS.format(proc=PROC, value=0)
    off = _OFF.format(folder=FAILSLAB, threads=threads, as_it_was=as_it_was)
    on = _ON.format(folder=FAILSLAB, count=count, threads=_THREADS.format(proc=PROC, value=1))
    session.on_end(_UNDO, off)
    try:
        session.connection.run(on)
        yield
        wait_for(
            f"{count} allocations to fail",
            lambda: session.connection.run(["cat", f"{FAILSLAB}/times"]).text.strip() == "0",
            deadline=SECONDS,
            error=LabError,
        )
    finally:
        session.undo_now([_UNDO])
