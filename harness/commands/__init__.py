"""The commands of `hil`, a module for each or for each group; cli.py registers them.

Their docstrings are what `--help` prints: their lines fit in 80 columns of a terminal.
"""
