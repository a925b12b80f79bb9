"""Snapshots for clients: one query per shape, however many wait, and the stream's part on top.

What one query read (`kept_rows`), with the corrections that make it exact at the stream's head (`corrections`), is
shared by all who want the shape, while it is being read and for some time after: a client that comes later gets the same
chunks and later corrections. `delivery` brings them to each client.

The one rule of this room: equal shapes are read once at a time, and what was read is kept only while it is cheaper than
to read it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg

from rowcast.capture.connection import one_line
from rowcast.errors import CaptureError, ProtocolError
from rowcast.hub import Hub, Request, Shape, Subscription
from rowcast.hub.shape import ShapeKey
from rowcast.model import Position, epoch_of
from rowcast.protocol.forms import PLAIN
from rowcast.server.connection import ClientConnection
from rowcast.server.corrections import ATTEMPTS, Corrections, Overtaken
from rowcast.server.delivery import FullDelivery, PlainDelivery
from rowcast.server.kept_rows import FrozenRows, ShapeSnapshot
from rowcast.snapshot import SnapshotReader

logger = logging.getLogger("rowcast.server")

# A finished snapshot is kept this long after its last use: a reload of the page, a crowd that comes back.
_KEEP_SECONDS: Final = 30.0
# Finished snapshots together; the one unused for longest goes first.
_KEEP_BYTES: Final = 256 << 20
# Over this many corrections a new query is cheaper, for the database and for the client.
_MAX_CORRECTIONS: Final = 10_000


class Snapshots:
    """All snapshots of a server.

    Args:
        reader: Where rows come from.
        hub: The stream.
        mark: Returns a position such that the stream, once past it, has told everything committed before the call.
        now: Monotonic time in seconds.
    """

    def __init__(
        self,
        reader: SnapshotReader,
        hub: Hub,
        mark: Callable[[], asyncio.Future[Position]],
        now: Callable[[], float],
    ) -> None:
        self._reader = reader
        self.hub = hub
        self._mark = mark
        self._now = now
        self._snapshots: dict[ShapeKey, ShapeSnapshot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heads: dict[Position, list[asyncio.Future[None]]] = {}
        self.taken = 0
        self.seconds = 0.0

    def get(self, shape: Shape) -> ShapeSnapshot:
        """The snapshot of a shape: the one there is, or one that begins to be read."""
        snapshot = self._snapshots.get(shape.key)
        if snapshot is None or snapshot.shape.table is not shape.table or not self._usable(snapshot):
            snapshot = self._snapshots[shape.key] = ShapeSnapshot(shape)
            task = asyncio.create_task(
                self._read(snapshot), name=f"rowcast snapshot of {shape.table.channel}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        snapshot.last_used = self._now()
        return snapshot

    def renew(self, snapshot: ShapeSnapshot) -> ShapeSnapshot:
        """One that begins to be read in place of `snapshot`, unless somebody else has had it read anew already."""
        if self._snapshots.get(snapshot.shape.key) is snapshot:
            del self._snapshots[snapshot.shape.key]
        return self.get(snapshot.shape)

    def _usable(self, snapshot: ShapeSnapshot) -> bool:
        if snapshot.error is not None:
            return False
        if snapshot.complete and snapshot.corrections is not None:
            try:
                snapshot.corrections.fold(self.hub)
            except Overtaken:
                return False
            return len(snapshot.corrections) <= min(_MAX_CORRECTIONS, max(100, snapshot.row_count // 2))
        return True

    def purge(self) -> None:
        """Let go of snapshots that are not worth keeping, and keep up with the log, which forgets, while rows are read.

        Called about once a second.
        """
        oldest = self._now() - _KEEP_SECONDS
        kept = 0
        for snapshot in sorted(self._snapshots.values(), key=lambda each: -each.last_used):
            if not snapshot.complete and snapshot.error is None:
                if snapshot.corrections is not None:
                    with suppress(Overtaken):  # noticed when the rows are read
                        snapshot.corrections.fold(self.hub)
                continue
            kept += snapshot.size_bytes
            worthless = snapshot.last_used < oldest or kept > _KEEP_BYTES or snapshot.error is not None
            if worthless and not snapshot.waiting:
                del self._snapshots[snapshot.shape.key]
                kept -= snapshot.size_bytes

    def heard(self) -> None:
        """The stream has moved: whoever waits for it to pass a position looks again."""
        head = self.hub.head
        epoch = epoch_of(head)
        for position in [each for each in self._heads if each <= head or epoch_of(each) != epoch]:
            for future in self._heads.pop(position):
                if not future.done():
                    future.set_result(None)

    async def _passed(self, position: Position, epoch: str) -> None:
        """Wait until the stream has passed a position, or is in another epoch than `epoch`: positions go back then."""
        while epoch_of(self.hub.head) == epoch and (epoch_of(position) != epoch or self.hub.head < position):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._heads.setdefault(position, []).append(future)
            await future

    async def caught_up(self) -> None:
        """Wait until the stream has told everything committed before the call, so that who has written finds it.

        While the database cannot be asked, nobody waits: what is known is what there is.
        """
        epoch = epoch_of(self.hub.head)
        with suppress(CaptureError):
            await self._passed(await self._mark(), epoch)

    def catch_up(self) -> asyncio.Task[None]:
        """`caught_up()` as a task."""
        task = asyncio.create_task(self.caught_up(), name="rowcast snapshot catches up")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _read(self, snapshot: ShapeSnapshot) -> None:
        began = self._now()
        try:
            for _ in range(ATTEMPTS):
                try:
                    await self._attempt(snapshot)
                except Overtaken:
                    snapshot.restart()
                else:
                    self.taken += 1
                    self.seconds += self._now() - began
                    break
            else:
                snapshot.error = "the table changes faster than it can be read; try again"
        except (psycopg.Error, CaptureError) as error:
            snapshot.error = f"the rows could not be read: {one_line(error)}"
            logger.warning("snapshot of %s: %s", snapshot.shape.table.channel, snapshot.error)
        except Exception:
            snapshot.error = "the rows could not be read: internal error"
            logger.exception("snapshot of %s", snapshot.shape.table.channel)
        finally:
            snapshot.wake()

    async def _attempt(self, snapshot: ShapeSnapshot) -> None:
        hub, shape = self.hub, snapshot.shape
        begun = hub.head
        row_json = shape.projection.row
        async with self._reader.read(shape.table, shape.filter, hub.log) as (visibility, batches):
            # Since the reader has looked, the log may have dropped more.
            if visibility.hides(hub.log):
                raise Overtaken
            snapshot.visibility = visibility
            corrections = snapshot.corrections = Corrections(shape, visibility, hub.log.floor, begun)
            corrections.fold(hub)  # at once: a full log lets go of its oldest entries all the time
            marking = asyncio.ensure_future(self._mark())
            try:
                async for rows in batches:
                    snapshot.add(b",".join(map(row_json, rows)), len(rows))
            finally:
                if not marking.done() and asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    marking.cancel()
            end = await marking
        corrections.fold(hub)
        await self._passed(end, epoch_of(corrections.folded))
        corrections.fold(hub)
        snapshot.complete = True

    async def frozen(self, request: Request) -> FrozenRows:
        """The exact rows of what a request means, at the stream's head.

        Raises:
            ProtocolError: The request does not fit any table, or the rows could not be read; its text says why.
        """
        while True:
            shape = self.hub.describe(request)
            snapshot = self.get(shape)
            while not snapshot.complete and snapshot.error is None:
                changed = asyncio.Event()
                snapshot.waiting[changed.set] = None
                await changed.wait()
            if self.hub.tables.get(shape.table.oid) is not shape.table:
                continue  # its columns have changed meanwhile
            if snapshot.error is not None:
                raise ProtocolError("snapshot_failed", snapshot.error)
            assert snapshot.corrections is not None
            try:
                snapshot.corrections.fold(self.hub)
            except Overtaken:
                continue
            return FrozenRows(snapshot, snapshot.corrections)

    def deliver(self, connection: ClientConnection, subscription: Subscription) -> None:
        """Send a subscription's rows to its client, as fast as it reads them."""
        if subscription.outlet.form.name == PLAIN.name:
            PlainDelivery(self, connection, subscription).advance()
            return
        running = connection.deliveries.get(subscription.outlet)
        if running is not None and running.wanted:
            running.include(subscription)
        else:
            FullDelivery(self, connection, subscription).advance()

    async def close(self) -> None:
        """End what is being read."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for snapshot in self._snapshots.values():
            snapshot.close()
        await self._reader.close()
