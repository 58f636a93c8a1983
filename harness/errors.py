"""Three kinds of failure, three families: who has to act on it decides the class.

* `ProductError`: the stack under test (host kernel, QEMU, guest kernel) misbehaved.
* `LabError`: a machine, a link, a device or a file of the lab is not as it should be.
* `HarnessError`: this harness is wrong, or was called wrongly.

Every error says what to do next where that is known (`fix`).
"""

from __future__ import annotations


class HilError(Exception):
    """Base of all our errors. `fix` is one imperative sentence for whoever reads it."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


class ProductError(HilError, AssertionError):
    """The product misbehaved: what a reviewer should look at first. An assertion that failed, to
    pytest and to Allure."""


class LabError(HilError):
    """The lab is not usable as described."""


class HarnessError(HilError):
    """The harness itself is at fault."""
