"""This pytest plugin runs no test. It logs which worker would run which test, on which hosts, and
with which seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.fixtures.lab import HOST_NAMES


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool:
    worker, seed = os.environ["PYTEST_XDIST_WORKER"], item.config.option.soak_seed
    names: tuple[str, ...] = item.stash.get(HOST_NAMES, ())
    hosts = ",".join(names) or "-"
    with (Path(os.environ["NO_RUN"]) / worker).open("a") as log:
        log.write(f"{hosts} {seed} {item.nodeid}\n")
    return True
