"""All rows that a client knows: the base as the stream told it, and the pending mutations over it. No I/O.

The one rule of this room: `visible = fold(pending mutations in order, base)`. The base is written by `receive()` alone,
with what the session read from the stream; no answer of an HTTP call ever writes it.

    session events ──► receive() ──► base ─┐
                                           ├─ fold ──► visible rows ──► Delta
    mutate(), answered(), rejected() … ──► overlay ─┘

Every call is one step: first everything is brought up to date, over all subscriptions, then the outputs are returned.
Hand over all that one `Session.take_events()` gave in one call, so that nobody sees one subscription after a commit and
another before it.

What the caller must do after each call: hand on the events to listeners, fulfil the requests (`SendMutation`,
`AskStatus`, `Refetch`), and call `tick()` at `deadline()`.

    a mutation:  mutate ─► pending ─ sent() ─► sent ─ the stream's confirm ─► confirmed
                              ▲                 │ │
                              │     no word for a │ └ rejected() ─► rejected ─ retry() ─► pending
                              │     while, lost() ▼
                              └ status unknown ─ unconfirmed ─ the stream's confirm, or status committed ─► confirmed

A time-out never takes anything off the screen. The confirm does, in the step that puts the same into the base; where a
subscription's base is not that far (its new snapshot is still on its way), the patches stay on it until it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from rowcast.client.contents import Contents, KnownRows, VisibleRows
from rowcast.client.events import (
    Event,
    Progress,
    Refused,
    Resync,
    SnapshotChunk,
    StateChanged,
    Subscribed,
    Transaction,
)
from rowcast.client.outputs import AskStatus, MutationChanged, Output, SendMutation, SubscriptionState
from rowcast.client.overlay import Mutation, Patch, Strategy
from rowcast.client.rows import Key, Row
from rowcast.client.step import Step
from rowcast.errors import ClientError

# Longer than any transaction that a user waits for, shorter than their patience with a row that looks saved.
CONFIRM_SECONDS: Final = 10.0


class Store:
    """See the module. All times are seconds on one monotonic clock, passed in as `now`.

    Args:
        confirm_seconds: A mutation without a word for so long is `unconfirmed`, and its status is asked for.
    """

    def __init__(self, *, confirm_seconds: float = CONFIRM_SECONDS) -> None:
        self._confirm_seconds = confirm_seconds
        self._contents = Contents()

    # Reading.

    def rows(self, subscription: str) -> VisibleRows:
        """The visible rows of a subscription, by key."""
        return VisibleRows(self._known(subscription))

    def row(self, subscription: str, key: Key) -> Row | None:
        """The visible row of a key. A key that the client had made up finds the row under the server's."""
        return self._known(subscription).visible(self.resolve(subscription, key))

    def state(self, subscription: str) -> SubscriptionState:
        return self._known(subscription).state

    def position(self, subscription: str) -> str:
        """Where a subscription's base stands; empty before its first snapshot."""
        return self._known(subscription).position

    def key_columns(self, subscription: str) -> tuple[str, ...]:
        """Names of the key's columns, sorted; empty until the server has told them, and for a table without a key."""
        return self._known(subscription).key_columns

    def resolve(self, subscription: str, key: Key) -> Key:
        """The server's key for one that the client had made up, once it is known; any other key as it is."""
        return self._contents.overlay.resolve(subscription, key)

    def pending(self, subscription: str, key: Key) -> list[Mutation]:
        """The mutations that wait on a row, oldest first: the row's loading state."""
        return [
            each for each in self._contents.overlay.pending(subscription, key) if each.state != "confirmed"
        ]

    def mutation(self, mutation: str) -> Mutation | None:
        """A pending mutation, or one of the last thousand that are confirmed or rejected. For reading."""
        return self._contents.pending.get(mutation) or self._contents.settled.get(mutation)

    @property
    def mutations(self) -> list[Mutation]:
        """The mutations that are neither confirmed nor rejected, oldest first. For reading."""
        return list(self._contents.pending.values())

    # Subscriptions.

    def add(self, subscription: str) -> None:
        """Keep the rows of the subscription that the session tells under this id.

        Raises:
            ClientError: There is one of this id already.
        """
        if subscription in self._contents.rows:
            raise ClientError(f'there is a subscription "{subscription}" already: choose another id')
        self._contents.rows[subscription] = KnownRows(subscription)

    def remove(self, subscription: str) -> list[Output]:
        """Forget a subscription and its rows. Mutations go on without it."""
        self._known(subscription)
        del self._contents.rows[subscription]
        self._contents.complete.pop(subscription, None)
        self._contents.overlay.forget(subscription)
        return Step(self._contents).finish("overlay")

    def refresh(self, subscription: str) -> list[Output]:
        """Have a new snapshot taken, after the one that is on its way if one is; the rows stay until it has come."""
        self._known(subscription)
        step = Step(self._contents)
        step.refetch(subscription, "refresh")
        return step.finish("overlay")

    def receive(self, events: Iterable[Event]) -> list[Output]:
        """Take over what the session has to tell, in one step."""
        step = Step(self._contents)
        for event in events:
            match event:
                case Transaction():
                    step.transaction(event)
                case Progress():
                    step.progress(event.position, event.subscription)
                case SnapshotChunk():
                    step.snapshot(event)
                case Subscribed():
                    step.subscribed(event)
                case Resync():
                    step.resync(event)
                case Refused():
                    step.refused(event)
                case StateChanged():
                    step.connection(connected=event.state.status in {"connected", "degraded"})
                case _:
                    pass  # an error that concerns no subscription is the connection's
        return step.finish("transaction")

    # Mutations.

    def mutate(
        self, mutation: str, patches: Sequence[Patch], *, strategy: Strategy = "overlay", queued: bool = False
    ) -> list[Output]:
        """Show a mutation, and ask for it to be sent.

        Args:
            mutation: Its id, unique for ever; the application's transaction confirms this id.
            patches: What it does to which rows.
            strategy: How it shows, see `overlay.Strategy`.
            queued: While there is no connection, wait for one instead of sending.

        Raises:
            ClientError: There is a mutation of this id, or a patch names an unknown subscription.
        """
        if self.mutation(mutation) is not None:
            raise ClientError(f'there is a mutation "{mutation}" already: retry() sends one again')
        for patch in patches:
            self._known(patch.subscription)
        return self._begin(Mutation(mutation, list(patches), strategy, queued))

    def sent(self, mutation: str, now: float) -> list[Output]:
        """An attempt has begun."""
        entry = self._contents.pending.get(mutation)
        if entry is None:
            return []
        entry.attempts += 1
        entry.deadline = now + self._confirm_seconds
        step = Step(self._contents)
        step.change(entry, "sent")
        return step.finish("overlay")

    def answered(
        self,
        mutation: str,
        now: float,
        *,
        txid: int | None = None,
        position: str | None = None,
        keys: Mapping[Key, Key] | None = None,
    ) -> list[Output]:
        """The server's answer: it is done. The overlay stays until the stream says so too.

        Args:
            mutation: Its id.
            now: The time.
            txid: Of the transaction, where the answer names it: that transaction's frame confirms.
            position: One at or after the commit, where the answer names it: the stream's passing it confirms. One of
                another epoch than the stream's says nothing.
            keys: Made-up key → the server's key of new rows, where the answer names them.
        """
        contents = self._contents
        step = Step(contents)
        entry = contents.pending.get(mutation)
        known = self.mutation(mutation)
        for patch in list(known.patches) if known is not None and keys else ():
            if keys and patch.key in keys and patch.subscription in contents.rows:
                step.rename(patch.subscription, patch.key, keys[patch.key])
        if entry is not None:
            entry.deadline = now + self._confirm_seconds
            step.name_commit(entry, txid, position)
            if entry.strategy == "invalidate" and entry.waits_for is None:
                step.invalidate(entry)
        return step.finish("overlay")

    def rejected(self, mutation: str, error: Any = None) -> list[Output]:
        """The server's answer: it is refused. Its patches go, and nobody else's."""
        entry = self._contents.pending.get(mutation)
        if entry is None:
            return []
        step = Step(self._contents)
        entry.error = error
        if entry.strategy == "invalidate":
            step.invalidate(entry)
        step.reject(entry)
        return step.finish("overlay")

    def lost(self, mutation: str, now: float) -> list[Output]:
        """There was no answer: the request broke off. It may have happened or not, so it is shown on."""
        entry = self._contents.pending.get(mutation)
        if entry is None:
            return []
        entry.deadline = now + self._confirm_seconds
        step = Step(self._contents)
        step.change(entry, "unconfirmed")
        if self._contents.connected or not entry.queued:
            step.say(AskStatus(mutation))
        return step.finish("overlay")

    def status(
        self,
        mutation: str,
        status: Literal["committed", "unknown", "rejected"],
        now: float,
        *,
        position: str | None = None,
        error: Any = None,
    ) -> list[Output]:
        """The server's answer to `AskStatus`.

        Args:
            mutation: Its id.
            status: `unknown`: the server has never seen it, so it is sent again, with the same id.
            position: One at or after the commit, for `committed`. Without it, and without a word from the stream,
                it counts as confirmed when another `confirm_seconds` have passed.
            now: The time.
            error: For `rejected`: why, for whoever listens.
        """
        entry = self._contents.pending.get(mutation)
        if entry is None:
            return []
        if status == "rejected":
            return self.rejected(mutation, error)
        if status == "unknown":
            return self.retry(mutation)
        entry.committed = True
        return self.answered(mutation, now, position=position)

    def retry(self, mutation: str) -> list[Output]:
        """Send a rejected or unconfirmed mutation again, with the same id.

        Raises:
            ClientError: It is confirmed, or nothing is known of it any more.
        """
        entry = self._contents.pending.get(mutation)
        if entry is not None:
            entry.deadline = None
            step = Step(self._contents)
            step.change(entry, "pending")
            self._ask_to_send(step, entry)
            return step.finish("overlay")
        entry = self._contents.settled.get(mutation)
        if entry is None or entry.state != "rejected":
            raise ClientError(
                f'mutation "{mutation}" is neither pending nor rejected: it cannot be sent again'
            )
        del self._contents.settled[mutation]
        return self._begin(
            Mutation(entry.id, entry.patches, entry.strategy, entry.queued, attempts=entry.attempts)
        )

    def deadline(self) -> float | None:
        """When `tick()` has something to do; None for not before something else happens."""
        deadlines = [each.deadline for each in self._contents.pending.values() if each.deadline is not None]
        return min(deadlines, default=None)

    def tick(self, now: float) -> list[Output]:
        """Do what is due: a mutation without a word for too long is unconfirmed, and is asked for."""
        step = Step(self._contents)
        for entry in list(self._contents.pending.values()):
            if entry.deadline is None or entry.deadline > now:
                continue
            entry.deadline = now + self._confirm_seconds
            if entry.committed and self._contents.connected:
                step.confirm(entry, self._contents.told)
            else:
                step.change(entry, "unconfirmed")
                step.say(AskStatus(entry.id))
        return step.finish("overlay")

    def _known(self, subscription: str) -> KnownRows:
        known = self._contents.rows.get(subscription)
        if known is None:
            raise ClientError(f'there is no subscription "{subscription}": add() one first')
        return known

    def _begin(self, entry: Mutation) -> list[Output]:
        step = Step(self._contents)
        step.lay(entry)
        step.say(MutationChanged(entry.id, "pending"))
        self._ask_to_send(step, entry)
        return step.finish("overlay")

    def _ask_to_send(self, step: Step, entry: Mutation) -> None:
        if self._contents.connected or not entry.queued:
            step.say(SendMutation(entry.id))
