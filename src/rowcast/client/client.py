"""The client: one connection, one store, and everything that looks at them.

The one rule of this room: what the session tells in one step reaches the store in one step, and every view, and
only then the application; so that no callback ever sees half of a commit.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import msgspec

from rowcast.client.cache import RealtimeIntegration
from rowcast.client.connection import Connection, TokenSource, make_beginning
from rowcast.client.events import Event, Interest, MutationTold, Refused, ServerError, StateChanged
from rowcast.client.feed import CacheFeed
from rowcast.client.handlers import Handlers
from rowcast.client.ladder import LADDER
from rowcast.client.live import Deliver, LiveRows, listen
from rowcast.client.mutations import ATTEMPTS, MutationHandle, Mutations, Sender, StatusAsker
from rowcast.client.outputs import (
    AskStatus,
    Delta,
    MutationChanged,
    Output,
    Ready,
    Refetch,
    SendMutation,
    SubscriptionChanged,
)
from rowcast.client.overlay import Mutation, Patch, Strategy
from rowcast.client.rows import Row
from rowcast.client.state import ConnectionState, TransportName
from rowcast.client.store import CONFIRM_SECONDS, Store
from rowcast.errors import ClientError

logger = logging.getLogger("rowcast.client")

T = TypeVar("T")
R = TypeVar("R")

# A page that is left and another that is opened often show the same rows: they need not be read again.
LINGER_SECONDS: Final = 5.0


@dataclass(slots=True, eq=False)
class _Shared:
    """A subscription and those who look at it."""

    id: str
    key: bytes
    users: list[LiveRows[Any]] = field(default_factory=list[LiveRows[Any]])
    ready: bool = False
    refused: ClientError | None = None
    linger: asyncio.TimerHandle | None = None


class Client:
    """A client of a Rowcast server; made by `connect()`. To be used in the event loop that it was started in."""

    def __init__(
        self,
        url: str,
        *,
        token: TokenSource = None,
        headers: Mapping[str, str] | None = None,
        transports: Sequence[TransportName] = LADDER,
        attempts: int | None = None,
        status: StatusAsker | None = None,
        confirm_seconds: float = CONFIRM_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
        cache: RealtimeIntegration | None = None,
    ) -> None:
        self.store: Final = Store(confirm_seconds=confirm_seconds)
        beginning = make_beginning()
        self.connection: Final = Connection(
            url,
            sink=self._receive,
            token=token,
            headers=headers,
            transports=transports,
            attempts=attempts,
            old_rows=cache is not None,  # it keeps no rows, and asks where one has left
            mutations=beginning,
        )
        self._feed = None if cache is None else CacheFeed(cache)
        for name, interest in self._feed.interests.items() if self._feed is not None else ():
            self.connection.subscribe(name, interest)
        self._mutations = Mutations(
            self.store, self._take, time.monotonic, status, self.connection.ask_mutation, beginning
        )
        self._linger_seconds = linger_seconds
        self._shared: dict[bytes, _Shared] = {}
        self._by_id: dict[str, _Shared] = {}
        self._numbers = itertools.count(1)
        self._state_callbacks: list[Callable[[ConnectionState], None]] = []
        self._error_callbacks: list[Callable[[ServerError], None]] = []
        self._news: deque[Callable[[], object]] = deque()
        self._telling = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect, in the running event loop. Returns at once; everything works without a connection too."""
        self.connection.start()

    async def close(self) -> None:
        """End the connection, every subscription and every attempt. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for shared in list(self._by_id.values()):
            for user in list(shared.users):
                user.close()
            if shared.linger is not None:
                shared.linger.cancel()
        await self._mutations.close()
        await self.connection.close()

    @property
    def state(self) -> ConnectionState:
        """How the connection is doing."""
        return self.connection.state

    def on_state(
        self, callback: Callable[[ConnectionState], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every new state of the connection; see `LiveRows.on_change`."""
        return listen(self._state_callbacks, callback, via)

    def on_error(
        self, callback: Callable[[ServerError], object], *, via: Deliver | None = None
    ) -> Callable[[], None]:
        """Call a function with every error of the server's that concerns no subscription."""
        return listen(self._error_callbacks, callback, via)

    def reconnect(self, reason: str = "asked for") -> None:
        """Try now rather than later: the user or the network came back. Wishes are merged."""
        self.connection.reconnect(reason)

    def set_online(self, *, online: bool) -> None:
        """Tell whether there is a network."""
        self.connection.set_online(online=online)

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
    ) -> LiveRows[Row]: ...
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
    ) -> LiveRows[T]: ...
    def live(
        self,
        channel: str,
        *,
        type: type[Any] = dict,  # noqa: A002 - the word that callers look for
        filter: str | None = None,  # noqa: A002 - the protocol's word
        where: str | None = None,
        params: Sequence[object] = (),
        columns: Sequence[str] | None = None,
        only_changed: bool = False,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        handlers: Handlers | None = None,
    ) -> LiveRows[Any]:
        """The rows of a channel, kept live. Equal subscriptions are one, however many look at them.

        Args:
            channel: Such as `projects`.
            type: What a row is: `dict`, a TypedDict, a dataclass, a `msgspec.Struct` or a pydantic model.
            filter: In PostgREST form, `org_id=eq.5`.
            where: In SQL form, `org_id = $1`, with `params`.
            params: See `where`.
            columns: Only these columns, and the key.
            only_changed: Have updates bring only what they change. The rows are the same, with fewer bytes to bring them.
            order_by: Column names, a minus before those in descending order: `-created_at,name`.
            limit: Show only the first so many.
            handlers: Keep the list with these instead of `order_by` and `limit`.

        Raises:
            ClientError: The arguments do not go together, or the client is closed.
        """
        if filter is not None and where is not None:
            raise ClientError("`filter` and `where` exclude each other: give one of them")
        if handlers is not None and (order_by or limit is not None):
            raise ClientError("`handlers` keep the list by themselves: give them, or `order_by` and `limit`")
        if self._closed:
            raise ClientError("the client is closed: connect() again")
        shared = self._share(
            Interest(
                channel,
                filter,
                where,
                tuple(params),
                None if columns is None else tuple(columns),
                only_changed=only_changed,
            )
        )
        live = LiveRows(self, shared.id, channel, type, order_by, limit, handlers)
        shared.users.append(live)
        if shared.refused is not None:
            live.fail(shared.refused)
        elif shared.ready:
            live.became_ready()
        return live

    def mutate(
        self,
        patches: Iterable[Patch],
        *,
        send: Sender[R],
        strategy: Strategy = "overlay",
        queued: bool = False,
        attempts: int = ATTEMPTS,
    ) -> MutationHandle[R]:
        """Show changes at once, over any number of channels, and have them done by the application's server.

        They stay on the screen until the stream confirms them or the server refuses; a time-out is no refusal.
        Edits of one row are sent one after the other.

        Args:
            patches: What `LiveRows.inserting`, `updating` and `deleting` return.
            send: Called with the mutation's id; sends it to the application's server, with the id in the header
                `Rowcast-Mutation`. What it returns is what awaiting gives; with an `Answer` it can say more about
                the commit. If it raises for the network or for an HTTP status that means "try again", it is called
                again with the same id; whatever else it raises is a refusal.
            strategy: `overlay`; `stream-only` (pending until the stream tells it); `invalidate` (a new snapshot
                when the server has answered, for servers that do not confirm).
            queued: While there is no connection, wait for one instead of sending.
            attempts: How often to send it while nobody says what became of it.

        Raises:
            ClientError: A patch is for a subscription that has ended.
        """
        return self._mutations.begin(list(patches), send, strategy, attempts, queued=queued)

    @property
    def mutations(self) -> list[Mutation]:
        """The mutations that are neither confirmed nor rejected, oldest first."""
        return self.store.mutations

    # For LiveRows.

    def refresh(self, subscription: str) -> None:
        """Have a new snapshot taken for a subscription."""
        self._take(self.store.refresh(subscription))

    def release(self, live: LiveRows[Any]) -> None:
        """One who looked at a subscription is gone; with the last, and a while, the subscription goes."""
        shared = self._by_id[live.subscription]
        shared.users.remove(live)
        if shared.users or self._closed:
            return
        if self._linger_seconds > 0 and shared.refused is None:
            loop = asyncio.get_running_loop()
            shared.linger = loop.call_later(self._linger_seconds, self._end, shared)
        else:
            self._end(shared)

    def _share(self, interest: Interest) -> _Shared:
        key = msgspec.json.encode(interest)
        shared = self._shared.get(key)
        if shared is None:
            shared = _Shared(f"{interest.channel}#{next(self._numbers)}", key)
            self._shared[key] = self._by_id[shared.id] = shared
            self.store.add(shared.id)
            self.connection.subscribe(shared.id, interest)
        elif shared.linger is not None:
            shared.linger.cancel()
            shared.linger = None
        return shared

    def _end(self, shared: _Shared) -> None:
        del self._shared[shared.key], self._by_id[shared.id]
        self.connection.unsubscribe(shared.id)
        self._take(self.store.remove(shared.id))

    # What comes in.

    def _receive(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Refused):
                shared = self._by_id.get(event.subscription)
                if shared is not None:
                    shared.refused = ClientError(f"{event.message} ({event.code})")
            elif isinstance(event, StateChanged):
                self._news.append(partial(self._tell_connection, event.state))
            elif isinstance(event, MutationTold):
                self._news.append(partial(self._mutations.told, event))
            elif isinstance(event, ServerError):
                self._news.append(partial(_call, self._error_callbacks, event))
        if self._feed is not None:
            self._news.append(partial(self._feed.receive, events))
        self._take(self.store.receive(events))

    def _take(self, outputs: Sequence[Output]) -> None:
        """Fulfil what the store hands back: first every view, then those who listen, in order.

        A callback may cause more of it; that waits its turn, so that everybody hears everything in the same order.
        """
        for output in outputs:
            match output:
                case Delta():
                    for live in self._users(output.subscription):
                        moves = live.absorb(output)
                        self._news.append(partial(live.tell, moves, output))
                case Ready():
                    self._news.append(partial(self._tell_ready, output.subscription))
                case SubscriptionChanged():
                    self._news.append(partial(self._tell_subscription, output))
                case Refetch():
                    if output.subscription in self._by_id:
                        self.connection.refetch(output.subscription)
                case SendMutation() | AskStatus() | MutationChanged():
                    self._news.append(partial(self._mutations.fulfil, output))
        self._arm()
        if self._telling:
            return
        self._telling = True
        try:
            while self._news:
                self._news.popleft()()
        finally:
            self._telling = False

    def _users(self, subscription: str) -> list[LiveRows[Any]]:
        shared = self._by_id.get(subscription)
        return [] if shared is None else shared.users

    def _tell_ready(self, subscription: str) -> None:
        shared = self._by_id.get(subscription)
        if (
            shared is not None and shared.refused is None
        ):  # what is refused has an empty list, and is not ready
            shared.ready = True
            for live in shared.users:
                live.became_ready()

    def _tell_subscription(self, change: SubscriptionChanged) -> None:
        shared = self._by_id.get(change.subscription)
        if shared is None:
            return
        for live in tuple(shared.users):
            if shared.refused is not None:
                live.fail(shared.refused)
            live.tell_state(change.state)

    def _tell_connection(self, state: ConnectionState) -> None:
        if state.status == "closed" and not self._closed:
            for shared in self._by_id.values():
                for live in shared.users:
                    live.fail(ClientError(state.reason))
        _call(self._state_callbacks, state)

    def _arm(self) -> None:
        """One timer, for the next thing that the store has to do by time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.store.deadline()
        if deadline is not None and not self._closed:
            delay = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._take(self.store.tick(time.monotonic()))


def _call(callbacks: Iterable[Callable[[T], None]], value: T) -> None:
    for callback in tuple(callbacks):
        callback(value)


def connect(
    url: str,
    *,
    token: TokenSource = None,
    headers: Mapping[str, str] | None = None,
    transports: Sequence[TransportName] = LADDER,
    attempts: int | None = None,
    status: StatusAsker | None = None,
    confirm_seconds: float = CONFIRM_SECONDS,
    linger_seconds: float = LINGER_SECONDS,
    cache: RealtimeIntegration | None = None,
) -> Client:
    """A client of the server at an address: `async with rowcast.connect("http://host:8000") as rc: …`.

    It connects in the background and comes back by itself for ever.

    Args:
        url: Such as http://host:8000, or ws://host:8000/ws.
        token: Credentials: a string, or a function, sync or async, that returns a fresh one.
        headers: HTTP headers for every request.
        transports: The transports allowed, best first.
        attempts: Give up after so many failed attempts to connect in a row; None for never.
        status: Asks the application's server what became of a mutation that nobody has confirmed: `committed`,
            `unknown` (never seen) or `rejected`. Without it, Rowcast's server is asked; where that knows nothing, such a
            mutation is sent again with the same id.
        confirm_seconds: After so long without a word, a mutation counts as unconfirmed.
        linger_seconds: How long a subscription that nobody looks at any more is kept.
        cache: Keeps a query cache up to date over the same connection.

    Raises:
        ClientError: The address is none.
    """
    return Client(
        url,
        token=token,
        headers=headers,
        transports=transports,
        attempts=attempts,
        status=status,
        confirm_seconds=confirm_seconds,
        linger_seconds=linger_seconds,
        cache=cache,
    )
