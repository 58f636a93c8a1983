"""Only an answer whose last message is the expected one, in full, counts as that refusal."""

from __future__ import annotations

import pytest

from harness.guest.qemu import Answer

SAID = "qemu-system-aarch64: -device arm-smmuv3,ats=on: ats can only be enabled if accel=on"


@pytest.mark.parametrize(
    ("answer", "message", "right"),
    [
        (Answer(False, ("a warning", SAID)), "ats can only be enabled if accel=on", True),
        (Answer(False, (SAID, "Aborted")), "ats can only be enabled if accel=on", False),
        (Answer(True, (SAID,)), "ats can only be enabled if accel=on", False),
        (Answer(False, (SAID,)), "can only be enabled if accel=on", False),
        (Answer(False, ()), "", False),
    ],
)
def test_the_last_word_is_the_whole_message(answer: Answer, message: str, right: bool) -> None:
    assert answer.refuses_with(message) is right
