"""What a session tells the application: the words of the stream, checked, in order, once. No I/O.

The one rule of this room: applying the events of a subscription one after the other gives exactly its rows.
Rows and changes are dicts as the server's JSON has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from rowcast.client.state import ConnectionState

JSONObject: TypeAlias = dict[str, Any]


class Interest(msgspec.Struct, frozen=True):
    """What a subscription is about.

    Attributes:
        channel: Such as `projects`.
        filter: In PostgREST form, `org_id=eq.5`.
        where: In SQL form, with `$1` for `params`.
        columns: Names of the columns wanted; the key always comes. None for all.
        only_changed: An UPDATE brings the key and the columns that it has changed only.
        rows: The subscriber keeps the rows: a snapshot comes first, and again after each resync.
        since: Tell everything after this position, instead of a snapshot.
    """

    channel: str
    filter: str | None = None
    where: str | None = None
    params: Sequence[object] = ()
    columns: Sequence[str] | None = None
    rows: bool = True
    since: str | None = None
    only_changed: bool = False


class Subscribed(msgspec.Struct, frozen=True):
    """The server watches it. Comes again after a reconnect, and when the table's columns changed.

    Attributes:
        columns: Name and PostgreSQL type of each column, in the table's order.
        key: Names of the primary key's columns; empty for a table without one.
        position: Everything after it will be told.
        shape: The server's number for what is watched.
    """

    subscription: str
    channel: str
    schema: str
    table: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]
    position: str
    shape: int


class SnapshotChunk(msgspec.Struct, frozen=True):
    """A part of the rows. Chunk 0 begins a snapshot, anew if one was under way.

    Show the rows when `last` has come, in one step, instead of all that was there before.

    Attributes:
        rows: Each replaces the row of the same key from an earlier chunk.
        deleted: Keys (whole rows, for a table without a key) to remove first from what earlier chunks brought.
        position: Of the whole snapshot; known with the last chunk, None before.
    """

    subscription: str
    chunk: int
    rows: Sequence[JSONObject]
    deleted: Sequence[JSONObject]
    last: bool
    position: str | None


class Transaction(msgspec.Struct, frozen=True):
    """All changes of one commit that concern this client, to be applied in one step.

    A subscription whose snapshot was still loading gets its part when the snapshot is complete, in an event of
    its own that follows at once; `confirms` is repeated there.

    Attributes:
        changes: For each subscription concerned, its changes in order: `op`, `id`, `key`, `new`, `old`.
        confirms: Ids of the mutations that this transaction confirms.
        timestamp: Commit time, ISO 8601.
        subscription: The one that it speaks for, where each has a stream of its own; None: for all that are live.
    """

    position: str
    txid: int
    timestamp: str
    changes: Mapping[str, Sequence[JSONObject]]
    confirms: Sequence[str] = ()
    subscription: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """Everything up to `position` has been told, to the subscriptions named (None: to all that are live)."""

    position: str
    subscription: str | None = None


class Resync(msgspec.Struct, frozen=True):
    """A stretch of the stream is lost for this subscription: its rows say nothing any more.

    With `Interest.rows` a new snapshot follows by itself; without, the stream goes on after `position`.
    """

    subscription: str
    reason: str
    position: str | None


class Refused(msgspec.Struct, frozen=True):
    """The server refuses the subscription, for good: the code and the sentence are the server's."""

    subscription: str
    code: str
    message: str


class MutationTold(msgspec.Struct, frozen=True):
    """What Rowcast's server knows of a mutation that it was asked about.

    Attributes:
        state: `unknown` where it is not committed, or not yet, or nobody has confirmed it.
        position: One at or after the commit, where it is known.
    """

    mutation: str
    state: Literal["committed", "unknown"]
    position: str | None = None


class ServerError(msgspec.Struct, frozen=True):
    """An error frame that concerns no subscription."""

    code: str
    message: str


class StateChanged(msgspec.Struct, frozen=True):
    state: ConnectionState


Event: TypeAlias = (
    Subscribed
    | SnapshotChunk
    | Transaction
    | Progress
    | Resync
    | Refused
    | MutationTold
    | ServerError
    | StateChanged
)
