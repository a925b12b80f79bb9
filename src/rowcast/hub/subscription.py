"""What a connection asks of the hub, and what it has got.

The one rule of this room: these are records. The hub changes them, between two steps and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rowcast.errors import ProtocolError
from rowcast.filters import Expression
from rowcast.hub.audience import Audience, Form, Framing, Outlet, Sink
from rowcast.hub.shape import Shape
from rowcast.model import Position


@dataclass(slots=True, frozen=True)
class Request:
    """What a client asks to watch.

    Attributes:
        subscription: The subscription's id on its connection.
        label: How a plain client's changes name the subscription; empty where the id is the channel.
        expression: The parsed filter, or None.
        only_changed: Whether an UPDATE tells the columns only that it has changed.
    """

    subscription: str
    channel: str
    columns: tuple[str, ...] | None = None
    expression: Expression | None = None
    since: Position | None = None
    label: str = ""
    only_changed: bool = False


@dataclass(slots=True, eq=False)
class Subscription:
    """One connection's interest in one shape.

    Attributes:
        position: Everything after it is told.
        active: Whether the stream is told; not before its snapshot, for clients that apply whatever comes.
    """

    id: str
    request: Request
    outlet: Outlet
    position: Position
    active: bool = True

    @property
    def shape(self) -> Shape:
        return self.outlet.shape


@dataclass(slots=True, eq=False)
class Subscriber:
    """A connection with its subscriptions.

    Attributes:
        mutations: What its mutations' ids begin with, up to their first dot: a transaction that shows it no row is told
            to it only if it confirms one of these. None: whatever it confirms.
        on_resync: Tells the connection's protocol that a subscription has to be read anew: the subscription, the
            reason, the milliseconds to wait, the position after which the stream goes on.
        on_columns: Tells it that a subscription's columns have changed (a resync follows), or None as the
            second argument's error text where the subscription cannot go on.
    """

    sink: Sink
    form: Form
    framing: Framing
    on_resync: Callable[[Subscription, str, int, Position], None]
    on_columns: Callable[[Subscription, ProtocolError | None], None]
    mutations: str | None = None
    subscriptions: dict[str, Subscription] = field(default_factory=dict[str, Subscription])
    audience: Audience | None = None

    @property
    def hears_every_confirm(self) -> bool:
        return self.form.tells_confirms and self.mutations is None

    def waits_for(self, confirms: Iterable[str]) -> bool:
        """Whether a transaction that shows it no row is to be told to it for what it confirms."""
        return self.form.tells_confirms and (
            bool(confirms)
            if self.mutations is None
            else any(owner_of(confirm) == self.mutations for confirm in confirms)
        )


def owner_of(mutation: str) -> str:
    """What the ids of one client's mutations have in common."""
    return mutation.partition(".")[0]
