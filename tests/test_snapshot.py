"""Reading the rows of a table: what its snapshot sees is what its rows show, whatever others do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import psycopg
import pytest
from tests.cli.processes import eventually

from rowcast.capture.catalog import load_tables_by_oid
from rowcast.log import MemoryLog
from rowcast.model import Row, Table, make_position
from rowcast.snapshot import SnapshotReader, Visibility

_WAITING: Final = "SELECT FROM pg_locks WHERE relation = 'items'::regclass AND NOT granted"


@pytest.fixture
async def reader(dsn: str) -> AsyncIterator[SnapshotReader]:
    made = SnapshotReader(dsn, "rowcast")
    yield made
    await made.close()


@pytest.fixture
async def items(dsn: str, connection: psycopg.Connection) -> Table:
    connection.execute("CREATE TABLE items (id int)")
    connection.execute("INSERT INTO items VALUES (1)")
    async with await psycopg.AsyncConnection.connect(dsn) as looking:
        cursor = await looking.execute("SELECT 'items'::regclass::oid::bigint")
        [[oid]] = await cursor.fetchall()
        [table] = (await load_tables_by_oid(looking, [oid])).values()
    return table


async def read(reader: SnapshotReader, table: Table, *, first_xid: int = 0) -> tuple[Visibility, list[Row]]:
    """All rows, for a log that has dropped nothing since transaction `first_xid`."""
    log = MemoryLog(make_position("0" * 16, 1), max_bytes=1, max_seconds=1, first_xid=first_xid)
    async with reader.read(table, None, log) as (visibility, batches):
        return visibility, [row async for batch in batches for row in batch]


async def test_a_truncate_that_the_reader_has_waited_for_is_in_its_snapshot(
    dsn: str, connection: psycopg.Connection, reader: SnapshotReader, items: Table
) -> None:
    """TRUNCATE takes rows from snapshots that are older than it: such a snapshot would lack rows and not the xid."""
    with psycopg.connect(dsn) as truncating:
        truncating.execute("TRUNCATE items")
        [[xid]] = truncating.execute("SELECT pg_current_xact_id()::text::bigint")
        reading = asyncio.create_task(read(reader, items))
        await asyncio.to_thread(eventually, lambda: connection.execute(_WAITING).rowcount, bool)
        truncating.commit()
    visibility, rows = await reading
    assert (visibility.sees(xid), rows) == (True, [])


async def test_a_transaction_from_before_the_logs_time_that_still_runs_holds_up_nothing(
    dsn: str, connection: psycopg.Connection, reader: SnapshotReader, items: Table
) -> None:
    with psycopg.connect(dsn) as running:
        running.execute("INSERT INTO items VALUES (2)")
        [[xid]] = running.execute("SELECT pg_current_xact_id()::text::bigint")
        connection.execute("SELECT pg_current_xact_id()")  # a later one has ended
        visibility, rows = await asyncio.wait_for(read(reader, items, first_xid=xid), 20)
    assert (visibility.sees(xid), rows) == (False, [(b"1",)])
