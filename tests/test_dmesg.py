"""New lines of a host's kernel log are told from old ones by their time."""

from __future__ import annotations

import math

from harness.host import dmesg

LOG = """\
[    0.000000] Booting Linux
[   12.500000] vfio-pci 0000:01:00.0: one
[  1234.567890] two
  and its second line
[  1234.567891] three
"""


def test_what_is_later_is_new() -> None:
    assert dmesg.last_time(LOG) == 1234.567891
    assert dmesg.after(LOG, 1234.567891) == ""
    newer = LOG + "[  1234.567892] four\n"
    assert dmesg.after(newer, dmesg.last_time(LOG)) == "[  1234.567892] four\n"
    assert dmesg.after(LOG, 12.5) == "".join(LOG.splitlines(keepends=True)[2:])


def test_what_is_new_does_not_depend_on_what_is_old() -> None:
    """New lines are found although old ones are gone: a full log drops a line for each new one."""
    newer = "".join(LOG.splitlines(keepends=True)[2:]) + "[  1300.000000] four\n"
    assert dmesg.after(newer, dmesg.last_time(LOG)) == "[  1300.000000] four\n"


def test_of_an_empty_log_all_is_new() -> None:
    assert dmesg.last_time("") == -math.inf
    for log in (LOG, "a line without a time\n" + LOG):
        assert dmesg.after(log, dmesg.last_time("")) == log
