"""What paramiko leaves to us."""

from __future__ import annotations

import os

import paramiko
import pytest

from harness.host.channels import close as close_channel


def test_data_that_come_while_a_channel_closes_harm_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle of a close the transport's thread feeds the channel: its pipe must not be
    written to, whose descriptors are closed, or somebody else's by now."""
    channel = paramiko.Channel(0)
    readable = channel.fileno()
    pipe = channel._pipe  # type: ignore[attr-defined]  # private to paramiko
    harmed = []

    def close() -> None:
        os.close(pipe._rfd)
        for buffer in (channel.in_buffer, channel.in_stderr_buffer):
            try:
                buffer.feed(b"late")
            except OSError as problem:
                harmed.append(problem)
        os.close(pipe._wfd)

    monkeypatch.setattr(pipe, "close", close)
    assert readable == pipe._rfd
    close_channel(channel)
    assert not harmed
