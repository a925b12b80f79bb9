"""One stream of frames, and the subscriptions that it carries: who gets which change. No I/O.

The one rule of this room: a subscription gets no change that its rows hold already, however far back its stream begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rowcast.client.backoff import Backoff
from rowcast.client.events import Interest, JSONObject, Transaction

# idle: not asked for on this link.  asked: no answer yet.  loading: the snapshot is on its way.
# live: changes are told.  waiting: asked for again at `ask_at`.  refused: for good.
Phase: TypeAlias = Literal["idle", "asked", "loading", "live", "waiting", "refused"]


@dataclass(slots=True, eq=False)
class Subscription:
    """One subscription, and where it stands.

    Attributes:
        start: Its rows hold the changes up to there already.
        loaded: It needs no snapshot.
        wire: Its id on this link; never used twice, so that late frames find nobody.
        known: The server has watched it before.
        next_chunk: The snapshot's next chunk.
        held: What was told while the snapshot was on its way.
        ask_at: When it is asked for again, while it waits.
        seen: How far it was at `seen_at`.
    """

    id: str
    interest: Interest
    backoff: Backoff
    start: str | None
    loaded: bool
    phase: Phase = "idle"
    wire: str | None = None
    lane: Lane | None = None
    shape: int | None = None
    known: bool = False
    next_chunk: int | None = None
    held: list[Transaction] = field(default_factory=list[Transaction])
    ask_at: float = 0.0
    seen: tuple[object, ...] = ()
    seen_at: float = 0.0

    @property
    def position(self) -> str | None:
        """Up to where everything has been told to it."""
        floor = self.lane.floor if self.lane is not None and self.phase == "live" else None
        return self.start if floor is None or (self.start is not None and floor < self.start) else floor


@dataclass(slots=True, eq=False)
class Lane:
    """One stream of frames; `told` and `floor` are explained in `subscriptions`.

    Attributes:
        replaying: Bases are not checked, see `Subscriptions.on_position`.
        shapes: The subscriptions of each shape.
    """

    told: str | None = None
    replaying: bool = False
    floor: str | None = None
    shapes: dict[int, list[Subscription]] = field(default_factory=dict[int, list[Subscription]])

    def place(self, subscription: Subscription, shape: int) -> None:
        """From here on, frames that name the shape concern it."""
        subscription.lane = self
        subscription.shape = shape
        self.shapes.setdefault(shape, []).append(subscription)

    def displace(self, subscription: Subscription) -> None:
        """From here on, no frame concerns it."""
        if subscription.shape is not None:
            self.shapes[subscription.shape].remove(subscription)
        subscription.lane = subscription.shape = None

    def rewind(self, resumed: Subscription, position: str) -> None:
        """A replay from a position on follows; the others keep what they were told, each by its own start."""
        self.replaying = True
        if self.floor is not None and self.floor > position:
            for members in self.shapes.values():
                for each in members:
                    if each is not resumed:
                        each.start = each.position
            self.floor = position

    def share_out(
        self, changes: Iterable[JSONObject], position: str
    ) -> tuple[dict[str, list[JSONObject]], dict[Subscription, list[JSONObject]]]:
        """Whom the changes of one transaction concern: live subscriptions, by id, and those that are loading."""
        by_shape: dict[int, list[JSONObject]] = {}
        for change in changes:
            by_shape.setdefault(change["shape"], []).append(change)
        live: dict[str, list[JSONObject]] = {}
        loading: dict[Subscription, list[JSONObject]] = {}
        for shape, its_changes in by_shape.items():
            for subscription in self.shapes.get(shape, ()):
                if subscription.start is not None and position <= subscription.start:
                    continue
                if subscription.phase == "live":
                    live[subscription.id] = its_changes
                elif not subscription.held or position > subscription.held[-1].position:
                    loading[subscription] = its_changes
        return live, loading
