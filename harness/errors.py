"""The errors of the harness, in three families by who has to act on them.

* `ProductError`: the stack under test (host kernel, QEMU, guest kernel) misbehaved.
* `LabError`: a machine, a link, a device or a file of the lab is not as it should be.
* `HarnessError`: this harness is wrong, or was called wrongly.

Every error says what to do next, where that is known (`fix`).
"""

from __future__ import annotations


class HilError(Exception):
    """The base of all errors of the harness. `fix` is an imperative sentence that tells its reader
    what to do next."""

    #: Whether this decides the blame, whatever else a test met: that follows from it, a lost link
    #: too.
    decides = False

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class ProductError(HilError, AssertionError):
    """The product misbehaved: a reviewer looks at this first. pytest and Allure show it as a failed
    assertion."""


class BreakdownError(ProductError):
    """A part of the product broke down: QEMU died, or a kernel reported a bug."""

    decides = True


class LabError(HilError):
    """The lab is not usable as described."""


class HarnessError(HilError):
    """The harness is wrong, or was called wrongly."""
