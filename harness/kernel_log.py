"""What a Linux kernel says in its log when it goes wrong.

The patterns are extended regular expressions that Python's re and `grep -E` both take; they have no
single quote in them.
"""

from __future__ import annotations

#: Said by a kernel that died, is dying, or does not get on.
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
#: Said by a kernel that met a bug, whether it lives or not.
BUG = f"{CRASH}|WARNING: |Call trace:"
