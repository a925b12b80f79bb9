"""What the outbox capture asks of the database: one function, one statement or one step.

The one rule of this room: a batch is written down, durably, before any of it is told, so that whoever reads it again
after a crash reads the same. A transaction that a batch's snapshot sees is then durable too, and none of the
transaction ids below it is ever given out again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors as pg_errors
from psycopg.rows import class_row

from rowcast.capture.catalog import load_tables_by_oid
from rowcast.capture.connection import TemporaryCaptureError
from rowcast.capture.outbox_rows import Member
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import EPOCH_DIGITS, Table

_logger: Final = logging.getLogger(__name__)

_OLDEST_VERSION: Final = 140000
# Advisory locks of this database. The migration's functions know the first: the number spells "rowbell".
_BELL: Final = int.from_bytes(b"rowbell")
_LEADER: Final = int.from_bytes(b"rowlead")
_BELL_CHANNEL: Final = "rowcast_outbox"

# Rows that one statement removes: it takes some milliseconds, and new rows wait no longer.
_PURGED_ROWS: Final = 2_000

# PostgreSQL notices a dead server in about a minute, so that another one can take its place. Every statement here is
# meant for an index, whatever the statistics say, and planning or compiling it takes longer than running it.
_SESSION: Final[Mapping[str, str]] = {
    "synchronous_commit": "local",  # a batch waits for no standby
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`pg_current_snapshot()` of a batch."""

    text: str

    @property
    def oldest(self) -> int:
        """Every transaction below it has ended."""
        return int(self.text.split(":")[0])

    @property
    def next_xid(self) -> int:
        return int(self.text.split(":")[1])

    @property
    def running(self) -> str:
        """The transactions below `next_xid` that it does not see, as an array's text."""
        return f"{{{self.text.split(':')[2]}}}"


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A row of rowcast.outbox_batch: `before` is the snapshot of the batch before it."""

    number: int
    snapshot: Snapshot
    before: Snapshot
    row_count: int
    changed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Poll:
    """What a look at the outbox has found.

    Attributes:
        backend_pid: Of the server process that answered.
        overflow: Value of rowcast.outbox_overflow.
        batch: The batch that was written, if there was anything new or one was asked for.
        covered: The tables with triggers that are of the publication, where a batch was written.
    """

    backend_pid: int
    overflow: int
    batch: BatchRecord | None
    covered: frozenset[int]


@dataclass(frozen=True, slots=True)
class State:
    """Where the outbox stands.

    Attributes:
        origin: Cluster, timeline and database, which the batches must be of.
        first, last: Numbers of the batches that are still written down; 0 where there are none.
        overflow: Up to which value of rowcast.outbox_overflow nothing is missing.
    """

    origin: str
    incarnation: str | None
    batches_origin: str | None
    first: int
    last: int
    overflow: int
    present_overflow: int

    @property
    def continues(self) -> bool:
        return self.last > 0 and self.batches_origin == self.origin and self.overflow == self.present_overflow

    @property
    def epoch(self) -> str:
        text = f"{self.origin}/outbox/{self.incarnation}"
        return hashlib.sha256(text.encode()).hexdigest()[:EPOCH_DIGITS]


async def prepare_session(connection: psycopg.AsyncConnection[Any]) -> None:
    """Refuse a server that cannot be captured from, and make the session's settings.

    Raises:
        CaptureError: For the reason given, with the remedy.
        NotInstalledError: The database was not set up.
    """
    cursor = await connection.execute(
        """
        SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(), current_database(),
            to_regclass('rowcast.outbox_state') IS NOT NULL
        """
    )
    [[version, in_recovery, database, is_installed]] = await cursor.fetchall()
    if version < _OLDEST_VERSION:
        raise CaptureError(
            f'the server is PostgreSQL {version // 10000}; capture="outbox" needs 14 or newer: upgrade it'
        )
    if in_recovery:
        raise TemporaryCaptureError(
            "the server is a standby, which cannot be captured from: give the primary's address, or all addresses "
            "with target_session_attrs=read-write"
        )
    if not is_installed:
        raise NotInstalledError(
            f"database {database} has no outbox: run: rowcast setup --capture outbox --dsn … --tables …"
        )
    await connection.execute(
        "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS s (name, value)"
        " WHERE EXISTS (SELECT FROM pg_settings AS p WHERE p.name = s.name)",
        [[*_SESSION], [*_SESSION.values()]],
    )


async def take_lead(connection: psycopg.AsyncConnection[Any], former_pid: int | None) -> bool:
    """Become the one server that reads the outbox, until the connection ends.

    `former_pid` is the server process of a dead connection of ours: PostgreSQL may not have noticed yet, and until it
    does the lock is taken.
    """
    if former_pid is not None:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (classid::bigint << 32) + objid::bigint = %s AND objsubid = 1 AND pid <> pg_backend_pid()",
            [former_pid, _LEADER],
        )
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [_LEADER])
    [[leads]] = await cursor.fetchall()
    return bool(leads)


async def listen(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Hear the bell. False where it must not be rung: PostgreSQL refuses to prepare a transaction with a NOTIFY."""
    cursor = await connection.execute("SELECT current_setting('max_prepared_transactions') = '0'")
    [[may_ring]] = await cursor.fetchall()
    if may_ring:
        await connection.execute(f"LISTEN {_BELL_CHANNEL}")
    return bool(may_ring)


async def take_bell(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Make triggers ring from now on; False while a transaction is open that will not."""
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [_BELL])
    [[taken]] = await cursor.fetchall()
    return bool(taken)


async def release_bell(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("SELECT pg_advisory_unlock(%s)", [_BELL])


async def read_state(connection: psycopg.AsyncConnection[Any]) -> State:
    async with connection.cursor(row_factory=class_row(State)) as cursor:
        await cursor.execute(
            """
            SELECT concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                    left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
                    (SELECT oid FROM pg_database WHERE datname = current_database())) AS origin,
                incarnation, state.origin AS batches_origin, overflow,
                coalesce(pg_sequence_last_value('rowcast.outbox_overflow'), 0) AS present_overflow,
                (SELECT coalesce(min(number), 0) FROM rowcast.outbox_batch) AS first,
                (SELECT coalesce(max(number), 0) FROM rowcast.outbox_batch) AS last
            FROM rowcast.outbox_state AS state
            """
        )
        [state] = await cursor.fetchall()
        return state


async def begin_anew(connection: psycopg.AsyncConnection[Any], state: State) -> State:
    """Make a new incarnation, which begins now; what the outbox holds belongs to nobody and is purged later."""
    overflow = state.present_overflow
    if overflow != state.overflow:
        overflow += 2 - overflow % 2
        await connection.execute("SELECT setval('rowcast.outbox_overflow', %s)", [overflow])
        # A transaction that still saw the triggers silenced must end first: its rows are nowhere.
        cursor = await connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())")
        [[first_complete]] = await cursor.fetchall()
        _logger.warning(
            "the outbox had reached its limit while no server read it, and changes were not written: all clients "
            "take new snapshots, once the transactions of that time have ended"
        )
        while True:
            cursor = await connection.execute(
                "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8", [first_complete]
            )
            [[have_ended]] = await cursor.fetchall()
            if have_ended:
                break
            await asyncio.sleep(0.1)
    async with connection.transaction():
        await connection.execute("DELETE FROM rowcast.outbox_batch")
        await connection.execute(
            "UPDATE rowcast.outbox_state SET incarnation = %s, origin = %s, overflow = %s",
            [secrets.token_hex(16), state.origin, overflow],
        )
        await connection.execute(
            "INSERT INTO rowcast.outbox_batch (number, snapshot, row_count, size_bytes, changed)"
            " VALUES (1, pg_current_snapshot(), 0, 0, '{}')"
        )
    return await read_state(connection)


# What the snapshot before did not see is above its end, or was running then: two ranges of the index. The snapshot of
# this very statement sees what it finds, and goes into the batch.
_POLL: Final = """
WITH fresh AS MATERIALIZED (
    SELECT table_oid, count(*) AS row_count, sum(octet_length(content)) AS size_bytes
    FROM rowcast.outbox
    WHERE xid >= %(next_xid)s::text::xid8 OR xid = ANY (%(running)s::xid8[])
    GROUP BY table_oid
), changed AS (
    UPDATE rowcast.outbox_table AS known SET signature = checked.signature
    FROM (
        SELECT table_oid, coalesce(rowcast.outbox_signature(table_oid), '') AS signature
        FROM rowcast.outbox_table
        WHERE covered AND (%(thoroughly)s OR table_oid IN (SELECT table_oid FROM fresh))
    ) AS checked
    WHERE checked.table_oid = known.table_oid AND checked.signature IS DISTINCT FROM known.signature
    RETURNING known.table_oid
), batch AS (
    INSERT INTO rowcast.outbox_batch (number, snapshot, row_count, size_bytes, changed)
    SELECT %(number)s, pg_current_snapshot(), coalesce(sum(row_count), 0), coalesce(sum(size_bytes), 0),
        ARRAY (SELECT table_oid FROM changed)
    FROM fresh
    HAVING %(asked)s OR count(*) > 0
    RETURNING snapshot, row_count, changed
)
SELECT pg_backend_pid(), coalesce(pg_sequence_last_value('rowcast.outbox_overflow'), 0), snapshot::text, row_count,
    changed::bigint[], CASE WHEN snapshot IS NOT NULL THEN ARRAY (
        SELECT t.table_oid::bigint FROM rowcast.watched AS w JOIN rowcast.outbox_table AS t ON t.root_oid = w.table_oid
        WHERE w.publication_name = %(publication)s AND t.covered
    ) END
FROM (SELECT) AS always LEFT JOIN batch ON true
"""


async def poll(
    connection: psycopg.AsyncConnection[Any],
    publication: str,
    number: int,
    before: Snapshot,
    *,
    asked: bool,
    thoroughly: bool,
) -> Poll:
    """Write down batch `number` if there is anything new since `before`, or if it was asked for.

    `thoroughly` looks at every table for changes of its columns, not only at those that have new rows.
    """
    cursor = await connection.execute(
        _POLL,
        {
            "publication": publication,
            "number": number,
            "next_xid": before.next_xid,
            "running": before.running,
            "asked": asked,
            "thoroughly": thoroughly,
        },
    )
    [[backend_pid, overflow, snapshot, row_count, changed, covered]] = await cursor.fetchall()
    batch = None
    if snapshot is not None:
        batch = BatchRecord(number, Snapshot(snapshot), before, row_count, tuple(changed))
    return Poll(backend_pid, overflow, batch, frozenset(covered or ()))


async def read_batch(connection: psycopg.AsyncConnection[Any], number: int) -> BatchRecord:
    """A batch that was written down before, and that is not the oldest one."""
    cursor = await connection.execute(
        """
        SELECT b.snapshot::text, before.snapshot::text, b.row_count, b.changed::bigint[]
        FROM rowcast.outbox_batch AS b JOIN rowcast.outbox_batch AS before ON before.number = b.number - 1
        WHERE b.number = %s
        """,
        [number],
    )
    [[snapshot, before, row_count, changed]] = await cursor.fetchall()
    return BatchRecord(number, Snapshot(snapshot), Snapshot(before), row_count, tuple(changed))


async def read_snapshot(connection: psycopg.AsyncConnection[Any], number: int) -> Snapshot:
    cursor = await connection.execute(
        "SELECT snapshot::text FROM rowcast.outbox_batch WHERE number = %s", [number]
    )
    [[text]] = await cursor.fetchall()
    return Snapshot(text)


async def read_changed(connection: psycopg.AsyncConnection[Any]) -> dict[int, int]:
    """For each table, the latest batch in which its columns were found changed."""
    cursor = await connection.execute(
        "SELECT table_oid::bigint, max(number) FROM rowcast.outbox_batch, unnest(changed) AS table_oid GROUP BY 1"
    )
    return dict(await cursor.fetchall())


def batch_query(batch: BatchRecord) -> bytes:
    """The batch's rows as COPY, in their order: what `outbox_rows.Batch` reads.

    Transactions come in the order of their last writes: of two that have changed the same row, the second could not
    write before the first had committed. Inside a transaction statements come in the order they began in, as the
    triggers of nested ones write before that of the one around them.
    """
    return f"""
        COPY (
            SELECT xid, at, statement, table_oid, operation, content
            FROM rowcast.outbox
            WHERE (xid >= '{batch.before.next_xid}'::xid8 OR xid = ANY ('{batch.before.running}'::xid8[]))
                AND xid < '{batch.snapshot.next_xid}'::xid8 AND xid <> ALL ('{batch.snapshot.running}'::xid8[])
            ORDER BY max(lsn) OVER (PARTITION BY xid), xid, statement, lsn
        ) TO STDOUT (FORMAT binary)
    """.encode()  # of numbers only


async def load_members(
    connection: psycopg.AsyncConnection[Any], publication: str
) -> tuple[dict[int, Table], dict[int, Member]]:
    """The watched tables by OID, and they and their partitions as their rows are written."""
    cursor = await connection.execute(
        """
        SELECT t.table_oid::bigint, t.root_oid::bigint, ARRAY (
            SELECT attname::text FROM pg_attribute
            WHERE attrelid = t.table_oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum
        )
        FROM rowcast.watched AS w
        JOIN rowcast.outbox_table AS t ON t.root_oid = w.table_oid
        WHERE w.publication_name = %s AND t.covered
        """,
        [publication],
    )
    rows = await cursor.fetchall()
    tables = await load_tables_by_oid(connection, {root for _, root, _ in rows})
    members = {
        oid: Member(oid, tables[root], tuple(columns))
        for oid, root, columns in rows
        if root in tables and {column.name for column in tables[root].columns} <= set(columns)
    }
    return tables, members


_PURGE: Final[LiteralString] = """
DELETE FROM rowcast.outbox WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM rowcast.outbox
    WHERE xid >= %(oldest)s::text::xid8 AND xid < %(next_xid)s::text::xid8 AND xid <> ALL (%(running)s::xid8[])
    LIMIT %(limit)s
))
"""


async def forget_batches(connection: psycopg.AsyncConnection[Any], before: int) -> Snapshot:
    """Forget batches below `before`, whose snapshot tells which rows nobody needs any more."""
    snapshot = await read_snapshot(connection, before)
    await connection.execute("DELETE FROM rowcast.outbox_batch WHERE number < %s", [before])
    return snapshot


async def purge(connection: psycopg.AsyncConnection[Any], oldest: int, snapshot: Snapshot) -> bool:
    """Remove some rows of transactions from xid `oldest` on that `snapshot` sees; False when there are none left."""
    cursor = await connection.execute(
        _PURGE,
        {
            "oldest": oldest,
            "next_xid": snapshot.next_xid,
            "running": snapshot.running,
            "limit": _PURGED_ROWS,
        },
    )
    return cursor.rowcount == _PURGED_ROWS


async def watch_size(connection: psycopg.AsyncConnection[Any], max_bytes: int) -> int:
    """Let the outbox grow by `max_bytes` from now on, should nobody read it; return what the batches hold."""
    cursor = await connection.execute(
        """
        WITH allowed (bytes) AS (SELECT pg_table_size('rowcast.outbox') + %(max)s), moved AS (
            UPDATE rowcast.outbox_state SET limit_bytes = bytes FROM allowed
            WHERE abs(limit_bytes - bytes) > %(max)s / 10
        )
        SELECT coalesce(sum(size_bytes), 0)::bigint FROM rowcast.outbox_batch
        """,
        {"max": max_bytes},
    )
    [[size_bytes]] = await cursor.fetchall()
    return int(size_bytes)


async def cover(connection: psycopg.AsyncConnection[Any]) -> None:
    """Give triggers to partitions that came since `rowcast setup`; of a table that is busy, another time."""
    cursor = await connection.execute(
        "SELECT t.table_oid::bigint FROM rowcast.outbox_table AS t JOIN pg_class AS c ON c.oid = t.table_oid"
        " WHERE t.covered AND t.root_oid = t.table_oid AND c.relkind = 'p'"
    )
    for (oid,) in await cursor.fetchall():
        with suppress(pg_errors.LockNotAvailable):
            async with connection.transaction():
                await connection.execute(
                    "SET LOCAL lock_timeout = '200ms'"
                )  # whoever writes queues behind us
                await connection.execute("SELECT rowcast.outbox_cover(%s::bigint::regclass)", [oid])
