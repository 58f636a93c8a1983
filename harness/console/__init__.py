"""The consoles of hosts: one module for each kind, which has its entry in inventories, and the
recording of what a host prints. kinds.py lists the entries."""
