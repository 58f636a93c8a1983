"""A console at a TCP port, as of ser2net, conserver or labgrid's exporter (NetworkSerialPort)."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.console.source import ConsoleLostError, ConsoleStream
from harness.console.telnet import Telnet
from harness.host.target import ADDRESS, LONGEST_ADDRESS
from harness.strict_yaml import Strict

CONNECT_SECONDS = 10.0
_CHUNK = 1 << 16
#: After so many seconds without a byte the other end is asked whether it is there, and is lost when
#: it has not answered so many questions, so many seconds apart (tcp(7)).
_IDLE_SECONDS, _QUESTIONS, _EACH_SECONDS = 30, 3, 10


class TcpConsole(Strict):
    """A console at a TCP port. labgrid's NetworkSerialPort has the same protocols."""

    lag: ClassVar[float] = 1.0

    address: Annotated[
        str,
        Field(pattern=ADDRESS, max_length=LONGEST_ADDRESS, description="a host name or IP address"),
    ]
    port: Annotated[int, Field(ge=1, le=65535, description="a TCP port, 1 to 65535")]
    protocol: Annotated[
        Literal["raw", "rfc2217"],
        Field(description="raw: the bytes themselves; or rfc2217, which is telnet's as well"),
    ] = "raw"

    @contextmanager
    def open(self) -> Iterator[ConsoleStream]:
        where = f"{self.address}:{self.port}"
        try:
            sock = socket.create_connection((self.address, self.port), timeout=CONNECT_SECONDS)
        except (OSError, UnicodeError) as problem:
            raise ConsoleLostError(f"no connection to {where}: {problem}") from None
        with sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _QUESTIONS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _EACH_SECONDS)
            yield _TcpStream(sock, where, Telnet() if self.protocol == "rfc2217" else None)


class _TcpStream:
    def __init__(self, sock: socket.socket, where: str, telnet: Telnet | None) -> None:
        self._sock, self._where, self._telnet = sock, where, telnet

    def read(self) -> bytes:
        if not select.select([self._sock], [], [], 0)[0]:
            return b""
        try:
            data = self._sock.recv(_CHUNK)
            if data and self._telnet:
                data, answer = self._telnet.received(data)
                self._sock.sendall(answer)
                return data
        except OSError as problem:
            raise ConsoleLostError(f"the connection to {self._where} broke: {problem}") from None
        if not data:
            raise ConsoleLostError(f"{self._where} has closed the connection")
        return data
