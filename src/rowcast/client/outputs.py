"""What the store hands back after each input: news for listeners and requests for the connection. No I/O.

The one rule of this room: outputs are handed over when the whole step is done. Whoever gets one, and reads the store,
sees every subscription after the step, never in the middle of a commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rowcast.client.rows import RowChange

# loading: no rows yet.  live: the rows follow the stream.  stale: the rows are what was known last, while the connection
# is down or a new snapshot is on its way.  ended: the server refused the subscription; the reason says why.
SubscriptionState: TypeAlias = Literal["loading", "live", "stale", "ended"]

# pending: not sent yet.  sent: on its way, or answered but not in the stream yet.  unconfirmed: no word in time; it may
# have happened or not, and is shown on.  confirmed: it is in the base.  rejected: refused; its patches are gone.
MutationState: TypeAlias = Literal["pending", "sent", "unconfirmed", "confirmed", "rejected"]

Cause: TypeAlias = Literal["transaction", "snapshot", "overlay"]


@dataclass(frozen=True, slots=True)
class Ready:
    """A subscription has its first rows."""

    subscription: str


@dataclass(frozen=True, slots=True)
class Delta:
    """Visible rows of a subscription changed: the net effect of one step, each row at most once.

    Attributes:
        cause: `overlay` where only mutations changed (one was made, rejected, or given the server's key).
        reset: The rows were swapped for a new snapshot's; `changes` are the differences.
        position: Where the base stands after it; empty before the first snapshot.
    """

    subscription: str
    changes: list[RowChange]
    cause: Cause
    reset: bool
    position: str

    @property
    def inserted(self) -> list[RowChange]:
        return [change for change in self.changes if change.old is None]

    @property
    def updated(self) -> list[RowChange]:
        return [change for change in self.changes if change.old is not None and change.new is not None]

    @property
    def deleted(self) -> list[RowChange]:
        return [change for change in self.changes if change.new is None]


@dataclass(frozen=True, slots=True)
class SubscriptionChanged:
    """A subscription's state changed; `reason` is a resync's reason, an error's code, or `disconnected`."""

    subscription: str
    state: SubscriptionState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MutationChanged:
    """A mutation's state changed; `error` is what the application gave with the rejection."""

    mutation: str
    state: MutationState
    error: Any = None


@dataclass(frozen=True, slots=True)
class Refetch:
    """A new snapshot of this subscription is wanted; it stays as it is until that has come."""

    subscription: str


@dataclass(frozen=True, slots=True)
class SendMutation:
    """The application's sender shall run for this mutation, with the same id at every attempt."""

    mutation: str


@dataclass(frozen=True, slots=True)
class AskStatus:
    """The application's server shall be asked what became of this mutation; `Store.status` takes the answer."""

    mutation: str


Output: TypeAlias = Ready | Delta | SubscriptionChanged | MutationChanged | Refetch | SendMutation | AskStatus
