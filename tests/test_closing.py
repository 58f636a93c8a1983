"""A host's reservation is released even if the last look at the host fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.artifacts.store import Store
from harness.errors import LabError
from harness.lab.pool import Hosts, Software, _Reserved
from harness.progress import Progress


@pytest.mark.parametrize(
    ("problem", "raised"),
    [(LabError("gone"), False), (OSError(28), True), (KeyboardInterrupt(), True)],
)
def test_it_is_given_back(tmp_path: Path, problem: BaseException, raised: bool) -> None:
    given_back: list[str] = []

    def closing(_: object) -> None:
        raise problem

    hosts = Hosts(cast(Any, None), Software(), Store(tmp_path), Progress(enabled=False), closing)
    stack = contextlib.ExitStack()
    stack.callback(given_back.append, "reservation")
    hosts._current = _Reserved("one", cast(Any, None), stack, cast(Any, SimpleNamespace()))
    with pytest.raises(type(problem)) if raised else contextlib.nullcontext():
        hosts.close()
    assert given_back == ["reservation"]
    hosts.close()
    assert given_back == ["reservation"]
