"""The part of telnet (RFC 854) that reading a serial port by RFC 2217 takes. It does no I/O.

RFC 2217 adds an option, by which a client can set the port's speed. Who only reads does not ask for
it: the speed stays what the server's owner has chosen.
"""

from __future__ import annotations

IAC, DONT, DO, WONT, WILL, SB, SE = 255, 254, 253, 252, 251, 250, 240
#: The options that the server may use: it sends eight bits, echoes what others type, and needs no
#: turns (RFC 856, 857, 858). All others are refused.
BINARY, ECHO, SUPPRESS_GO_AHEAD = 0, 1, 3
#: The longest parameters of an option, in bytes: a server's signature (RFC 2217), of a line or so.
_LONGEST = 512
_WELCOME = (BINARY, ECHO, SUPPRESS_GO_AHEAD)


class Telnet:
    """The state of a connection: where it is in a command, and what was answered."""

    def __init__(self) -> None:
        self._command = bytearray()
        self._binary = False
        self._answered: set[tuple[int, int]] = set()

    def received(self, data: bytes) -> tuple[bytes, bytes]:
        """Return what the server's port has printed, of the bytes that came, and what to answer."""
        text, answer = bytearray(), bytearray()
        for byte in data:
            if self._command:
                text += self._continue(byte, answer)
            elif byte == IAC:
                self._command.append(byte)
            elif byte or self._binary:  # NUL follows a lone carriage return (RFC 854)
                text.append(byte)
        return bytes(text), bytes(answer)

    def _continue(self, byte: int, answer: bytearray) -> bytes:
        """Take a byte of a command; return what it stands for in the text."""
        command = self._command
        command.append(byte)
        if command[1] == SB:
            # It ends with IAC SE; IAC IAC is a byte of it.
            if len(command) > 3 and command[-2] == IAC:
                if byte == SE:
                    command.clear()
                else:
                    command[-1] = 0
            if len(command) <= _LONGEST:
                return b""
            # It was no command: this server passes on what a host prints, without doubling IAC.
            text = bytes(command)
            command.clear()
            return text
        if command[1] in (DO, DONT, WILL, WONT):
            if len(command) == 3:
                self._negotiate(command[1], byte, answer)
                command.clear()
            return b""
        command.clear()
        return bytes([IAC]) if byte == IAC else b""

    def _negotiate(self, verb: int, option: int, answer: bytearray) -> None:
        """Answer what the server offers or asks, once each (RFC 1143)."""
        if option == BINARY and verb in (WILL, WONT):
            self._binary = verb == WILL
        if verb in (WONT, DONT) or (verb, option) in self._answered:
            return
        self._answered.add((verb, option))
        if verb == WILL:
            answer += bytes([IAC, DO if option in _WELCOME else DONT, option])
        else:
            answer += bytes([IAC, WONT, option])
