"""A TCP relay on loopback: a link that can fall silent, be cut, and come back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Closing a socket with this option resets its connection, as a link that breaks does.
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """A relay from `port` to the port that `upstream` returns whenever a connection is made."""

    def __init__(self, upstream: Callable[[], int]) -> None:
        self.port = 0
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextmanager
    def to(cls, upstream: Callable[[], int]) -> Iterator[Relay]:
        """Yield a relay that accepts connections."""
        relay = cls(upstream)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            relay.port = listener.getsockname()[1]
            thread = threading.Thread(target=relay._run, args=(listener,), name="relay")
            thread.start()
            try:
                yield relay
            finally:
                relay._do(relay._loop.stop)
                thread.join()

    def silence(self) -> None:
        """Carry nothing from now on, and tell nobody: connections stay open."""
        self._do(self._flowing.clear)

    def cut(self) -> None:
        """Reset all connections, and new ones as soon as they are made."""

        def cut() -> None:
            self._cut = True
            self._reset()

        self._do(cut)

    def reset(self) -> None:
        """Reset the connections that there are now."""
        self._do(self._reset)

    def mend(self) -> None:
        """Carry everything again, also what came while the link was silent."""

        def mend() -> None:
            self._cut = False
            self._flowing.set()

        self._do(mend)

    # -- in the thread of the loop -----------------------------------------------------------

    def _do(self, what: Callable[[], None]) -> None:
        """Call something in the loop's thread, and return once it was called."""
        done = threading.Event()

        def call() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait()

    def _run(self, listener: socket.socket) -> None:
        with contextlib.closing(self._loop):
            server = self._loop.run_until_complete(
                asyncio.start_server(self._accepted, sock=listener)
            )
            self._loop.run_forever()
            server.close()
            self._reset()
            self._loop.run_until_complete(self._finished())

    async def _finished(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reset(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        writers = [writer]
        try:
            if self._cut:
                return
            await self._flowing.wait()
            from_host, to_host = await asyncio.open_connection("127.0.0.1", self._upstream())
            writers.append(to_host)
            ways = self._carry(reader, to_host), self._carry(from_host, writer)
            pumps = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # The host does not listen, or the link is cut: the connection ends here.
        finally:
            for one in writers:
                with contextlib.suppress(OSError):  # the other end has closed it already
                    there = one.get_extra_info("socket")
                    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            await self._flowing.wait()  # nor does the end of a connection get through
