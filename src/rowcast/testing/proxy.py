"""A TCP proxy that fails on command: between a client and a server, or a server and PostgreSQL.

The one rule of this room: what it does to a link looks to both ends exactly like the fault it is named for,
so bytes are never changed or reordered, and bytes that were swallowed never come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable
from types import TracebackType
from typing import Final, Self

_CHUNK_BYTES: Final = 65536  # small enough that a byte limit and a stall take effect in mid-frame


class FaultProxy:
    """Forwards 127.0.0.1:`port` to a target until told otherwise. Use it with `async with`, in one event loop.

    All commands take effect at once and need no `await`:

    - `cut()`: every link ends with a reset; new ones work.
    - `stall()`: links stay open, bytes wait, on both ways; `resume()` lets them flow.
    - `half_open()`: links stay open, and what is sent into them is lost, closings too, as behind a router that
      forgot them. They stay so for good; `resume()` heals only links made after it.
    - `refuse()`: the port is closed, connecting fails; existing links go on.
    - `drop_after(n)`: each link ends after n more bytes to the client, in mid-frame.
    - `resume()`: no fault from here on.

    Args:
        target_port: Where the real server listens.
        target_host: Its host.
        port: Port to listen on; 0 takes a free one, readable as `port` from `start()` on.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1", port: int = 0) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.host: Final = "127.0.0.1"
        self.port = port
        self.accepted = 0
        self._listener: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._swallow_new = False
        self._limit_new: int | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def links(self) -> int:
        """How many connections go through the proxy now."""
        return len(self._links)

    def start(self) -> None:
        """Listen. Called from a coroutine: the proxy lives in the running event loop."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((self.host, self.port))
        listener.listen(1024)  # a reconnect storm is one of the things it is used for
        self.port = listener.getsockname()[1]
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def close(self) -> None:
        """Close the port and every link, and wait until nothing of it is left."""
        self.refuse()
        self.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        for link in tuple(self._links):
            link.reset()

    def stall(self) -> None:
        self._flowing.clear()

    def half_open(self) -> None:
        self._swallow_new = True
        for link in self._links:
            link.swallow = True

    def refuse(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def drop_after(self, to_client_bytes: int) -> None:
        self._limit_new = to_client_bytes
        for link in self._links:
            link.bytes_left = to_client_bytes

    def resume(self) -> None:
        self._swallow_new = False
        self._limit_new = None
        for link in self._links:
            link.bytes_left = None
        self._flowing.set()
        self.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            self.accepted += 1
            client.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._carry(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, client: socket.socket) -> None:
        link = _Link(swallow=self._swallow_new, bytes_left=self._limit_new)
        self._links.add(link)
        try:
            from_client, to_client = await asyncio.open_connection(sock=client)
            link.ends.append(to_client)
            from_server, to_server = await asyncio.open_connection(self.target_host, self.target_port)
            link.ends.append(to_server)
            await _first(
                asyncio.gather(
                    self._pump(from_client, to_server, link, limited=False),
                    self._pump(from_server, to_client, link, limited=True),
                ),
                link.was_reset.wait(),
            )
        except OSError:
            link.reset()  # the target refused, or one end reset the link: the other end sees the same
        finally:
            self._links.discard(link)
            link.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, link: _Link, *, limited: bool
    ) -> None:
        while chunk := await source.read(_CHUNK_BYTES):
            await self._flowing.wait()
            if link.swallow:
                continue
            if limited and link.bytes_left is not None:
                chunk, link.bytes_left = chunk[: link.bytes_left], max(0, link.bytes_left - len(chunk))
            sink.write(chunk)
            await sink.drain()
            if limited and link.bytes_left == 0:
                break
        await self._flowing.wait()
        if link.swallow:
            await link.was_reset.wait()
        if sink.can_write_eof() and not sink.transport.is_closing():
            sink.write_eof()


class _Link:
    """One client's connection and its counterpart to the target."""

    def __init__(self, *, swallow: bool, bytes_left: int | None) -> None:
        self.ends: list[asyncio.StreamWriter] = []
        self.swallow = swallow
        self.bytes_left = bytes_left
        self.was_reset = asyncio.Event()

    def reset(self) -> None:
        self.was_reset.set()
        for end in self.ends:
            # Without lingering, closing sends RST at once and discards what is unsent. The end that was reset from
            # outside is closed already.
            with contextlib.suppress(OSError):
                end.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            end.transport.abort()

    def close(self) -> None:
        for end in self.ends:
            end.close()


async def _first(*waits: Awaitable[object]) -> None:
    """Wait until one of them is done, end the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
