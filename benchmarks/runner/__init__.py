"""The program that runs benchmarks.

The way of a figure: `figure` says what it is, and finds the benchmarks; `measure` has `sample` take
its values in a process of its own, of this checkout's harness or of another one's; `record` keeps
them, and knows the last good ones; `judge` compares the two; `table` shows what came of it;
`program` is the command line. `host` has what benchmarks need of the lab, and `call` starts
programs for them.
"""
