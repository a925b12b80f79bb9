"""Capture by triggers that write every changed row into a table: for databases without logical replication.

The one rule of this room: a batch is what one snapshot of the database sees and the one before did not, so that no
transaction is missed because it committed late, and none is waited for because it is slow.

`outbox_store` has the statements, `outbox_rows` makes events of rows, and sql/0002_outbox.up.sql is the other half.
What it costs the application, and what it cannot see: rows that logical replication brings into this database, and
tables whose triggers were disabled. A transaction's timestamp is the time of its last captured statement: PostgreSQL
does not keep that of the commit. A column of type regclass (and its kin) has its schema in its text.

Who reads the outbox sleeps when it is empty. Then it holds an advisory lock that triggers try for: where they fail
they NOTIFY. While it is awake they do not, because commits with a NOTIFY queue up for each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import psycopg
from psycopg import errors as pg_errors

from rowcast.capture import outbox_store
from rowcast.capture.connection import POOLER_REMEDY, connect, one_line
from rowcast.capture.copying import copy_out
from rowcast.capture.line import ANSWER_SECONDS
from rowcast.capture.outbox_line import OutboxLine
from rowcast.capture.outbox_rows import BATCH_SHIFT, Batch
from rowcast.capture.outbox_store import BatchRecord, Poll, State
from rowcast.capture.reconnecting import ReconnectingCapture, StandbyError
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import (
    Event,
    Gap,
    Position,
    Progress,
    TablesChanged,
    epoch_of,
    make_position,
    number_of,
)

_logger: Final = logging.getLogger(__name__)

MAX_TRANSACTION_BYTES: Final = 64 * 1024**2
# What a busy database changes in the longest replay window, and no small disk's end.
MAX_OUTBOX_BYTES: Final = 4 * 1024**3

# Between two looks while there is always something: batches become large enough to be cheap, and stay soon.
_BUSY_SECONDS: Final = 0.005
# Between two looks that found nothing while a transaction is open that will not ring: at first, and at most.
_QUIET_SECONDS: Final = (0.01, 0.1)
# The same without NOTIFY, when nobody writes at all.
_UNRUNG_SECONDS: Final = (0.01, 0.25)
# What an hour without a server has left takes time to count and to sort.
_SORTED_ROWS_PER_SECOND: Final = 10_000
_FIRST_ANSWER_SECONDS: Final = 600.0
_PURGE_SECONDS: Final = 1.0
_PLACES: Final = (1 << BATCH_SHIFT) - 1

_FOREVER: Final = float("inf")

_GONE: Final = (pg_errors.UndefinedTable, pg_errors.UndefinedFunction, pg_errors.InvalidSchemaName)


class OutboxCapture(ReconnectingCapture[OutboxLine]):
    """Transactions from rowcast.outbox, as the contract `Capture` says.

    Args:
        dsn: A direct connection to the primary, of a role with the rights that `install` grants.
        publication: The name under which `install` has watched tables.
        heartbeat_seconds: How often an idle database is looked at, and its positions move.
        max_transaction_bytes: A transaction above it is answered by a Gap; its rows are not held in memory.
        max_outbox_bytes: When the outbox holds more, everything delivered is acknowledged at once; and it grows by
            no more while no server reads it.
        notify: Whether triggers may wake the server by NOTIFY. Without it, and where transactions can be prepared,
            which a NOTIFY would forbid them, it looks four times a second at least.
        retry_seconds: Between attempts to connect.

    Attributes:
        status: See `CaptureStatus`; the same object all the time.
    """

    name = "outbox"

    def __init__(
        self,
        dsn: str,
        *,
        publication: str = "rowcast",
        heartbeat_seconds: float = 10.0,
        max_transaction_bytes: int = MAX_TRANSACTION_BYTES,
        max_outbox_bytes: int = MAX_OUTBOX_BYTES,
        notify: bool = True,
        retry_seconds: float = 1.0,  # soon enough for people, seldom enough for a server in trouble
    ) -> None:
        super().__init__(dsn, retry_seconds)
        self._publication = publication
        self._heartbeat_seconds = heartbeat_seconds
        self._max_transaction_bytes = max_transaction_bytes
        self._max_outbox_bytes = max_outbox_bytes
        self._notify = notify
        self._acknowledged: Position | None = None
        self._backend_pid: int | None = None
        self._gives_way = False

    def acknowledge(self, position: Position) -> None:
        """Everything up to `position` need not be told again after a restart; purged within seconds.

        A position of another epoch, or ahead of what was delivered, counts only as far as it makes sense.
        """
        if self._position is None or epoch_of(position) != epoch_of(self._position):
            return
        position = min(position, self._position)
        if self._acknowledged is None or epoch_of(self._acknowledged) != epoch_of(position):
            self._acknowledged = position
        self._acknowledged = max(self._acknowledged, position)

    async def _connect(self) -> OutboxLine:
        line = OutboxLine(await connect(self._dsn), self._rung, self._tables)
        line.watch(self._dsn)
        try:
            await line.ask(outbox_store.prepare_session(line.connection))
            if not await line.ask(outbox_store.take_lead(line.connection, self._backend_pid)):
                raise StandbyError("another server reads the outbox")
            await self._begin(line)
        except BaseException:
            await line.close()
            raise
        self._backend_pid = line.backend_pid
        return line

    def _explain(self, error: psycopg.Error) -> CaptureError:
        if isinstance(error, pg_errors.InsufficientPrivilege):
            return CaptureError(
                f"the role lacks a right: {one_line(error)}. Run: rowcast setup --capture outbox --role …"
            )
        if isinstance(error, _GONE):
            return NotInstalledError(
                f"the outbox is not in the database any more ({one_line(error)}): run: rowcast setup --capture outbox "
                "--dsn … --tables …"
            )
        return CaptureError(f"the outbox cannot be read: {one_line(error)}")

    async def _begin(self, line: OutboxLine) -> None:
        """Find out where to go on. Before any batch is told it must be known which tables have changed since, so
        another one is written down first.
        """
        connection = line.connection
        state = await line.ask(outbox_store.read_state(connection))
        told = self._position is not None and epoch_of(self._position) == state.epoch
        # Batches that were told are gone, as after a restore of older files that nothing else gives away.
        fell_back = told and number_of(self._delivered) >> BATCH_SHIFT > state.last + 1
        if fell_back or not state.continues:
            if state.overflow != state.present_overflow:
                self._set_state(
                    "degraded", "the outbox begins anew, when the transactions that are open have ended"
                )
                # What it held is still in the file: without room, the first rows would reach the limit again.
                await line.ask(outbox_store.watch_size(connection, self._max_outbox_bytes))
            state = await line.ask(outbox_store.begin_anew(connection, state), seconds=_FOREVER)
        line.epoch, line.floor, line.overflow = state.epoch, state.first, state.overflow
        line.purging = await line.ask(outbox_store.read_snapshot(connection, state.first))
        newest = await line.ask(outbox_store.read_snapshot(connection, state.last))
        line.newest = BatchRecord(state.last, newest, newest, 0, ())
        line.may_sleep = self._notify and await line.ask(outbox_store.listen(connection))
        found = await self._poll(line, asked=True, thoroughly=True, seconds=_FIRST_ANSWER_SECONDS)
        line.covered = found.covered
        line.changed = await line.ask(outbox_store.read_changed(connection))
        is_first = self._position is None
        self._find_place(line, state)
        await self._load_tables(line, announce=not is_first)
        if is_first:
            self._tables, line.replaced = line.tables, frozenset()

    def _find_place(self, line: OutboxLine, state: State) -> None:
        """Where the stream goes on: where it was, or behind what was purged, which is said."""
        oldest = make_position(state.epoch, (state.first + 1) << BATCH_SHIFT)
        if self._position is None:
            self._position = oldest
        elif epoch_of(self._position) != state.epoch or self._position < oldest:
            _logger.error("the outbox cannot continue behind %s: gap up to %s", self._position, oldest)
            line.announced.append(Gap(oldest, "capture_gap"))

    async def _load_tables(self, line: OutboxLine, *, announce: bool = True) -> None:
        """Read the tables as they are now, and announce them if they are others than before."""
        known = line.tables
        loaded, line.members = await line.ask(outbox_store.load_members(line.connection, self._publication))
        line.tables = {oid: known[oid] if known.get(oid) == table else table for oid, table in loaded.items()}
        line.replaced = frozenset(oid for oid, table in line.tables.items() if known.get(oid) is not table)
        if announce and line.tables != known:
            position = line.announced[-1].position if line.announced else self._delivered
            line.announced.append(TablesChanged(position, line.tables))

    async def _read(self, line: OutboxLine) -> AsyncGenerator[list[Event]]:
        """Everything that one connection tells."""
        while True:
            if line.announced:
                announced, line.announced = line.announced, []
                yield announced
            number = number_of(self._delivered) >> BATCH_SHIFT
            if number > line.newest.number:
                await self._look(line)
                continue
            batch = line.newest
            if number < batch.number:
                batch = await line.ask(outbox_store.read_batch(line.connection, number))
            async with aclosing(self._tell(line, batch)) as slices:
                async for events in slices:
                    yield events

    async def _tell(self, line: OutboxLine, record: BatchRecord) -> AsyncGenerator[list[Event]]:
        number = record.number
        told = number_of(self._delivered) & _PLACES
        stale = frozenset(oid for oid, changed in line.changed.items() if changed >= number)
        batch = Batch(line.epoch, number, told, line.members, stale, self._max_transaction_bytes)
        if record.row_count:
            seconds = ANSWER_SECONDS + record.row_count / _SORTED_ROWS_PER_SECOND
            copied = copy_out(line.connection, outbox_store.batch_query(record), seconds)
            async with aclosing(copied) as slices:
                async for rows in slices:
                    for row in rows:
                        batch.feed(row)
                    if batch.events:
                        events, batch.events = batch.events, []
                        yield events
        events = batch.finish()
        if batch.overflowed or batch.row_count != record.row_count:
            _logger.error(
                "batch %d of the outbox has %d rows, not %d", number, batch.row_count, record.row_count
            )
            events.append(Gap(batch.end, "capture_gap"))
        replaced = line.replaced if record is line.newest else frozenset[int]()
        missed = batch.missed | {line.members[oid].table.oid for oid in record.changed if oid in line.members}
        for reason, tables in (
            ("schema_changed", batch.lost),
            ("capture_gap", missed - batch.lost - replaced),
        ):
            if tables:
                events.append(Gap(batch.end, reason, frozenset(tables)))
        events.append(Progress(batch.end))
        yield events

    async def _look(self, line: OutboxLine) -> None:
        """Rest as long as can be, and look for something new."""
        if line.pause_seconds:
            await line.wait(line.pause_seconds)
        now = time.monotonic()
        beats = now >= line.look_at
        found = await self._poll(line, asked=beats, thoroughly=beats)
        if found.batch is not None and (found.batch.changed or found.covered != line.covered):
            line.covered = found.covered
            line.changed.update(dict.fromkeys(found.batch.changed, found.batch.number))
            await self._load_tables(line)
        if beats:
            await self._look_after(line)
            line.look_at = now + self._heartbeat_seconds
        has_more = await self._purge(line, now)
        if found.batch is not None and found.batch.row_count:
            if line.holds_bell:
                await line.ask(outbox_store.release_bell(line.connection))
                line.holds_bell = False
            line.pause_seconds = _BUSY_SECONDS
        elif has_more:
            line.pause_seconds = _BUSY_SECONDS
        elif line.holds_bell:
            line.pause_seconds = max(line.look_at - time.monotonic(), _BUSY_SECONDS)
        elif line.may_sleep and await line.ask(outbox_store.take_bell(line.connection)):
            line.holds_bell = True
            line.pause_seconds = 0.0  # who did not ring may have committed meanwhile
        else:
            shortest, longest = _QUIET_SECONDS if line.may_sleep else _UNRUNG_SECONDS
            line.pause_seconds = min(max(2 * line.pause_seconds, shortest), longest)

    async def _poll(
        self, line: OutboxLine, *, asked: bool, thoroughly: bool, seconds: float = ANSWER_SECONDS
    ) -> Poll:
        """Write down the next batch, if there is something for it or somebody asks."""
        marks, self._marks = self._marks, []
        asked = asked or bool(marks)
        number, before = line.newest.number + 1, line.newest.snapshot
        try:
            statement = outbox_store.poll(
                line.connection, self._publication, number, before, asked=asked, thoroughly=thoroughly
            )
            found = await line.ask(statement, seconds=seconds)
            if line.backend_pid is None:
                line.backend_pid = found.backend_pid
            elif found.backend_pid != line.backend_pid:
                raise CaptureError(f"the server process behind the connection has changed. {POOLER_REMEDY}")
            if found.overflow != line.overflow:
                raise psycopg.OperationalError("the outbox has reached its limit, and triggers write no more")
        except BaseException:
            self._marks += marks  # whoever ends the line answers them
            raise
        if found.batch is not None:
            line.newest = found.batch
            line.replaced = frozenset()
            self._answer_marks(marks, make_position(line.epoch, (number + 1) << BATCH_SHIFT))
        return found

    async def _look_after(self, line: OutboxLine) -> None:
        """What is due with every heartbeat: the outbox's size, and partitions that came since."""
        held = await line.ask(outbox_store.watch_size(line.connection, self._max_outbox_bytes))
        if held > self._max_outbox_bytes:
            if not self._gives_way:
                _logger.warning(
                    "the outbox holds %d bytes, over the bound of %d: everything delivered is acknowledged, so a "
                    "restart replays less",
                    *(held, self._max_outbox_bytes),
                )
            self.acknowledge(self._delivered)
        self._gives_way = held > self._max_outbox_bytes
        await line.ask(outbox_store.cover(line.connection))

    async def _purge(self, line: OutboxLine, now: float) -> bool:
        """Remove some of what is acknowledged; whether there is more."""
        if line.purging is None:
            if (
                self._acknowledged is None
                or epoch_of(self._acknowledged) != line.epoch
                or now < line.purge_at
            ):
                return False
            floor = (number_of(self._acknowledged) >> BATCH_SHIFT) - 1
            if floor <= line.floor:
                return False
            line.purging = await line.ask(outbox_store.forget_batches(line.connection, floor))
            line.floor = floor
            line.purge_at = now + _PURGE_SECONDS
        if await line.ask(outbox_store.purge(line.connection, line.purged, line.purging)):
            return True
        line.purged, line.purging = line.purging.oldest, None
        return False
