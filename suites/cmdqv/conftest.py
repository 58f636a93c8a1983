"""These fixtures are shared by the tests of a CMDQV."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from harness.guest.guest import Guest
from suites.cmdqv import traffic


@pytest.fixture
def write_blocks(guest: Guest) -> Callable[[int, int], None]:
    """Return traffic.write_blocks for the test's guest."""
    return partial(traffic.write_blocks, guest)
