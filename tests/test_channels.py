"""The harness closes a channel safely where paramiko's own close has a race."""

from __future__ import annotations

import os

import paramiko
import pytest

from harness.host.channels import close as close_channel


def test_data_that_come_while_a_channel_closes_harm_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Data that arrive during a close are not written to the channel's pipe.

    The transport's thread may feed the channel while it is being closed. The pipe's descriptors are
    closed by then, or their numbers already belong to another file.
    """
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
