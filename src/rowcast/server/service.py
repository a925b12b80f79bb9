"""The running server: one capture, one log, one hub, and the connections.

The one rule of this room: events are taken in by one task, a batch at a time, and nothing else writes to the
hub's stream. Everything that has to be done by time is done by one wheel for all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

import psycopg

from rowcast.capture import Capture
from rowcast.errors import CaptureError, NotInstalledError, RowcastError
from rowcast.hub import Framing, Hub
from rowcast.log import MemoryLog
from rowcast.model import Position, epoch_of, make_position
from rowcast.protocol.native import ServerState
from rowcast.server.connection import ClientConnection
from rowcast.server.mutations import Mutations
from rowcast.server.snapshots import Snapshots
from rowcast.settings import Settings
from rowcast.snapshot import SnapshotReader

logger = logging.getLogger("rowcast.server")

# Before the database has answered there is no epoch; zeros are ordered before every real position.
_NOWHERE: Final = make_position("0" * 16, 0)
# Soon enough for people, seldom enough for a database in trouble.
_RETRY_SECONDS: Final = 1.0
# The wheel turns often enough that a time-out is late by no more than this.
_WHEEL_SECONDS: Final = 1.0
# A client is given up after this many heartbeat intervals of silence: one may be lost, two may not.
_SILENT_INTERVALS: Final = 2.5
# Clients come back within this time after a shutdown, spread evenly, so that the next server is not overrun.
_GOODBYE_MS: Final = 5_000
# What one client may ask for while the server is starting: each subscription that it may have, and some more.
_MAX_WAITING: Final = 2_000
# What a client may take to read its queue when the server stops; orchestrators kill after 10 to 30 s.
_FLUSH_SECONDS: Final = 5.0


class Service:
    """Capture, log, hub and connections of one server.

    Args:
        settings: See `rowcast.settings`.
        capture: The source of transactions.

    Attributes:
        ready: Whether the stream has caught up with the database, so that subscriptions can begin.
        failure: What ended the capture for good, if anything did.
    """

    def __init__(self, settings: Settings, capture: Capture) -> None:
        self.settings = settings
        self.capture = capture
        self.state = ServerState(settings.heartbeat_seconds, _NOWHERE, "degraded", "the server is starting")
        self.connections: dict[ClientConnection, None] = {}
        self.slow: set[ClientConnection] = set()
        self.ready = False
        self.failure: RowcastError | None = None
        self.failed = asyncio.Event()
        self.live = asyncio.Event()
        self.closes: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self._hub: Hub | None = None
        self._snapshots: Snapshots | None = None
        self._mutations: Mutations | None = None
        self._names = itertools.count(1)
        self._name_prefix = f"{random.getrandbits(32):08x}"
        self._waiting: dict[ClientConnection, list[Callable[[], None]]] = {}
        self._target: Position | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def hub(self) -> Hub:
        """The hub; there is one once the capture has started."""
        assert self._hub is not None, "the hub is used only when the service is ready"
        return self._hub

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots; there are some once the capture has started."""
        assert self._snapshots is not None, "snapshots are used only when the service is ready"
        return self._snapshots

    @property
    def mutations(self) -> Mutations:
        """Answers about mutations; there are some once the capture has started."""
        assert self._mutations is not None, "mutations are asked for only when the service is ready"
        return self._mutations

    @property
    def started(self) -> bool:
        return self._loop is not None

    @property
    def stopping(self) -> bool:
        return self._stopping

    def now(self) -> float:
        """Monotonic time of the event loop, in seconds."""
        assert self._loop is not None
        return self._loop.time()

    def next_session_name(self) -> str:
        return f"{self._name_prefix}-{next(self._names):x}"

    async def start(self) -> None:
        """Begin; returns at once, the capture connects in the background."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [
            asyncio.create_task(self._run(), name="rowcast capture"),
            asyncio.create_task(self._turn_wheel(), name="rowcast wheel"),
        ]

    async def stop(self) -> None:
        """End the capture and close every connection that is left."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._mutations is not None:
            await self._mutations.close()
        if self._snapshots is not None:
            await self._snapshots.close()
        await self.capture.close()
        for connection in list(self.connections):
            connection.drop(1001, "the server has shut down")

    async def _run(self) -> None:
        try:
            await self._capture()
        except RowcastError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the capture ended with an error that is Rowcast's own fault")
            self._fail(RowcastError(f"internal error in the capture: {error!r}"))

    def _fail(self, error: RowcastError) -> None:
        logger.error("%s", error)
        self.failure = error
        self.ready = False
        self._set_state("degraded", str(error))
        self.failed.set()

    async def _capture(self) -> None:
        settings, capture = self.settings, self.capture
        start = await capture.start()
        reader = SnapshotReader(settings.database_url, settings.publication)
        log = MemoryLog(
            start,
            max_bytes=settings.replay_window_bytes,
            max_seconds=settings.replay_window_seconds,
            first_xid=await _patiently(reader.newest_xid),
        )
        hub = self._hub = Hub(log, capture.tables, offered=settings.tables or None, scopes=settings.scopes)
        self.state.position = hub.head
        snapshots = self._snapshots = Snapshots(
            reader, hub, lambda: asyncio.ensure_future(capture.mark()), self.now
        )
        self._mutations = Mutations(reader, hub, lambda: asyncio.ensure_future(capture.mark()))
        missing = [name for name in settings.tables if name not in hub.channels]
        if missing:
            raise NotInstalledError(
                f"these tables are not captured: {', '.join(missing)}; "
                f"run: rowcast setup --dsn … --tables {','.join(missing)}"
            )
        catching_up = asyncio.create_task(self._aim(), name="rowcast catch up")
        try:
            async for events in capture.events():
                hub.publish(events, self.now())
                self.state.position = hub.head
                snapshots.heard()
                capture.acknowledge(log.trim(self.now()))
                self._become_ready()
                # Readers and writers of connections have their turn between two batches.
                await asyncio.sleep(0)
        finally:
            catching_up.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await catching_up

    async def _aim(self) -> None:
        while self._target is None:
            try:
                self._target = await self.capture.mark()
            except CaptureError as error:
                logger.info("the database's present end is not known yet, trying again: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
        self._become_ready()  # the stream may have passed it while the answer was on its way

    def _become_ready(self) -> None:
        """Once everything up to the start has been heard, subscriptions begin."""
        target, head = self._target, self.hub.head
        # Another epoch has another end, and takes nobody's position: there is nothing to wait for.
        if self.ready or target is None or (epoch_of(head) == epoch_of(target) and head < target):
            return
        self.ready = True
        self.live.set()
        self._watch_state()
        logger.info("live: %s", ", ".join(sorted(self.hub.channels)) or "no tables yet")
        for connection in self.connections:
            if connection.subscriber is not None:
                self.hub.join(connection.subscriber)
        waiting, self._waiting = self._waiting, {}
        for wishes in waiting.values():
            for begin in wishes:
                begin()

    def when_ready(self, connection: ClientConnection, begin: Callable[[], None]) -> None:
        """Do what a client has asked for, now or as soon as the stream has caught up."""
        if self.ready:
            begin()
            return
        wishes = self._waiting.setdefault(connection, [])
        wishes.append(begin)
        if len(wishes) > _MAX_WAITING:
            connection.drop(4003, "too many messages")

    def refusal(self, origin: str | None, host: str | None) -> tuple[int, str] | None:
        """Why a connection is not accepted, as an HTTP status and a sentence; None if it is."""
        if not self.allows(origin, host):
            return 403, f"the origin {origin} is not allowed: add it to FRONTEND_URL"
        if len(self.connections) >= self.settings.max_connections:
            return (
                503,
                "this server has as many connections as it may have (max_connections): come back later",
            )
        if self._stopping:
            return 503, "this server is shutting down: come back in a moment"
        return None

    def allows(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of this origin may use the server: its own, and those in `frontend_url`."""
        if origin is None or "*" in self.settings.frontend_url:
            return True
        origin = origin.lower()
        return origin in self.settings.frontend_url or (
            host is not None and urlsplit(origin).netloc == host.lower()
        )

    def forget(self, connection: ClientConnection) -> None:
        """The connection is gone."""
        self.connections.pop(connection, None)
        self._waiting.pop(connection, None)
        self.slow.discard(connection)
        # There is no hub before the capture has started.
        if connection.subscriber is not None and self._hub is not None:
            self._hub.leave(connection.subscriber)

    def say_goodbye(self) -> None:
        """Begin to shut down: every client is told when to come back, gets what waits for it, and is closed."""
        self._stopping = True
        for connection in list(self.connections):
            self.dismiss(connection)

    def dismiss(self, connection: ClientConnection) -> None:
        """Say goodbye to one client and close it once it has read what waits for it."""
        connection.finish(1001, "the server is shutting down", random.randrange(_GOODBYE_MS))  # noqa: S311 - jitter
        assert self._loop is not None
        self._loop.call_later(_FLUSH_SECONDS, connection.drop, 1001, "the server is shutting down")

    async def _turn_wheel(self) -> None:
        pause = min(_WHEEL_SECONDS, self.settings.heartbeat_seconds / 4)
        while True:
            await asyncio.sleep(pause)
            self._watch_state()
            self.turn(self.now())
            if self._snapshots is not None:
                self._snapshots.purge()

    def turn(self, now: float) -> None:
        """Do what is due for each connection: heartbeats, and the end of those that do not answer."""
        settings = self.settings
        silent_since = now - _SILENT_INTERVALS * settings.heartbeat_seconds
        beats: dict[Framing, bytes] = {}
        for connection in list(self.connections):
            session = connection.session
            if session.form is None:
                if now - connection.opened > settings.handshake_seconds:
                    connection.drop(4004, "nothing was subscribed in time")
            elif connection.transport.two_way and session.last_heard < silent_since:
                connection.drop(4002, "no sign of life")
            elif now >= connection.next_beat:
                connection.next_beat = now + settings.heartbeat_seconds
                beat = beats.get(connection.framing)
                if beat is None:
                    reply = session.heartbeat()
                    beat = beats[connection.framing] = connection.framing.frame(
                        reply.message, event=reply.event
                    )
                connection.send(beat)
                if session.form == "plain":
                    connection.transport.ping()
        for connection in list(self.slow):
            since = connection.dropped_since
            if since is not None and now - since > settings.slow_client_seconds:
                connection.drop(4001, "the client does not read")

    def _watch_state(self) -> None:
        status = self.capture.status
        if self.failure is not None:
            return
        if status.state == "live" and self.ready:
            self._set_state("live", "")
        elif status.state == "live":
            self._set_state("degraded", "the server is catching up with the database")
        else:
            self._set_state("degraded", status.reason or f"the capture is {status.state}")

    def _set_state(self, state: str, reason: str) -> None:
        if (self.state.state, self.state.reason) == (state, reason):
            return
        changed = self.state.state != state
        self.state.state, self.state.reason = state, reason
        if changed:
            for connection in list(self.connections):
                if connection.session.form is not None:
                    connection.reply(connection.session.status())


async def _patiently(ask: Callable[[], Awaitable[int]]) -> int:
    """Ask the database until it answers."""
    while True:
        try:
            return await ask()
        except psycopg.OperationalError as error:
            logger.warning("the database does not answer, trying again: %s", str(error).strip())
            await asyncio.sleep(_RETRY_SECONDS)
