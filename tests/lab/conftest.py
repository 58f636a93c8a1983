"""The order of tests that need a lab: a host has one session at a time."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that use the run's open host behind all others. The others enter the host
    themselves, or start a run that does; and a host that is closed in between boots again."""
    items.sort(key=lambda item: "host" in getattr(item, "fixturenames", ()))
