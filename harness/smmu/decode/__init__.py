"""Explain what people post of an SMMU's events: kernel logs in any wrapping, dumps of queue memory,
and the files of a failed test.

The way of a byte: `forms` makes text of a file, `peel` takes its lines out of what they are wrapped
in, `messages` and `texts` know what drivers and QEMU print, `dumps` knows numbers, `evidence` what
this project prints; `assembly` puts lines together into events. `reader` is the whole of it, with a
shortcut for the most common forms. What was found (`found`) is shown by `output`, or counted by
`summary`; `closing` keeps the account of the whole. No module does I/O.
"""
