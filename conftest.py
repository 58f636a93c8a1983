"""Load the fixtures where this project is used without being installed. pytest loads each of their
modules once."""

from harness.fixtures.plugin import pytest_plugins

__all__ = ["pytest_plugins"]
