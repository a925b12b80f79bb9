"""Which capture the settings mean, and for `auto`, which one the database allows.

The one rule of this room: whatever is chosen, it is said which and why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from psycopg import errors as pg_errors

from rowcast.capture import Capture, CaptureStatus
from rowcast.capture.connection import TemporaryCaptureError, connect, one_line
from rowcast.capture.notify import NotifyCapture
from rowcast.capture.outbox import OutboxCapture
from rowcast.capture.reconnecting import CONNECTION_ERRORS
from rowcast.capture.replication import ReplicationStream
from rowcast.capture.wal import WalCapture
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import Event, Position, Table
from rowcast.settings import Settings

_logger: Final = logging.getLogger(__name__)

_FACTS: Final = """
SELECT current_setting('wal_level'), current_database(),
    EXISTS (SELECT FROM pg_publication AS p, pg_publication_tables AS t WHERE p.pubname = t.pubname AND p.pubname = %(name)s),
    EXISTS (SELECT FROM pg_publication WHERE pubname = %(name)s)
"""
HAS_OUTBOX: Final = """
SELECT EXISTS (
    SELECT FROM rowcast.watched AS w JOIN rowcast.outbox_table AS t ON t.root_oid = w.table_oid
    WHERE w.publication_name = %s AND t.covered
)
"""


def choose_capture(settings: Settings) -> Capture:
    """The capture that the settings ask for.

    `auto` decides when it is started, as the database has to be asked.

    Raises:
        ConfigurationError: `notify` has no channels.
    """
    if settings.capture == "wal":
        return _wal(settings)
    if settings.capture == "outbox":
        return _outbox(settings)
    if settings.capture == "notify":
        return NotifyCapture(
            settings.database_url_direct,
            settings.tables,
            heartbeat_seconds=settings.capture_heartbeat_seconds,
        )
    return AutoCapture(settings)


class AutoCapture:
    """By WAL if the database allows it, else by the outbox if that is installed.

    Attributes:
        name: `auto` until it has chosen, then that of the choice; `status` likewise.
    """

    def __init__(self, settings: Settings, *, retry_seconds: float = 1.0) -> None:
        self.name = "auto"
        self.status = CaptureStatus()
        self._settings = settings
        self._retry_seconds = retry_seconds
        self._chosen: Capture | None = None

    @property
    def tables(self) -> Mapping[int, Table]:
        return self._capture.tables

    async def start(self) -> Position:
        """Choose, for as long as the database cannot be reached, and start what was chosen.

        Raises:
            CaptureError: Neither is possible; the text says how to mend it.
        """
        while self._chosen is None:
            try:
                capture, reason = await _choose(self._settings)
            except (*CONNECTION_ERRORS, TemporaryCaptureError) as error:
                reason = f"PostgreSQL cannot be reached, trying again: {one_line(error)}"
                if reason != self.status.reason:
                    _logger.info("capture starting: %s", reason)
                self.status.reason = reason
                await asyncio.sleep(self._retry_seconds)
            else:
                _logger.info("capture %s was chosen: %s", capture.name, reason)
                self._chosen, self.name, self.status = capture, capture.name, capture.status
                self.status.choice = reason
        return await self._chosen.start()

    def events(self) -> AsyncIterator[Sequence[Event]]:
        return self._capture.events()

    def acknowledge(self, position: Position) -> None:
        self._capture.acknowledge(position)

    async def mark(self) -> Position:
        return await self._capture.mark()

    async def close(self) -> None:
        if self._chosen is not None:
            await self._chosen.close()

    @property
    def _capture(self) -> Capture:
        if self._chosen is None:
            raise CaptureError("the capture has not been started: await start() first")
        return self._chosen


async def _choose(settings: Settings) -> tuple[Capture, str]:
    try:
        why_not_wal, has_outbox, database = await _examine(settings)
    except pg_errors.InsufficientPrivilege as error:
        raise CaptureError(
            f"the role lacks a right: {one_line(error)}. Run: rowcast setup --dsn … --role …"
        ) from error
    if why_not_wal is None:
        reason = "the server allows logical replication"
        if has_outbox:
            reason += "; triggers write into the outbox too, which nobody reads then: rowcast setup --capture wal removes them"
        return _wal(settings), reason
    if has_outbox:
        return _outbox(settings), f"{why_not_wal}, and the outbox is installed"
    raise NotInstalledError(
        f"database {database} was not set up: {why_not_wal}, and there is no outbox. Run: rowcast setup --dsn … --tables …"
    )


async def _examine(settings: Settings) -> tuple[str | None, bool, str]:
    """Why not by WAL, if there is a reason; whether tables write into the outbox; and the database's name."""
    async with await connect(settings.database_url_direct) as connection:
        cursor = await connection.execute(_FACTS, {"name": settings.publication})
        [[wal_level, database, has_tables, has_publication]] = await cursor.fetchall()
        cursor = await connection.execute("SELECT to_regclass('rowcast.outbox_table') IS NOT NULL")
        [[has_outbox]] = await cursor.fetchall()
        if has_outbox:
            cursor = await connection.execute(HAS_OUTBOX, [settings.publication])
            [[has_outbox]] = await cursor.fetchall()
    if wal_level != "logical":
        return f"the server has wal_level = {wal_level}", has_outbox, database
    if not has_publication:
        return f"there is no publication {settings.publication}", has_outbox, database
    if not has_tables and has_outbox:
        return f"the publication {settings.publication} has no tables", has_outbox, database
    try:
        stream = await ReplicationStream.connect(settings.database_url_direct)
    except TemporaryCaptureError:
        raise
    except CaptureError as error:
        return f"the server refuses replication ({one_line(error)})", has_outbox, database
    await stream.close()
    return None, has_outbox, database


def _wal(settings: Settings) -> WalCapture:
    return WalCapture(
        settings.database_url_direct,
        slot=settings.slot,
        publication=settings.publication,
        max_transaction_bytes=settings.max_transaction_bytes,
        max_slot_wal_bytes=settings.max_slot_wal_bytes,
        heartbeat_seconds=settings.capture_heartbeat_seconds,
    )


def _outbox(settings: Settings) -> OutboxCapture:
    return OutboxCapture(
        settings.database_url_direct,
        publication=settings.publication,
        max_transaction_bytes=settings.max_transaction_bytes,
        max_outbox_bytes=settings.max_slot_wal_bytes,
        heartbeat_seconds=settings.capture_heartbeat_seconds,
    )
