"""Capture of NOTIFY channels that a database has already: for people who have such triggers.

The one rule of this room: it promises what NOTIFY can. A notification comes at most once: what is sent while the
connection is down is lost, and a `Gap` says that something may have been. Nothing is told again after a restart.
Each notification is a transaction of its own, with the time it was heard and no transaction id. Rows from before
can only be read where a table has the channel's name, and nothing ties them to the notifications.

A channel is told as a table of its name. A payload `{"op": "UPDATE", "table": "projects", "new": {…}, "old": {…}}`
on the channel `projects` (`table` may be absent) is that change; whatever else comes is an INSERT of one column,
`payload`. Columns are found as they come, each as a text, a number, a boolean or else JSON, by its values so far:
until all are known, `TablesChanged` says so each time, which clients see as a resync. There is no key, as no payload
says what it is.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from rowcast.capture.connection import connect, one_line
from rowcast.capture.line import Line, Notification
from rowcast.capture.payloads import Channel
from rowcast.capture.reconnecting import ReconnectingCapture
from rowcast.errors import CaptureError, ConfigurationError
from rowcast.model import (
    EPOCH_DIGITS,
    Event,
    Gap,
    Position,
    Progress,
    TablesChanged,
    Transaction,
    make_position,
)

# Our own notification comes back behind all that were committed before it: that is the mark, the heartbeat, and the
# proof that the connection still listens, which one through a pooler in transaction mode does not.
_ECHO_SECONDS: Final = 30.0
_CHANGE_BYTES: Final = 300
_MAX_NAME_BYTES: Final = 63  # PostgreSQL cuts off what is over, and NOTIFY refuses it


class _EchoLine(Line):
    """A connection that listens, and is known to.

    Attributes:
        echo: The channel of our own notifications; nobody else knows its name.
        asked_at: When the one on its way was sent; None for none.
        asked_by: How many marks wait for it, of those there are.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], rung: asyncio.Event) -> None:
        super().__init__(connection, rung)
        self.echo = f"rowcast_{secrets.token_hex(8)}"
        self.asked_at: float | None = None
        self.heard_at = time.monotonic()
        self.asked_by = 0


class NotifyCapture(ReconnectingCapture[_EchoLine]):
    """Notifications as transactions, as far as the contract `Capture` can be kept.

    Args:
        dsn: A direct connection to the primary; LISTEN needs no right.
        channels: What to LISTEN to, as named in NOTIFY, letter for letter.
        heartbeat_seconds: How often a quiet connection is tried.
        retry_seconds: Between attempts to connect.

    Raises:
        ConfigurationError: There are no channels, or one that cannot be.
    """

    name = "notify"

    def __init__(
        self,
        dsn: str,
        channels: Sequence[str],
        *,
        heartbeat_seconds: float = 10.0,
        retry_seconds: float = 1.0,  # soon enough for people, seldom enough for a server in trouble
    ) -> None:
        super().__init__(dsn, retry_seconds)
        if not channels:
            raise ConfigurationError(
                'capture="notify" has no channels to listen to: name them in PG_CHANNELS or with --tables'
            )
        for name in channels:
            if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
                raise ConfigurationError(
                    f"{name!r} is no channel of PostgreSQL: the name of one has 1 to {_MAX_NAME_BYTES} bytes"
                )
        self._heartbeat_seconds = heartbeat_seconds
        self._epoch = secrets.token_hex(EPOCH_DIGITS // 2)  # nothing is told again by another process
        self._number = 0
        self._channels = {name: Channel(number, name) for number, name in enumerate(channels, start=1)}
        self._tables = {channel.table.oid: channel.table for channel in self._channels.values()}

    def acknowledge(self, position: Position) -> None:
        """Nothing can be told again, so nothing is kept for it."""

    async def _connect(self) -> _EchoLine:
        line = _EchoLine(await connect(self._dsn), self._rung)
        try:
            for name in (*self._channels, line.echo):
                await line.ask(line.connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(name))))
        except BaseException:
            await line.close()
            raise
        if self._position is None:
            self._position = self._next()
        return line

    def _explain(self, error: psycopg.Error) -> CaptureError:
        return CaptureError(f"the channels cannot be listened to: {one_line(error)}")

    async def _read(self, line: _EchoLine) -> AsyncGenerator[list[Event]]:
        if self.status.reconnects:
            yield [Gap(self._next(), "capture_gap")]
        while True:
            await self._send_echo(line)
            await line.wait(self._heartbeat_seconds)
            heard, line.heard = line.heard, []
            events: list[Event] = []
            for notification in heard:
                events += self._tell(line, notification)
            if events:
                yield events

    async def _send_echo(self, line: _EchoLine) -> None:
        now = time.monotonic()
        if line.asked_at is not None:
            if now - line.asked_at > _ECHO_SECONDS:
                raise psycopg.OperationalError(
                    f"PostgreSQL has not sent our own notification back for {_ECHO_SECONDS:.0f} seconds: the connection is "
                    "dead, or leads through a pooler that has no LISTEN"
                )
        elif self._marks or now - line.heard_at >= self._heartbeat_seconds:
            line.asked_at, line.asked_by = now, len(self._marks)
            await line.ask(line.connection.execute("SELECT pg_notify(%s, '')", [line.echo]))

    def _tell(self, line: _EchoLine, notification: Notification) -> list[Event]:
        line.heard_at = time.monotonic()
        if notification.channel == line.echo:
            line.asked_at = None
            position = self._next()
            answered, self._marks = self._marks[: line.asked_by], self._marks[line.asked_by :]
            self._answer_marks(answered, position)
            return [Progress(position)]
        channel = self._channels[notification.channel]
        payload = notification.payload.encode()
        table = channel.table
        change = channel.read(payload)
        told: list[Event] = []
        if change.table is not table:
            tables = {channel.table.oid: channel.table for channel in self._channels.values()}
            told.append(TablesChanged(self._next(), tables))
        told.append(
            Transaction(self._next(), 0, time.time_ns() // 1000, [change], (), len(payload) + _CHANGE_BYTES)
        )
        return told

    def _next(self) -> Position:
        self._number += 1
        return make_position(self._epoch, self._number)
