"""Steps of a test as its report shows them. Outside a reported test they do nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import allure


def step(title: str) -> AbstractContextManager[None]:
    """Show what happens in the body as one step."""
    return cast("AbstractContextManager[None]", allure.step(title))
