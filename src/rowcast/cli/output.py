"""Standard output for commands that print for ever.

The one rule of this room: a reader that is slow slows the command and nothing else: what is not taken is not read
from the server, and signals, heartbeats and a closed pipe are still noticed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

# A reader that is still there takes what is left at once; one that stopped shall not keep us from ending.
_FLUSH_SECONDS: Final = 1.0


class Output:
    """Writes to standard output, waiting where it is a pipe that is full. Use it with `async with`.

    When nobody reads the pipe any more, the task that entered is cancelled.
    """

    def __init__(self) -> None:
        self._descriptor = sys.stdout.fileno()
        self._pipe: asyncio.WriteTransport | None = None
        self._protocol = _PipeProtocol()

    async def __aenter__(self) -> Self:
        sys.stdout.flush()
        mode = os.fstat(self._descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            loop, reader = asyncio.get_running_loop(), asyncio.current_task()
            file = os.fdopen(os.dup(self._descriptor), "wb", buffering=0)
            self._pipe, _ = await loop.connect_write_pipe(lambda: self._protocol, file)
            self._protocol.on_closed = reader.cancel if reader is not None else None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._protocol.on_closed = None
        if self._pipe is not None:
            self._pipe.close()
            try:
                await asyncio.wait_for(self._protocol.ended.wait(), _FLUSH_SECONDS)
            except TimeoutError:
                self._pipe.abort()

    async def write(self, data: bytes) -> None:
        """Write, and wait until there is room for more."""
        if self._pipe is None:
            # A file or a terminal: neither keeps us waiting for long.
            while data:
                data = data[os.write(self._descriptor, data) :]
        elif not self._pipe.is_closing():
            self._pipe.write(data)
            await self._protocol.room.wait()


class _PipeProtocol(asyncio.BaseProtocol):
    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.ended = asyncio.Event()
        self.on_closed: Callable[[], object] | None = None

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature of a protocol
        self.room.set()
        self.ended.set()
        if self.on_closed is not None:
            self.on_closed()


def run_until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine until it ends by itself, or is cancelled by SIGINT, SIGTERM or itself: the ordinary end."""

    async def until_stopped() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    asyncio.run(until_stopped())
