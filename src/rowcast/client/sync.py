"""The client for threads and scripts: the same, without `await`.

    with rowcast.client.sync.connect("http://127.0.0.1:8000") as rc:
        projects = rc.live("projects", order_by="name").ready()
        print(projects.rows)
        for change in projects.changes():
            print(change)

The one rule of this room: everything happens in one background thread with an event loop; whatever is called here
asks that thread and waits for its answer. So it may all be called from any thread, and from many at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar, overload

from rowcast.client import client as asynchronous
from rowcast.client.client import LINGER_SECONDS
from rowcast.client.connection import TokenSource
from rowcast.client.events import ServerError
from rowcast.client.handlers import Handlers
from rowcast.client.ladder import LADDER
from rowcast.client.live import AnyKey, Change, Deliver, LiveRows
from rowcast.client.mutations import ATTEMPTS, MutationHandle, Status
from rowcast.client.outputs import MutationState, SubscriptionState
from rowcast.client.overlay import Delete, Insert, Mutation, Patch, Strategy, Update
from rowcast.client.rows import Row
from rowcast.client.state import ConnectionState, TransportName
from rowcast.client.store import CONFIRM_SECONDS
from rowcast.errors import ClientError

T = TypeVar("T")
R = TypeVar("R")

# Sends a mutation to the application's server; called in a thread of its own.
SyncSender: TypeAlias = Callable[[str], R]


class _Thread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rowcast", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def call(self, function: Callable[[], R]) -> R:
        """Run a function there and return what it returns."""

        async def run() -> R:
            return function()

        return self.wait(run())

    def wait(self, work: Coroutine[Any, Any, R], timeout_seconds: float | None = None) -> R:
        """Run a coroutine there and return what it returns.

        Raises:
            TimeoutError: It took longer; it has been cancelled.
        """
        if not self._thread.is_alive():
            work.close()
            raise ClientError("the client is closed: connect() again")
        if threading.current_thread() is self._thread:
            work.close()
            raise ClientError(
                "a callback may not wait for the client that called it: use another thread, or `via`"
            )
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_seconds)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise TimeoutError(f"not within {timeout_seconds} s") from None

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


class SyncMutation(Generic[R]):
    """A mutation on its way; see `MutationHandle`."""

    def __init__(self, thread: _Thread, handle: MutationHandle[R]) -> None:
        self._thread = thread
        self._handle = handle
        self.id: Final = handle.id

    @property
    def state(self) -> MutationState:
        return self._handle.state

    def result(self, timeout_seconds: float | None = None) -> R | None:
        """Wait until the stream has confirmed it; returns what the sender returned, None where that was lost.

        Raises:
            RejectedError: The application's server refused it.
            TimeoutError: Nobody knows yet. It goes on.
        """

        async def wait() -> R | None:
            return await self._handle

        return self._thread.wait(wait(), timeout_seconds)

    def retry(self) -> None:
        """Send it again, with the same id."""
        self._thread.call(self._handle.retry)


class SyncLiveRows(Generic[T]):
    """The rows of a channel, kept live; see `LiveRows`. May be used from any thread."""

    def __init__(self, thread: _Thread, live: LiveRows[T]) -> None:
        self._thread = thread
        self._live = live
        self.channel: Final = live.channel

    def __enter__(self) -> Self:
        return self.ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ready(self, timeout_seconds: float | None = None) -> Self:
        """Wait for the first rows.

        Raises:
            ClientError: As `LiveRows.ready()`.
            TimeoutError: They have not come within the time.
        """
        self._thread.wait(self._live.ready(), timeout_seconds)
        return self

    def close(self) -> None:
        self._thread.call(self._live.close)

    @property
    def rows(self) -> list[T]:
        """The rows in order."""
        return self._thread.call(lambda: self._live.rows)

    def __len__(self) -> int:
        return self._thread.call(lambda: len(self._live))

    def __iter__(self) -> Iterator[T]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> T:
        return self.rows[index]

    def get(self, key: AnyKey) -> T | None:
        """The row of a key, also beyond the limit."""
        return self._thread.call(lambda: self._live.get(key))

    @property
    def state(self) -> SubscriptionState:
        return self._thread.call(lambda: self._live.state)

    @property
    def position(self) -> str:
        return self._thread.call(lambda: self._live.position)

    def pending(self, key: AnyKey) -> list[Mutation]:
        """The mutations of this client that wait on a row, oldest first."""
        return self._thread.call(lambda: self._live.pending(key))

    def changes(self, timeout_seconds: float | None = None) -> Iterator[Change[T]]:
        """All rows as a first change with `restart`, then every change, until this is closed.

        Args:
            timeout_seconds: End when nothing has changed for so long; None for never.

        Raises:
            ClientError: As `LiveRows.changes()`.
        """
        changes = self._live.changes()

        async def following() -> Change[T] | None:
            return await anext(changes, None)

        try:
            while (change := self._thread.wait(following(), timeout_seconds)) is not None:
                yield change
        except TimeoutError:
            return
        finally:
            with contextlib.suppress(ClientError):  # the client is closed, and the iteration with it
                self._thread.wait(changes.aclose())

    def on_change(
        self, callback: Callable[[Change[T]], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every change, in the client's thread or where `via` brings it; returns what ends that."""
        return self._threadsafe(self._thread.call(lambda: self._live.on_change(callback, via=via)))

    def on_insert(self, callback: Callable[[T], object], *, via: Deliver | None = None) -> Callable[[], None]:
        """Call a function with every row that comes into the list; see `on_change`."""
        return self._threadsafe(self._thread.call(lambda: self._live.on_insert(callback, via=via)))

    def on_update(self, callback: Callable[[T], object], *, via: Deliver | None = None) -> Callable[[], None]:
        """Call a function with every row that has changed; see `on_change`."""
        return self._threadsafe(self._thread.call(lambda: self._live.on_update(callback, via=via)))

    def on_delete(self, callback: Callable[[T], object], *, via: Deliver | None = None) -> Callable[[], None]:
        """Call a function with every row that leaves the list; see `on_change`."""
        return self._threadsafe(self._thread.call(lambda: self._live.on_delete(callback, via=via)))

    def on_state(
        self, callback: Callable[[SubscriptionState], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every new `state`; see `on_change`."""
        return self._threadsafe(self._thread.call(lambda: self._live.on_state(callback, via=via)))

    def refresh(self) -> None:
        """Have a new snapshot taken; the rows stay until it has come."""
        self._thread.call(self._live.refresh)

    def inserting(self, row: Row, *, key: AnyKey | None = None) -> Insert:
        """A patch that shows a new row; see `LiveRows.inserting`."""
        return self._thread.call(lambda: self._live.inserting(row, key=key))

    def updating(self, key: AnyKey, **columns: Any) -> Update:
        """A patch that shows new values of some columns of a row."""
        return self._live.updating(key, **columns)

    def deleting(self, key: AnyKey) -> Delete:
        """A patch that hides a row."""
        return self._live.deleting(key)

    def mutate(
        self,
        patch: Patch | Row | Sequence[Patch],
        *,
        send: SyncSender[R],
        strategy: Strategy = "overlay",
        queued: bool = False,
        attempts: int = ATTEMPTS,
    ) -> SyncMutation[R]:
        """Show a change at once and have it done; see `Client.mutate`. `send` is called in a thread of its own."""
        handle = self._thread.call(
            lambda: self._live.mutate(
                patch, send=_in_a_thread(send), strategy=strategy, queued=queued, attempts=attempts
            )
        )
        return SyncMutation(self._thread, handle)

    def _threadsafe(self, stop: Callable[[], None]) -> Callable[[], None]:
        return lambda: self._thread.call(stop)


class SyncClient:
    """A client of a Rowcast server for threads and scripts; made by `connect()`."""

    def __init__(self, url: str, **options: Any) -> None:
        self._thread = _Thread()
        try:
            self._client = self._thread.call(lambda: asynchronous.connect(url, **options))
            self._thread.call(self._client.start)
        except BaseException:
            self._thread.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, every subscription and the thread. Safe to call twice."""
        if self._thread.running:
            self._thread.wait(self._client.close())
            self._thread.stop()

    @property
    def state(self) -> ConnectionState:
        """How the connection is doing."""
        return self._thread.call(lambda: self._client.state)

    @property
    def mutations(self) -> list[Mutation]:
        """The mutations that are neither confirmed nor rejected, oldest first."""
        return self._thread.call(lambda: self._client.mutations)

    def on_state(
        self, callback: Callable[[ConnectionState], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every new state of the connection; see `SyncLiveRows.on_change`."""
        stop = self._thread.call(lambda: self._client.on_state(callback, via=via))
        return lambda: self._thread.call(stop)

    def on_error(
        self, callback: Callable[[ServerError], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every error of the server's that concerns no subscription."""
        stop = self._thread.call(lambda: self._client.on_error(callback, via=via))
        return lambda: self._thread.call(stop)

    def reconnect(self, reason: str = "asked for") -> None:
        """Try now rather than later."""
        self._thread.call(lambda: self._client.reconnect(reason))

    def set_online(self, *, online: bool) -> None:
        """Tell whether there is a network."""
        self._thread.call(lambda: self._client.set_online(online=online))

    @overload
    def live(
        self,
        channel: str,
        *,
        filter: str | None = ...,
        where: str | None = ...,
        params: Sequence[object] = ...,
        columns: Sequence[str] | None = ...,
        only_changed: bool = ...,
        order_by: str | Sequence[str] = ...,
        limit: int | None = ...,
        handlers: Handlers | None = ...,
    ) -> SyncLiveRows[Row]: ...
    @overload
    def live(
        self,
        channel: str,
        *,
        type: type[T],
        filter: str | None = ...,
        where: str | None = ...,
        params: Sequence[object] = ...,
        columns: Sequence[str] | None = ...,
        only_changed: bool = ...,
        order_by: str | Sequence[str] = ...,
        limit: int | None = ...,
        handlers: Handlers | None = ...,
    ) -> SyncLiveRows[T]: ...
    def live(self, channel: str, **options: Any) -> SyncLiveRows[Any]:
        """The rows of a channel, kept live; see `Client.live`."""
        return SyncLiveRows(self._thread, self._thread.call(lambda: self._client.live(channel, **options)))

    def mutate(
        self,
        patches: Iterable[Patch],
        *,
        send: SyncSender[R],
        strategy: Strategy = "overlay",
        queued: bool = False,
        attempts: int = ATTEMPTS,
    ) -> SyncMutation[R]:
        """Show changes over any number of channels and have them done; see `Client.mutate`.

        `send` is called in a thread of its own.
        """
        handle = self._thread.call(
            lambda: self._client.mutate(
                patches, send=_in_a_thread(send), strategy=strategy, queued=queued, attempts=attempts
            )
        )
        return SyncMutation(self._thread, handle)


def connect(
    url: str,
    *,
    token: TokenSource = None,
    headers: Mapping[str, str] | None = None,
    transports: Sequence[TransportName] = LADDER,
    attempts: int | None = None,
    status: Callable[[str], Status] | None = None,
    confirm_seconds: float = CONFIRM_SECONDS,
    linger_seconds: float = LINGER_SECONDS,
) -> SyncClient:
    """A client of the server at an address, for code without `await`: `with connect("http://host:8000") as rc: …`.

    Args:
        url: Such as http://host:8000.
        token: Credentials: a string, or a function that returns a fresh one; it is called in the client's thread.
        headers: HTTP headers for every request.
        transports: The transports allowed, best first.
        attempts: Give up after so many failed attempts to connect in a row; None for never.
        status: As for `rowcast.client.client.connect`, not async; called in a thread of its own.
        confirm_seconds: After so long without a word, a mutation counts as unconfirmed.
        linger_seconds: How long a subscription that nobody looks at any more is kept.

    Raises:
        ClientError: The address is none.
    """
    return SyncClient(
        url,
        token=token,
        headers=headers,
        transports=transports,
        attempts=attempts,
        status=None if status is None else _in_a_thread(status),
        confirm_seconds=confirm_seconds,
        linger_seconds=linger_seconds,
    )


def _in_a_thread(function: Callable[[str], R]) -> Callable[[str], Coroutine[None, None, R]]:
    """What a blocking function is to an event loop."""

    async def run(argument: str) -> R:
        return await asyncio.to_thread(function, argument)

    return run
