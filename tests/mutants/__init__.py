"""Small faults of the stack, each in a file of its own, and the program that measures whether the
suites notice them: `make mutants`."""
