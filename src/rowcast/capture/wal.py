"""Capture by logical replication: the WAL itself is the outbox.

The one rule of this room: the slot is acknowledged only where somebody else has asked for it, and the stream goes on
after every fault exactly behind what was delivered. What cannot be continued is said, as a `Gap`.

Two connections: the replication stream, and an ordinary one beside it that reads the catalogs, emits heartbeats and
watches the slot. They live and die together: when PostgreSQL shuts down it ends ordinary connections first and then
waits for walsenders to be acknowledged to the end, which a capture that keeps a replay window never does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import errors as pg_errors

from rowcast.capture import CaptureStatus
from rowcast.capture.assembly import HEARTBEAT, MESSAGE_PREFIX, PUBLICATION, TABLES, Assembler
from rowcast.capture.connection import TemporaryCaptureError, connect, one_line, sever, watch
from rowcast.capture.replication import DATA, KEEPALIVE, PAYLOAD_START, ReplicationStream
from rowcast.capture.slot import check_server, end_walsender, ensure_slot, read_slot
from rowcast.capture.tables import Membership, StreamTables, read_membership
from rowcast.errors import CaptureError
from rowcast.model import (
    Event,
    Gap,
    Position,
    Table,
    TablesChanged,
    Transaction,
    epoch_of,
    make_position,
    number_of,
)

_logger: Final = logging.getLogger(__name__)

# A transaction is held whole until its commit: this bounds what one of them may cost. It is about 150,000 rows.
MAX_TRANSACTION_BYTES: Final = 64 * 1024**2
# Below what fills a small disk, above what a busy database writes in the longest replay window.
MAX_SLOT_WAL_BYTES: Final = 4 * 1024**3

# What a new connection can mend.
_CONNECTION_ERRORS: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)


class _Closed(CaptureError):  # noqa: N818 - not an error where it is expected
    pass


class _SlotInUse(Exception):  # noqa: N818 - not an error: the capture stands by
    pass


@dataclass(slots=True)
class _Link:
    """What lives as long as one pair of connections; `watching` ends the first one if it waits in vain."""

    control: psycopg.AsyncConnection[Any]
    watching: asyncio.Task[None]
    stream: ReplicationStream
    assembler: Assembler
    tables: StreamTables
    announced: str  # the membership's signature that the last `tables` message was emitted for
    attendant: asyncio.Task[None] | None = field(default=None)

    async def close(self) -> None:
        self.watching.cancel()
        sever(self.control)
        try:
            if self.attendant is not None:
                self.stream.asked.set()  # it finds that its connection is gone
                await asyncio.wait([self.attendant])
        finally:
            await self.stream.close()
            await self.control.close()


class WalCapture:
    """Transactions from a logical replication slot, as the contract `Capture` says.

    Args:
        dsn: A direct connection to the primary, of a role with REPLICATION and the rights that `install` grants.
        slot: Made where it is missing. One server at a time streams from it; others stand by until it is free.
        publication: What `install` has made.
        heartbeat_seconds: How often an idle database is made to move its positions.
        max_transaction_bytes: A transaction above it is answered by a Gap; its rows are not held in memory.
        max_slot_wal_bytes: When the slot retains more, everything delivered is acknowledged at once.
        retry_seconds: Between attempts to connect.

    Attributes:
        status: See `CaptureStatus`; the same object all the time.
    """

    name = "wal"

    def __init__(
        self,
        dsn: str,
        *,
        slot: str = "rowcast",
        publication: str = "rowcast",
        heartbeat_seconds: float = 10.0,
        max_transaction_bytes: int = MAX_TRANSACTION_BYTES,
        max_slot_wal_bytes: int = MAX_SLOT_WAL_BYTES,
        retry_seconds: float = 1.0,  # soon enough for people, seldom enough for a server in trouble
    ) -> None:
        self.status = CaptureStatus()
        self._dsn = dsn
        self._slot = slot
        self._publication = publication
        self._heartbeat_seconds = heartbeat_seconds
        self._max_transaction_bytes = max_transaction_bytes
        self._max_slot_wal_bytes = max_slot_wal_bytes
        self._retry_seconds = retry_seconds
        self._link: _Link | None = None
        self._position: Position | None = None  # the last delivered
        self._acknowledged: Position | None = None
        self._tables: Mapping[int, Table] = {}
        self._membership = Membership({}, frozenset(), "")
        self._walsender_pid: int | None = None
        self._closed = False
        self._has_told = False  # a transaction since the last look
        self._gives_way = False
        self._mark_lock = asyncio.Lock()
        self._next_mark: asyncio.Task[Position] | None = None

    @property
    def tables(self) -> Mapping[int, Table]:
        return self._tables

    @property
    def epoch(self) -> str:
        """The first part of every position of the slot's present incarnation."""
        return epoch_of(self._delivered)

    async def start(self) -> Position:
        """Check, connect, and say after which position the stream will tell everything.

        Waits, with `status` saying for what, while PostgreSQL cannot be reached and while another process holds
        the slot.

        Raises:
            CaptureError: PostgreSQL cannot be captured from; the text says how to mend it.
        """
        if self._link is None:
            self._link = await self._keep_connecting(_CONNECTION_ERRORS)
        return self._delivered

    async def events(self) -> AsyncIterator[Sequence[Event]]:
        """The stream, in batches of what arrived together."""
        try:
            while not self._closed:
                try:
                    link = self._link
                    if link is None:
                        link = self._link = await self._keep_connecting(
                            (*_CONNECTION_ERRORS, TemporaryCaptureError)
                        )
                    batch = await self._next_batch(link)
                except _Closed:
                    return
                except _CONNECTION_ERRORS as error:
                    await self._lose_link(error)
                    continue
                if batch:
                    self._deliver(link, batch)
                    yield batch
        finally:
            await self.close()

    def acknowledge(self, position: Position) -> None:
        """Everything up to `position` need not be told again after a restart; reported within seconds.

        A position of another epoch, or ahead of what was delivered, counts only as far as it makes sense.
        """
        if self._position is None or epoch_of(position) != epoch_of(self._position):
            return
        position = min(position, self._position)
        if self._acknowledged is None or epoch_of(self._acknowledged) != epoch_of(position):
            self._acknowledged = position
        self._acknowledged = max(self._acknowledged, position)
        link = self._link
        if link is not None and epoch_of(link.assembler.position) == epoch_of(position):
            link.stream.acknowledged = max(link.stream.acknowledged, number_of(self._acknowledged))

    async def mark(self) -> Position:
        """See `Capture.mark`. Calls at the same time share one message to the database.

        Raises:
            CaptureError: The connection to PostgreSQL is down.
        """
        if self._next_mark is None:
            self._next_mark = asyncio.create_task(self._emit_mark())
        return await asyncio.shield(self._next_mark)

    async def end_position(self) -> Position:
        """Where the database's log ends now. An idle stream need not come as far by itself: see `mark`.

        Raises:
            CaptureError: The connection to PostgreSQL is down.
        """
        [[number]] = await self._ask("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        self.status.lag_bytes = max(0, number - number_of(self._delivered))
        return make_position(self.epoch, number)

    async def close(self) -> None:
        """End the stream and its connections. What was acknowledged before is reported to PostgreSQL."""
        self._closed = True
        self.status.state, self.status.reason = "stopped", ""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    @property
    def _delivered(self) -> Position:
        if self._position is None:
            raise CaptureError("the capture has not been started: await start() first")
        return self._position

    async def _keep_connecting(self, waited_for: tuple[type[Exception], ...]) -> _Link:
        """Try once a second until it works; errors other than `waited_for` are raised."""
        while True:
            try:
                return await self._connect()
            except _SlotInUse as error:
                self._set_state("standby", f"another server streams from slot {self._slot}: {error}")
            except waited_for as error:
                state = "degraded" if self._position else "starting"
                self._set_state(state, f"PostgreSQL cannot be reached, trying again: {one_line(error)}")
            await asyncio.sleep(self._retry_seconds)

    async def _lose_link(self, error: Exception) -> None:
        if self._closed:
            return
        self.status.reconnects += 1
        self._set_state("degraded", f"the connection to PostgreSQL is down, reconnecting: {one_line(error)}")
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        await asyncio.sleep(self._retry_seconds)

    def _set_state(self, state: str, reason: str) -> None:
        if (state, reason) != (self.status.state, self.status.reason):
            log = _logger.warning if state == "degraded" else _logger.info
            log(
                "capture %s: %s", state, reason or f"streaming from slot {self._slot} behind {self._position}"
            )
        self.status.state, self.status.reason = state, reason

    async def _connect(self) -> _Link:
        if self._closed:
            raise _Closed("the capture was closed")
        control: psycopg.AsyncConnection[Any] | None = None
        watching: asyncio.Task[None] | None = None
        stream: ReplicationStream | None = None
        try:
            control = await connect(self._dsn)
            watching = watch(control, self._dsn)
            await control.execute("SET synchronous_commit = local")  # a heartbeat waits for no standby
            timeout_seconds = await check_server(control, self._publication)
            if self._walsender_pid is not None:
                await end_walsender(control, self._slot, self._walsender_pid)
                self._walsender_pid = None
            await ensure_slot(control, self._slot, number_of(self._position) if self._position else 0)
            stream = await ReplicationStream.connect(self._dsn)
            link = await self._start_stream(control, watching, stream, timeout_seconds)
            if self._closed:
                raise _Closed("the capture was closed while it was connecting")
        except BaseException as error:
            if stream is not None:
                await stream.close()
            if watching is not None:
                watching.cancel()
            if control is not None:
                await control.close()
            if isinstance(error, pg_errors.ObjectInUse):
                raise _SlotInUse(one_line(error)) from error
            if isinstance(error, pg_errors.InsufficientPrivilege):
                raise CaptureError(
                    f"the role lacks a right: {one_line(error)}. Run: rowcast setup --role … (for the schema rowcast), "
                    "and ALTER ROLE … REPLICATION (for the slot)"
                ) from error
            raise
        link.attendant = asyncio.create_task(self._attend(link))
        self._set_state("live", "")
        return link

    async def _start_stream(
        self,
        control: psycopg.AsyncConnection[Any],
        watching: asyncio.Task[None],
        stream: ReplicationStream,
        timeout_seconds: float,
    ) -> _Link:
        identity = await stream.identify()
        slot = await read_slot(control, self._slot)
        epoch = slot.epoch(*identity) if slot else ""
        continues = self._position is not None and epoch_of(self._position) == epoch
        number = number_of(self._delivered) if continues else 0
        await stream.start(self._slot, self._publication, number, wal_sender_timeout_seconds=timeout_seconds)
        self._walsender_pid = stream.walsender_pid
        # From here on nobody else can move the slot or make it anew.
        slot = await read_slot(control, self._slot)
        if slot is None or slot.epoch(*identity) != epoch:
            raise psycopg.OperationalError(f"slot {self._slot} was made anew while connecting")
        [[xid]] = await (
            await control.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        ).fetchall()
        tables = await StreamTables.read(control, self._publication, self._tables)

        position = make_position(epoch, max(number, slot.confirmed))
        assembler = Assembler(epoch, number_of(position), xid, self._max_transaction_bytes)
        if self._position is None:
            self._position, self._tables, self._membership = position, tables.tables, tables.membership
        elif position != self._position:
            _logger.error(
                "slot %s cannot continue behind %s: gap up to %s", self._slot, self._position, position
            )
            assembler.events.append(Gap(position, "slot_lost"))
        if tables.tables != self._tables:
            assembler.events.append(TablesChanged(position, tables.tables))
        tables.tell_returned(assembler, self._membership)
        stream.delivered = number_of(position)
        stream.acknowledged = slot.confirmed
        if self._acknowledged is not None and epoch_of(self._acknowledged) == epoch:
            stream.acknowledged = max(slot.confirmed, number_of(self._acknowledged))
        return _Link(control, watching, stream, assembler, tables, tables.membership.signature)

    async def _next_batch(self, link: _Link) -> list[Event]:
        assembler = link.assembler
        feed = assembler.feed
        for message in await link.stream.read() if not assembler.events else ():
            if message[0] == DATA:
                while (wanted := feed(message, PAYLOAD_START)) is not None:
                    if wanted == PUBLICATION:
                        await link.tables.reload(assembler)
                        break
                    await link.tables.bind(assembler, wanted)
            else:
                _, end, _, reply_at_once = KEEPALIVE.unpack(message)
                assembler.pass_keepalive(end)
                if reply_at_once:
                    link.stream.send_status()
                    link.stream.asked.set()
        batch, assembler.events = assembler.events, []
        return batch

    def _deliver(self, link: _Link, batch: Sequence[Event]) -> None:
        self._position = batch[-1].position
        self._tables, self._membership = link.tables.tables, link.tables.membership
        link.stream.delivered = number_of(self._position)
        for event in reversed(batch):
            if isinstance(event, Transaction):
                self._has_told = True
                self.status.lag_seconds = max(0.0, time.time() - event.timestamp_us / 1e6)
                break

    async def _attend(self, link: _Link) -> None:
        """Look after the slot and the heartbeat, every few seconds and when PostgreSQL wants an answer."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await link.stream.asked.wait()
                link.stream.asked.clear()
                await self._look_after(link)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the stream, and is seen there
            link.stream.fail(error)

    async def _look_after(self, link: _Link) -> None:
        cursor = await link.control.execute(
            "SELECT (pg_current_wal_lsn() - '0/0')::bigint, coalesce(pg_current_wal_lsn() - restart_lsn, 0)::bigint"
            " FROM pg_replication_slots WHERE slot_name = %s",
            [self._slot],
        )
        [[end, retained]] = await cursor.fetchall()
        self.status.lag_bytes = max(0, end - number_of(self._delivered))
        if retained <= self._max_slot_wal_bytes:
            self._gives_way = False
        else:
            if not self._gives_way:
                _logger.warning(
                    "slot %s retains %d bytes of WAL, over the bound of %d: everything delivered is acknowledged, so "
                    "a restart replays less. A long transaction in the database can also be the cause",
                    *(self._slot, retained, self._max_slot_wal_bytes),
                )
            self._gives_way = True
            self.acknowledge(self._delivered)
        link.stream.send_status()
        membership = await read_membership(link.control, self._publication)
        if link.tables.behind or membership.signature not in {
            link.tables.membership.signature,
            link.announced,
        }:
            # Through the stream, so that it takes effect behind the changes that were made before.
            link.announced, link.tables.behind = membership.signature, False
            await self._emit(link, TABLES)
        elif not self._has_told:
            await self._emit(link, HEARTBEAT)
        self._has_told = False

    async def _emit(self, link: _Link, content: bytes) -> None:
        await link.control.execute(
            "SELECT pg_logical_emit_message(true, %s, %s::text)", [MESSAGE_PREFIX, content.decode()]
        )

    async def _emit_mark(self) -> Position:
        async with self._mark_lock:
            self._next_mark = None  # who comes now may know of a later commit: the next one is theirs
            epoch = self.epoch
            [[number, _]] = await self._ask(
                "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint,"
                f" pg_logical_emit_message(true, '{MESSAGE_PREFIX}', '{HEARTBEAT.decode()}'::text)"
            )
            return make_position(epoch, number)

    async def _ask(self, statement: str) -> list[tuple[Any, ...]]:
        link = self._link
        if link is None:
            raise CaptureError(f"the connection to PostgreSQL is down: {self.status.reason or 'not started'}")
        try:
            cursor = await link.control.execute(statement.encode())
            return await cursor.fetchall()
        except _CONNECTION_ERRORS as error:
            link.stream.fail(error)
            raise CaptureError(f"the connection to PostgreSQL was lost: {one_line(error)}") from error
