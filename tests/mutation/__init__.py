"""Mutation testing of the harness's own code: `make mutation`."""
