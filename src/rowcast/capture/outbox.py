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

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

import psycopg
from psycopg import errors as pg_errors

from rowcast.capture import CaptureStatus, outbox_store
from rowcast.capture.connection import POOLER_REMEDY, TemporaryCaptureError, connect, one_line
from rowcast.capture.copying import copy_out
from rowcast.capture.outbox_link import ANSWER_SECONDS, Link
from rowcast.capture.outbox_rows import BATCH_SHIFT, Batch
from rowcast.capture.outbox_store import BatchRecord, Poll, State
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import (
    Event,
    Gap,
    Position,
    Progress,
    Table,
    TablesChanged,
    Transaction,
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

_CONNECTION_ERRORS: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
_GONE: Final = (pg_errors.UndefinedTable, pg_errors.UndefinedFunction, pg_errors.InvalidSchemaName)


class _Closed(CaptureError):  # noqa: N818 - not an error where it is expected
    pass


class _Followed(Exception):  # noqa: N818 - not an error: the capture stands by
    pass


def _lacking_right(error: Exception) -> CaptureError:
    return CaptureError(
        f"the role lacks a right: {one_line(error)}. Run: rowcast setup --capture outbox --role …"
    )


class OutboxCapture:
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
        self.status = CaptureStatus()
        self._dsn = dsn
        self._publication = publication
        self._heartbeat_seconds = heartbeat_seconds
        self._max_transaction_bytes = max_transaction_bytes
        self._max_outbox_bytes = max_outbox_bytes
        self._notify = notify
        self._retry_seconds = retry_seconds
        self._link: Link | None = None
        self._position: Position | None = None  # the last delivered
        self._acknowledged: Position | None = None
        self._tables: Mapping[int, Table] = {}
        self._backend_pid: int | None = None
        self._closed = False
        self._gives_way = False
        self._rung = asyncio.Event()
        self._marks: list[asyncio.Future[Position]] = []

    @property
    def tables(self) -> Mapping[int, Table]:
        return self._tables

    @property
    def epoch(self) -> str:
        """The first part of every position of the outbox's present incarnation."""
        return epoch_of(self._delivered)

    async def start(self) -> Position:
        """Check, connect, and say after which position the stream will tell everything.

        Waits, with `status` saying for what, while PostgreSQL cannot be reached and while another server reads the
        outbox.

        Raises:
            CaptureError: PostgreSQL cannot be captured from; the text says how to mend it.
        """
        if self._link is None:
            self._link = await self._keep_connecting(_CONNECTION_ERRORS)
        return self._delivered

    async def events(self) -> AsyncGenerator[Sequence[Event]]:
        """The stream, in batches of what was read together."""
        try:
            while not self._closed:
                try:
                    link = self._link
                    if link is None:
                        link = self._link = await self._keep_connecting(
                            (*_CONNECTION_ERRORS, TemporaryCaptureError)
                        )
                    async with aclosing(self._read(link)) as batches:
                        async for batch in batches:
                            self._deliver(batch)
                            yield batch
                except _Closed:
                    return
                except _CONNECTION_ERRORS as error:
                    await self._lose_link(error)
                except pg_errors.InsufficientPrivilege as error:
                    raise _lacking_right(error) from error
                except _GONE as error:
                    raise NotInstalledError(
                        f"the outbox is not in the database any more ({one_line(error)}): run: rowcast setup "
                        "--capture outbox --dsn … --tables …"
                    ) from error
        finally:
            await self.close()

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

    async def mark(self) -> Position:
        """See `Capture.mark`. Calls at the same time share one look into the database.

        Raises:
            CaptureError: The connection to PostgreSQL is down.
        """
        if self._link is None:
            raise CaptureError(f"the connection to PostgreSQL is down: {self.status.reason or 'not started'}")
        mark: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._marks.append(mark)
        self._rung.set()
        return await mark

    async def close(self) -> None:
        """End the stream and its connection."""
        self._closed = True
        self.status.state, self.status.reason = "stopped", ""
        link, self._link = self._link, None
        self._fail_marks("the capture was closed")
        self._rung.set()
        if link is not None:
            await link.close()

    @property
    def _delivered(self) -> Position:
        if self._position is None:
            raise CaptureError("the capture has not been started: await start() first")
        return self._position

    async def _keep_connecting(self, waited_for: tuple[type[Exception], ...]) -> Link:
        """Try once a second until it works; errors other than `waited_for` are raised."""
        while True:
            try:
                return await self._connect()
            except _Followed:
                self._set_state("standby", "another server reads the outbox")
            except waited_for as error:
                state = "degraded" if self._position else "starting"
                self._set_state(state, f"PostgreSQL cannot be reached, trying again: {one_line(error)}")
            await asyncio.sleep(self._retry_seconds)

    async def _lose_link(self, error: Exception) -> None:
        if self._closed:
            return
        self.status.reconnects += 1
        reason = f"the connection to PostgreSQL is down, reconnecting: {one_line(error)}"
        self._set_state("degraded", reason)
        link, self._link = self._link, None
        self._fail_marks(reason)
        if link is not None:
            await link.close()
        await asyncio.sleep(self._retry_seconds)

    def _set_state(self, state: str, reason: str) -> None:
        if (state, reason) != (self.status.state, self.status.reason):
            log = _logger.warning if state == "degraded" else _logger.info
            log("capture %s: %s", state, reason or f"reading the outbox behind {self._position}")
        self.status.state, self.status.reason = state, reason

    def _fail_marks(self, reason: str) -> None:
        marks, self._marks = self._marks, []
        for mark in marks:
            if not mark.done():
                mark.set_exception(CaptureError(reason))

    async def _connect(self) -> Link:
        if self._closed:
            raise _Closed("the capture was closed")
        link = Link(await connect(self._dsn), self._rung, self._tables)
        try:
            await link.ask(outbox_store.prepare_session(link.connection))
            if not await link.ask(outbox_store.take_lead(link.connection, self._backend_pid)):
                raise _Followed
            await self._begin(link)
            self._backend_pid = link.backend_pid
            if self._closed:
                raise _Closed("the capture was closed while it was connecting")
        except BaseException as error:
            await link.close()
            if isinstance(error, pg_errors.InsufficientPrivilege):
                raise _lacking_right(error) from error
            raise
        self._set_state("live", "")
        return link

    async def _begin(self, link: Link) -> None:
        """Find out where to go on. Before any batch is told it must be known which tables have changed since, so
        another one is written down first.
        """
        connection = link.connection
        state = await link.ask(outbox_store.read_state(connection))
        told = self._position is not None and epoch_of(self._position) == state.epoch
        # Batches that were told are gone, as after a restore of older files that nothing else gives away.
        fell_back = told and number_of(self._delivered) >> BATCH_SHIFT > state.last + 1
        if fell_back or not state.continues:
            if state.overflow != state.present_overflow:
                self._set_state(
                    "degraded", "the outbox begins anew, when the transactions that are open have ended"
                )
            state = await link.ask(outbox_store.begin_anew(connection, state), seconds=_FOREVER)
        link.epoch, link.floor, link.overflow = state.epoch, state.first, state.overflow
        link.purging = await link.ask(outbox_store.read_snapshot(connection, state.first))
        newest = await link.ask(outbox_store.read_snapshot(connection, state.last))
        link.newest = BatchRecord(state.last, newest, newest, 0, ())
        link.may_sleep = self._notify and await link.ask(outbox_store.listen(connection))
        found = await self._poll(link, asked=True, thoroughly=True, seconds=_FIRST_ANSWER_SECONDS)
        link.covered = found.covered
        link.changed = await link.ask(outbox_store.read_changed(connection))
        is_first = self._position is None
        self._find_place(link, state)
        await self._load_tables(link, announce=not is_first)
        if is_first:
            self._tables = link.tables

    def _find_place(self, link: Link, state: State) -> None:
        """Where the stream goes on: where it was, or behind what was purged, which is said."""
        oldest = make_position(state.epoch, (state.first + 1) << BATCH_SHIFT)
        if self._position is None:
            self._position = oldest
        elif epoch_of(self._position) != state.epoch or self._position < oldest:
            _logger.error("the outbox cannot continue behind %s: gap up to %s", self._position, oldest)
            link.announced.append(Gap(oldest, "capture_gap"))

    async def _load_tables(self, link: Link, *, announce: bool = True) -> None:
        """Read the tables as they are now, and announce them if they are others than before."""
        known = link.tables
        loaded, link.members = await link.ask(outbox_store.load_members(link.connection, self._publication))
        link.tables = {oid: known[oid] if known.get(oid) == table else table for oid, table in loaded.items()}
        link.replaced = frozenset(oid for oid, table in link.tables.items() if known.get(oid) is not table)
        if announce and link.tables != known:
            position = link.announced[-1].position if link.announced else self._delivered
            link.announced.append(TablesChanged(position, link.tables))

    async def _read(self, link: Link) -> AsyncGenerator[list[Event]]:
        """Everything that one connection tells."""
        while True:
            if link.announced:
                announced, link.announced = link.announced, []
                yield announced
            number = number_of(self._delivered) >> BATCH_SHIFT
            if number > link.newest.number:
                await self._look(link)
                continue
            batch = link.newest
            if number < batch.number:
                batch = await link.ask(outbox_store.read_batch(link.connection, number))
            async with aclosing(self._tell(link, batch)) as slices:
                async for events in slices:
                    yield events

    async def _tell(self, link: Link, record: BatchRecord) -> AsyncGenerator[list[Event]]:
        number = record.number
        told = number_of(self._delivered) & _PLACES
        stale = frozenset(oid for oid, changed in link.changed.items() if changed >= number)
        batch = Batch(link.epoch, number, told, link.members, stale, self._max_transaction_bytes)
        if record.row_count:
            seconds = ANSWER_SECONDS + record.row_count / _SORTED_ROWS_PER_SECOND
            copied = copy_out(link.connection, outbox_store.batch_query(record), seconds)
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
        replaced = link.replaced if record is link.newest else frozenset[int]()
        touched = {link.members[oid].table.oid for oid in record.changed if oid in link.members}
        for reason, tables in (
            ("schema_changed", batch.lost),
            ("capture_gap", touched - batch.lost - replaced),
        ):
            if tables:
                events.append(Gap(batch.end, reason, frozenset(tables)))
        events.append(Progress(batch.end))
        yield events

    async def _look(self, link: Link) -> None:
        """Rest as long as can be, and look for something new."""
        if link.pause_seconds:
            await link.wait(link.pause_seconds)
        now = time.monotonic()
        beats = now >= link.look_at
        found = await self._poll(link, asked=beats, thoroughly=beats)
        if found.batch is not None and (found.batch.changed or found.covered != link.covered):
            link.covered = found.covered
            link.changed.update(dict.fromkeys(found.batch.changed, found.batch.number))
            await self._load_tables(link)
        if beats:
            await self._look_after(link)
            link.look_at = now + self._heartbeat_seconds
        has_more = await self._purge(link, now)
        if found.batch is not None and found.batch.row_count:
            if link.holds_bell:
                await link.ask(outbox_store.release_bell(link.connection))
                link.holds_bell = False
            link.pause_seconds = _BUSY_SECONDS
        elif has_more:
            link.pause_seconds = _BUSY_SECONDS
        elif link.holds_bell:
            link.pause_seconds = max(link.look_at - time.monotonic(), _BUSY_SECONDS)
        elif link.may_sleep and await link.ask(outbox_store.take_bell(link.connection)):
            link.holds_bell = True
            link.pause_seconds = 0.0  # who did not ring may have committed meanwhile
        else:
            shortest, longest = _QUIET_SECONDS if link.may_sleep else _UNRUNG_SECONDS
            link.pause_seconds = min(max(2 * link.pause_seconds, shortest), longest)

    async def _poll(
        self, link: Link, *, asked: bool, thoroughly: bool, seconds: float = ANSWER_SECONDS
    ) -> Poll:
        """Write down the next batch, if there is something for it or somebody asks."""
        marks, self._marks = self._marks, []
        asked = asked or bool(marks)
        number, before = link.newest.number + 1, link.newest.snapshot
        try:
            statement = outbox_store.poll(
                link.connection, self._publication, number, before, asked=asked, thoroughly=thoroughly
            )
            found = await link.ask(statement, seconds=seconds)
        except BaseException:
            self._marks += marks  # whoever ends the link answers them
            raise
        if link.backend_pid is None:
            link.backend_pid = found.backend_pid
        elif found.backend_pid != link.backend_pid:
            raise CaptureError(f"the server process behind the connection has changed. {POOLER_REMEDY}")
        if found.overflow != link.overflow:
            raise psycopg.OperationalError("the outbox has reached its limit, and triggers write no more")
        if found.batch is not None:
            link.newest = found.batch
            link.replaced = frozenset()
            for mark in marks:
                if not mark.done():
                    mark.set_result(make_position(link.epoch, (number + 1) << BATCH_SHIFT))
        return found

    async def _look_after(self, link: Link) -> None:
        """What is due with every heartbeat: the outbox's size, and partitions that came since."""
        held = await link.ask(outbox_store.watch_size(link.connection, self._max_outbox_bytes))
        if held > self._max_outbox_bytes:
            if not self._gives_way:
                _logger.warning(
                    "the outbox holds %d bytes, over the bound of %d: everything delivered is acknowledged, so a "
                    "restart replays less",
                    *(held, self._max_outbox_bytes),
                )
            self.acknowledge(self._delivered)
        self._gives_way = held > self._max_outbox_bytes
        await link.ask(outbox_store.cover(link.connection))

    async def _purge(self, link: Link, now: float) -> bool:
        """Remove some of what is acknowledged; whether there is more."""
        if link.purging is None:
            if (
                self._acknowledged is None
                or epoch_of(self._acknowledged) != link.epoch
                or now < link.purge_at
            ):
                return False
            floor = (number_of(self._acknowledged) >> BATCH_SHIFT) - 1
            if floor <= link.floor:
                return False
            link.purging = await link.ask(outbox_store.forget_batches(link.connection, floor))
            link.floor = floor
            link.purge_at = now + _PURGE_SECONDS
        if await link.ask(outbox_store.purge(link.connection, link.purged, link.purging)):
            return True
        link.purged, link.purging = link.purging.oldest, None
        return False

    def _deliver(self, batch: Sequence[Event]) -> None:
        self._position = batch[-1].position
        for event in reversed(batch):
            if isinstance(event, Transaction):
                self.status.lag_seconds = max(0.0, time.time() - event.timestamp_us / 1e6)
                break
        for event in batch:
            if isinstance(event, TablesChanged):
                self._tables = event.tables
