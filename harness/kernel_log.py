"""Patterns of what a Linux kernel logs when it fails.

They are extended regular expressions that both Python's re and `grep -E` accept. They contain no
single quote, so that a shell command can quote them.
"""

from __future__ import annotations

#: What a kernel logs if it died, is dying, or is stuck.
CRASH = "|".join(
    (
        "Kernel panic - not syncing",
        "Internal error: ",
        "Unable to handle kernel",
        "BUG: ",
        "Oops",
        "rcu: INFO: rcu_[a-z_]+ (self-)?detected stalls?",
        "soft lockup",
        "hung_task",
    )
)
#: What a kernel logs if it found a bug, whether it runs on or not.
BUG = f"{CRASH}|WARNING: |Call trace:"
