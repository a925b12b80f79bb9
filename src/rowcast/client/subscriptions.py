"""What has been told to each subscription: positions, snapshots, resyncs. No I/O.

The one rule of this room: a change is told to a subscription exactly once and in order, over any number of
links, or the subscription is told to resync.

Where everything stands, on one link:

    told      the furthest position that the server has named; a transaction whose base lies beyond it means that
              frames are missing, so the link is dropped and everything is resumed from what is known
    floor     up to where transactions have been applied
    start     of each subscription: its rows hold the changes up to there already

SSE and polling carry each subscription over a stream of its own. Each such stream is a lane with its own
`told` and `floor`; a WebSocket has one lane for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rowcast.client.backoff import Backoff
from rowcast.client.events import (
    Event,
    Interest,
    JSONObject,
    Progress,
    Refused,
    Resync,
    SnapshotChunk,
    Subscribed,
    Transaction,
)
from rowcast.client.lanes import Lane, Subscription

EPOCH_DIGITS: Final = 16
_NO_EPOCH: Final = "0" * EPOCH_DIGITS  # of a server that has not reached its database yet

# What no second asking mends. An unknown channel is not among them once it was known: the table may come back.
_REFUSALS: Final = frozenset({"unknown_column", "invalid_filter", "invalid_frame", "too_many_subscriptions"})


@dataclass(slots=True)
class Output:
    """What the caller must send, and what it must tell the application, each in this order."""

    frames: list[JSONObject] = field(default_factory=list[JSONObject])
    events: list[Event] = field(default_factory=list[Event])


class Subscriptions:
    """All subscriptions of one session. `broken` says why the link must be dropped, once it must.

    Args:
        random: Returns a float in [0, 1).
        output: Where frames and events go.
    """

    def __init__(self, random: Callable[[], float], output: Output) -> None:
        self.broken: str | None = None
        self.epoch: str | None = None
        self.server_position: str | None = None
        self._random = random
        self._output = output
        self._all: dict[str, Subscription] = {}
        self._by_wire: dict[str, Subscription] = {}
        self._lanes: dict[str | None, Lane] = {}
        # By id, in the order in which they came to wait: what goes out is the same in every run.
        self._waiting: dict[str, Subscription] = {}
        # Resumed from another epoch; the server owes each of them a resync before anything else.
        self._strangers: dict[str, Subscription] = {}
        # Resumed, and not answered yet: what is told "to all" meanwhile is not told to them.
        self._resuming: dict[str, Subscription] = {}
        self._next_wire = 0

    @property
    def position(self) -> str | None:
        """Up to where everything has been told to every loaded subscription."""
        return min(
            (each.position for each in self._all.values() if each.loaded and each.position), default=None
        )

    def position_of(self, subscription: str) -> str | None:
        """Up to where everything has been told to one subscription."""
        return self._all[subscription].position

    def add(self, subscription: str, interest: Interest) -> None:
        self._all[subscription] = Subscription(
            subscription,
            interest,
            Backoff(self._random),
            start=interest.since,
            loaded=interest.since is not None or not interest.rows,
        )

    def remove(self, subscription: str) -> None:
        removed = self._all.pop(subscription)
        self._leave(removed)
        self._waiting.pop(removed.id, None)

    def refetch(self, subscription: str) -> None:
        """Its rows are to be read anew when it is asked for next."""
        self._all[subscription].loaded = False

    def ask(self, subscription: str, now: float) -> None:
        """Ask for one, on an open link."""
        self._output.frames.append({"type": "subscribe", **self._entry(self._all[subscription], now)})

    def ask_all(self, now: float) -> list[JSONObject]:
        """The entries of `hello`: every subscription that is not refused or waiting for its time."""
        return [
            self._entry(each, now)
            for each in self._all.values()
            if each.phase == "idle" or (each.phase == "waiting" and each.ask_at <= now)
        ]

    def ask_due(self, now: float) -> None:
        """Ask again for those whose time has come."""
        for due in [each for each in self._waiting.values() if each.ask_at <= now]:
            self.ask(due.id, now)

    def deadline(self) -> float:
        """When `ask_due()` has something to do; infinity for never."""
        return min((each.ask_at for each in self._waiting.values()), default=float("inf"))

    def link_ended(self) -> None:
        """Keep what was told; forget what belonged to the link."""
        self.epoch = self.server_position = None
        for each in self._all.values():
            each.start = each.position
            each.wire = each.lane = each.shape = each.next_chunk = None
            each.held.clear()
            if each.phase in {"asked", "loading", "live"}:
                each.phase = "idle"
        self._by_wire.clear()
        self._lanes.clear()
        self._strangers.clear()
        self._resuming.clear()
        self.broken = None

    def on_welcome(self, frame: JSONObject, lane_name: str | None) -> None:
        self.epoch = None if frame["epoch"] == _NO_EPOCH else frame["epoch"]
        self._hear(self._lane(lane_name), frame["position"])

    def find_stalled(self, now: float, patience_seconds: float) -> None:
        """Ask again where the answer or the snapshot does not come on; drop the link where the stream stands still.

        The stream stands still when the server's position moves on and ours does not.
        """
        for each in tuple(self._all.values()):
            behind = each.phase == "live" and (each.position or "") < (self.server_position or "")
            if not (behind or each.phase in {"asked", "loading"}):
                each.seen = ()
                continue
            seen = (each.phase, each.wire, each.next_chunk, each.position)
            if seen != each.seen:
                each.seen, each.seen_at = seen, now
            elif now - each.seen_at >= patience_seconds:
                if behind:
                    self.broken = "the server's position moves on and ours does not"
                    return
                self.ask(each.id, now)

    # Frames.

    def on_subscribed(self, frame: JSONObject, lane_name: str | None) -> None:
        subscription = self._by_wire.get(frame["id"])
        lane = self._lane(lane_name)
        if subscription is None:  # given up meanwhile; its replay may come all the same
            lane.replaying = True
            return
        position: str = frame["position"]
        self._place(subscription, lane, frame["shape"])
        if subscription.phase == "asked":
            subscription.phase = "live" if subscription.loaded else "loading"
            subscription.next_chunk = None
            if subscription.start is None or not subscription.loaded:
                subscription.start = position
            elif subscription.start[:EPOCH_DIGITS] != position[:EPOCH_DIGITS]:
                self._strangers[subscription.id] = subscription
            else:
                lane.rewind(subscription, subscription.start)
            subscription.backoff.reset()
            subscription.known = True
            self._hear(lane, position)
        self._output.events.append(
            Subscribed(
                subscription.id,
                frame["channel"],
                frame["schema"],
                frame["table"],
                tuple((column["name"], column["type"]) for column in frame["columns"]),
                tuple(frame["key"]),
                position,
                frame["shape"],
            )
        )

    def on_snapshot(self, frame: JSONObject, lane_name: str | None) -> None:
        lane = self._lane(lane_name)
        last = frame.get("last") is True
        position: str | None = frame["position"] if last else None
        chunk: int = frame["chunk"]
        events = self._output.events
        for subscription in lane.shapes.get(frame["shape"], ()):
            # A polled result is a snapshot that nobody asked for: it replaces what is there.
            if subscription.phase != "loading" and not (
                frame.get("replaces") and subscription.phase == "live"
            ):
                continue
            if chunk not in {0, subscription.next_chunk}:
                continue
            subscription.next_chunk = chunk + 1
            events.append(
                SnapshotChunk(
                    subscription.id, chunk, frame.get("rows", ()), frame.get("deleted", ()), last, position
                )
            )
            if position is not None:
                self._finish_loading(subscription, position)
        if position is not None:
            self._enter_epoch(position)
            self._hear(lane, position)

    def on_transaction(self, frame: JSONObject, lane_name: str | None) -> None:
        lane = self._lane(lane_name)
        position: str = frame["position"]
        base: str = frame["base"]
        if not self._continues(position) or (lane.floor is not None and position <= lane.floor):
            return
        if lane.told is not None and base > lane.told and not lane.replaying:
            self.broken = "frames are missing: a transaction's base lies beyond what was told"
            return
        if self._strangers:
            self._claim_resyncs(lane, position)
        lane.floor = position
        self._hear(lane, position)
        confirms: Sequence[str] = frame.get("confirms", ())
        changes, held = lane.share_out(frame["changes"], position)
        if confirms:
            for subscription in self._loading(lane):
                held.setdefault(subscription, [])
        for subscription, its_changes in held.items():
            subscription.held.append(
                Transaction(
                    position,
                    frame["txid"],
                    frame["timestamp"],
                    {subscription.id: its_changes},
                    confirms,
                    subscription.id,
                )
            )
        if changes or confirms:
            for scope in self._scopes(lane_name):
                part = changes if scope is None else {scope: changes.get(scope, ())}
                self._output.events.append(
                    Transaction(position, frame["txid"], frame["timestamp"], part, confirms, scope)
                )
        else:
            self._tell_progress(position, lane_name)

    def on_position(self, position: str, lane_name: str | None) -> None:
        """A heartbeat: everything up to here has been delivered.

        A replay ends without a word at a position that the client is not told, and so does the stream of fewer
        subscriptions begin. The bases after it are not checked until a heartbeat says where it all stands.
        """
        lane = self._lane(lane_name)
        if position.startswith(_NO_EPOCH) or not self._continues(position):
            return
        if self._strangers:
            self._claim_resyncs(lane, position)
        self._hear(lane, position)
        lane.replaying = False
        if lane.floor is None or position > lane.floor:
            lane.floor = position
            self._tell_progress(position, lane_name)

    def on_resync(self, frame: JSONObject, lane_name: str | None, now: float) -> None:
        lane = self._lane(lane_name)
        position: str = frame["position"]
        self._enter_epoch(position)
        self._hear(lane, position)
        after_ms = frame.get("after_ms")
        after_seconds = self._random() if after_ms is None else after_ms / 1000
        for subscription in self._concerned(frame, lane):
            self._resync(subscription, frame["reason"], position, now + after_seconds)
            if frame["reason"] == "table_dropped":
                self._leave(subscription, tell=False)
                self._wait(subscription, now + (subscription.backoff.next_delay() or 0.0))

    def on_unsubscribed(self, lane_name: str | None) -> None:
        """From here on the stream is put together anew; see `on_position`."""
        self._lane(lane_name).replaying = True

    def on_error(self, frame: JSONObject, now: float) -> bool:
        """An error that names a subscription; False where it concerns none of ours."""
        subscription = self._by_wire.get(frame.get("id", ""))
        code: str = frame["code"]
        if subscription is None or code == "unknown_subscription":
            return code == "unknown_subscription"
        self._leave(subscription, tell=code == "snapshot_failed")
        if code in _REFUSALS or (code == "unknown_channel" and not subscription.known):
            subscription.phase = "refused"
            self._waiting.pop(subscription.id, None)
            self._output.events.append(Refused(subscription.id, code, frame["message"]))
        elif code == "invalid_position":
            subscription.loaded = not subscription.interest.rows
            subscription.start = None
            self._output.events.append(Resync(subscription.id, "position_unknown", None))
            self._wait(subscription, now)
        else:
            self._wait(subscription, now + (subscription.backoff.next_delay() or 0.0))
        return True

    # Details.

    def _entry(self, subscription: Subscription, now: float) -> JSONObject:
        self._leave(subscription)
        self._waiting.pop(subscription.id, None)
        self._next_wire += 1
        subscription.wire = str(self._next_wire)
        self._by_wire[subscription.wire] = subscription
        subscription.phase = "asked"
        subscription.seen, subscription.seen_at = (), now
        interest = subscription.interest
        entry: JSONObject = {"id": subscription.wire, "channel": interest.channel}
        if interest.columns is not None:
            entry["columns"] = list(interest.columns)
        if interest.only_changed:
            entry["only_changed"] = True
        if interest.filter is not None:
            entry["filter"] = interest.filter
        if interest.where is not None:
            entry["where"] = interest.where
            entry["params"] = list(interest.params)
        if not subscription.loaded:
            entry["snapshot"] = True
        elif subscription.start is not None:
            entry["since"] = subscription.start
            self._resuming[subscription.id] = subscription
        return entry

    def _lane(self, name: str | None) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane()
        return lane

    def _scopes(self, lane_name: str | None) -> list[str | None]:
        """Whom a frame speaks for: None for all, one by one where that would be saying too much."""
        if lane_name is not None:
            subscription = self._by_wire.get(lane_name)
            return [subscription.id] if subscription is not None else []
        if self._resuming:
            return [each.id for each in self._all.values() if each.phase == "live"]
        return [None]

    def _tell_progress(self, position: str, lane_name: str | None) -> None:
        self._output.events.extend(Progress(position, scope) for scope in self._scopes(lane_name))

    def _loading(self, lane: Lane) -> Iterable[Subscription]:
        return (each for each in self._all.values() if each.lane is lane and each.phase == "loading")

    def _concerned(self, frame: JSONObject, lane: Lane) -> list[Subscription]:
        if "id" in frame:
            named = self._by_wire.get(frame["id"])
            return [named] if named is not None else []
        if "shape" in frame:
            return list(lane.shapes.get(frame["shape"], ()))
        return [each for members in lane.shapes.values() for each in members]

    def _place(self, subscription: Subscription, lane: Lane, shape: int) -> None:
        self._displace(subscription)
        lane.place(subscription, shape)

    def _displace(self, subscription: Subscription) -> None:
        """From here on no frame that names the shape concerns it."""
        if subscription.lane is not None:
            subscription.lane.displace(subscription)
        self._strangers.pop(subscription.id, None)
        self._resuming.pop(subscription.id, None)

    def _leave(self, subscription: Subscription, *, tell: bool = True) -> None:
        """End it on this link; `tell` says whether the server does not know yet."""
        subscription.start = subscription.position
        self._displace(subscription)
        subscription.held.clear()
        if subscription.wire is not None:
            if tell:
                self._output.frames.append({"type": "unsubscribe", "id": subscription.wire})
            self._by_wire.pop(subscription.wire, None)
            subscription.wire = None

    def _wait(self, subscription: Subscription, until: float) -> None:
        subscription.phase = "waiting"
        subscription.ask_at = until
        self._waiting[subscription.id] = subscription

    def _resync(self, subscription: Subscription, reason: str, position: str, ask_at: float) -> None:
        self._output.events.append(Resync(subscription.id, reason, position))
        self._strangers.pop(subscription.id, None)
        subscription.start = position
        if subscription.interest.rows:
            subscription.loaded = False
            self._displace(subscription)
            subscription.held.clear()
            self._wait(subscription, ask_at)

    def _claim_resyncs(self, lane: Lane, position: str) -> None:
        """The stream went on in its new epoch without the resyncs that it owes: make them ourselves."""
        for stranger in [each for each in self._strangers.values() if each.lane is lane]:
            self._resync(stranger, "epoch_changed", position, 0.0)

    def _finish_loading(self, subscription: Subscription, position: str) -> None:
        subscription.start = position
        subscription.loaded = True
        subscription.phase = "live"
        subscription.next_chunk = None
        held, subscription.held = subscription.held, []
        for transaction in held:
            if transaction.position > position:
                subscription.start = transaction.position
                self._output.events.append(transaction)
            elif transaction.confirms:
                self._output.events.append(
                    Transaction(
                        transaction.position,
                        transaction.txid,
                        transaction.timestamp,
                        {subscription.id: ()},
                        transaction.confirms,
                        subscription.id,
                    )
                )

    def _same_epoch(self, position: str) -> bool:
        if self.epoch is None and not position.startswith(_NO_EPOCH):
            self.epoch = position[:EPOCH_DIGITS]
        return position[:EPOCH_DIGITS] == self.epoch

    def _enter_epoch(self, position: str) -> None:
        """A resync or a snapshot may take the stream over to another epoch."""
        if not self._same_epoch(position):
            self.epoch = position[:EPOCH_DIGITS]
            self.server_position = None
            for each in self._lanes.values():
                each.floor = each.told = None

    def _continues(self, position: str) -> bool:
        """Whether it lies in the epoch that the link is in; a change of epoch without a resync breaks the link."""
        if not self._same_epoch(position):
            self.broken = "the stream went over to another epoch without a resync"
            return False
        return True

    def _hear(self, lane: Lane, position: str) -> None:
        """The server has named a position: it is at least there, and what comes next may build on it."""
        if not self._same_epoch(position):
            return  # of a subscription that is resumed from another epoch
        if lane.told is None or position > lane.told:
            lane.told = position
        if self.server_position is None or not self.server_position > position:
            self.server_position = position
