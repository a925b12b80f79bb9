"""A snapshot on its way to one client.

The one rule of this room: rows go to a client no faster than it reads. What was sent of a reading that says nothing any
more is begun anew, and the client is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rowcast.errors import ProtocolError
from rowcast.hub import Subscription
from rowcast.server.connection import ClientConnection
from rowcast.server.corrections import ATTEMPTS, Overtaken
from rowcast.server.kept_rows import key_json, split_rows

if TYPE_CHECKING:
    from rowcast.server.snapshots import Snapshots


class Delivery:
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
        self.caught_up = snapshots.catch_up()
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
            if not self.caught_up.done():
                # Rows that were kept may lack what the client itself has just written.
                self.caught_up.add_done_callback(lambda _: self.advance())
                return
            try:
                assert snapshot.corrections is not None
                snapshot.corrections.fold(self.snapshots.hub)
                self.finish()
                break
            except Overtaken:
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
            Overtaken: They cannot be any more.
        """
        raise NotImplementedError


class FullDelivery(Delivery):
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
        self.caught_up = self.snapshots.catch_up()
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


class PlainDelivery(Delivery):
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
        for row in split_rows(rows):
            key = b',"key":' + key_json(row, names) if names else b""
            messages.append(framing.frame(b'%s%s,"new":%s}' % (head, key, row)))
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
        elif self.renewals < ATTEMPTS:
            self.renewals += 1
            raise Overtaken
        else:
            hub.resync(subscriber, self.subscription, "log_expired", hub.head)
        hub.activate(subscriber, self.subscription)
        if hub.resyncs.total() == told:  # else there is something missing, and the client has been told
            self.connection.reply(self.connection.session.snapshot_end(self.subscription))
