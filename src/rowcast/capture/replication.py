"""One streaming replication connection: the socket, the copy protocol and its keepalives.

The one rule of this room: nothing is read that nobody waits for. Who does not call `read` holds back PostgreSQL
through the socket, and still the connection stays alive, because status updates are sent by a timer.

psycopg runs START_REPLICATION and gets out of the way: from then on the raw connection is drained from
`loop.add_reader`, which is six times as fast as psycopg's waiting and, other than that, can be cancelled without
cancelling the walsender's statement.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any, Final, LiteralString, Self

import psycopg
from psycopg import errors as pg_errors, sql

from rowcast.capture.connection import POOLER_REMEDY, connect, duplicate_socket, watch
from rowcast.capture.pgoutput import POSTGRES_EPOCH_US
from rowcast.errors import CaptureError

# Where the payload of a message begins: behind its kind and three 64-bit fields.
PAYLOAD_START: Final = 25
DATA: Final = ord("w")
KEEPALIVE: Final = struct.Struct("!BQqB")
_STATUS: Final = struct.Struct("!cQQQqB")

# Well below wal_sender_timeout (60 s by default), and often enough that an acknowledgement frees WAL soon.
_STATUS_SECONDS: Final = 5.0
_LIVENESS_SECONDS: Final = 30.0
# Decoding this much takes a few milliseconds: the longest that a full stream keeps the event loop to itself.
_SLICE_BYTES: Final = 256 * 1024


class ReplicationStream:
    """A walsender's stream, from START_REPLICATION on.

    Attributes:
        delivered: LSN reported as written: what the consumer has been given.
        acknowledged: LSN reported as flushed: what PostgreSQL need not keep.
        asked: Set when PostgreSQL wanted an answer at once. It does so when it is about to shut down, and then it
            waits until everything is acknowledged or the stream is closed.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any], dsn: str) -> None:
        self.delivered = 0
        self.acknowledged = 0
        self.asked = asyncio.Event()
        self._connection = connection
        self._pgconn = connection.pgconn
        # libpq closes its own when the connection breaks, and the number may be another socket's a moment later.
        self._socket = duplicate_socket(connection)
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._watching = False
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watching_start = watch(connection, dsn)
        self._status_seconds = _STATUS_SECONDS
        self._liveness_seconds = _LIVENESS_SECONDS
        self._heard_at = 0.0
        self._pinged_at: float | None = None

    @property
    def walsender_pid(self) -> int:
        """The process at the other end."""
        return self._pgconn.backend_pid

    @classmethod
    async def connect(cls, dsn: str) -> Self:
        """Connect in replication mode; raises as `connection.connect` does."""
        return cls(await connect(dsn, replication="database"), dsn)

    async def identify(self) -> tuple[str, int]:
        """The cluster's system identifier and its timeline."""
        try:
            cursor = await self._connection.execute("IDENTIFY_SYSTEM")
        except pg_errors.SyntaxError as error:
            raise CaptureError(
                f"the connection is an ordinary one, although replication was asked for. {POOLER_REMEDY}"
            ) from error
        [[system_identifier, timeline, *_]] = await cursor.fetchall()
        return str(system_identifier), int(timeline)

    async def start(
        self, slot: str, publication: str, number: int, *, wal_sender_timeout_seconds: float
    ) -> None:
        """Begin streaming what committed after the LSN `number`, or after the slot's own position if that is later.

        The server's wal_sender_timeout says how often it must hear from us; 0 means that it never gives up.

        Raises:
            psycopg.errors.ObjectInUse: Another process streams from the slot.
        """
        if wal_sender_timeout_seconds:
            self._status_seconds = min(_STATUS_SECONDS, wal_sender_timeout_seconds / 4)
            self._liveness_seconds = min(_LIVENESS_SECONDS, wal_sender_timeout_seconds * 0.75)
        command: LiteralString = "START_REPLICATION SLOT {slot} LOGICAL {lsn} (proto_version '1', publication_names {names}, messages 'true')"
        await self._connection.execute(
            sql.SQL(command).format(
                slot=sql.Identifier(slot),
                lsn=sql.SQL(f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"),  # pyright: ignore[reportArgumentType]
                names=sql.Literal(sql.Identifier(publication).as_string()),
            )
        )
        self._watching_start.cancel()
        self._heard_at = self._loop.time()
        self._tick()

    async def read(self) -> list[bytes]:
        """Wait for messages and return those that are there: copy data of kind `w` or `k`, at least one.

        Can be cancelled at any time without a loss.

        Raises:
            psycopg.OperationalError: The stream has ended.
        """
        messages = self._drain()
        if messages:
            await asyncio.sleep(0)  # a stream that is always full must not starve the others
        while not messages:
            self._waiter = self._loop.create_future()
            if not self._watching:
                self._watching = True
                self._loop.add_reader(self._socket, self._readable)
            try:
                await self._waiter
            finally:
                self._waiter = None
            messages = self._drain()
        self._heard_at = self._loop.time()
        self._pinged_at = None
        return messages

    def fail(self, error: BaseException) -> None:
        """Make the present or next `read` raise `error`."""
        self._error = self._error or error
        self._wake()

    def send_status(self, *, ping: bool = False) -> None:
        """Tell PostgreSQL `delivered` and `acknowledged`; with `ping`, ask it to answer."""
        now = time.time_ns() // 1000 - POSTGRES_EPOCH_US
        status = _STATUS.pack(b"r", self.delivered, self.acknowledged, self.acknowledged, now, ping)
        try:
            self._pgconn.put_copy_data(status)
            self._pgconn.flush()
        except psycopg.OperationalError as error:
            self.fail(error)

    async def close(self) -> None:
        """Report what is acknowledged and end the stream, for a reader who waits too."""
        self._watching_start.cancel()
        if self._timer is not None:
            self._timer.cancel()
            if self._error is None:
                self.send_status()
        self.fail(psycopg.OperationalError("the stream was closed"))
        self._unwatch()
        self._socket.close()
        await self._connection.close()

    def _drain(self) -> list[bytes]:
        messages: list[bytes] = []
        size_bytes = 0
        get = self._pgconn.get_copy_data
        consumed = False
        while size_bytes < _SLICE_BYTES:
            if self._error is not None:
                if messages:
                    return messages  # what came before the end still counts
                raise self._error
            try:
                length, data = get(1)
                if length > 0:
                    messages.append(bytes(data))
                    size_bytes += length
                    consumed = False
                elif length < 0:
                    self._error = self._reason_of_end()
                elif consumed:
                    break
                else:
                    self._pgconn.consume_input()
                    consumed = True
            except psycopg.OperationalError as error:
                self._error = error
        return messages

    def _reason_of_end(self) -> psycopg.OperationalError:
        result = self._pgconn.get_result()
        message = result.error_message.decode(errors="replace").strip() if result is not None else ""
        return psycopg.OperationalError(message or "PostgreSQL has ended the replication stream")

    def _readable(self) -> None:
        if self._waiter is None:
            self._unwatch()
        else:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._socket)

    def _tick(self) -> None:
        """Report, and find out whether the other side lives; only who is waiting can know that nothing comes."""
        self._timer = self._loop.call_later(self._status_seconds, self._tick)
        now = self._loop.time()
        silent = self._waiter is not None and now - self._heard_at >= self._status_seconds
        if silent and self._pinged_at is None:
            self._pinged_at = now
        elif silent and now - (self._pinged_at or now) >= self._liveness_seconds:
            self.fail(
                psycopg.OperationalError(
                    f"PostgreSQL has not answered for {self._liveness_seconds:.0f} seconds: the connection is dead"
                )
            )
        self.send_status(ping=silent)
