"""One entry of the cache: its state, its observers, and the fetch that is under way.

The one rule of this room: every change of state is an action that goes through `query_state.reduce`, and observers hear
of it afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

import msgspec

from rowcast.errors import ClientError

from .clock import running_loop
from .futures import share
from .infinite import fetch_pages
from .options import SKIP, QueryFunctionContext, ResolvedQueryOptions, resolve
from .overlays import Overlays
from .query_state import (
    AttemptFailed,
    Continue,
    Failure,
    Fetch,
    FetchDirection,
    Invalidate,
    Patch,
    Pause,
    QueryAction,
    QueryState,
    SetState,
    Success,
    reduce,
    success_state,
)
from .removable import Removable
from .retryer import FetchCancelledError, NotModified, Retryer
from .sharing import share_structure
from .waiting import Waiting, tell, tell_error

if TYPE_CHECKING:
    from .query_client import QueryClient
    from .query_observer import QueryObserver

T = TypeVar("T")


class Answer(NamedTuple):
    """What a query's function has returned.

    Attributes:
        snapshots: In which snapshots it was read, if the function told.
        outdated: Whether it is known already that something has changed since.
    """

    data: Any
    snapshots: tuple[str, ...]
    outdated: bool


class Query(Removable, Generic[T]):
    """One query of the cache. Made by `QueryCache.build`, never directly.

    Attributes:
        key: Its key.
        hash: The key's canonical JSON.
        options: The options it was last used with.
        state: What it knows.
        observers: Who watches it.
        snapshots: The snapshots (`Rowcast-Snapshot`) that the data was read in, where the last answer told them all.
    """

    def __init__(
        self, client: QueryClient, options: ResolvedQueryOptions[T], state: QueryState[T] | None = None
    ) -> None:
        super().__init__(client.clock)
        self.key = options.key
        self.hash = options.hash
        self.options = options
        self.observers: list[QueryObserver[Any, Any]] = []
        self.snapshots: tuple[str, ...] = ()
        self._client = client
        self._initial_state: QueryState[T] = self._state_of_options()
        self.state = self._initial_state if state is None else state
        self._revert_state = self.state
        self._overlays: Overlays[T] = Overlays()
        self._etag: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._retryer: Retryer[T] | None = None
        self._waiting: Waiting[T] = Waiting()
        self._overtaken = (
            False  # invalidated while fetching: the answer will not cover it, and a further fetch follows
        )
        # Of the present attempt's calls; empty before the first.
        self._contexts: list[QueryFunctionContext] = []
        self._update_gc_time(options.gc_time)
        self._schedule_gc()

    def __repr__(self) -> str:
        return f"<Query {self.hash} {self.state.status}/{self.state.fetch_status}>"

    def set_options(self, options: ResolvedQueryOptions[T]) -> None:
        """Use `options` from now on; initial data is taken if the query still has none."""
        self.options = options
        self._update_gc_time(options.gc_time)
        if self.state.data is None and options.initial_data is not None:
            initial = self._state_of_options()
            if initial.data is not None:
                self._initial_state = initial
                self.set_state(success_state(self.state, initial.data, initial.data_updated_at))

    # Writing

    def set_data(self, data: T, *, updated_at: float | None = None) -> T:
        """Write the whole data by hand: it counts as fresh, and a fetch that is under way goes on.

        Args:
            data: All of it; never modify it afterwards.
            updated_at: When it was right, seconds since 1970 UTC; now by default.

        Returns:
            What the cache holds now: `data`, structurally shared with what it held before.
        """
        visible = self._visible(data)
        self._etag = None
        at = self._clock.now() if updated_at is None else updated_at
        self._revert_state = self._dispatch(Success(visible, at, manual=True))
        return visible

    def patch(self, data: T) -> None:
        """Bring a part of the data up to date. That makes nothing fresh: times and invalidation stay as they are."""
        self._etag = None
        self._revert_state = self._dispatch(Patch(self._visible(data)))

    @property
    def base(self) -> T | None:
        """The data without unconfirmed changes."""
        return self._overlays.base if self._overlays else self.state.data

    def overlay(self, change: Callable[[T], T]) -> Callable[[], None]:
        """Show a change that the server has not confirmed, over the data and over whatever it becomes.

        Args:
            change: From the data to the changed data; must not modify its argument.

        Returns:
            A function that takes the change away, and only that; calling it again does nothing.
        """
        token = object()
        self._overlays.add(token, change, self.base)
        self._show_again()

        def remove() -> None:
            if self._overlays.remove(token):
                self._show_again()

        return remove

    def _show_again(self) -> None:
        base = self._overlays.base
        if base is not None:
            visible = self._visible(base)
            self._revert_state = msgspec.structs.replace(self._revert_state, data=visible)
            self._dispatch(Patch(visible))

    def set_state(self, state: QueryState[T]) -> None:
        """Put a state in place of the present one."""
        self._etag = None
        self.snapshots = ()
        self._overlays.base = state.data
        if self._overlays and state.data is not None:
            state = msgspec.structs.replace(state, data=self._overlays.fold(state.data))
        self._dispatch(SetState(state))

    def invalidate(self) -> None:
        """Mark the data as out of date, and the answer of a fetch that is under way with it."""
        self._overtaken = self._task is not None and bool(self._contexts)
        self.mark_stale()

    def mark_stale(self) -> None:
        """Mark the data as out of date; the answer of a fetch that is under way may still be good."""
        if not self.state.is_invalidated:
            self._dispatch(Invalidate())

    def reset(self) -> None:
        """Go back to the initial state; a fetch that is under way is dropped."""
        self.cancel(silent=True)
        self.set_state(self._initial_state)
        if not self.observers:
            self._schedule_gc()

    def destroy(self) -> None:
        """Stop all timers and drop a fetch that is under way."""
        self._clear_gc_timer()
        self.cancel(silent=True)

    # Asking

    def is_active(self) -> bool:
        """Whether an enabled observer watches it."""
        return any(resolve(observer.options.enabled, self) for observer in self.observers)

    def is_disabled(self) -> bool:
        """Whether nothing but an explicit call should fetch it."""
        if self.observers:
            return not self.is_active()
        return self.options.fn is SKIP or not self.is_fetched()

    def is_fetched(self) -> bool:
        return self.state.data_update_count + self.state.error_update_count > 0

    def is_static(self) -> bool:
        """Whether an observer has declared the data as never out of date."""
        return self.state.data is not None and any(
            resolve(observer.options.stale_time, self) == "static" for observer in self.observers
        )

    def is_stale(self) -> bool:
        """Whether the data is out of date, as the observers see it."""
        if self.observers:
            return any(observer.current_result.is_stale for observer in self.observers)
        return self.state.data is None or self.state.is_invalidated

    def is_stale_by_time(self, stale_time: float | str) -> bool:
        """Whether the data is out of date for somebody who allows it `stale_time` seconds."""
        if self.state.data is None:
            return True
        if isinstance(stale_time, str):
            return False
        return self.state.is_invalidated or self.state.data_updated_at + stale_time <= self._clock.now()

    # Observers

    def add_observer(self, observer: QueryObserver[Any, Any]) -> None:
        if observer not in self.observers:
            self.observers.append(observer)
            self._clear_gc_timer()
            self._client.query_cache.notify("observer_added", self, observer=observer)

    def remove_observer(self, observer: QueryObserver[Any, Any]) -> None:
        if observer not in self.observers:
            return
        self.observers.remove(observer)
        if not self.observers:
            if self._retryer is not None:
                waits_for_first = self.state.fetch_status == "paused" and self.state.status == "pending"
                if self.options.cancellable or waits_for_first:
                    self.cancel(revert=True)
                else:
                    self._retryer.cancel_retry()
            self._schedule_gc()
        self._client.query_cache.notify("observer_removed", self, observer=observer)

    def on_focus(self) -> None:
        """The application came back to the front."""
        self._come_back(lambda observer: observer.should_fetch_on_focus())

    def on_online(self) -> None:
        """The network came back."""
        self._come_back(lambda observer: observer.should_fetch_on_reconnect())

    def _come_back(self, wants: Callable[[QueryObserver[Any, Any]], bool]) -> None:
        observer = next(filter(wants, self.observers), None)
        if observer is not None:
            observer.refetch(cancel_refetch=False)
        if self._retryer is not None:
            self._retryer.resume()

    # Fetching

    def fetch(
        self,
        options: ResolvedQueryOptions[T] | None = None,
        *,
        cancel_refetch: bool = False,
        direction: FetchDirection | None = None,
    ) -> asyncio.Future[T]:
        """Fetch, or join the fetch that is under way.

        Args:
            options: Use these from now on.
            cancel_refetch: If there is data already, cancel the fetch that is under way and start again; those who
                wait for the old one get the new one's answer.
            direction: Fetch only the page after or before those there are.

        Returns:
            The data. Fails with the function's error, or with `FetchCancelledError`. Cancelling it leaves the fetch
            and its other callers alone.
        """
        return share(self.start_fetch(options, cancel_refetch=cancel_refetch, direction=direction))

    def start_fetch(
        self,
        options: ResolvedQueryOptions[T] | None = None,
        *,
        cancel_refetch: bool = False,
        direction: FetchDirection | None = None,
    ) -> asyncio.Future[T]:
        """As `fetch`, but the future is everybody's: add callbacks to it, never cancel it."""
        if self._task is not None and self._retryer is not None:
            if self.state.data is None or not cancel_refetch:
                self._retryer.continue_retry()
                return self._waiting.for_next() if self._overtaken else self._waiting.for_present()
            self.cancel(silent=True)
        if options is not None:
            self.set_options(options)
        if self.options.fn is None:
            observer = next((one for one in self.observers if one.options.fn is not None), None)
            if observer is not None:
                self.set_options(observer.options)
        return self._begin(direction)

    def _begin(self, direction: FetchDirection | None) -> asyncio.Future[T]:
        options = self.options
        environment = self._client.environment
        contexts = self._contexts = []
        self._overtaken = False
        self._revert_state = self.state
        future = self._waiting.for_present()
        self._retryer = Retryer(
            lambda: self._call_function(contexts, direction),
            environment=environment,
            network_mode=options.network_mode,
            retry=options.retry if callable(options.fn) else False,
            retry_delay=options.retry_delay,
            on_fail=lambda count, error: self._dispatch(AttemptFailed(count, error)),
            on_pause=lambda: self._dispatch(Pause()),
            on_continue=lambda: self._dispatch(Continue()),
        )
        self._task = running_loop().create_task(self._run(self._retryer, contexts))
        for hook in self._client.query_cache.fetch_hooks:
            hook.fetch_started(self)
        self._dispatch(Fetch(paused=not environment.can_fetch(options.network_mode), direction=direction))
        return future

    def _call_function(
        self, contexts: list[QueryFunctionContext], direction: FetchDirection | None
    ) -> Awaitable[T]:
        contexts.clear()
        self._overtaken = False  # an attempt that begins now sees what an earlier one has missed
        function = self.options.fn
        if function is None or function is SKIP:
            raise ClientError(
                f"the query {self.hash} has no function: pass `fn`, or set one with `set_query_defaults`"
            )

        def new_context() -> QueryFunctionContext:
            context = QueryFunctionContext(self._client, self.key, self.options.meta)
            contexts.append(context)
            return context

        if self.options.infinite:
            pages = fetch_pages(
                function, self.options, lambda: cast("Any", self.base), direction, new_context
            )
            return cast("Awaitable[T]", pages)
        context = new_context()
        context.etag = self._etag
        return function(context)

    async def _run(self, retryer: Retryer[T], contexts: list[QueryFunctionContext]) -> None:
        try:
            try:
                answer = await retryer.run()
            except NotModified:
                answer = self._kept_answer(contexts)
            if self._retryer is retryer:
                self._succeed(answer, contexts)
        except Exception as error:  # noqa: BLE001 -- whatever the function raises is the query's state from now on
            if self._retryer is retryer:
                self._fail(error)
        except asyncio.CancelledError:
            if self._retryer is retryer:  # not by `cancel`: the loop is being shut down
                self._put_back()
            raise

    def _kept_answer(self, contexts: list[QueryFunctionContext]) -> T:
        base = self.base
        if base is None:
            raise ClientError(
                f"the function of {self.hash} raised NotModified, but the cache holds no data for it"
            )
        if contexts[0].etag != self._etag:
            # The data was written to while the server compared: what it confirmed is no longer what we hold.
            contexts[0].etag, self._overtaken = None, True
        return base

    def _succeed(self, answer: T, contexts: list[QueryFunctionContext]) -> None:
        if answer is None:
            raise ClientError(
                f"the function of {self.hash} returned None, which means that there is no data: "
                "return an empty list, or a value of your own that stands for nothing"
            )
        told = Answer(answer, self._snapshots_of(contexts), self._overtaken)
        for hook in self._client.query_cache.fetch_hooks:
            told = hook.answer_arrived(self, told)
        data = self._visible(cast("T", told.data))
        self.snapshots = told.snapshots
        self._etag = contexts[0].etag if len(contexts) == 1 and told.data is answer else None
        again = self._overtaken
        waiting = self._end_fetch(next_follows=again)
        self._dispatch(Success(data, self._clock.now(), outdated=told.outdated))
        self._client.query_cache.settled(self, data, None)
        tell(waiting, data)
        if again and self._task is None:
            if self.is_active():
                self.start_fetch()
            else:
                tell(self._waiting.take(), data)

    def _snapshots_of(self, contexts: list[QueryFunctionContext]) -> tuple[str, ...]:
        told = tuple(context.snapshot for context in contexts if context.snapshot is not None)
        if len(told) < len(contexts):
            return ()
        if self.state.fetch_direction is None:
            return told
        return (*self.snapshots, *told) if self.snapshots else ()

    def _fail(self, error: Exception) -> None:
        waiting = self._end_fetch()
        self._dispatch(Failure(error, self._clock.now()))
        self._client.query_cache.settled(self, self.state.data, error)
        tell_error(waiting, error)

    def _end_fetch(self, *, next_follows: bool = False) -> list[asyncio.Future[T]]:
        """Forget the fetch that was under way; returns those who wait for it."""
        waiting = self._waiting.take(next_follows=next_follows)
        self._task = self._retryer = None
        for hook in self._client.query_cache.fetch_hooks:
            hook.fetch_ended(self)
        if not self.observers and self._client.query_cache.get(self.hash) is self:
            self._schedule_gc()
        return waiting

    def cancel(self, *, revert: bool = False, silent: bool = False) -> asyncio.Task[None] | None:
        """Cancel the fetch that is under way, if there is one.

        Args:
            revert: Put the state back to before the fetch, or to what was written by hand during it. Without it,
                the cancellation is an error of the query.
            silent: Leave the state alone; for a fetch that another one replaces.

        Returns:
            The cancelled task, for those who want to wait for its end.
        """
        task = self._task
        if task is None:
            return None
        task.cancel()
        if silent:
            self._task = self._retryer = None
            running_loop().call_soon(self._abandon)
        elif revert:
            self._put_back()
        else:
            self._fail(self._cancelled())
        return task

    def _put_back(self) -> None:
        waiting = self._end_fetch()
        self._dispatch(SetState(msgspec.structs.replace(self._revert_state, fetch_status="idle")))
        if self.state.data is None:
            tell_error(waiting, self._cancelled())
        else:
            tell(waiting, self.state.data)

    def _abandon(self) -> None:
        if self._task is None:  # nothing has replaced the fetch that was cancelled silently
            waiting = self._end_fetch()
            if self.state.fetch_status != "idle":
                self._dispatch(SetState(msgspec.structs.replace(self.state, fetch_status="idle")))
            tell_error(waiting, self._cancelled())

    def _cancelled(self) -> FetchCancelledError:
        return FetchCancelledError(f"the fetch of {self.hash} was cancelled before there was an answer")

    # Inside

    def _dispatch(self, action: QueryAction) -> QueryState[T]:
        self.state = reduce(self.state, action)
        self._client.notify_manager.deliver(lambda: self._notify(action))
        return self.state

    def _notify(self, action: QueryAction) -> None:
        for observer in tuple(self.observers):
            observer.on_query_update()
        self._client.query_cache.notify("updated", self, action=action)

    def _visible(self, base: T) -> T:
        """What to show for new data: unconfirmed changes over it, equal parts with their old identity."""
        data = self._overlays.fold(base) if self._overlays else base
        sharing = self.options.structural_sharing
        if callable(sharing):
            return cast("T", sharing(self.state.data, data))
        return share_structure(self.state.data, data) if sharing else data

    def _state_of_options(self) -> QueryState[T]:
        initial = self.options.initial_data
        data = cast("T | None", initial() if callable(initial) else cast("object", initial))
        if data is None:
            return QueryState()
        told = self.options.initial_data_updated_at
        updated_at = told() if callable(told) else told
        return success_state(QueryState(), data, self._clock.now() if updated_at is None else updated_at)

    def _optional_remove(self) -> None:
        if not self.observers and self.state.fetch_status == "idle":
            self._client.query_cache.remove(self)
