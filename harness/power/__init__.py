"""The ways to control a host's power: one module for each kind, which has its entry in inventories.

An entry has `control`, which returns the power of a host; kinds.py lists the entries.
"""
