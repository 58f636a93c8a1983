"""Several runs as one table, behaviours × stacks; and the runs of all combinations of kernels."""
