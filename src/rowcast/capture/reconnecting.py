"""What captures over one ordinary connection share: making it again, and answering for it.

The one rule of this room: a lost connection is made again once a second for ever; only what no reconnect can mend
ends the stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final, Generic, TypeVar

import psycopg
from psycopg import errors as pg_errors

from rowcast.capture import CaptureStatus
from rowcast.capture.connection import TemporaryCaptureError, one_line
from rowcast.capture.line import Line
from rowcast.errors import CaptureError
from rowcast.model import Event, Position, Table, TablesChanged, Transaction, epoch_of

_logger: Final = logging.getLogger(__name__)

CONNECTION_ERRORS: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)

AnyLine = TypeVar("AnyLine", bound=Line)


class ClosedError(CaptureError):
    """The capture was closed while it was connecting."""


class StandbyError(Exception):
    """Another server does this one's work; the text says which."""


class ReconnectingCapture(ABC, Generic[AnyLine]):
    """The part of the contract `Capture` that is the same whatever is read.

    Attributes:
        status: See `CaptureStatus`; the same object all the time.
    """

    name: str

    def __init__(self, dsn: str, retry_seconds: float) -> None:
        self.status = CaptureStatus()
        self._dsn = dsn
        self._retry_seconds = retry_seconds
        self._line: AnyLine | None = None
        self._position: Position | None = None  # the last delivered
        self._tables: Mapping[int, Table] = {}
        self._closed = False
        self._rung = asyncio.Event()
        self._marks: list[asyncio.Future[Position]] = []

    @property
    def tables(self) -> Mapping[int, Table]:
        return self._tables

    @property
    def epoch(self) -> str:
        """The first part of every position that is told now."""
        return epoch_of(self._delivered)

    async def start(self) -> Position:
        """Check, connect, and say after which position the stream will tell everything.

        Waits, with `status` saying for what, while PostgreSQL cannot be reached and while another server does
        the work.

        Raises:
            CaptureError: PostgreSQL cannot be captured from; the text says how to mend it.
        """
        if self._line is None:
            self._line = await self._keep_connecting(CONNECTION_ERRORS)
        return self._delivered

    async def events(self) -> AsyncIterator[Sequence[Event]]:
        """The stream, in batches of what was read together."""
        try:
            while not self._closed:
                try:
                    line = self._line
                    if line is None:
                        line = self._line = await self._keep_connecting(
                            (*CONNECTION_ERRORS, TemporaryCaptureError)
                        )
                    async with aclosing(self._read(line)) as batches:
                        async for batch in batches:
                            self._deliver(batch)
                            yield batch
                except ClosedError:
                    return
                except CONNECTION_ERRORS as error:
                    await self._lose_line(error)
                except psycopg.Error as error:
                    raise self._explain(error) from error
        finally:
            await self.close()

    async def mark(self) -> Position:
        """See `Capture.mark`. Calls at the same time share one question to the database.

        Raises:
            CaptureError: The connection to PostgreSQL is down.
        """
        if self._line is None:
            raise CaptureError(f"the connection to PostgreSQL is down: {self.status.reason or 'not started'}")
        mark: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._marks.append(mark)
        self._rung.set()
        return await mark

    async def close(self) -> None:
        """End the stream and its connection."""
        self._closed = True
        self.status.state, self.status.reason = "stopped", ""
        line, self._line = self._line, None
        self._fail_marks("the capture was closed")
        self._rung.set()
        if line is not None:
            await line.close()

    @abstractmethod
    async def _connect(self) -> AnyLine:
        """Make a line from which the stream goes on; sets `_position` and `_tables` where there are none yet.

        Raises:
            StandbyError: It is another server's turn.
        """

    @abstractmethod
    def _read(self, line: AnyLine) -> AsyncGenerator[list[Event]]:
        """Everything that one connection tells."""

    @abstractmethod
    def _explain(self, error: psycopg.Error) -> CaptureError:
        """What an error means that no reconnect can mend."""

    @property
    def _delivered(self) -> Position:
        if self._position is None:
            raise CaptureError("the capture has not been started: await start() first")
        return self._position

    async def _keep_connecting(self, waited_for: tuple[type[Exception], ...]) -> AnyLine:
        """Try once a second until it works; errors other than `waited_for` are raised."""
        while True:
            if self._closed:
                raise ClosedError("the capture was closed")
            try:
                line = await self._connect()
            except StandbyError as error:
                self._set_state("standby", str(error))
            except waited_for as error:
                state = "degraded" if self._position else "starting"
                self._set_state(state, f"PostgreSQL cannot be reached, trying again: {one_line(error)}")
            except pg_errors.InsufficientPrivilege as error:
                raise self._explain(error) from error
            else:
                if self.status.state == "stopped":  # by close(), meanwhile
                    await line.close()
                    raise ClosedError("the capture was closed while it was connecting")
                self._set_state("live", "")
                return line
            await asyncio.sleep(self._retry_seconds)

    async def _lose_line(self, error: Exception) -> None:
        if self._closed:
            return
        self.status.reconnects += 1
        reason = f"the connection to PostgreSQL is down, reconnecting: {one_line(error)}"
        self._set_state("degraded", reason)
        line, self._line = self._line, None
        self._fail_marks(reason)
        if line is not None:
            await line.close()
        await asyncio.sleep(self._retry_seconds)

    def _set_state(self, state: str, reason: str) -> None:
        if (state, reason) != (self.status.state, self.status.reason):
            log = _logger.warning if state == "degraded" else _logger.info
            log("capture %s: %s", state, reason or f"reading by {self.name} behind {self._position}")
        self.status.state, self.status.reason = state, reason

    def _answer_marks(self, marks: Sequence[asyncio.Future[Position]], position: Position) -> None:
        for mark in marks:
            if not mark.done():
                mark.set_result(position)

    def _fail_marks(self, reason: str) -> None:
        marks, self._marks = self._marks, []
        for mark in marks:
            if not mark.done():
                mark.set_exception(CaptureError(reason))

    def _deliver(self, batch: Sequence[Event]) -> None:
        self._position = batch[-1].position
        for event in reversed(batch):
            if isinstance(event, Transaction):
                self.status.lag_seconds = max(0.0, time.time() - event.timestamp_us / 1e6)
                break
        for event in batch:
            if isinstance(event, TablesChanged):
                self._tables = event.tables
