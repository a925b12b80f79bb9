"""Watches one query on behalf of a user interface: decides when to fetch, and says what to show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast, overload

import msgspec
from msgspec.structs import astuple

from .clock import Timer
from .futures import quiet_future
from .options import QueryOptions, RefetchOn, ResolvedQueryOptions, is_finite, resolve
from .query import Query
from .query_state import FetchDirection, FetchStatus, QueryState, QueryStatus
from .sharing import share_structure
from .subscribable import Subscribable

if TYPE_CHECKING:
    from .query_client import QueryClient

T = TypeVar("T")
D = TypeVar("D")
U = TypeVar("U")


class QueryResult(msgspec.Struct, Generic[D], frozen=True, kw_only=True, eq=False):
    """What an observer shows at one moment.

    Attributes:
        data: The data, after `select`; None if there is none.
        data_updated_at: When it was known to be right, seconds since 1970 UTC; 0.0 for never.
        error: Why the last fetch, or `select`, failed.
        failure_count: Failed attempts of the present or last fetch; `failure_reason` is the last one's error.
        is_fetched: Whether a fetch or a write has ever ended.
        is_fetched_after_mount: Whether one has since this observer began to watch the query.
        is_placeholder_data: Whether `data` stands in for data that has yet to come.
        is_stale: Whether the data is out of date for this observer; False while it is not enabled.
        refetch: The observer's `refetch`.
    """

    status: QueryStatus
    fetch_status: FetchStatus
    data: D | None
    data_updated_at: float
    error: Exception | None
    error_updated_at: float
    error_update_count: int
    failure_count: int
    failure_reason: Exception | None
    is_fetched: bool
    is_fetched_after_mount: bool
    is_placeholder_data: bool
    is_stale: bool
    is_enabled: bool
    refetch: Callable[..., asyncio.Future[Any]]

    @property
    def is_pending(self) -> bool:
        """There is nothing to show yet."""
        return self.status == "pending"

    @property
    def is_success(self) -> bool:
        return self.status == "success"

    @property
    def is_error(self) -> bool:
        return self.status == "error"

    @property
    def is_fetching(self) -> bool:
        """The function is running, for the first time or again."""
        return self.fetch_status == "fetching"

    @property
    def is_paused(self) -> bool:
        """The function would run, but waits for the network."""
        return self.fetch_status == "paused"

    @property
    def is_loading(self) -> bool:
        """The function is running for the first time."""
        return self.is_fetching and self.is_pending

    @property
    def is_refetching(self) -> bool:
        """The function is running again."""
        return self.is_fetching and not self.is_pending

    @property
    def is_loading_error(self) -> bool:
        """The function failed and there is nothing to show."""
        return self.is_error and self.data is None

    @property
    def is_refetch_error(self) -> bool:
        """The function failed, and there is still data from before."""
        return self.is_error and self.data is not None


class _Selection(msgspec.Struct, frozen=True, eq=False):
    """What `function` made of `source`; with an error, `data` is what it made of something before."""

    function: Callable[[Any], Any]
    source: Any
    data: Any
    error: Exception | None = None
    error_at: float = 0.0


class QueryObserver(Subscribable[QueryResult[D]], Generic[T, D]):
    """Watches one query while it has listeners.

    Args:
        client: Whose cache.
        select: Turns the query's data into what this observer shows; called again only when the data or the
            function changes. What it raises becomes the result's error and leaves the cache alone.
        options: `ResolvedQueryOptions` explains them.

    Attributes:
        options: The options in use.
        query: The query that it watches.
    """

    options: ResolvedQueryOptions[T]
    query: Query[T]

    @overload
    def __init__(
        self: QueryObserver[U, U],
        client: QueryClient,
        *,
        select: None = None,
        **options: Unpack[QueryOptions[U]],
    ) -> None: ...
    @overload
    def __init__(
        self, client: QueryClient, *, select: Callable[[T], D], **options: Unpack[QueryOptions[T]]
    ) -> None: ...
    def __init__(
        self,
        client: QueryClient,
        *,
        select: Callable[[Any], Any] | None = None,
        **options: Unpack[QueryOptions[Any]],
    ) -> None:
        super().__init__()
        self._client = client
        self._select = select
        self._selection: _Selection | None = None
        self._placeholder: tuple[object, Any] | None = None
        self._last_query_with_data: Query[T] | None = None
        self._refetch = self.refetch  # one object, so that results with it compare as equal
        self._stale_timer: Timer | None = None
        self._interval_timer: Timer | None = None
        self._interval: object = False
        self._begin(cast("Mapping[str, Any]", options))

    def _begin(self, options: Mapping[str, Any]) -> None:
        self.options = self._client.resolve_query_options(options)
        self.query = self._client.query_cache.build(self._client, self.options)
        self.query.set_options(self.options)
        self._state_at_start: QueryState[T] = self.query.state
        self._current = self._create_result(None)
        self._remember_data()

    @property
    def current_result(self) -> QueryResult[D]:
        """What to show now."""
        return self._current

    def set_options(
        self, *, select: Callable[[T], D] | None = None, **options: Unpack[QueryOptions[T]]
    ) -> None:
        """Watch with other options, or another query: it is fetched if that is called for.

        Raises:
            ClientError: An option that does not exist, or a value that it cannot have.
        """
        self._select = select
        self._set_options(cast("Mapping[str, Any]", options))

    def _set_options(self, options: Mapping[str, Any]) -> None:
        before, query_before = self.options, self.query
        enabled_before = resolve(before.enabled, query_before)
        self.options = self._client.resolve_query_options(options)
        self._update_query()
        self.query.set_options(self.options)
        self._client.query_cache.notify("observer_options_updated", self.query, observer=self)
        mounted, changed = self.has_listeners(), self.query is not query_before
        if mounted and (changed or not enabled_before) and self._is_stale(self.query):
            self._fetch()
        self.update_result()
        if mounted:
            self._update_timers(restart=changed)

    def should_fetch_on_focus(self) -> bool:
        """Whether this observer wants a refetch when the application comes back to the front."""
        return self._wants_refetch(self.options.refetch_on_focus)

    def should_fetch_on_reconnect(self) -> bool:
        """Whether this observer wants a refetch when the network comes back."""
        return self._wants_refetch(self.options.refetch_on_reconnect)

    def refetch(
        self, *, cancel_refetch: bool = True, throw_on_error: bool = False
    ) -> asyncio.Future[QueryResult[D]]:
        """Fetch now, whether stale or not.

        Args:
            cancel_refetch: Start again if a refetch is under way, instead of joining it.
            throw_on_error: Let the future fail if the fetch does.

        Returns:
            The result afterwards. Cancelling it leaves the fetch alone.
        """
        return self._fetch_result(cancel_refetch=cancel_refetch, throw_on_error=throw_on_error)

    async def results(self) -> AsyncGenerator[QueryResult[D], None]:
        """The present result and each one after it; of those that come faster than they are taken, only the last.

        It never ends by itself: close it, or cancel the task that iterates, to stop watching.
        """
        news = asyncio.Event()
        unsubscribe = self.subscribe(lambda _: news.set())
        try:
            while True:
                news.clear()
                yield self.current_result
                await news.wait()
        finally:
            unsubscribe()

    def destroy(self) -> None:
        """Stop watching; listeners are forgotten."""
        self._listeners.clear()
        self._clear_timers()
        self.query.remove_observer(self)

    def on_query_update(self) -> None:
        """The query's state has changed."""
        self.update_result()
        if self.has_listeners():
            self._update_timers(restart=False)

    def update_result(self) -> None:
        """Work the result out again, and tell the listeners if it is another."""
        before = self._current
        after = self._create_result(before)
        self._remember_data()
        values = zip(after.__struct_fields__, astuple(before), astuple(after), strict=True)
        changed = [name for name, left, right in values if left is not right and not _same(left, right)]
        if not changed:
            return
        self._current = after
        wanted = self.options.notify_on_change_props
        if wanted is None or not set(wanted).isdisjoint(changed):
            self._emit(after)
        self._client.query_cache.notify("observer_results_updated", self.query, observer=self)

    # Watching

    def _on_subscribe(self) -> None:
        if len(self._listeners) == 1:
            self.query.add_observer(self)
            if self._should_fetch_on_mount():
                self._fetch()
            else:
                self.update_result()
            self._update_timers(restart=True)

    def _on_unsubscribe(self) -> None:
        if not self.has_listeners():
            self.destroy()

    def _update_query(self) -> None:
        query = self._client.query_cache.build(self._client, self.options)
        if query is self.query:
            return
        if self.has_listeners():
            self.query.remove_observer(self)
            query.add_observer(self)
        self.query = query
        self._state_at_start = query.state

    def _remember_data(self) -> None:
        if self.query.state.data is not None:
            self._last_query_with_data = self.query

    # Fetching

    def _fetch(
        self, *, cancel_refetch: bool = False, direction: FetchDirection | None = None
    ) -> asyncio.Future[T]:
        self._update_query()  # the one it watched may have been removed from the cache
        return self.query.start_fetch(self.options, cancel_refetch=cancel_refetch, direction=direction)

    def _fetch_result(
        self, *, cancel_refetch: bool, throw_on_error: bool, direction: FetchDirection | None = None
    ) -> asyncio.Future[Any]:
        result = quiet_future()

        def settled(fetch: asyncio.Future[T]) -> None:
            error = fetch.exception()
            self.update_result()
            if result.done():
                return
            if error is not None and throw_on_error:
                result.set_exception(error)
            else:
                result.set_result(self.current_result)

        self._fetch(cancel_refetch=cancel_refetch, direction=direction).add_done_callback(settled)
        return result

    def _is_enabled(self, query: Query[T]) -> bool:
        return bool(resolve(self.options.enabled, query))

    def _is_stale(self, query: Query[T]) -> bool:
        return self._is_enabled(query) and query.is_stale_by_time(resolve(self.options.stale_time, query))

    def _should_fetch_on_mount(self) -> bool:
        state = self.query.state
        if state.data is not None:
            return self._wants_refetch(self.options.refetch_on_mount)
        failed_before = state.status == "error" and not self.options.retry_on_mount
        return self._is_enabled(self.query) and not failed_before

    def _wants_refetch(self, option: RefetchOn) -> bool:
        query = self.query
        if not self._is_enabled(query) or resolve(self.options.stale_time, query) == "static":
            return False
        value = resolve(option, query)
        return value == "always" or (bool(value) and self._is_stale(query))

    # Showing

    def _create_result(self, before: QueryResult[D] | None) -> QueryResult[D]:
        query, state = self.query, self.query.state
        status, error, error_updated_at = state.status, state.error, state.error_updated_at
        data: Any = state.data
        is_placeholder = False
        if data is None and status == "pending":
            data = self._placeholder_data()
            is_placeholder = data is not None
            if is_placeholder:
                status = "success"
        else:
            self._placeholder = None
        if data is None:
            self._selection = None
        elif self._select is not None:
            selection = self._selection = self._selected(self._select, data, before)
            data = selection.data
            if selection.error is not None:
                status, error, error_updated_at = "error", selection.error, selection.error_at
                is_placeholder = False
        start = self._state_at_start
        return self._result(
            status=status,
            fetch_status=state.fetch_status,
            data=data,
            data_updated_at=state.data_updated_at,
            error=error,
            error_updated_at=error_updated_at,
            error_update_count=state.error_update_count,
            failure_count=state.fetch_failure_count,
            failure_reason=state.fetch_failure_reason,
            is_fetched=query.is_fetched(),
            is_fetched_after_mount=state.data_update_count > start.data_update_count
            or state.error_update_count > start.error_update_count,
            is_placeholder_data=is_placeholder,
            is_stale=self._is_stale(query),
            is_enabled=self._is_enabled(query),
            refetch=self._refetch,
        )

    def _result(self, **fields: Any) -> QueryResult[D]:
        return QueryResult(**fields)

    def _placeholder_data(self) -> Any:
        previous = self._last_query_with_data
        previous_data = None if previous is None else previous.state.data
        if self.options.keep_previous_data and previous_data is not None:
            return previous_data
        option = self.options.placeholder_data
        if not callable(option):
            return option
        if self._placeholder is None or self._placeholder[0] is not option:
            self._placeholder = (option, option(previous_data, previous))
        return self._placeholder[1]

    def _selected(
        self, select: Callable[[Any], Any], source: Any, before: QueryResult[D] | None
    ) -> _Selection:
        last = self._selection
        if last is not None and last.function is select and last.source is source:
            return last
        try:
            data = select(source)
        except Exception as error:  # noqa: BLE001 -- whatever the user's function raises is shown in the result
            return _Selection(select, source, last and last.data, error, self._client.clock.now())
        sharing = self.options.structural_sharing
        old = None if before is None else before.data
        shared = sharing(old, data) if callable(sharing) else share_structure(old, data) if sharing else data
        return _Selection(select, source, shared)

    # Timers

    def _update_timers(self, *, restart: bool) -> None:
        self._update_stale_timer()
        enabled = self._is_enabled(self.query)
        interval = resolve(self.options.refetch_interval, self.query) if enabled else False
        # Writes to the cache do not restart the interval: under a busy stream it would never fire.
        if restart or interval != self._interval:
            self._interval = interval
            self._arm_interval()

    def _update_stale_timer(self) -> None:
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None
        stale_time = resolve(self.options.stale_time, self.query)
        if not self._current.is_stale and is_finite(stale_time) and self._is_enabled(self.query):
            # A millisecond later than due, so that rounding cannot make the timer come too early for its purpose.
            remaining = self._current.data_updated_at + stale_time - self._client.clock.now() + 0.001
            self._stale_timer = self._client.clock.call_later(max(remaining, 0.0), self.update_result)

    def _arm_interval(self) -> None:
        if self._interval_timer is not None:
            self._interval_timer.cancel()
            self._interval_timer = None
        if is_finite(self._interval) and self._interval:
            self._interval_timer = self._client.clock.call_later(
                cast("float", self._interval), self._interval_passed
            )

    def _interval_passed(self) -> None:
        self._arm_interval()
        if self.options.refetch_interval_in_background or self._client.focus_manager.is_focused():
            self._fetch()

    def _clear_timers(self) -> None:
        self._interval = False
        self._arm_interval()
        if self._stale_timer is not None:
            self._stale_timer.cancel()
            self._stale_timer = None


def _same(left: object, right: object) -> bool:
    return left is right or (
        isinstance(left, str | int | float) and type(left) is type(right) and left == right
    )
