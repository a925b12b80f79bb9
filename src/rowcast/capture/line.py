"""A connection that is listened to and, between two notifications, asked.

The one rule of this room: whoever waits here can be cancelled, and never waits for a server that is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import psycopg

from rowcast.capture.connection import duplicate_socket, sever, watch

_T = TypeVar("_T")

# A statement takes milliseconds; one without an answer for this long has lost its server.
ANSWER_SECONDS: Final = 30.0


class Notification(NamedTuple):
    channel: str
    payload: str


class Line:
    """What lives as long as one connection.

    Args:
        rung: Set by whoever has something for the one who waits; set here when the server says something.

    Attributes:
        heard: Notifications in the order they were committed in; the reader takes them and empties it.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], rung: asyncio.Event) -> None:
        self.connection = connection
        self.heard: list[Notification] = []
        self._rung = rung
        self._loop = asyncio.get_running_loop()
        # libpq closes its own when the connection breaks, and the number may be another socket's a moment later.
        self._socket = duplicate_socket(connection)
        self._watching: asyncio.Task[None] | None = None
        connection.add_notify_handler(self._hear)

    def watch(self, dsn: str) -> None:
        """End the connection also where it waits in vain for an answer that may take its time; see `watch`."""
        self._watching = watch(self.connection, dsn)

    async def ask(self, statement: Awaitable[_T], *, seconds: float = ANSWER_SECONDS) -> _T:
        """Run something on the connection, which is ended when that takes too long or the caller is cancelled.

        psycopg itself would ask the server to cancel and wait for the answer, which a dead one never gives.

        Raises:
            psycopg.Error: The statement failed, or the connection did.
        """
        task = asyncio.ensure_future(statement)
        timer = self._loop.call_later(seconds, sever, self.connection)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            sever(self.connection)
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            timer.cancel()

    async def wait(self, seconds: float) -> None:
        """Wait until the bell rings, at most for so long.

        Raises:
            psycopg.OperationalError: The connection has ended.
        """
        self._loop.add_reader(self._socket, self._rung.set)
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            return
        finally:
            with suppress(ValueError):  # closed meanwhile
                self._loop.remove_reader(self._socket)
        self._rung.clear()
        pgconn = self.connection.pgconn
        pgconn.consume_input()
        while (notify := pgconn.notifies()) is not None:
            self.heard.append(Notification(notify.relname.decode(), notify.extra.decode(errors="replace")))

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        sever(self.connection)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        await self.connection.close()

    def _hear(self, notify: psycopg.Notify) -> None:
        self.heard.append(Notification(notify.channel, notify.payload))
        self._rung.set()
