"""The rows of a shape at an exact position, and their hand-off to the stream.

WAL order is not visibility order: a transaction reaches the stream before other sessions can see it. So neither
"the rows, then everything after" nor any cut by LSN is right. What is right decides by transaction id:

    database   ──── T1 commits ──── T2 writes its commit record ─────────── T2 becomes visible ────▶
    stream     ──────── T1 ──────────────── T2 ─────────────────────────────────────────────────────▶
    reader                                        │ S: rows with T1, without T2 │ L ≥ T2
                                                  ╰── T2 came *before* S was taken, and S lacks it

1. The replay log holds what was recently delivered (the look-back) and everything from here on.
2. In REPEATABLE READ: S = pg_current_snapshot(), then the rows as S sees them. After S: L, the database's WAL end.
3. Every transaction of the log that S does *not* see is applied over the rows, in commit order.
4. When the stream has passed L, the result is the exact state at the stream's head: a transaction up to the head
   either is visible in S, and then it is in the rows, or it is not, and then it was in the log.
5. A table that was added to the publication while a transaction was writing to it has only the later half of that
   transaction in the stream. So S counts only if no transaction runs in it that is older than the addition.
6. Step 4 needs every transaction that the log had already dropped to be visible in S. A dropped transaction that S
   does not see has committed and is still in S's list of running ones; `check` asks for exactly those, and the
   snapshot is taken again while there is one. (An xmin horizon would do too, but it would let one long-running
   transaction hold up every snapshot.)

The one rule of this room: the rows are text from COPY under the same settings as the stream's, so a row read here
and a row from the stream are byte-equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg import sql

from rowcast.filters import BoundFilter
from rowcast.model import Row, Table
from rowcast.values import parse_copy_line, session_options

# A transaction that has committed becomes visible within microseconds, or when a synchronous standby has answered.
_RETRY_SECONDS: Final = 0.02
# Readings at a time, so that a crowd of different shapes does not take all of the database's connections.
_CONCURRENT: Final = 4
_CONNECT_SECONDS: Final = 10


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
        self, table: Table, bound: BoundFilter | None, newest_evicted_xid: int
    ) -> AsyncGenerator[tuple[Visibility, AsyncIterator[list[Row]]]]:
        """Begin to read the rows of a table that a filter lets through.

        Args:
            newest_evicted_xid: The highest transaction id that the log does not hold any more.

        Yields:
            What the snapshot sees, and its rows (all columns of `table`, in order) in batches as they arrive.

        Raises:
            psycopg.Error: The rows cannot be read.
        """
        async with self._slots, self._connection() as connection:
            while True:
                async with connection.transaction():
                    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    cursor = await connection.execute("SELECT pg_current_snapshot()::text")
                    row = await cursor.fetchone()
                    assert row is not None
                    visibility = Visibility.parse(row[0])
                    added = await _added_by(connection, table, self._publication)
                    whole = not any(xid < added for xid in visibility.running)
                    if whole and await _sees_the_dropped(connection, visibility, newest_evicted_xid):
                        yield visibility, _rows(connection, table, bound)
                        return
                await asyncio.sleep(_RETRY_SECONDS)

    async def newest_xid(self) -> int:
        """The highest transaction id that the database has given out.

        Raises:
            psycopg.Error: The database does not answer.
        """
        async with self._connection() as connection:
            cursor = await connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0]) - 1

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            if connection.closed:
                connection = await self._connect()
            yield connection
        except BaseException:
            await connection.close()
            raise
        self._idle.append(connection)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            options=session_options(),
            application_name="rowcast snapshot",
            connect_timeout=_CONNECT_SECONDS,
            prepare_threshold=None,  # a pooler in transaction mode has no place for prepared statements
        )

    async def close(self) -> None:
        """Close the connections that are idle."""
        while self._idle:
            await self._idle.pop().close()


# The row of the table, of its schema, or of a publication of all tables: whichever put the table there.
_ADDED_BY: Final = """
SELECT coalesce(max(pg_snapshot_xmax(pg_current_snapshot())::text::bigint - age(added)), 0)
FROM pg_publication p
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = %s
LEFT JOIN LATERAL (SELECT coalesce(r.xmin, p.xmin)) AS a (added) ON true
WHERE p.pubname = %s AND (p.puballtables OR r.prrelid IS NOT NULL)
"""


async def _added_by(connection: psycopg.AsyncConnection[Any], table: Table, publication: str) -> int:
    """The transaction that added a table to the publication (step 5); 0 where that is long ago or not known."""
    cursor = await connection.execute(_ADDED_BY, (table.oid, publication))
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def _sees_the_dropped(
    connection: psycopg.AsyncConnection[Any], visibility: Visibility, newest_evicted_xid: int
) -> bool:
    """Step 6: whether no transaction that the log has dropped is hidden from the snapshot."""
    if newest_evicted_xid >= visibility.xmax:
        return False
    suspects = [xid for xid in visibility.running if xid <= newest_evicted_xid]
    if not suspects:
        return True
    cursor = await connection.execute(
        "SELECT bool_or(pg_xact_status(xid::text::xid8) = 'committed') FROM unnest(%s::bigint[]) AS xid",
        (suspects,),
    )
    row = await cursor.fetchone()
    return row is None or not row[0]


async def _rows(
    connection: psycopg.AsyncConnection[Any], table: Table, bound: BoundFilter | None
) -> AsyncIterator[list[Row]]:
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
