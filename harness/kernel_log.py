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
        "SError Interrupt on CPU",
        "BUG: ",
        "kernel BUG at ",
        "Oops",
        "rcu: INFO: rcu_[a-z_]+ (self-)?detected (expedited )?stalls?",
        "soft lockup",
        "hard LOCKUP",
        "blocked for more than [0-9]+ seconds",
    )
)
#: What a kernel logs if it found a bug, whether it runs on or not.
BUG = "|".join(
    (
        CRASH,
        "WARNING: ",
        "UBSAN: ",
        "refcount_t: ",
        "list_(add|del) corruption",
        r"BUG [A-Za-z0-9_-]+ \(",
    )
)
#: What a kernel logs when it killed a process because its memory was used up. The pid is first
#: among the groups, the name of the program, shortened to 15 characters, second.
OUT_OF_MEMORY = r"ut of memory: Killed process ([0-9]+) \(([^)]*)\)"
