"""What the harness takes and costs, as figures: docs/benchmarks.md. `python -m benchmarks --help`.

A module of this folder that has a `BENCHMARK` is a benchmark: it measures one figure, or several
that need the same preparation. No other place names it. `runner/` runs and compares them.
"""
