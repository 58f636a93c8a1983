"""Hosts for tests of the harness: some open the run's host, others need it to themselves."""

from __future__ import annotations

import pytest

from fixtures.lab import HOSTS


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Close the run's host before a test that does not use it: it enters the host itself, or starts
    a run that does, and a host has one session at a time. This hook runs before any fixture."""
    hosts = item.config.stash.get(HOSTS, None)
    if hosts and hosts.is_open and "host" not in getattr(item, "fixturenames", ()):
        hosts.close()
