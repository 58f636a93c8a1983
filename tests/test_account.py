"""Who is to blame when not all events of an account come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.boundary import account
from harness.boundary.account import Account
from harness.boundary.on_host.rules import Drop, Rule
from harness.errors import HarnessError, ProductError


@pytest.mark.parametrize(
    ("left", "received", "to_blame"),
    [
        pytest.param((Drop(1),), 65, HarnessError, id="a rule that no record has used up"),
        pytest.param((Drop(1),), 3, ProductError, id="records are missing"),
        pytest.param((), 65, ProductError, id="the last event is missing"),
    ],
)
def test_an_account_that_does_not_close(
    monkeypatch: pytest.MonkeyPatch, left: tuple[Rule, ...], received: int, to_blame: type
) -> None:
    def expired(what: str, *_: object, error: type[ProductError], **__: object) -> None:
        raise error(f"waited 30 s for {what}")

    monkeypatch.setattr(account, "wait_for", expired)
    state = SimpleNamespace(left=left, received=received, waiting=0)
    source = SimpleNamespace(burst=lambda *_: None, perform=lambda _: None)
    boundary = SimpleNamespace(queue=lambda: state)
    one: Any = SimpleNamespace(source=source, boundary=boundary, _faulted=64)
    with pytest.raises(to_blame, match="the last event to be delivered"):
        Account.close(cast(Account, one))
