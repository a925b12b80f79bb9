"""One channel as a stream of whole transactions, for programs that keep their own copy or none.

The one rule of this room: over reconnects and server restarts, each transaction is yielded once and in order, or
a `Resync` says that some are missing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from rowcast.client import events
from rowcast.client.connection import Connection, TokenSource, make_beginning
from rowcast.client.events import (
    Event,
    Interest,
    JSONObject,
    Progress,
    Refused,
    Resync,
    SnapshotChunk,
    StateChanged,
    Subscribed,
)
from rowcast.client.state import TransportName
from rowcast.errors import ClientError

__all__ = [
    "Progress",
    "Resync",
    "SnapshotChunk",
    "StateChanged",
    "StreamEvent",
    "Subscribed",
    "Transaction",
    "stream",
]

# Events waiting for the consumer; above it the socket is not read, so that the server holds back or resyncs.
_QUEUE_EVENTS: Final = 1000
_SUBSCRIPTION: Final = "stream"


class Transaction(msgspec.Struct, frozen=True):
    """All changes of one commit in this channel.

    Attributes:
        changes: Each with `op`, `id`, `key`, `new`, `old` as docs/protocol.md has them; never empty.
        timestamp: Commit time, ISO 8601.
    """

    position: str
    txid: int
    timestamp: str
    changes: Sequence[JSONObject]


StreamEvent: TypeAlias = Subscribed | SnapshotChunk | Transaction | Progress | Resync | StateChanged


async def stream(
    url: str,
    channel: str,
    *,
    filter: str | None = None,  # noqa: A002 - the field's word
    where: str | None = None,
    params: Sequence[object] = (),
    columns: Sequence[str] | None = None,
    only_changed: bool = False,
    since: str | None = None,
    snapshot: bool = False,
    token: TokenSource = None,
    headers: Mapping[str, str] | None = None,
    transports: Sequence[TransportName] = ("websocket", "sse"),
    attempts: int | None = None,
) -> AsyncGenerator[StreamEvent, None]:
    """Follow a channel for ever.

    Yields `Subscribed` (table, columns and key; again after each reconnect), `Transaction`, `Progress` (all up to
    its position has been yielded), `StateChanged` (the connection), and `Resync`: changes are missing from here.
    With `snapshot`, the rows come first as `SnapshotChunk`s, and again after each resync: replace what there was
    when the chunk with `last` has come. Leave it with `aclose()` (`contextlib.aclosing`) or by cancelling the task.

    Args:
        url: The server's address.
        channel: Such as `projects`.
        filter: In PostgREST form.
        where: In SQL form, with `$1` for `params`.
        params: See `where`.
        columns: Only these columns, and the key.
        only_changed: Of an UPDATE, `new` and `old` hold the key and what has changed only. One that has changed none
            of the columns is not told.
        since: Tell everything after this position; no snapshot then, unless it cannot be told any more.
        snapshot: Keep rows: see above.
        token: See `Connection`.
        headers: See `Connection`.
        transports: See `Connection`. Polling is not among them: it cannot tell transactions.
        attempts: See `Connection`.

    Raises:
        ClientError: The server refuses the subscription or this client, or `attempts` are used up.
    """
    waiting: deque[Event] = deque()
    arrived = asyncio.Event()

    def sink(new: Sequence[Event]) -> None:
        waiting.extend(new)
        arrived.set()
        if len(waiting) >= _QUEUE_EVENTS:
            connection.pause_reading()

    connection = Connection(
        url,
        sink=sink,
        token=token,
        headers=headers,
        transports=transports,
        attempts=attempts,
        old_rows=not snapshot,  # with a snapshot the caller has the rows
        mutations=make_beginning(),  # of which there will be none
    )
    interest = Interest(channel, filter, where, params, columns, snapshot, since, only_changed)
    connection.subscribe(_SUBSCRIPTION, interest)
    async with connection:
        while True:
            while waiting:
                event = waiting.popleft()
                if len(waiting) == _QUEUE_EVENTS // 2:
                    connection.resume_reading()
                if isinstance(event, events.Transaction):
                    changes = event.changes.get(_SUBSCRIPTION)
                    if changes:
                        yield Transaction(event.position, event.txid, event.timestamp, changes)
                    else:
                        yield Progress(event.position)
                elif isinstance(event, Refused):
                    raise ClientError(f"{channel}: {event.message} ({event.code})")
                elif isinstance(event, StateChanged):
                    yield event
                    if event.state.status in {"closed", "offline"}:
                        raise ClientError(event.state.reason)
                elif isinstance(event, Subscribed | SnapshotChunk | Progress | Resync):
                    yield event
            arrived.clear()
            await arrived.wait()
