"""The rows of a shape at an exact position, and their hand-off to the stream.

WAL order is not visibility order: a transaction reaches the stream before other sessions can see it. So neither
"the rows, then everything after" nor any cut by LSN is right. What is right decides by transaction id:

    database   ──── T1 commits ──── T2 writes its commit record ─────────── T2 becomes visible ────▶
    stream     ──────── T1 ──────────────── T2 ─────────────────────────────────────────────────────▶
    reader                                        │ S: rows with T1, without T2 │ L ≥ T2
                                                  ╰── T2 came *before* S was taken, and S lacks it

1. The replay log holds what was recently delivered (the look-back) and everything from here on.
2. In REPEATABLE READ, with the table locked against TRUNCATE: S = pg_current_snapshot(), then the rows as S sees them.
   After S: L, the database's WAL end.
3. Every transaction of the log that S does *not* see is applied over the rows, in commit order.
4. When the stream has passed L, the result is the exact state at the stream's head: a transaction up to the head
   either is visible in S, and then it is in the rows, or it is not, and then it was in the log.
5. A table that was added to the publication while a transaction was writing to it has only the later half of that
   transaction in the stream. So S counts only if no transaction runs in it that is older than the addition.
6. Step 4 needs every transaction that the log had already dropped to be visible in S. The log remembers which ones
   it has dropped, and the snapshot is taken again while one of them runs in S. (An xmin horizon would do too, but it
   would let one long-running transaction hold up every snapshot. Asking the database would not do: a commit that
   waits for a synchronous standby is in the stream, and the database says that it is in progress.)

The one rule of this room: the rows are text from COPY under the same settings as the stream's, so a row read here
and a row from the stream are byte-equal.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, Protocol, cast

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from rowcast.capture.connection import finds, sever
from rowcast.filters import BoundFilter
from rowcast.model import Row, Table
from rowcast.values import parse_copy_line, session_options

# A transaction that has committed becomes visible within microseconds, or when a synchronous standby has answered.
_RETRY_SECONDS: Final = 0.02
# Readings at a time, so that a crowd of different shapes does not take all of the database's connections.
_CONCURRENT: Final = 4
_CONNECT_SECONDS: Final = 10
# After so long without a row it is asked whether the server is still at it. Rows come within milliseconds, unless a
# filter has to go through a large table first.
SILENCE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Visibility:
    """What a snapshot sees: `pg_current_snapshot()`."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Visibility:
        """Read `xmin:xmax:xip,xip,…`."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid))

    def sees(self, xid: int) -> bool:
        """Whether a committed transaction's effects are in the snapshot."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)

    def hides(self, dropped: Dropped) -> bool:
        """Whether it lacks a transaction that the log has dropped."""
        return dropped.newest_evicted_xid >= self.xmax or any(map(dropped.has_evicted, self.running))


class Dropped(Protocol):
    """What a snapshot needs to know of the log: see `rowcast.log.Log`."""

    @property
    def newest_evicted_xid(self) -> int: ...

    def has_evicted(self, xid: int) -> bool | None: ...


@dataclass(slots=True)
class _Life:
    """Signs of life from a connection: what has come, and the server's process at its other end, once known."""

    heard: int = 0
    pid: int | None = None


class SnapshotReader:
    """Reads tables consistently, over connections of its own.

    Args:
        dsn: The database; may lead through a pooler in transaction mode.
        publication: What the stream comes from; a name that is none where it comes from elsewhere.
    """

    def __init__(self, dsn: str, publication: str) -> None:
        self._dsn = dsn
        self._publication = publication
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._slots = asyncio.Semaphore(_CONCURRENT)

    @asynccontextmanager
    async def read(
        self, table: Table, bound: BoundFilter | None, dropped: Dropped
    ) -> AsyncGenerator[tuple[Visibility, AsyncIterator[list[Row]]]]:
        """Begin to read the rows of a table that a filter lets through.

        Args:
            dropped: What the log does not hold any more.

        Yields:
            What the snapshot sees, and its rows (all columns of `table`, in order) in batches as they arrive.

        Raises:
            psycopg.Error: The rows cannot be read.
        """
        async with self._slots, self._connection() as (connection, life):
            while True:
                async with connection.transaction():
                    await connection.execute(_begin(table))
                    cursor = await connection.execute("SELECT pg_current_snapshot()::text, pg_backend_pid()")
                    row = await cursor.fetchone()
                    assert row is not None
                    visibility = Visibility.parse(row[0])
                    life.pid = row[1]
                    life.heard += 1  # who waits here for other transactions is alive
                    whole = await _has_all_writers(connection, table, self._publication, visibility)
                    if whole and await _sees_the_dropped(connection, visibility, dropped):
                        # Closed before the transaction: a COPY that was left in its middle holds the connection.
                        async with aclosing(_rows(connection, table, bound, life)) as rows:
                            yield visibility, rows
                        return
                await asyncio.sleep(_RETRY_SECONDS)

    async def newest_xid(self) -> int:
        """The highest transaction id that the database has given out.

        Raises:
            psycopg.Error: The database does not answer.
        """
        async with self._connection() as (connection, _):
            cursor = await connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0]) - 1

    async def done(self, mutations: Sequence[str]) -> frozenset[str]:
        """Which mutations the marks of `rowcast.contrib.idempotency` say were done.

        Raises:
            psycopg.Error: The database does not answer.
        """
        async with self._connection() as (connection, _):
            cursor = await connection.execute(_DONE, (list(mutations),))
            return frozenset(mutation for (mutation,) in await cursor.fetchall())

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[tuple[psycopg.AsyncConnection[Any], _Life]]:
        connection = self._take_idle() or await self._connect()
        life = _Life()
        watching = asyncio.create_task(self._watch(connection, life), name="rowcast snapshot watch")
        try:
            yield connection, life
        except BaseException:
            sever(connection)  # an end in good order would wait for the server's answer, which may never come
            await connection.close()
            raise
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        self._idle.append(connection)

    def _take_idle(self) -> psycopg.AsyncConnection[Any] | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                with selectors.DefaultSelector() as selector:
                    selector.register(connection.fileno(), selectors.EVENT_READ)
                    if not selector.select(0):
                        return connection
                # Nothing was asked, so what has arrived is the server's farewell.
                connection.pgconn.finish()
        return None

    async def _watch(self, connection: psycopg.AsyncConnection[Any], life: _Life) -> None:
        """End a connection that nothing comes from although the server is not working for it."""
        while True:
            heard = life.heard
            await asyncio.sleep(SILENCE_SECONDS)
            waiting = connection.pgconn.transaction_status == TransactionStatus.ACTIVE
            if not waiting or life.heard != heard or await self._works(life.pid):
                continue
            sever(connection)
            return

    async def _works(self, pid: int | None) -> bool:
        """Whether a process of the server is in the middle of a statement; before its first answer, at the lock."""
        return await finds(self._connect(), _WORKING, {"pid": pid}, SILENCE_SECONDS)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            options=session_options(),
            application_name="rowcast snapshot",
            connect_timeout=_CONNECT_SECONDS,
            keepalives_idle=_CONNECT_SECONDS,
            keepalives_interval=_CONNECT_SECONDS,
            keepalives_count=3,
            prepare_threshold=None,  # a pooler in transaction mode has no place for prepared statements
        )

    async def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle:
            await self._idle.pop().close()


_DONE: Final = """
SELECT id FROM unnest(%s::text[]) AS id WHERE rowcast.mutation_status(id) = 'committed'
"""
_WORKING: Final = """
SELECT FROM pg_stat_activity
WHERE state = 'active' AND CASE
    WHEN %(pid)s::int IS NULL THEN application_name = 'rowcast snapshot' AND wait_event_type = 'Lock'
    ELSE pid = %(pid)s
END
"""


def _begin(table: Table) -> sql.Composed:
    # The lock comes before S: TRUNCATE and ALTER TABLE … TYPE take rows from older snapshots too, so neither may get in
    # between S and the rows.
    return sql.SQL(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE"
    ).format(sql.Identifier(table.schema, table.name))


# The row of the table, of its schema, or of a publication of all tables: whichever put the table there.
_ADDED_BY: Final = """
SELECT coalesce(max(pg_snapshot_xmax(pg_current_snapshot())::text::bigint - age(added)), 0)
FROM pg_publication p
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = %s
LEFT JOIN LATERAL (SELECT coalesce(r.xmin, p.xmin)) AS a (added) ON true
WHERE p.pubname = %s AND (p.puballtables OR r.prrelid IS NOT NULL)
"""


# Who has written to a table holds this lock on it to its end.
_WRITERS: Final = """
SELECT DISTINCT pg_snapshot_xmax(pg_current_snapshot())::text::bigint - age(x.transactionid)
FROM pg_locks l JOIN pg_locks x ON x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid'
WHERE l.locktype = 'relation' AND l.relation = %s AND l.mode = 'RowExclusiveLock' AND x.mode = 'ExclusiveLock'
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def _has_all_writers(
    connection: psycopg.AsyncConnection[Any], table: Table, publication: str, visibility: Visibility
) -> bool:
    """Step 5: whether nobody still writes to the table who began before it was added to the publication."""
    cursor = await connection.execute(_ADDED_BY, (table.oid, publication))
    row = await cursor.fetchone()
    added = 0 if row is None else int(row[0])
    older = [xid for xid in visibility.running if xid < added]
    if not older:
        return True
    # A transaction of that age ran, perhaps elsewhere. Who holds the table may have written before; who has ended
    # since S was taken, too. Asked in this order, so that none slips through between the two questions.
    cursor = await connection.execute(_WRITERS, (table.oid,))
    if any(int(xid) < added for (xid,) in await cursor.fetchall()):
        return False
    return not await _any_has_committed(connection, older)


async def _sees_the_dropped(
    connection: psycopg.AsyncConnection[Any], visibility: Visibility, dropped: Dropped
) -> bool:
    """Step 6: whether no transaction that the log has dropped is hidden from the snapshot."""
    if visibility.hides(dropped):
        return False
    # From before this server's time: it may be in the part of the stream that an earlier one has acknowledged.
    doubtful = [xid for xid in visibility.running if dropped.has_evicted(xid) is None]
    if not doubtful:
        return True
    if await _any_has_committed(connection, doubtful):
        return False
    cursor = await connection.execute(_WAITING_FOR_STANDBY, (doubtful,))
    return await cursor.fetchone() is None


# Of a role that may not look at others, these columns are NULL.
_WAITING_FOR_STANDBY: Final = """
SELECT FROM pg_stat_activity
WHERE wait_event = 'SyncRep' AND backend_xid::text::bigint IN (SELECT xid %% 4294967296 FROM unnest(%s::bigint[]) AS xid)
"""


async def _any_has_committed(connection: psycopg.AsyncConnection[Any], xids: list[int]) -> bool:
    cursor = await connection.execute(
        "SELECT bool_or(pg_xact_status(xid::text::xid8) = 'committed') FROM unnest(%s::bigint[]) AS xid",
        (xids,),
    )
    row = await cursor.fetchone()
    return row is not None and row[0] is True


async def _rows(
    connection: psycopg.AsyncConnection[Any], table: Table, bound: BoundFilter | None, life: _Life
) -> AsyncGenerator[list[Row]]:
    query = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns),
        sql.Identifier(table.schema, table.name),
        sql.SQL(cast("LiteralString", f" WHERE {bound.sql}" if bound else "")),  # type: ignore[redundant-cast] # the printer quotes
    )
    # A batch is what has arrived: a few hundred rows that were encoded together cost less than each by itself.
    rows: list[Row] = []
    size = 0
    async with connection.cursor() as cursor, cursor.copy(query) as copy:
        async for line in copy:
            life.heard += 1
            data = bytes(line)
            rows.append(parse_copy_line(data.removesuffix(b"\n")))
            size += len(data)
            if size >= BATCH_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


# Large enough that a message's own cost disappears, small enough that the first rows come soon and that a slow
# client's queue holds several.
BATCH_BYTES: Final = 64 * 1024
