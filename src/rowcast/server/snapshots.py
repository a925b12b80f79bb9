"""Snapshots for clients: one query per shape, however many wait, and the stream's part on top.

A `ShapeSnapshot` is what one query read, in chunks, with the corrections that make it exact at the stream's head
(see `rowcast.snapshot` for why). It is shared by all who want the shape, while it is being read and for some time
after: a client that comes later gets the same chunks and later corrections.

The one rule of this room: rows go to a client no faster than it reads, and are kept once for all clients; chunks
over a bound lie in a temporary file. So memory does not grow with the table, nor with the crowd.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Final

import msgspec
import psycopg

from rowcast.capture.connection import one_line
from rowcast.errors import CaptureError, ProtocolError
from rowcast.hub import Hub, Request, Shape, Subscription
from rowcast.hub.shape import EncodedChange, ShapeKey
from rowcast.model import MISSING, Change, Gap, Position, Row, epoch_of
from rowcast.protocol.forms import PLAIN
from rowcast.server.connection import ClientConnection
from rowcast.snapshot import SnapshotReader, Visibility

logger = logging.getLogger("rowcast.server")

# Chunks up to this much stay in memory, per shape; what is over goes to a temporary file.
_MEMORY_BYTES: Final = 8 << 20
# A finished snapshot is kept this long after its last use: a reload of the page, a crowd that comes back.
_KEEP_SECONDS: Final = 30.0
# Finished snapshots together; the one unused for longest goes first.
_KEEP_BYTES: Final = 256 << 20
# Over this many corrections a new query is cheaper, for the database and for the client.
_MAX_CORRECTIONS: Final = 10_000
# A snapshot is taken again when a TRUNCATE or an incomplete row overtakes it; more often than this it is hopeless.
_ATTEMPTS: Final = 5


_json: Final = msgspec.json.Encoder().encode
_split_rows: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_split_columns: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Overtaken(Exception):  # noqa: N818 - a signal between two functions of this room
    """The stream brought something that corrections cannot express; read the rows again."""


class Corrections:
    """What the stream changed that the rows do not show: rows to put, keys to take away."""

    def __init__(self, shape: Shape, visibility: Visibility, start: Position, begun: Position) -> None:
        self.folded = start
        self._begun = begun  # the stream's head before the rows were read
        self.unseen_from: Position | None = None  # the stream after it has all that the rows do not show
        self._shape = shape
        self._visibility = visibility
        self._keyed: dict[bytes, bytes | None] = {}  # key → row, or None where it is gone
        self._added: list[bytes] = []  # the same for rows without a key
        self._removed: list[bytes] = []

    def __len__(self) -> int:
        return len(self._keyed) + len(self._added) + len(self._removed)

    @property
    def rows(self) -> list[bytes]:
        return [row for row in self._keyed.values() if row is not None] + self._added

    @property
    def deleted(self) -> list[bytes]:
        return [key for key, row in self._keyed.items() if row is None] + self._removed

    @property
    def removed(self) -> list[bytes]:
        """Whole rows to take away, of a table without a key."""
        return self._removed

    @property
    def keyed(self) -> dict[bytes, bytes | None]:
        """Key → row, or None where the row is gone."""
        return self._keyed

    def fold(self, hub: Hub) -> None:
        """Take in what the log holds after the last time.

        Raises:
            _Overtaken: The log has dropped some of it, or a change cannot be expressed.
        """
        entries = hub.log.after(self.folded)
        if entries is None:
            raise _Overtaken
        table = self._shape.table
        for entry in entries:
            if isinstance(entry, Gap):
                if (entry.tables is None or table.oid in entry.tables) and not self._has(entry):
                    raise _Overtaken
            elif self._visibility.sees(entry.xid):
                self.folded = entry.position
            else:
                self.unseen_from = self.unseen_from or self.folded
                for change in entry.changes:
                    if change.table.oid == table.oid:
                        if change.table is not table:
                            raise _Overtaken  # its columns have changed
                        self._apply(change, entry.position)
        self.folded = hub.head

    def _has(self, gap: Gap) -> bool:
        """Whether the rows hold what a gap has lost: it came before them, and they see its transaction."""
        return gap.position <= self._begun and self._visibility.sees(gap.xid)

    def _apply(self, change: Change, position: Position) -> None:
        if change.table is not self._shape.table and change.table != self._shape.table:
            raise _Overtaken
        effect = self._shape.effect(change)
        if effect is None:
            return
        if effect in ("TRUNCATE", "UNKNOWN"):
            raise _Overtaken
        piece = EncodedChange(change, self._shape.projection, position)
        if effect != "DELETE" and _incomplete(change.new, self._shape):
            raise _Overtaken
        key = piece.key
        if key is None:
            if effect != "INSERT":
                self._remove(piece.old)
            if effect != "DELETE":
                self._added.append(piece.new)
            return
        if effect == "DELETE":
            self._keyed[piece.old_key or key] = None
            return
        if piece.key_changed and piece.old_key is not None:
            self._keyed[piece.old_key] = None
        self._keyed[key] = piece.new

    def _remove(self, row: bytes | None) -> None:
        if row is None:
            raise _Overtaken
        if row in self._added:
            self._added.remove(row)
        else:
            self._removed.append(row)


def _incomplete(row: Row | None, shape: Shape) -> bool:
    return row is None or any(row[index] is MISSING for index in shape.projection.columns)


def _key(row: bytes, names: Sequence[str]) -> bytes:
    values = _split_columns(row)
    return _json({name: values[name] for name in names})


class ShapeSnapshot:
    """The rows of one shape, being read or read.

    Attributes:
        complete: All rows are here and the stream has passed the snapshot's L: with the corrections folded up to
            the head, it is exact at the head.
        attempt: Counts up when the rows are read again; whoever has sent some of them starts over.
        error: Why it cannot be had, if it cannot.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.visibility: Visibility | None = None
        self.corrections: Corrections | None = None
        self.complete = False
        self.attempt = 0
        self.error: str | None = None
        self.row_count = 0
        self.size_bytes = 0
        self.last_used = 0.0
        self.waiting: dict[Callable[[], None], None] = {}
        self._chunks: list[bytes | tuple[int, int]] = []
        self._file: IO[bytes] | None = None

    def restart(self) -> None:
        self.attempt += 1
        self.complete = False
        self.row_count = self.size_bytes = 0
        self._chunks = []
        self.close()

    def add(self, chunk: bytes, rows: int) -> None:
        """Add rows, as JSON objects with commas between them."""
        if self.size_bytes + len(chunk) <= _MEMORY_BYTES:
            self._chunks.append(chunk)
        else:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="rowcast-snapshot-")  # noqa: SIM115
            self._file.seek(0, 2)
            self._chunks.append((self._file.tell(), len(chunk)))
            self._file.write(chunk)
        self.row_count += rows
        self.size_bytes += len(chunk)
        self.wake()

    def chunk(self, index: int) -> bytes:
        chunk = self._chunks[index]
        if isinstance(chunk, bytes):
            return chunk
        assert self._file is not None
        self._file.seek(chunk[0])
        return self._file.read(chunk[1])

    @property
    def chunk_count(self) -> int:
        return len(self._chunks)

    def wake(self) -> None:
        """Something has changed: whoever waits looks again."""
        waiting, self.waiting = self.waiting, {}
        for callback in waiting:
            callback()

    def close(self) -> None:
        """Let go of the temporary file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        # Whoever still sends these rows keeps them; the file goes with the last one.
        self.close()


class FrozenRows:
    """The rows of a finished snapshot at one position, whatever the stream does afterwards."""

    def __init__(self, snapshot: ShapeSnapshot, corrections: Corrections) -> None:
        self.position = corrections.folded
        self._snapshot = snapshot
        self._keyed = dict(corrections.keyed)
        self._removed = Counter(corrections.removed)
        self._last = corrections.rows
        table = snapshot.shape.table
        self._names = [table.columns[index].name for index in table.key]

    def batches(self) -> Iterator[list[bytes]]:
        """The rows as JSON objects, some at a time."""
        for index in range(self._snapshot.chunk_count):
            rows: list[bytes] = [bytes(row) for row in _split_rows(b"[%s]" % self._snapshot.chunk(index))]
            if self._keyed:
                rows = [row for row in rows if _key(row, self._names) not in self._keyed]
            elif self._removed:
                rows = [row for row in rows if not self._take(row)]
            yield rows
        yield self._last

    def _take(self, row: bytes) -> bool:
        if not self._removed[row]:
            return False
        self._removed[row] -= 1
        return True


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
            except _Overtaken:
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
                    with suppress(_Overtaken):  # noticed when the rows are read
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

    async def _read(self, snapshot: ShapeSnapshot) -> None:
        began = self._now()
        try:
            for _ in range(_ATTEMPTS):
                try:
                    await self._attempt(snapshot)
                except _Overtaken:
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
                raise _Overtaken
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
        await self._passed(end, epoch_of(begun))
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
            except _Overtaken:
                continue
            return FrozenRows(snapshot, snapshot.corrections)

    def deliver(self, connection: ClientConnection, subscription: Subscription) -> None:
        """Send a subscription's rows to its client, as fast as it reads them."""
        if subscription.outlet.form.name == PLAIN.name:
            _PlainDelivery(self, connection, subscription).advance()
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


class _Delivery:
    """One client getting one snapshot."""

    def __init__(
        self, snapshots: Snapshots, connection: ClientConnection, subscription: Subscription
    ) -> None:
        self.snapshots = snapshots
        self.connection = connection
        self.subscriptions = [subscription]
        self.outlet = subscription.outlet
        self.snapshot = snapshots.get(subscription.shape)
        self.attempt = self.snapshot.attempt
        self.next_chunk = 0
        self.number = 0

    @property
    def wanted(self) -> bool:
        """Whether the client is still there and still has a subscription that this is for."""
        subscriber = self.connection.subscriber
        if subscriber is None or self.connection.dropped_since is not None:
            return False
        present = subscriber.subscriptions
        self.subscriptions = [each for each in self.subscriptions if present.get(each.id) is each]
        return bool(self.subscriptions)

    def advance(self) -> None:
        """Send what can be sent now; be called again when there is more, or when the client has read."""
        snapshot, connection = self.snapshot, self.connection
        while self.wanted:
            if snapshot.attempt != self.attempt:
                self.attempt = snapshot.attempt
                if self.number:
                    self.next_chunk = self.number = 0
                    self.started_over()
            if snapshot.error is not None:
                error = ProtocolError("snapshot_failed", snapshot.error)
                for subscription in self.subscriptions:
                    connection.reply(connection.session.error(error, subscription.id))
                self.ended()
                return
            if connection.busy:
                connection.when_idle(self.advance)
                return
            if self.next_chunk < snapshot.chunk_count:
                self.send_rows(snapshot.chunk(self.next_chunk))
                self.next_chunk += 1
                continue
            if not snapshot.complete:
                snapshot.waiting[self.advance] = None
                return
            try:
                assert snapshot.corrections is not None
                snapshot.corrections.fold(self.snapshots.hub)
                self.finish()
                break
            except _Overtaken:
                # The stream has outrun a finished snapshot: take a new one.
                self.snapshot = snapshot = self.snapshots.renew(snapshot)
                self.attempt = -1  # whatever was sent was of another one
        self.ended()

    def ended(self) -> None:
        """Nothing more will be sent."""

    def started_over(self) -> None:
        """Rows have been sent that say nothing any more; the next ones are the first again."""

    def send_rows(self, rows: bytes) -> None:
        """Send rows, given as JSON objects with commas between them."""
        raise NotImplementedError

    def finish(self) -> None:
        """All rows are sent: make them exact at the stream's head.

        Raises:
            _Overtaken: They cannot be any more.
        """
        raise NotImplementedError


class FullDelivery(_Delivery):
    """Chunks with the rows, then one with the corrections and the position.

    Frames name the shape and not the subscription: two deliveries of one shape would read as one that is out of
    order, so a connection has one at a time for each shape.
    """

    def __init__(
        self, snapshots: Snapshots, connection: ClientConnection, subscription: Subscription
    ) -> None:
        super().__init__(snapshots, connection, subscription)
        connection.deliveries[self.outlet] = self

    def include(self, subscription: Subscription) -> None:
        """Begin again, for one more subscription that has not seen what was sent."""
        self.subscriptions.append(subscription)
        self.next_chunk = self.number = 0

    def ended(self) -> None:
        if self.connection.deliveries.get(self.outlet) is self:
            del self.connection.deliveries[self.outlet]

    def send_rows(self, rows: bytes) -> None:
        self._send(b'"rows":[%s]' % rows)

    def finish(self) -> None:
        corrections = self.snapshot.corrections
        assert corrections is not None
        position = corrections.folded
        for subscription in self.subscriptions:
            subscription.position = position
        deleted = corrections.deleted
        self._send(
            b'"rows":[%s]%s,"last":true,"position":"%s"'
            % (
                b",".join(corrections.rows),
                b',"deleted":[%s]' % b",".join(deleted) if deleted else b"",
                position.encode(),
            )
        )

    def _send(self, content: bytes) -> None:
        message = b'{"type":"snapshot","shape":%d,"chunk":%d,%s}' % (
            self.outlet.number,
            self.number,
            content,
        )
        self.number += 1
        self.connection.send(self.connection.framing.frame(message))


class _PlainDelivery(_Delivery):
    """Rows as messages of their own, then the changes that the rows do not show, then the live stream.

    The subscription is not active before: a plain client applies what comes in the order in which it comes.
    """

    def __init__(
        self, snapshots: Snapshots, connection: ClientConnection, subscription: Subscription
    ) -> None:
        super().__init__(snapshots, connection, subscription)
        self.renewals = 0
        if self._missed:
            self.snapshot = snapshots.renew(self.snapshot)
            self.attempt = self.snapshot.attempt

    @property
    def subscription(self) -> Subscription:
        """The one that it is for: a plain client's messages name it."""
        return self.subscriptions[0]

    def started_over(self) -> None:
        # The rows sent so far say nothing; they come again.
        hub, subscriber = self.snapshots.hub, self.connection.subscriber
        assert subscriber is not None
        hub.resync(subscriber, self.subscription, "snapshot_overtaken", hub.head)

    def send_rows(self, rows: bytes) -> None:
        shape, framing = self.subscription.shape, self.connection.framing
        head = b'{"op":"SNAPSHOT"' + self.subscription.outlet.prefix
        names = [shape.table.columns[index].name for index in shape.table.key]
        messages: list[bytes] = []
        for row in _split_rows(b"[%s]" % rows):
            key = b',"key":' + _key(bytes(row), names) if names else b""
            messages.append(framing.frame(b'%s%s,"new":%s}' % (head, key, bytes(row))))
        self.number += 1
        self.connection.send(b"".join(messages))

    @property
    def _missed(self) -> bool:
        """Whether the log has let go of some of what the rows do not show."""
        corrections, hub = self.snapshot.corrections, self.snapshots.hub
        return corrections is not None and (corrections.unseen_from or hub.head) < hub.log.floor

    def finish(self) -> None:
        hub, subscriber, snapshot = self.snapshots.hub, self.connection.subscriber, self.snapshot
        assert subscriber is not None
        assert snapshot.corrections is not None
        assert snapshot.visibility is not None
        told = hub.resyncs.total()
        if not self._missed:
            start = snapshot.corrections.unseen_from or hub.head
            hub.replay(subscriber, [self.subscription], start, seen=snapshot.visibility.sees)
        elif self.renewals < _ATTEMPTS:
            self.renewals += 1
            raise _Overtaken
        else:
            hub.resync(subscriber, self.subscription, "log_expired", hub.head)
        hub.activate(subscriber, self.subscription)
        if hub.resyncs.total() == told:  # else there is something missing, and the client has been told
            self.connection.reply(self.connection.session.snapshot_end(self.subscription))
