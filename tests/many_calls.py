"""This program calls pytest or `hil` many times, to import all of it only once. It reads a list of
command lines from standard input, and prints a list of [exit status, output, errors]; JSON both."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import pytest

from harness import cli


def call(arguments: list[str]) -> int:
    """Do what a command line says, and return the exit status."""
    program, *options = arguments
    if program == "pytest":
        return int(pytest.main(options))
    sys.argv = arguments
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main() -> None:
    ends = []
    for arguments in json.load(sys.stdin):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = call(arguments)
        ends.append([status, out.getvalue(), err.getvalue()])
    json.dump(ends, sys.stdout)


if __name__ == "__main__":
    main()
