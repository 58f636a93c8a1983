"""A failure is blamed on product, lab or harness by its exception and the chain of its causes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from harness.errors import BreakdownError, HarnessError, LabError, ProductError
from harness.guest.console import GuestCommandError, GuestCrashedError, GuestSilentError
from harness.guest.death import BoundaryDiedError
from harness.guest.description import GuestSpec, Identity
from harness.guest.guest import QemuRefusedError, attach
from harness.host.connection import LinkLostError
from harness.host.link import UnreachableError
from harness.host.session import Session
from harness.qmp import QmpRefusedError
from harness.report.blame import Blame, blame, exit_status


def caught(body: Callable[[], object]) -> BaseException:
    try:
        body()
    except BaseException as problem:
        return problem
    raise AssertionError("nothing was raised")


def raise_from(problem: Exception, cause: Exception) -> None:
    raise problem from cause


def wrong_record() -> None:
    assert [1, 2] == [1, 3]


def nothing_raised() -> None:
    with pytest.raises(ProductError):
        pass


def stumbles_over_a_lost_link() -> None:
    try:
        raise LinkLostError("the link to the host is lost")
    except LinkLostError:
        assert not "a queue that cannot be read", "so it looks empty"


def bug_of_ours() -> None:
    {"there": 1}["missing"]


@pytest.mark.parametrize(
    ("body", "whom"),
    [
        (wrong_record, Blame.PRODUCT),
        (nothing_raised, Blame.PRODUCT),
        (lambda: raise_from(ProductError("lost"), ValueError()), Blame.PRODUCT),
        (lambda: raise_from(GuestCrashedError("oops"), ValueError()), Blame.PRODUCT),
        (lambda: raise_from(GuestSilentError("hangs"), TimeoutError()), Blame.PRODUCT),
        (lambda: raise_from(QemuRefusedError("no", 1), OSError()), Blame.PRODUCT),
        (lambda: raise_from(QmpRefusedError("device_add", "no"), OSError()), Blame.PRODUCT),
        (lambda: raise_from(GuestCommandError("no such device"), OSError()), Blame.PRODUCT),
        (lambda: raise_from(BreakdownError("QEMU died"), LinkLostError("closed")), Blame.PRODUCT),
        (lambda: raise_from(LabError("not undone"), BreakdownError("QEMU died")), Blame.PRODUCT),
        (lambda: raise_from(BoundaryDiedError("it died"), LabError("closed")), Blame.HARNESS),
        (lambda: raise_from(UnreachableError("no route"), OSError()), Blame.LAB),
        (lambda: raise_from(HarnessError("no frame"), LinkLostError("gone")), Blame.LAB),
        (stumbles_over_a_lost_link, Blame.LAB),
        (bug_of_ours, Blame.HARNESS),
        (lambda: raise_from(HarnessError("no such queue"), KeyError()), Blame.HARNESS),
        (lambda: pytest.fail("Timeout (>1800.0s) from pytest-timeout."), Blame.HARNESS),
        (lambda: pytest.fail("the guest has another SMMU"), Blame.PRODUCT),
    ],
)
def test_blame(body: Callable[[], object], whom: Blame) -> None:
    assert blame(caught(body)) is whom


def test_a_group_is_as_bad_as_its_worst() -> None:
    both = ExceptionGroup("two ends", [HarnessError("ours"), AssertionError("theirs")])
    assert blame(both) is Blame.PRODUCT
    assert blame(ExceptionGroup("one", [KeyError()])) is Blame.HARNESS


@pytest.mark.parametrize(
    ("failures", "status"),
    [
        ([], 0),
        ([Blame.LAB, Blame.HARNESS, Blame.PRODUCT], 1),
        ([Blame.LAB, Blame.HARNESS], 10),
        ([Blame.LAB, Blame.LAB], 11),
    ],
)
def test_each_kind_of_failure_has_a_status(failures: list[Blame], status: int) -> None:
    assert exit_status(failures) == status
    assert status not in range(2, 6), "pytest's own"


def test_a_lab_error_in_a_group_is_the_groups() -> None:
    assert blame(ExceptionGroup("lost", [LabError("power")])) is Blame.LAB


def test_a_guest_that_qemu_refuses_is_the_products() -> None:
    """That its console cannot be reached follows from it."""

    def closed(path: str) -> None:
        raise LinkLostError(f"{path} is closed")

    connection = SimpleNamespace(
        unix_socket=closed,
        run=lambda *command, **how: SimpleNamespace(text=""),
    )
    session = SimpleNamespace(
        folder="/run/hil/1",
        wait=lambda name, seconds: 1,
        read_file=lambda path: b"IOMMU_VEVENTQ_ALLOC failed: Invalid argument",
        connection=connection,
    )
    guest = SimpleNamespace(name="guest0", spec=GuestSpec())
    with (
        pytest.raises(QemuRefusedError, match="VEVENTQ_ALLOC failed") as refused,
        attach(cast(Session, session), cast(Identity, guest)),
    ):
        pass
    assert blame(refused.value) is Blame.PRODUCT
