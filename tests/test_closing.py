"""A host's reservation is released even if the last look at the host fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.artifacts.store import Store
from harness.errors import LabError
from harness.host.last_words import HostKernelError, LastWords
from harness.lab.pool import Hosts, _Reserved
from harness.lab.software import Software
from harness.progress import Progress


def reserved(stack: contextlib.ExitStack, last_words: LastWords) -> _Reserved:
    """Return an open host whose reservation is `stack`."""
    anything = cast(Any, SimpleNamespace())
    return _Reserved("one", anything, stack, last_words, Software(), host=anything)


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
    hosts._current = reserved(stack, LastWords("one", None))
    with pytest.raises(type(problem)) if raised else contextlib.nullcontext():
        hosts.close()
    assert given_back == ["reservation"]
    hosts.close()
    assert given_back == ["reservation"]


@pytest.mark.parametrize(
    ("then", "raised"),
    [
        ("", LabError),
        ("[   12.0] Kernel panic - not syncing: LKDTM\n", HostKernelError),
    ],
    ids=["without a word", "panic"],
)
def test_a_host_that_dies_at_its_end_has_last_words(
    tmp_path: Path, then: str, raised: type[Exception]
) -> None:
    said = ["[    2.0] Kernel panic - not syncing: an earlier one\n"]
    console = SimpleNamespace(text=lambda: "".join(said), last_boot=lambda: "")
    last_words = LastWords("one", cast(Any, console))
    last_words.seen()
    said.append(then)

    def lost() -> None:
        raise LabError("the link is lost")

    hosts = Hosts(cast(Any, None), Software(), Store(tmp_path), Progress(enabled=False))
    stack = contextlib.ExitStack()
    stack.callback(lost)
    hosts._current = reserved(stack, last_words)
    with pytest.raises(raised, match="lost" if raised is LabError else "host one died"):
        hosts.close()
