"""The native protocol's session: a state machine without I/O.

The caller feeds it the client's frames with the time, and carries out the commands that it gives back, in order:

    Reply         send this message
    Subscribe     ask the hub, then send what `subscribed`, `resync` and `error` make
    Unsubscribe   ask the hub, then send what `unsubscribed` makes
    AskMutation   find out what became of a mutation, then send what `mutation` makes
    Close         send a close frame with this code

States: `new` → (`hello`) → `full`, or → (any other message) → `plain`. There is no way back.
The one rule of this room: a bad frame costs its sender an error frame, never its connection, until there are too
many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import msgspec

from rowcast._version import __version__
from rowcast.errors import ProtocolError
from rowcast.hub import Request, Subscription
from rowcast.model import Position, epoch_of
from rowcast.protocol.forms import plain_label
from rowcast.protocol.frames import (
    MAX_ID_CHARACTERS,
    MAX_MUTATION_CHARACTERS,
    ClientFrame,
    HeartbeatFrame,
    HelloFrame,
    Identifier,
    MutationFrame,
    SubscribeFrame,
    SubscriptionEntry,
    UnsubscribeFrame,
    checked_mutations,
    parse_frame,
    read_request,
)

VERSION: Final = 1
# A client may come back with all its subscriptions at once; what is over this many seconds' worth is a flood.
_BURST_SECONDS: Final = 10
_CLOSE_TOO_MANY_MESSAGES: Final = 4003

_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True, frozen=True)
class Reply:
    """Send this message. `event` names its type for transports that show it, `code` an error's."""

    message: bytes
    event: str
    code: str = ""


@dataclass(slots=True, frozen=True)
class Wish:
    """One subscription that the client wants; `snapshot` says whether its present rows come first."""

    request: Request
    snapshot: bool


@dataclass(slots=True, frozen=True)
class Subscribe:
    """Begin these subscriptions, together."""

    wishes: tuple[Wish, ...]


@dataclass(slots=True, frozen=True)
class Unsubscribe:
    subscription: str


@dataclass(slots=True, frozen=True)
class AskMutation:
    mutation: str


@dataclass(slots=True, frozen=True)
class Close:
    code: int
    reason: str


Command: TypeAlias = Reply | Subscribe | Unsubscribe | AskMutation | Close
Form: TypeAlias = Literal["plain", "full"]


@dataclass(slots=True)
class ServerState:
    """What the server tells every client of itself; one object shared by all sessions."""

    heartbeat_seconds: float
    position: Position
    state: str = "starting"
    reason: str = ""


@dataclass(slots=True)
class NativeSession:
    """One client's side of the protocol.

    Args:
        identifier: The session's name in `welcome` and in logs.
        server: The server's state, shared.
        max_subscriptions: Bound on subscriptions of this connection.
        max_messages_per_second: Sustained rate that the client may send; ten seconds' worth may come at once.
        now: Monotonic time in seconds.
    """

    identifier: str
    server: ServerState
    max_subscriptions: int
    max_messages_per_second: float
    now: float
    form: Form | None = None
    old_rows: bool = False
    mutations: str | None = None
    last_heard: float = 0.0
    subscriptions: set[str] = field(default_factory=set[str])
    _tokens: float = 0.0
    _warned: bool = False

    def __post_init__(self) -> None:
        self.last_heard = self.now
        self._tokens = self.max_messages_per_second * _BURST_SECONDS

    def open(
        self, form: Form, subscriptions: Sequence[dict[str, object]], mutations: str | None = None
    ) -> list[Command]:
        """Begin without a client's frames, for transports that carry the wishes in the request (`/sse`).

        Args:
            subscriptions: As in `hello`. They are begun together, so that one position resumes them all.
            mutations: As in `hello`; the plain form has no use for it.

        Raises:
            ProtocolError: An entry has the wrong shape.
        """
        try:
            entries = msgspec.convert(subscriptions, list[SubscriptionEntry])
        except msgspec.ValidationError as error:
            raise ProtocolError("invalid_frame", str(error)) from None
        if form == "full":
            return self._hello(HelloFrame(version=VERSION, mutations=mutations, subscriptions=entries))
        self.form = "plain"
        return self._subscribe(entries)

    def receive_text(self, text: bytes, now: float) -> list[Command]:
        """Take one text frame and say what to do."""
        refusal = self._admit(now)
        if refusal is not None:
            return refusal
        try:
            return self._handle(parse_frame(text))
        except ProtocolError as error:
            return [self.error(error)]

    def receive_binary(self, now: float) -> list[Command]:
        """Take one binary frame, whatever it holds."""
        refusal = self._admit(now)
        if refusal is not None:
            return refusal
        return [
            self.error(ProtocolError("binary_frame", "frames must be text: send the JSON as a text frame"))
        ]

    def _admit(self, now: float) -> list[Command] | None:
        """A token bucket: None to go on, else what to answer instead."""
        rate = self.max_messages_per_second
        self._tokens = min(rate * _BURST_SECONDS, self._tokens + (now - self.last_heard) * rate)
        self.last_heard = now
        self._tokens -= 1
        if self._tokens >= 0:
            self._warned = False
            return None
        if self._tokens < -rate:
            return [Close(_CLOSE_TOO_MANY_MESSAGES, "too many messages")]
        if self._warned:
            return []
        self._warned = True
        message = (
            f"more than {rate:g} messages a second: this one was not read; slow down, or be disconnected"
        )
        return [self.error(ProtocolError("rate_limited", message))]

    def _handle(self, frame: ClientFrame) -> list[Command]:
        if isinstance(frame, HelloFrame):
            return self._hello(frame)
        if self.form is None:
            self.form = "plain"
        if isinstance(frame, SubscribeFrame):
            if frame.id is None:
                if self.form == "full":
                    raise ProtocolError("invalid_frame", "subscribe needs an `id` after hello")
                frame.id = frame.channel
            return self._subscribe([frame])
        if isinstance(frame, UnsubscribeFrame):
            name = frame.id if frame.id is not None else frame.channel
            if name is None:
                raise ProtocolError(
                    "invalid_frame", "unsubscribe needs the `id` (or `channel`) of a subscription"
                )
            return [Unsubscribe(name)]
        if isinstance(frame, HeartbeatFrame):
            return [] if frame.id is None else [self.heartbeat(frame.id)]
        if isinstance(frame, MutationFrame):
            if not 0 < len(frame.id) <= MAX_MUTATION_CHARACTERS:
                raise ProtocolError(
                    "invalid_frame", f"mutation: `id` has 1 to {MAX_MUTATION_CHARACTERS} characters"
                )
            return [AskMutation(frame.id)]
        return [_reply("token_accepted")]

    def _hello(self, frame: HelloFrame) -> list[Command]:
        if self.form is not None:
            raise ProtocolError("late_hello", "hello must be the first message of a connection")
        if frame.version != VERSION:
            raise ProtocolError(
                "unsupported_version",
                f"this server speaks version {VERSION} of the protocol, not {frame.version}",
            )
        self.mutations = checked_mutations(frame.mutations)
        self.form = "full"
        self.old_rows = frame.old_rows
        welcome = _reply(
            "welcome",
            version=VERSION,
            session=self.identifier,
            server=f"rowcast/{__version__}",
            epoch=epoch_of(self.server.position),
            position=self.server.position,
            heartbeat_seconds=self.server.heartbeat_seconds,
            state=self.server.state,
        )
        commands: list[Command] = [welcome]
        if self.server.state != "live":
            commands.append(self.status())
        return commands + (self._subscribe(frame.subscriptions) if frame.subscriptions else [])

    def _subscribe(self, frames: Sequence[SubscribeFrame | SubscriptionEntry]) -> list[Command]:
        wishes: list[Wish] = []
        commands: list[Command] = []
        for frame in frames:
            assert frame.id is not None
            try:
                wishes.append(self._wish(frame, frame.id))
            except ProtocolError as error:
                commands.append(self.error(error, frame.id))
        if wishes:
            commands.append(Subscribe(tuple(wishes)))
        return commands

    def _wish(self, frame: SubscribeFrame | SubscriptionEntry, name: str) -> Wish:
        if not 0 < len(name) <= MAX_ID_CHARACTERS or "\0" in name or "\0" in frame.channel:
            raise ProtocolError(
                "invalid_frame", f"`id` must have 1 to {MAX_ID_CHARACTERS} characters, without NUL"
            )
        if name in self.subscriptions:
            raise ProtocolError(
                "duplicate_subscription",
                f'this connection has a subscription "{name}" already: unsubscribe first, or give another `id`',
            )
        if len(self.subscriptions) >= self.max_subscriptions:
            raise ProtocolError(
                "too_many_subscriptions",
                f"a connection may hold {self.max_subscriptions} subscriptions: unsubscribe from some first",
            )
        if frame.snapshot and frame.since is not None:
            raise ProtocolError(
                "invalid_frame", "`snapshot` and `since` exclude each other: send one of them"
            )
        request = read_request(frame, name, "" if self.form == "full" else plain_label(name, frame.channel))
        self.subscriptions.add(name)
        return Wish(request, frame.snapshot)

    def subscribed(self, subscription: Subscription, position: Position) -> Reply:
        """The answer to a subscription that the hub took; everything after `position` will be told."""
        if self.form != "full":
            fields: dict[str, Any] = {"channel": subscription.request.channel}
            if subscription.id != subscription.request.channel:
                fields["id"] = subscription.id
            return _reply("subscribed", **fields, position=position)
        shape = subscription.shape
        return _reply(
            "subscribed",
            id=subscription.id,
            shape=subscription.outlet.number,
            channel=subscription.request.channel,
            schema=shape.table.schema,
            table=shape.table.name,
            columns=shape.columns_description(),
            key=[shape.table.columns[index].name for index in shape.table.key],
            position=position,
        )

    def snapshot_end(self, subscription: Subscription) -> Reply:
        """The end of a plain subscription's rows: from here on it is live."""
        fields = {} if subscription.id == subscription.request.channel else {"id": subscription.id}
        channel = subscription.request.channel
        return _reply("snapshot", channel=channel, **fields, last=True, position=subscription.position)

    def refused(self, name: str, error: ProtocolError) -> Reply:
        """The answer to a subscription that the hub did not take."""
        self.subscriptions.discard(name)
        return self.error(error, name)

    def unsubscribed(self, name: str, channel: str | None) -> Reply:
        """The subscription has ended. `channel` is None where it had not begun yet."""
        self.subscriptions.discard(name)
        if self.form == "full":
            # Fewer subscriptions have another stream: its next transaction builds on the position given here.
            return _reply("unsubscribed", id=name, position=self.server.position)
        return _reply("unsubscribed", **{"channel" if channel in {None, name} else "id": name})

    def resync(self, subscription: Subscription, reason: str, after_ms: int, position: Position) -> Reply:
        """A stretch of this subscription's stream is lost."""
        if reason == "table_dropped":
            self.subscriptions.discard(subscription.id)
        return _reply(
            "resync",
            id=subscription.id,
            shape=subscription.outlet.number,
            channel=subscription.request.channel,
            reason=reason,
            after_ms=after_ms,
            position=position,
        )

    def heartbeat(self, echo: Identifier | None = None) -> Reply:
        """Everything up to the server's position has been delivered."""
        fields = {} if echo is None else {"id": echo}
        return _reply("heartbeat", **fields, position=self.server.position)

    @staticmethod
    def mutation(mutation: str, position: Position | None) -> Reply:
        """What became of a mutation. `position` is one at or after its commit; None where nothing is known of it."""
        if position is None:
            return _reply("mutation", id=mutation, state="unknown")
        return _reply("mutation", id=mutation, state="committed", position=position)

    def status(self) -> Reply:
        """Whether the server hears the database."""
        return _reply("status", state=self.server.state, reason=self.server.reason)

    @staticmethod
    def goodbye(after_ms: int) -> Reply:
        return _reply("goodbye", reason="shutdown", after_ms=after_ms)

    @staticmethod
    def error(error: ProtocolError, name: str | None = None) -> Reply:
        fields = {} if name is None else {"id": name}
        message = _encode({"type": "error", "code": error.code, "message": str(error), **fields})
        return Reply(message, "error", error.code)


def _reply(kind: str, **fields: object) -> Reply:
    return Reply(_encode({"type": kind, **fields}), kind)
