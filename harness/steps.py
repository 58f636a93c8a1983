"""The steps of a test that its report shows. Outside of a reported test they do nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import allure


def step(title: str) -> AbstractContextManager[None]:
    """Show what the body does as one step of the test."""
    return cast("AbstractContextManager[None]", allure.step(title))
