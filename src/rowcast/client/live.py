"""Live rows: the rows of a channel now, and every change of them.

The one rule of this room: who starts from `restart` and applies every `Change` as it says has exactly `rows`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeAlias, TypeVar

from rowcast.client.handlers import HandledList, Handlers
from rowcast.client.mutations import ATTEMPTS, MutationHandle, Sender
from rowcast.client.outputs import Cause, Delta, SubscriptionState
from rowcast.client.overlay import Delete, Insert, Mutation, Patch, Strategy, Update
from rowcast.client.rows import Key, Row, make_key
from rowcast.client.rowtypes import row_reader
from rowcast.client.view import View, ViewDelta
from rowcast.errors import ClientError

if TYPE_CHECKING:
    from rowcast.client.client import Client

logger = logging.getLogger("rowcast.client")

T = TypeVar("T")
R = TypeVar("R")

# A key as it is easiest to write: `7`, or `{"a": 1, "b": 2}` for one of several columns.
AnyKey: TypeAlias = Key | Mapping[str, object]
# How a callback is handed to another event loop or thread: `loop.call_soon_threadsafe`, a toolkit's own equivalent.
Deliver: TypeAlias = Callable[[Callable[[], None]], object]

# Changes kept for one consumer that does not keep up; it then starts again from the rows as they are.
_WAITING_CHANGES: Final = 1000


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What became of the list of rows in one step: one commit, one mutation, or one new snapshot.

    To apply it: where `restart`, empty the list. Delete all of `removed` and all `moved` by their old index, highest
    index first; insert all of `inserted` and `moved` by their new index, lowest first; replace what is in `updated`.

    Attributes:
        inserted: New index and row.
        updated: Index and row, of rows that have changed in their place.
        moved: Old index, new index, and the row as it is now.
        removed: Old index and the row as it was.
        restart: The list begins anew: `inserted` is all of it.
        reset: The rows come from a new snapshot; these are the differences.
        cause: `transaction`, `snapshot`, or `overlay` where only this client's own mutations changed.
        position: Where the confirmed rows stand.
    """

    inserted: list[tuple[int, T]] = field(default_factory=list[tuple[int, T]])
    updated: list[tuple[int, T]] = field(default_factory=list[tuple[int, T]])
    moved: list[tuple[int, int, T]] = field(default_factory=list[tuple[int, int, T]])
    removed: list[tuple[int, T]] = field(default_factory=list[tuple[int, T]])
    restart: bool = False
    reset: bool = False
    cause: Cause = "snapshot"
    position: str = ""

    def apply_to(self, rows: list[T]) -> None:
        """Bring a list up to date."""
        if self.restart:
            rows.clear()
        for index in sorted(
            [old for old, _ in self.removed] + [old for old, _, _ in self.moved], reverse=True
        ):
            del rows[index]
        coming = self.inserted + [(new, row) for _, new, row in self.moved]
        for index, row in sorted(coming, key=lambda each: each[0]):
            rows.insert(index, row)
        for index, row in self.updated:
            rows[index] = row


class LiveRows(Generic[T]):
    """The rows of a channel, kept live. Made by `Client.live()`; to be used in the client's event loop.

    Reading works at any time, also without a connection: the rows are what was known last, with this client's own
    mutations over it. Use it with `async with`, or `close()` it, when it is not needed any more.
    """

    def __init__(
        self,
        client: Client,
        subscription: str,
        channel: str,
        kind: type[T],
        order_by: str | Sequence[str],
        limit: int | None,
        handlers: Handlers | None,
    ) -> None:
        self.channel: Final = channel
        self.subscription: Final = subscription
        self._client = client
        self._store = client.store
        self._read = row_reader(kind)
        self._typed: dict[int, tuple[Row, T]] = {}
        visible = self._store.rows(subscription)
        self._view: View | HandledList = (
            View(visible, order_by, limit) if handlers is None else HandledList(visible, handlers)
        )
        self._shown: list[T] | None = None
        self._ready = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(
            lambda ready: ready.cancelled() or ready.exception()
        )  # nobody need wait for it
        self._queues: list[_Queue[T]] = []
        self._change_callbacks: list[Callable[[Change[T]], None]] = []
        self._state_callbacks: list[Callable[[SubscriptionState], None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        return await self.ready()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def ready(self) -> Self:
        """Wait for the first rows.

        Raises:
            ClientError: The server refuses the subscription or this client, or the client was closed.
        """
        await asyncio.shield(self._ready)
        return self

    def close(self) -> None:
        """End the subscription, if nobody else uses it; `changes()` ends. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self.fail(ClientError(f"{self.channel}: closed by the application"))
            for queue in self._queues:
                queue.end(None)
            self._client.release(self)

    # Reading.

    @property
    def rows(self) -> list[T]:
        """The rows in order, as a list of its own; rows that have not changed are the same objects as before."""
        if self._shown is None:
            rows = self._view.rows
            typed = self._typed
            self._typed = {id(row): typed.get(id(row)) or (row, self._read(row)) for row in rows}
            self._shown = [self._typed[id(row)][1] for row in rows]
        return list(self._shown)

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[T]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> T:
        return self.rows[index]

    def get(self, key: AnyKey) -> T | None:
        """The row of a key (`7`, or `{"a": 1, "b": 2}`), also beyond the limit; None if there is none."""
        row = self._store.row(self.subscription, make_key(key))
        return None if row is None else self._read(row)

    @property
    def state(self) -> SubscriptionState:
        """`loading`, `live`, `stale` (what was known last is shown), or `ended`."""
        return self._store.state(self.subscription)

    @property
    def position(self) -> str:
        """Where the confirmed rows stand; empty before the first of them."""
        return self._store.position(self.subscription)

    def pending(self, key: AnyKey) -> list[Mutation]:
        """The mutations of this client that wait on a row, oldest first: the row's loading state."""
        return self._store.pending(self.subscription, make_key(key))

    # Following.

    async def changes(self) -> AsyncGenerator[Change[T], None]:
        """All rows as a first change with `restart`, then every change, until this is closed.

        A consumer that does not keep up gets a `restart` instead of what it missed. Leaving and cancelling are safe.

        Raises:
            ClientError: As `ready()`; or a row does not fit the type.
        """
        await self.ready()
        queue: _Queue[T] = _Queue(self._restart)
        self._queues.append(queue)
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            self._queues.remove(queue)

    def on_change(
        self, callback: Callable[[Change[T]], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every change from now on; returns what ends that.

        Args:
            callback: Called in the client's event loop. An error in it is logged and harms nobody else.
            via: Called instead, with a function of no arguments to be called elsewhere: another event loop's
                `call_soon_threadsafe`, a toolkit's way into its own thread.
        """
        return listen(self._change_callbacks, callback, via)

    def on_insert(self, callback: Callable[[T], object], *, via: Deliver | None = None) -> Callable[[], None]:
        """Call a function with every row that comes into the list; see `on_change`."""

        def each(change: Change[T]) -> None:
            if not change.restart:
                for _, row in change.inserted:
                    callback(row)

        return self.on_change(each, via=via)

    def on_update(self, callback: Callable[[T], object], *, via: Deliver | None = None) -> Callable[[], None]:
        """Call a function with every row that has changed, as it is now; see `on_change`."""

        def each(change: Change[T]) -> None:
            for _, row in change.updated:
                callback(row)
            for _, _, row in change.moved:
                callback(row)

        return self.on_change(each, via=via)

    def on_delete(self, callback: Callable[[T], object], *, via: Deliver | None = None) -> Callable[[], None]:
        """Call a function with every row that leaves the list, as it was; see `on_change`."""

        def each(change: Change[T]) -> None:
            for _, row in change.removed:
                callback(row)

        return self.on_change(each, via=via)

    def on_state(
        self, callback: Callable[[SubscriptionState], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every new `state`; see `on_change`."""
        return listen(self._state_callbacks, callback, via)

    def refresh(self) -> None:
        """Have a new snapshot taken; the rows stay until it has come."""
        self._client.refresh(self.subscription)

    # Changing.

    def inserting(self, row: Row, *, key: AnyKey | None = None) -> Insert:
        """A patch that shows a new row.

        Args:
            row: With all columns that shall be seen.
            key: Made up by the caller where the server makes the real one; without it, the row holds its key.
        """
        if key is not None:
            return Insert(self.subscription, make_key(key), row, temporary=True)
        return Insert(self.subscription, self._key_of(row), row)

    def updating(self, key: AnyKey, **columns: Any) -> Update:
        """A patch that shows new values of some columns of a row."""
        return Update(self.subscription, make_key(key), columns)

    def deleting(self, key: AnyKey) -> Delete:
        """A patch that hides a row."""
        return Delete(self.subscription, make_key(key))

    def mutate(
        self,
        patch: Patch | Row | Sequence[Patch],
        *,
        send: Sender[R],
        strategy: Strategy = "overlay",
        queued: bool = False,
        attempts: int = ATTEMPTS,
    ) -> MutationHandle[R]:
        """Show a change at once and have it done; see `Client.mutate`.

        Args:
            patch: What `inserting`, `updating` and `deleting` return; or a dict with a row's key and new values.
            send: See `Client.mutate`, as for all others.
            strategy: How it shows until it is confirmed.
            queued: While there is no connection, wait for one instead of sending.
            attempts: How often to send it while nobody says what became of it.
        """
        if isinstance(patch, Mapping):
            key_columns = self._store.key_columns(self.subscription)
            columns = {name: value for name, value in patch.items() if name not in key_columns}
            patch = Update(self.subscription, self._key_of(patch), columns)
        patches = [patch] if isinstance(patch, Insert | Update | Delete) else patch
        return self._client.mutate(patches, send=send, strategy=strategy, queued=queued, attempts=attempts)

    def _key_of(self, row: Row) -> Key:
        columns = self._store.key_columns(self.subscription)
        missing = [name for name in columns if name not in row]
        if missing or not columns:
            raise ClientError(
                f"{self.channel}: "
                + (
                    f"the key column {missing[0]} is missing in {sorted(row)}"
                    if missing
                    else "the key is not known yet"
                )
                + "; wait for ready(), or give the key"
            )
        return make_key({name: row[name] for name in columns})

    # What the client tells.

    def became_ready(self) -> None:
        """There are rows."""
        if not self._ready.done():
            self._ready.set_result(None)

    def fail(self, error: ClientError) -> None:
        """There will be no rows, or no more."""
        if not self._ready.done():
            self._ready.set_exception(error)

    def absorb(self, delta: Delta) -> ViewDelta:
        """Follow the store; every view follows before anybody is told."""
        self._shown = None
        try:
            return self._view.apply(delta.changes, reset=delta.reset)
        except Exception as error:
            # Handlers are the application's. One that fails ends its own list, not the client.
            logger.exception("%s: a handler failed", self.channel)
            self._break(ClientError(f"{self.channel}: a handler failed: {error!r}"))
            return ViewDelta()

    def tell(self, moves: ViewDelta, delta: Delta) -> None:
        """Tell those who listen what became of the list."""
        if not moves or not (self._queues or self._change_callbacks):
            return
        try:
            change = self._typed_change(moves, delta)
        except ClientError as error:
            logger.exception("%s: a change cannot be told", self.channel)
            self._break(error)
            return
        for queue in self._queues:
            queue.put(change)
        for callback in tuple(self._change_callbacks):
            callback(change)

    def tell_state(self, state: SubscriptionState) -> None:
        for callback in tuple(self._state_callbacks):
            callback(state)

    def _break(self, error: ClientError) -> None:
        self.fail(error)
        for queue in self._queues:
            queue.end(error)

    def _typed_change(self, moves: ViewDelta, delta: Delta) -> Change[T]:
        known = self._typed

        def typed(row: Row) -> T:
            entry = known.get(id(row))
            if entry is None:
                # Kept, so that `rows` shows the object that was told; what is not shown any more goes with the next
                # look at `rows`, or here when that never comes.
                if len(known) > 2 * len(self._view) + _WAITING_CHANGES:
                    known.clear()
                entry = known[id(row)] = (row, self._read(row))
            return entry[1]

        return Change(
            inserted=[(index, typed(row)) for index, row in moves.inserted],
            updated=[(index, typed(row)) for index, row in moves.updated],
            moved=[(old, new, typed(row)) for old, new, row in moves.moved],
            removed=[(index, typed(row)) for index, row in moves.removed],
            reset=moves.reset,
            cause=delta.cause,
            position=delta.position,
        )

    def _restart(self) -> Change[T]:
        return Change(inserted=list(enumerate(self.rows)), restart=True, position=self.position)


class _Queue(Generic[T]):
    """Changes that wait for one consumer: a start, then what followed, up to a bound."""

    def __init__(self, restart: Callable[[], Change[T]]) -> None:
        self._restart = restart
        self._behind = True
        self._waiting: deque[Change[T]] = deque()
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._ended = False
        self._error: ClientError | None = None

    def put(self, change: Change[T]) -> None:
        if self._behind:
            return  # the restart will have it
        self._waiting.append(change)
        if len(self._waiting) > _WAITING_CHANGES:
            self._waiting.clear()
            self._behind = True
        self._arrived.set()

    def end(self, error: ClientError | None) -> None:
        self._ended = True
        self._error = error
        self._arrived.set()

    async def get(self) -> Change[T] | None:
        while True:
            if self._error is not None:
                raise self._error
            if self._waiting:
                return self._waiting.popleft()
            if self._ended:
                return None
            if self._behind:
                self._behind = False
                return self._restart()
            self._arrived.clear()
            await self._arrived.wait()


def listen(
    callbacks: list[Callable[[R], None]], callback: Callable[[R], object], via: Deliver | None
) -> Callable[[], None]:
    """Add a callback that harms nobody; returns what takes it away."""

    def call(value: R) -> None:
        try:
            callback(value)
        except Exception:
            logger.exception("a callback failed")

    def hand_over(value: R) -> None:
        if via is None:
            call(value)
            return
        try:
            via(lambda: call(value))
        except Exception:
            logger.exception("a callback could not be handed over")

    callbacks.append(hand_over)

    def stop() -> None:
        if hand_over in callbacks:
            callbacks.remove(hand_over)

    return stop
