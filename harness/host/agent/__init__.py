"""The harness's agent on a lab host: it owns the harness's processes there, under a lease.

A host has one session at a time: the agent holds a lock on ../lock as long as it lives, and the
lock's file says whose it is; starting a second one fails and tells that. The session ends by itself
when no connection has renewed the lease for LEASE_SECONDS, so that a harness that was killed, or
that has lost its link for good, leaves nothing behind. The clock is CLOCK_MONOTONIC: a lease does
not run while the whole host is stopped, as in a saved snapshot of it.

What is to be undone is written to ../undos before it is done. An agent that finds the undos of one
that was killed first ends and undoes what that has left. A reboot empties /run, and undoes
everything by itself. A command may be run twice, by an agent that was killed and by the next one.

It is sent to the host as one script, by its standard input: standard library only, Python 3.9.
"""
