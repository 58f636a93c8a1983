"""A console behind an SSH server: the serial console that a BMC carries (SOL). OpenBMC, the BMC of
a Grace, has it at port 2200."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar

import paramiko
from pydantic import Field

from harness.console.source import ConsoleLostError, ConsoleStream
from harness.host.channels import CONNECT_SECONDS
from harness.host.link import Link, UnreachableError
from harness.host.target import ADDRESS, LONGEST_ADDRESS, USER, Target
from harness.strict_yaml import HomePath, Strict

_CHUNK = 1 << 16
#: As wide as a terminal can be said to be: firmware breaks lines for narrow ones.
_COLUMNS = 500


class SshConsole(Strict):
    """A console behind an SSH server. Its host key is checked, and a key logs in, as for a host."""

    lag: ClassVar[float] = 2.0

    address: Annotated[
        str,
        Field(
            pattern=ADDRESS,
            max_length=LONGEST_ADDRESS,
            description="a host name or IP address of the BMC",
        ),
    ]
    port: Annotated[int, Field(ge=1, le=65535, description="a TCP port, 1 to 65535")] = 2200
    user: Annotated[
        str, Field(pattern=USER, max_length=64, description="the user to log in as")
    ] = "root"
    key: Annotated[HomePath, Field(description="path of a private SSH key, without passphrase")]
    known_hosts: Annotated[HomePath, Field(description="path of a known_hosts file")]
    command: Annotated[
        str | None,
        Field(
            min_length=1,
            description="the command that shows the console; without it, logging in shows it",
        ),
    ] = None

    @contextmanager
    def open(self) -> Iterator[ConsoleStream]:
        target = Target(self.address, self.port, self.user, self.key, self.known_hosts)
        with contextlib.ExitStack() as opened:
            try:
                link = Link.open(target)
                opened.callback(link.close)
                channel = link.transport.open_session(timeout=CONNECT_SECONDS)
                opened.callback(channel.close)
                channel.get_pty(width=_COLUMNS)
                channel.set_combine_stderr(True)
                if self.command:
                    channel.exec_command(self.command)
                else:
                    channel.invoke_shell()
            except UnreachableError as problem:
                raise ConsoleLostError(problem.message) from None
            except (paramiko.SSHException, OSError, EOFError) as problem:
                raise ConsoleLostError(f"{target.known_as} shows no console: {problem}") from None
            yield _ChannelStream(channel, target.known_as)


class _ChannelStream:
    def __init__(self, channel: paramiko.Channel, where: str) -> None:
        self._channel, self._where = channel, where

    def read(self) -> bytes:
        ended = self._channel.closed or self._channel.eof_received
        if not self._channel.recv_ready() and not ended:
            return b""
        try:
            data = self._channel.recv(_CHUNK)
        except OSError as problem:
            raise ConsoleLostError(f"the console at {self._where} broke: {problem}") from None
        if not data:
            raise ConsoleLostError(f"{self._where} has ended the console")
        return data
