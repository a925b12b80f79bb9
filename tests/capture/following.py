"""What the captures' tests share: a follower of its stream, and the state that the stream adds up to."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from rowcast.capture import Capture, install
from rowcast.capture.wal import MAX_SLOT_WAL_BYTES, MAX_TRANSACTION_BYTES, WalCapture
from rowcast.model import (
    Event,
    Gap,
    Operation,
    Position,
    Row,
    TablesChanged,
    Transaction,
    Value,
)

DEADLINE_SECONDS = 30.0  # a loaded machine is slow; a failing test need not be fast


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
            await asyncio.sleep(0.005)


AnyCapture = TypeVar("AnyCapture", bound=Capture)


class Follower(Generic[AnyCapture]):
    """Runs a capture's stream and keeps what it tells. Use it with `async with`."""

    def __init__(self, capture: AnyCapture) -> None:
        self.capture = capture
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.start: Position
        self._flow = asyncio.Event()
        self._flow.set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start = await self.capture.start()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.capture.close()  # cancelled before it began, the stream has closed nothing

    @property
    def position(self) -> Position:
        return self.events[-1].position if self.events else self.start

    @property
    def transactions(self) -> list[Transaction]:
        return [event for event in self.events if isinstance(event, Transaction)]

    @property
    def gaps(self) -> list[Gap]:
        return [event for event in self.events if isinstance(event, Gap)]

    @property
    def tables_changed(self) -> list[TablesChanged]:
        return [event for event in self.events if isinstance(event, TablesChanged)]

    def pause(self) -> None:
        """Take no more batches, as a consumer that is busy."""
        self._flow.clear()

    def resume(self) -> None:
        self._flow.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, while the stream goes on."""
        await eventually(lambda: self._has_ended() or condition())

    async def caught_up(self) -> None:
        mark = await self.capture.mark()
        await self.until(lambda: self.position >= mark)

    async def ended(self) -> None:
        """Wait for the stream's end, and raise what ended it."""
        assert self._task is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.shield(self._task)

    def _has_ended(self) -> bool:
        assert self._task is not None
        if self._task.done():
            self._task.result()
            raise AssertionError("the stream has ended")
        return False

    async def _run(self) -> None:
        async for batch in self.capture.events():
            self.events += batch
            self.batches.append(len(batch))
            await self._flow.wait()


def changes(transactions: Sequence[Transaction]) -> list[tuple[Operation, Row | None, Row | None]]:
    """Operation, new and old of all changes."""
    return [(each.operation, each.new, each.old) for one in transactions for each in one.changes]


def ids(transactions: Sequence[Transaction]) -> list[str]:
    """The id of every change, as clients see it."""
    return [f"{one.position}-{each.index:08x}" for one in transactions for each in one.changes]


def replay(transactions: Sequence[Transaction], table: str, rows: dict[tuple[Value, ...], Row]) -> None:
    """Apply the changes of one table to `rows`, by key, and refuse what contradicts them."""
    for one in transactions:
        for each in one.changes:
            if each.table.name != table:
                continue
            if each.operation == "TRUNCATE":
                rows.clear()
                continue
            if each.operation != "INSERT":
                assert each.old is not None
                assert rows.pop(tuple(each.old[place] for place in each.table.key)) == each.old
            if each.new is not None:
                key = tuple(each.new[place] for place in each.table.key)
                assert key not in rows
                rows[key] = each.new


def select(connection: psycopg.Connection, table: str) -> dict[tuple[Value, ...], Row]:
    """The rows of a table as PostgreSQL has them, by their first column."""
    with connection.cursor(binary=False) as cursor:
        cursor.execute(f"SELECT * FROM {table}".encode())
        result = cursor.pgresult
        assert result is not None
        rows = [
            tuple(result.get_value(line, place) for place in range(result.nfields))
            for line in range(result.ntuples)
        ]
    return {(row[0],): row for row in rows}


def confirmed(connection: psycopg.Connection) -> int:
    """The LSN up to which this database's slot is acknowledged."""
    row = connection.execute(
        "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE database = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def watch(dsn: str, tables: str, *, replica_identity_full: bool = True) -> None:
    """Set a database up for capture."""
    install.install(dsn, [tables], replica_identity_full=replica_identity_full)


def capture(
    dsn: str,
    *,
    heartbeat_seconds: float = 0.2,
    max_transaction_bytes: int = MAX_TRANSACTION_BYTES,
    max_slot_wal_bytes: int = MAX_SLOT_WAL_BYTES,
) -> WalCapture:
    """A capture with a slot of its database's name, as slots are shared by all, and short intervals."""
    return WalCapture(
        dsn,
        slot=str(conninfo_to_dict(dsn)["dbname"]),
        heartbeat_seconds=heartbeat_seconds,
        max_transaction_bytes=max_transaction_bytes,
        max_slot_wal_bytes=max_slot_wal_bytes,
        retry_seconds=0.05,
    )


async def write_at_random(dsn: str, table: str, *, writers: int, seconds: float) -> None:
    """Let threads change the rows 1 to 50 of a table (id, a, b) in transactions of all sizes, some rolled back.

    A writer whose connection breaks goes on with a new one.
    """
    end = time.monotonic() + seconds

    def write(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end:
            try:
                with psycopg.connect(dsn, autocommit=True) as connection:
                    while time.monotonic() < end:
                        write_one(connection, chance)
            except psycopg.OperationalError:
                time.sleep(0.05)

    def write_one(connection: psycopg.Connection, chance: random.Random) -> None:
        try:
            with connection.transaction(force_rollback=chance.random() < 0.2):
                for _ in range(chance.randint(1, 4)):
                    text = "x" * chance.choice([1, 50, 9000])
                    values = {"key": chance.randint(1, 50), "a": text, "b": chance.random()}
                    connection.execute(chance.choice(STATEMENTS).format(table).encode(), values)
        except psycopg.errors.DeadlockDetected:
            pass

    await asyncio.gather(*[asyncio.to_thread(write, seed) for seed in range(writers)])


STATEMENTS = (
    "INSERT INTO {} VALUES (%(key)s, %(a)s, %(b)s) ON CONFLICT DO NOTHING",
    "INSERT INTO {} VALUES (%(key)s, %(a)s, %(b)s) ON CONFLICT (id) DO UPDATE SET a = excluded.a",
    "UPDATE {} SET b = %(b)s WHERE id = %(key)s",
    "DELETE FROM {} WHERE id = %(key)s",
)
