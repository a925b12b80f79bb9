"""The hub: takes the stream in, and hands each subscription its part.

The one rule of this room: the hub is one step at a time. `publish` takes a batch of events, writes every frame
they cause and flushes; subscribing happens between two steps. So a subscription that starts at the head gets
everything after it and nothing twice, without a lock.

Nothing here waits and nothing here does I/O: connections are `Sink`s that queue.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from rowcast.errors import ProtocolError
from rowcast.hub.audience import Audience, AudienceKey, Form, Outlet, TransactionHeader
from rowcast.hub.channels import Channels
from rowcast.hub.confirms import Confirms
from rowcast.hub.replay import Replay
from rowcast.hub.shape import EncodedChange, Projection, Routes, Shape, ShapeKey
from rowcast.hub.subscription import Request, Subscriber, Subscription
from rowcast.log import Log
from rowcast.model import Event, Gap, Position, Progress, Table, TablesChanged, Transaction, epoch_of

# A resync is spread over at least this long, and by this much more for each subscriber of the shape.
_RESYNC_JITTER_MS = 250
_RESYNC_JITTER_MS_PER_SUBSCRIBER = 2
_RESYNC_JITTER_MS_MAX = 30_000


class Hub:
    """Shapes, routing, and fan-out that encodes once.

    Args:
        log: Where transactions are kept for clients that resume.
        tables: The captured tables by OID.
        offered: Names of the channels that clients may subscribe to; None for every captured table.
        scopes: Channel name → the column that `channel:value` filters by.
    """

    def __init__(
        self,
        log: Log,
        tables: Mapping[int, Table],
        *,
        offered: Iterable[str] | None = None,
        scopes: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self._channels = Channels(tables, offered, scopes)
        self.subscribers: dict[Subscriber, None] = {}
        self.deliveries: Counter[str] = Counter()
        self.resyncs: Counter[str] = Counter()
        self.transactions = self.changes = 0
        self._numbers = 0
        self._shapes: dict[ShapeKey, Shape] = {}
        self._projections: dict[tuple[int, frozenset[str] | None], Projection] = {}
        self._routes: dict[int, Routes] = {}
        self._audiences: dict[AudienceKey, Audience] = {}
        self._confirmed: dict[Audience, None] = {}  # audiences that are told every confirm
        self._confirms = Confirms()

    @property
    def tables(self) -> Mapping[int, Table]:
        """The captured tables by OID."""
        return self._channels.tables

    @property
    def channels(self) -> Mapping[str, Table]:
        """The table of each channel that is offered."""
        return self._channels.by_name

    @property
    def head(self) -> Position:
        return self.log.head

    @property
    def shapes(self) -> Iterable[Shape]:
        """What is watched."""
        return self._shapes.values()

    @property
    def shape_count(self) -> int:
        return len(self._shapes)

    @property
    def audience_count(self) -> int:
        return len(self._audiences)

    def confirmed_at(self, mutation: str) -> Position | None:
        """Where a recent transaction has confirmed a mutation; None if none in the log has."""
        return self._confirms.position_of(mutation)

    def publish(self, events: Sequence[Event], now: float) -> None:
        """Take in what capture delivered and write every frame it causes.

        Args:
            events: In stream order.
            now: Monotonic time in seconds.
        """
        touched: dict[Audience, None] = {}
        for event in events:
            if isinstance(event, Transaction):
                before = self.head
                self.log.append(event, now)
                self._publish_transaction(event, before, touched)
            elif isinstance(event, Progress):
                self.log.append(event, now)
            else:
                # A gap or a change of tables goes to each member by itself: first what came before it.
                self._flush(touched)
                if isinstance(event, Gap):
                    self._publish_gap(event, now)
                else:
                    self._publish_tables(event, now)
        self._flush(touched)

    @staticmethod
    def _flush(touched: dict[Audience, None]) -> None:
        for audience in touched:
            audience.flush()
        touched.clear()

    def _publish_transaction(
        self, transaction: Transaction, before: Position, touched: dict[Audience, None]
    ) -> None:
        self.transactions += 1
        self.changes += len(transaction.changes)
        parts: dict[Audience, list[bytes]] = {}
        unknown: dict[Shape, None] = {}
        for change in transaction.changes:
            routes = self._routes.get(change.table.oid)
            if routes is None:
                continue
            encoded: dict[Projection, EncodedChange] = {}
            for shape, effect in routes.effects(change):
                if effect == "UNKNOWN":
                    unknown[shape] = None
                    continue
                piece = encoded.get(shape.projection)
                if piece is None:
                    piece = encoded[shape.projection] = EncodedChange(
                        change, shape.projection, transaction.position
                    )
                for outlet in shape.outlets.values():
                    fragment = outlet.fragment(effect, piece)
                    if fragment is None:
                        continue
                    for audience in outlet.audiences:
                        self.deliveries[shape.table.channel] += len(audience.members)
                        if audience in parts:
                            parts[audience].append(fragment)
                        else:
                            parts[audience] = [fragment]
        owners = self._told_alone(transaction, parts) if transaction.confirms else ()
        self._confirms.remember(transaction, self.log.floor)
        if unknown:
            # Before the transaction, which says that everything up to its position has been told.
            self._flush(touched)
            self.resync_shapes(unknown, "unchanged_value", before)
        if parts or owners:
            header = TransactionHeader.of(transaction)
            for subscriber, audience in owners:
                audience.flush()  # the position of what follows says that all before it has been told
                subscriber.sink.send(audience.form.transaction(header, audience.last, (), audience.framing))
            for audience, fragments in parts.items():
                audience.pending.append(
                    audience.form.transaction(header, audience.last, fragments, audience.framing)
                )
                audience.last = transaction.position
                touched[audience] = None

    def _told_alone(
        self, transaction: Transaction, parts: dict[Audience, list[bytes]]
    ) -> list[tuple[Subscriber, Audience]]:
        """See that confirms reach their owners: those whose audience has no part in the transaction.

        Such a frame is one member's alone. The others do without its position, which the next `base` does not name.
        """
        for audience in self._confirmed:
            parts.setdefault(audience, [])
        return [
            (subscriber, subscriber.audience)
            for subscriber in self._confirms.owners(transaction)
            if subscriber.audience is not None and subscriber.audience not in parts
        ]

    def _publish_gap(self, gap: Gap, now: float) -> None:
        if gap.tables is None or epoch_of(gap.position) != epoch_of(self.log.head):
            self.log.reset(gap.position)
            self._confirms.forget()
            for audience in self._audiences.values():
                audience.last = gap.position
            self.resync_shapes(self._shapes.values(), gap.reason, gap.position)
        else:
            self.log.append(gap, now)
            shapes = [shape for oid in gap.tables for shape in self._routes.get(oid, ())]
            self.resync_shapes(shapes, gap.reason, gap.position)

    def resync_shapes(self, shapes: Iterable[Shape], reason: str, position: Position) -> None:
        """Tell every subscriber of these shapes to read them anew."""
        concerned = frozenset(shapes)
        if not concerned:
            return
        for subscriber in list(self.subscribers):
            for subscription in list(subscriber.subscriptions.values()):
                if subscription.shape in concerned:
                    self.resync(subscriber, subscription, reason, position)

    def resync(
        self, subscriber: Subscriber, subscription: Subscription, reason: str, position: Position
    ) -> None:
        """Tell one subscriber to read one shape anew; the stream goes on after `position`."""
        crowd = sum(len(audience.members) for audience in subscription.outlet.audiences)
        spread = min(_RESYNC_JITTER_MS + crowd * _RESYNC_JITTER_MS_PER_SUBSCRIBER, _RESYNC_JITTER_MS_MAX)
        after_ms = random.randrange(spread)  # noqa: S311 - jitter, no secret
        self.resyncs[reason] += 1
        subscriber.on_resync(subscription, reason, after_ms, position)

    def resync_all(self, subscriber: Subscriber, reason: str) -> None:
        """Tell a subscriber whose queue was dropped to read all its shapes anew."""
        for subscription in list(subscriber.subscriptions.values()):
            self.resync(subscriber, subscription, reason, self.log.head)

    def subscribe(self, subscriber: Subscriber, request: Request, *, active: bool = True) -> Subscription:
        """Begin to deliver a shape after the present head, or, if not `active`, once `activate` is called.

        Raises:
            ProtocolError: Unknown channel or column, a filter that does not fit, an id in use.
        """
        if request.subscription in subscriber.subscriptions:
            raise ProtocolError(
                "duplicate_subscription",
                f'this connection has a subscription "{request.subscription}" already: '
                "unsubscribe first, or give the second one another id",
            )
        outlet = self._outlet(self._shape(request), subscriber.form, request)
        outlet.uses += 1
        subscription = Subscription(request.subscription, request, outlet, self.head, active)
        subscriber.subscriptions[request.subscription] = subscription
        self.join(subscriber)
        return subscription

    def activate(self, subscriber: Subscriber, subscription: Subscription) -> None:
        """Deliver a subscription from the present head on."""
        subscription.active = True
        subscription.position = self.head
        self.join(subscriber)

    def resumable(self, since: Position) -> str | None:
        """Why the stream after `since` cannot be told any more, or None if it can."""
        if epoch_of(since) != epoch_of(self.head):
            return "epoch_changed"
        if since > self.head:
            return "position_unknown"
        return "log_expired" if since < self.log.floor else None

    def replay(
        self,
        subscriber: Subscriber,
        subscriptions: Iterable[Subscription],
        since: Position,
        *,
        seen: Callable[[int], bool] | None = None,
    ) -> None:
        """Send what subscriptions missed after `since`; see `rowcast.hub.replay`.

        Args:
            since: A position that `resumable` accepts.
            seen: Whether the client has a transaction already, by its id.
        """
        entries = self.log.after(since)
        assert entries is not None
        if seen is not None:
            entries = (entry for entry in entries if isinstance(entry, Gap) or not seen(entry.xid))
        Replay(subscriber, subscriptions, since, partial(self.resync, subscriber)).send(entries, self.head)

    def unsubscribe(self, subscriber: Subscriber, subscription_id: str) -> Subscription:
        """End a subscription.

        Raises:
            ProtocolError: There is none of that id.
        """
        subscription = subscriber.subscriptions.pop(subscription_id, None)
        if subscription is None:
            raise ProtocolError(
                "unknown_subscription", f'this connection has no subscription "{subscription_id}"'
            )
        self.join(subscriber)
        self._forget(subscription.outlet)
        return subscription

    def join(self, subscriber: Subscriber) -> None:
        """Put a subscriber into the audience that its subscriptions ask for."""
        self.subscribers[subscriber] = None
        self._confirms.add(subscriber)
        outlets = frozenset(each.outlet for each in subscriber.subscriptions.values() if each.active)
        key = (subscriber.form.name, subscriber.framing.name, subscriber.hears_every_confirm, outlets)
        audience = self._audiences.get(key)
        if audience is not None and audience is subscriber.audience:
            return
        self._part(subscriber)
        if audience is None:
            audience = self._audiences[key] = Audience(key, subscriber.form, subscriber.framing, self.head)
            if subscriber.hears_every_confirm:
                self._confirmed[audience] = None
        audience.members[subscriber.sink] = None
        subscriber.audience = audience

    def leave(self, subscriber: Subscriber) -> None:
        """The connection is gone: forget it and whatever only it watched."""
        self.subscribers.pop(subscriber, None)
        self._confirms.remove(subscriber)
        self._part(subscriber)
        subscriptions = list(subscriber.subscriptions.values())
        subscriber.subscriptions.clear()
        for subscription in subscriptions:
            self._forget(subscription.outlet)

    def _part(self, subscriber: Subscriber) -> None:
        audience, subscriber.audience = subscriber.audience, None
        if audience is None:
            return
        del audience.members[subscriber.sink]
        if not audience.members:
            del self._audiences[audience.key]
            self._confirmed.pop(audience, None)
            audience.dissolve()

    def _forget(self, outlet: Outlet) -> None:
        """One use of an outlet has ended: drop it, and its shape, with the last one."""
        outlet.uses -= 1
        shape = outlet.shape
        if outlet.uses:
            return
        del shape.outlets[outlet.key]
        if not shape.outlets and self._shapes.get(shape.key) is shape:
            del self._shapes[shape.key]
            self._routes[shape.table.oid].remove(shape)

    def _outlet(self, shape: Shape, form: Form, request: Request) -> Outlet:
        outlet = shape.outlets.get((form.name, request.label, request.only_changed))
        if outlet is None:
            self._numbers += 1
            outlet = Outlet(self._numbers, shape, form, request.label, only_changed=request.only_changed)
            shape.outlets[outlet.key] = outlet
        return outlet

    def describe(self, request: Request) -> Shape:
        """The shape that a request means: the one that is watched, or one that is not watched yet.

        Raises:
            ProtocolError: Unknown channel or column, a filter that does not fit.
        """
        table, bound = self._channels.resolve(request.channel, request.expression)
        names = None if request.columns is None else frozenset(request.columns)
        self._channels.check_columns(table, names)
        shape = self._shapes.get((table.oid, names, bound.key if bound else ""))
        if shape is None:
            shape = Shape(table, names, self._projection(table, names), bound)
        return shape

    def _shape(self, request: Request) -> Shape:
        shape = self.describe(request)
        if self._shapes.setdefault(shape.key, shape) is shape and not shape.outlets:
            self._routes.setdefault(shape.table.oid, Routes()).add(shape)
        return shape

    def _projection(self, table: Table, names: frozenset[str] | None) -> Projection:
        key = (table.oid, names)
        projection = self._projections.get(key)
        if projection is None or projection.table is not table:
            projection = self._projections[key] = Projection(table, names)
        return projection

    def _publish_tables(self, event: TablesChanged, now: float) -> None:
        changed = self._channels.replace(event.tables)
        if not changed:
            return
        # A replay across this point would mix two forms of a row.
        self.log.append(Gap(event.position, "schema_changed", frozenset(changed)), now)
        stale = {shape for oid in changed for shape in self._routes.pop(oid, ())}
        self._projections = {key: kept for key, kept in self._projections.items() if key[0] not in changed}
        for shape in stale:
            self._shapes.pop(shape.key, None)
        for subscriber in list(self.subscribers):
            for subscription in list(subscriber.subscriptions.values()):
                if subscription.shape in stale:
                    self._renew(subscriber, subscription, event.position)

    def _renew(self, subscriber: Subscriber, subscription: Subscription, position: Position) -> None:
        """Move a subscription to its table's new columns, or end it where that cannot be."""
        del subscriber.subscriptions[subscription.id]
        try:
            renewed = self.subscribe(subscriber, subscription.request)
        except ProtocolError as error:
            self.join(subscriber)
            if error.code == "unknown_channel":
                self.resync(subscriber, subscription, "table_dropped", position)
            else:
                subscriber.on_columns(subscription, error)
        else:
            subscriber.on_columns(renewed, None)
            self.resync(subscriber, renewed, "schema_changed", position)
