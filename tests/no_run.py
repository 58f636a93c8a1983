"""This pytest plugin runs no test. It logs which worker would run which test, and with which
seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures.workers import GROUPED, split


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool:
    worker, seed = os.environ["PYTEST_XDIST_WORKER"], item.config.option.soak_seed
    with (Path(os.environ["NO_RUN"]) / worker).open("a") as log:
        log.write(f"{split(item.stash[GROUPED])[1]} {seed}\n")
    return True
