"""One client's connection, whatever carries it: session, subscriptions and a bounded queue.

The one rule of this room: a client that does not read costs others nothing. What cannot be written waits in this
connection's own queue; over its bound the queue is dropped, and once the client reads again it is told to resync.
The bytes in the queue are shared with all others who get them, so a slow client holds references, not copies.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from rowcast.errors import ProtocolError
from rowcast.hub import Framing, Outlet, Subscriber, Subscription
from rowcast.model import Position
from rowcast.protocol.forms import FULL, FULL_WITH_OLD_ROWS, PLAIN
from rowcast.protocol.native import (
    AskMutation,
    Command,
    Form,
    NativeSession,
    Reply,
    Subscribe,
    Unsubscribe,
    Wish,
)

if TYPE_CHECKING:
    from rowcast.server.delivery import FullDelivery
    from rowcast.server.service import Service

# A larger message goes to the transport in pieces, so that a client that stops in its middle keeps this much of
# it in the transport's own buffer and not all of it.
_PIECE_BYTES: Final = 256 * 1024


class Transport(Protocol):
    """What carries a connection's bytes."""

    @property
    def two_way(self) -> bool:
        """Whether the client can send; one that cannot is not expected to."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Write framed bytes; calls the connection's `pause` when it has enough for now."""
        ...

    def ping(self) -> None:
        """Ask for a sign of life, where the transport has a way to."""
        ...

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


class ClientConnection:
    """A connected client.

    Args:
        service: The server it talks to.
        transport: What carries its bytes.
        framing: How that transport wraps a message.
        now: Monotonic time in seconds.
    """

    __slots__ = (
        "_closing",
        "_dropped_since",
        "_paused",
        "_queue",
        "_queued_bytes",
        "_rest",
        "_when_idle",
        "deliveries",
        "framing",
        "next_beat",
        "opened",
        "service",
        "session",
        "subscriber",
        "transport",
    )

    def __init__(self, service: Service, transport: Transport, framing: Framing, now: float) -> None:
        self.service = service
        self.transport = transport
        self.framing = framing
        self.opened = now
        # Clients that come at once, after a restart say, do not all get their heartbeats at once.
        self.next_beat = now + random.random() * service.settings.heartbeat_seconds  # noqa: S311 - jitter
        self.session = NativeSession(
            service.next_session_name(),
            service.state,
            service.settings.max_subscriptions_per_connection,
            service.settings.max_messages_per_second,
            now,
        )
        self.subscriber: Subscriber | None = None
        self.deliveries: dict[Outlet, FullDelivery] = {}
        self._when_idle: list[Callable[[], None]] | None = None
        self._queue: deque[bytes] | None = None  # made when needed: most connections never are
        self._queued_bytes = 0
        self._rest: memoryview | None = None  # what is left of a message that is being written
        self._paused = False
        self._dropped_since: float | None = None
        self._closing: tuple[int, str] | None = None

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait here for the client to read; those in the transport's own buffer not counted."""
        return self._queued_bytes

    @property
    def dropped_since(self) -> float | None:
        """When its queue went over the bound, monotonic seconds; None while it keeps up."""
        return self._dropped_since

    def receive_text(self, text: bytes) -> None:
        """Take a text message from the client."""
        for command in self.session.receive_text(text, self.service.now()):
            self._execute(command)

    def open(
        self, form: Form, subscriptions: Sequence[dict[str, object]], mutations: str | None = None
    ) -> None:
        """Begin with what a request asked for; see `NativeSession.open`."""
        for command in self.session.open(form, subscriptions, mutations):
            self._execute(command)

    def receive_binary(self) -> None:
        for command in self.session.receive_binary(self.service.now()):
            self._execute(command)

    def heard(self) -> None:
        """The client gave a sign of life below the protocol's messages."""
        self.session.last_heard = self.service.now()

    def _execute(self, command: Command) -> None:
        if isinstance(command, Reply):
            if command.event == "welcome":
                self._introduce()
            self.reply(command)
        elif isinstance(command, Subscribe):
            self.service.when_ready(self, partial(self.subscribe, command.wishes))
        elif isinstance(command, Unsubscribe):
            self._unsubscribe(command.subscription)
        elif isinstance(command, AskMutation):
            self.service.when_ready(self, partial(self._ask, command.mutation))
        else:
            self.drop(command.code, command.reason)

    def _introduce(self) -> Subscriber:
        """Make the hub know this client, in the form that its first message chose."""
        if self.subscriber is None:
            full = FULL_WITH_OLD_ROWS if self.session.old_rows else FULL
            form = full if self.session.form == "full" else PLAIN
            self.subscriber = Subscriber(
                self, form, self.framing, self._resync, self._columns, self.session.mutations
            )
            if self.session.form == "full" and self.service.ready:
                self.service.hub.join(self.subscriber)
        return self.subscriber

    def subscribe(self, wishes: Iterable[Wish]) -> None:
        """Carry out subscriptions, together; the service calls this once the stream has caught up."""
        hub = self.service.hub
        subscriber = self._introduce()
        first = not subscriber.subscriptions and self.session.form != "full"
        begun: list[tuple[Wish, Subscription]] = []
        for wish in wishes:
            if wish.request.subscription not in self.session.subscriptions:
                continue  # unsubscribed while it was waiting for the server to be ready
            try:
                # A full-form client puts a snapshot and what comes meanwhile together; a plain one cannot.
                active = not wish.snapshot or self.session.form == "full"
                begun.append((wish, hub.subscribe(subscriber, wish.request, active=active)))
            except ProtocolError as error:
                self.reply(self.session.refused(wish.request.subscription, error))
        resumed: list[Subscription] = []
        lost: list[tuple[Subscription, str]] = []
        since: Position | None = None
        for wish, subscription in begun:
            wanted = wish.request.since
            reason = None if wanted is None else hub.resumable(wanted)
            if reason is not None:
                lost.append((subscription, reason))
            elif wanted is not None:
                resumed.append(subscription)
                since = wanted if since is None else min(since, wanted)
        for _, subscription in begun:
            if subscription in resumed and since is not None:
                subscription.position = since
            self.reply(self.session.subscribed(subscription, subscription.position))
        if first and begun and self.service.state.state != "live":
            self.reply(self.session.status())
        for subscription, reason in lost:
            hub.resync(subscriber, subscription, reason, hub.head)
        if since is not None:
            hub.replay(subscriber, resumed, since)
            if self.session.form == "full":
                # The next transaction builds on the head, wherever the replay has ended.
                self.reply(self.session.heartbeat())
        for wish, subscription in begun:
            if wish.snapshot:
                self.service.snapshots.deliver(self, subscription)

    def _unsubscribe(self, name: str) -> None:
        subscriber = self.subscriber
        if name in self.session.subscriptions and (
            subscriber is None or name not in subscriber.subscriptions
        ):
            # Still waiting for the server to be ready: it will not begin.
            self.reply(self.session.unsubscribed(name, None))
            return
        try:
            if subscriber is None:
                raise ProtocolError("unknown_subscription", f'this connection has no subscription "{name}"')
            subscription = self.service.hub.unsubscribe(subscriber, name)
        except ProtocolError as error:
            self.reply(self.session.error(error, name))
        else:
            self.reply(self.session.unsubscribed(name, subscription.request.channel))

    def _ask(self, mutation: str) -> None:
        self.service.mutations.ask(self, mutation)

    def _resync(self, subscription: Subscription, reason: str, after_ms: int, position: Position) -> None:
        self.reply(self.session.resync(subscription, reason, after_ms, position))

    def _columns(self, subscription: Subscription, error: ProtocolError | None) -> None:
        if error is None:
            self.reply(self.session.subscribed(subscription, subscription.position))
        else:
            self.reply(self.session.refused(subscription.id, error))

    def reply(self, reply: Reply) -> None:
        """Queue a message of this connection's own."""
        if reply.code:
            self.service.errors[reply.code] += 1
        event = "" if self.session.form == "full" else reply.event
        self.send(self.framing.frame(reply.message, event=event))

    def send(self, data: bytes) -> None:
        """Queue framed bytes for the client; see `rowcast.hub.Sink`."""
        if self._paused or self._queue:
            self._enqueue(data)
        elif len(data) <= _PIECE_BYTES:
            self.transport.write(data)
        else:
            self._rest = memoryview(data)
            self._pump()

    def _enqueue(self, data: bytes) -> None:
        if self._dropped_since is not None or self._closing is not None:
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self._queued_bytes += len(data)
        # One message may be larger than the bound: it was accepted from the database, so it is delivered.
        if self._queued_bytes > self.service.settings.session_queue_bytes and len(self._queue) > 1:
            self._queue.clear()
            self._queued_bytes = 0
            self._dropped_since = self.service.now()
            self.service.slow.add(self)

    def pause(self) -> None:
        """The transport has enough for now."""
        self._paused = True

    def resume(self) -> None:
        """The transport takes more."""
        self._paused = False
        self._pump()
        if not self._paused and self._dropped_since is not None:
            self._dropped_since = None
            self.service.slow.discard(self)
            if self.subscriber is not None:
                self.service.hub.resync_all(self.subscriber, "slow_client")

    def _pump(self) -> None:
        """Write what waits, until the transport has enough."""
        write = self.transport.write
        while not self._paused:
            if self._rest is not None:
                rest, self._rest = self._rest, None
                if len(rest) > _PIECE_BYTES:
                    self._rest = rest[_PIECE_BYTES:]
                write(rest[:_PIECE_BYTES])
            elif self._queue:
                data = self._queue.popleft()
                self._queued_bytes -= len(data)
                if len(data) > _PIECE_BYTES:
                    self._rest = memoryview(data)
                elif self._queue and len(data) + len(self._queue[0]) <= _PIECE_BYTES:
                    write(self._joined(data))
                else:
                    write(data)
            else:
                self._idle()
                return

    def _joined(self, first: bytes) -> bytes:
        """Small messages that waited leave together."""
        parts, size = [first], len(first)
        queue = self._queue
        assert queue is not None
        while queue and size + len(queue[0]) <= _PIECE_BYTES:
            parts.append(queue.popleft())
            size += len(parts[-1])
        self._queued_bytes -= size - len(first)
        return b"".join(parts)

    def _idle(self) -> None:
        if self._closing is not None:
            self.transport.close(*self._closing)
        elif self._when_idle:
            callbacks, self._when_idle = self._when_idle, None
            for callback in callbacks:
                callback()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call once everything queued is written."""
        if self._when_idle is None:
            self._when_idle = []
        self._when_idle.append(callback)

    @property
    def busy(self) -> bool:
        """Whether something waits to be written."""
        return self._paused or bool(self._queue) or self._rest is not None

    def finish(self, code: int, reason: str, after_ms: int) -> None:
        """Say goodbye, and close once everything queued is written."""
        if self._closing is not None:
            return
        self.reply(self.session.goodbye(after_ms))
        self._closing = (code, reason)
        if not self.busy:
            self.transport.close(code, reason)

    def drop(self, code: int, reason: str) -> None:
        """Close at once; what waits is not written."""
        self.service.closes[code] += 1
        if self._rest is not None:
            self.transport.abort()  # a close frame inside another frame would be read as its content
        else:
            self.transport.close(code, reason)

    def lost(self) -> None:
        """The transport is gone."""
        self.service.forget(self)
        self.subscriber = None
        self._queue = self._rest = None
        self._queued_bytes = 0
        self._paused = True
