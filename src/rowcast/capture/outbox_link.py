"""The outbox capture's connection, and what lives as long as it.

The one rule of this room: whoever waits here can be cancelled, and never waits for a server that is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import psycopg

from rowcast.capture.connection import duplicate_socket, sever
from rowcast.capture.outbox_rows import Member
from rowcast.capture.outbox_store import BatchRecord, Snapshot
from rowcast.model import Event, Table

_T = TypeVar("_T")

# A statement takes milliseconds; one without an answer for this long has lost its server.
ANSWER_SECONDS: Final = 30.0


class Link:
    """What lives as long as one connection.

    Attributes:
        epoch: The first part of every position.
        floor: Number of the oldest batch that is written down.
        newest: The newest one.
        overflow: Value of rowcast.outbox_overflow; another one means that rows are missing.
        covered: OIDs of the tables with triggers, as of the newest batch.
        tables: The watched tables, as of then.
        members: They and their partitions.
        changed: For each of these, the latest batch in which its columns were found changed.
        replaced: Tables whose new columns were announced with the newest batch.
        announced: Events that go before the next batch.
        holds_bell: Every transaction rings.
        pause_seconds: How long the last look was followed by a rest, or will be.
        purging: What this snapshot sees is being removed; no transaction below `purged` has rows any more.
        look_at: When the next heartbeat is due, and `purge_at` the next purge, in monotonic seconds.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], rung: asyncio.Event, tables: Mapping[int, Table]
    ) -> None:
        self.connection = connection
        self.epoch = ""
        self.floor = 0
        self.newest = BatchRecord(0, Snapshot("0:0:"), Snapshot("0:0:"), 0, ())
        self.overflow = 0
        self.backend_pid: int | None = None
        self.covered: frozenset[int] = frozenset()
        self.tables = tables
        self.members: Mapping[int, Member] = {}
        self.changed: dict[int, int] = {}
        self.replaced: frozenset[int] = frozenset()
        self.announced: list[Event] = []
        self.may_sleep = False
        self.holds_bell = False
        self.pause_seconds = 0.0
        self.purged = 0
        self.purging: Snapshot | None = None
        self.purge_at = 0.0
        self.look_at = 0.0
        self._rung = rung
        self._loop = asyncio.get_running_loop()
        # libpq closes its own when the connection breaks, and the number may be another socket's a moment later.
        self._socket = duplicate_socket(connection)
        connection.add_notify_handler(lambda _: rung.set())

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
        while pgconn.notifies() is not None:
            pass

    async def close(self) -> None:
        sever(self.connection)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        await self.connection.close()
