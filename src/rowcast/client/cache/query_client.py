"""The cache as an application sees it: read, write, fetch, invalidate, by key.

Nothing here is a coroutine function: a method does its work, or starts it, when it is called, and returns a future for
those who want to wait. A future may be ignored; its error is in the state of the query as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, cast, overload

from .clock import Clock, SystemClock
from .focus_manager import FocusManager
from .futures import all_settled, resolved
from .keys import QueryKey, hash_key, partial_match_key
from .mutation_cache import MutationCache, MutationFilters
from .notify import NotifyManager
from .online_manager import OnlineManager
from .options import (
    InfiniteData,
    InfiniteQueryOptions,
    MutationDefaults,
    QueryDefaults,
    QueryOptions,
    ResolvedMutationOptions,
    ResolvedQueryOptions,
    resolve,
    resolve_mutation_options,
    resolve_query_options,
)
from .query import Query
from .query_cache import QueryCache, QueryFilters
from .query_state import QueryState
from .retryer import Environment

T = TypeVar("T")
P = TypeVar("P")
K = TypeVar("K")


class QueryClient:
    """A cache of queries and mutations, with everything it depends on.

    `async with QueryClient() as client:` watches focus and network, and at the end cancels what still runs. One client
    serves one user: what it caches is what that user may see.

    Args:
        default_query_options: Options for all queries, where neither the call nor the key's defaults say otherwise.
        default_mutation_options: The same for mutations.
        query_cache: A cache with callbacks of its own.
        mutation_cache: The same for mutations.
        clock: Where time comes from.
        focus_manager: Who knows whether the user looks.
        online_manager: Who knows whether the network can be reached.

    Attributes:
        notify_manager: How listeners are told.
    """

    def __init__(
        self,
        *,
        default_query_options: QueryDefaults[Any] | None = None,
        default_mutation_options: MutationDefaults[Any, Any] | None = None,
        query_cache: QueryCache | None = None,
        mutation_cache: MutationCache | None = None,
        clock: Clock | None = None,
        focus_manager: FocusManager | None = None,
        online_manager: OnlineManager | None = None,
    ) -> None:
        self.clock = SystemClock() if clock is None else clock
        self.query_cache = QueryCache() if query_cache is None else query_cache
        self.mutation_cache = MutationCache() if mutation_cache is None else mutation_cache
        self.focus_manager = FocusManager() if focus_manager is None else focus_manager
        self.online_manager = OnlineManager() if online_manager is None else online_manager
        self.environment = Environment(self.clock, self.focus_manager, self.online_manager)
        self.notify_manager = NotifyManager(lambda run: self.clock.call_later(0.0, run))
        self._default_query_options = cast("Mapping[str, Any]", default_query_options or {})
        self._default_mutation_options = cast("Mapping[str, Any]", default_mutation_options or {})
        self._query_defaults: dict[str, tuple[QueryKey, Mapping[str, Any]]] = {}
        self._mutation_defaults: dict[str, tuple[QueryKey, Mapping[str, Any]]] = {}
        self._mounts = 0
        self._unsubscribe: list[Callable[[], None]] = []

    # Life

    def mount(self) -> None:
        """Begin to watch focus and network; calls are counted."""
        self._mounts += 1
        if self._mounts == 1:
            self._unsubscribe = [
                self.focus_manager.subscribe(partial(self._switched, self.query_cache.on_focus)),
                self.online_manager.subscribe(partial(self._switched, self.query_cache.on_online)),
            ]

    def unmount(self) -> None:
        """Stop watching, when called as often as `mount`."""
        self._mounts -= 1
        if self._mounts == 0:
            for unsubscribe in self._unsubscribe:
                unsubscribe()
            self._unsubscribe = []

    async def __aenter__(self) -> Self:
        self.mount()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()
        await self.close()

    async def close(self) -> None:
        """Forget everything, cancel every fetch and mutation that runs, and wait until they have ended."""
        tasks = [query.cancel(silent=True) for query in self.query_cache]
        tasks += [mutation.destroy() for mutation in self.mutation_cache]
        self.clear()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    def clear(self) -> None:
        """Forget all queries and mutations."""
        self.query_cache.clear()
        self.mutation_cache.clear()

    def _switched(self, queries_go_on: Callable[[], None], on: bool) -> None:  # noqa: FBT001 -- a Switch's value
        if on:
            # Mutations first: a query refetched before them would show what they are about to change.
            self.resume_paused_mutations().add_done_callback(lambda _: queries_go_on())

    # Reading

    def get_query_data(self, key: QueryKey) -> Any:
        """The data in the cache for that very key; None if there is none."""
        state = self.get_query_state(key)
        return None if state is None else state.data

    def get_query_state(self, key: QueryKey) -> QueryState[Any] | None:
        """The state of the query of that very key."""
        query = self.query_cache.find(key)
        return None if query is None else query.state

    def get_queries_data(
        self, key: QueryKey = (), **filters: Unpack[QueryFilters]
    ) -> list[tuple[QueryKey, Any]]:
        """Keys and data of all matching queries."""
        return [(query.key, query.state.data) for query in self.query_cache.find_all(key, **filters)]

    def is_fetching(self, key: QueryKey = (), **filters: Unpack[QueryFilters]) -> int:
        """How many matching queries are fetching."""
        filters["fetch_status"] = "fetching"
        return len(self.query_cache.find_all(key, **filters))

    def is_mutating(self, key: QueryKey = (), **filters: Unpack[MutationFilters]) -> int:
        """How many matching mutations are pending."""
        filters["status"] = "pending"
        return len(self.mutation_cache.find_all(key, **filters))

    # Writing

    @overload
    def set_query_data(
        self, key: QueryKey, updater: Callable[[Any], T | None], *, updated_at: float | None = None
    ) -> T | None: ...
    @overload
    def set_query_data(self, key: QueryKey, updater: T, *, updated_at: float | None = None) -> T: ...
    def set_query_data(self, key: QueryKey, updater: Any, *, updated_at: float | None = None) -> Any:
        """Write a query's whole data; it counts as fresh. For a part of it, see `patch_query_data`.

        Args:
            key: Which query.
            updater: The data, or a function from the old data, None if there is none, to the new.
                None changes nothing and makes no entry.
            updated_at: When it was right, seconds since 1970 UTC; now by default.

        Returns:
            What the cache holds now; None if nothing was written.
        """
        query = self.query_cache.find(key)
        data = _updated(updater, None if query is None else query.base)
        if data is None:
            return None
        if query is None:
            query = self.query_cache.build(self, self.resolve_query_options({"key": key}))
        return query.set_data(data, updated_at=updated_at)

    def set_queries_data(
        self,
        key: QueryKey,
        updater: Any,
        *,
        updated_at: float | None = None,
        **filters: Unpack[QueryFilters],
    ) -> list[tuple[QueryKey, Any]]:
        """`set_query_data` for all matching queries that exist.

        Returns:
            Their keys with what the cache holds now.
        """
        with self.notify_manager.batch():
            return [
                (query.key, self.set_query_data(query.key, updater, updated_at=updated_at))
                for query in self.query_cache.find_all(key, **filters)
            ]

    def patch_query_data(self, key: QueryKey, updater: Callable[[Any], Any]) -> None:
        """Bring a part of a query's data up to date, without making the query look fresh.

        Args:
            key: Which query.
            updater: From the old data to the new; not called if there is none. None changes nothing.
        """
        query = self.query_cache.find(key)
        if query is not None and query.base is not None:
            data = updater(query.base)
            if data is not None:
                query.patch(data)

    def overlay_query_data(self, key: QueryKey, change: Callable[[Any], Any]) -> Callable[[], None]:
        """Show an unconfirmed change over a query's data; answers and events come in underneath.

        Args:
            key: Which query; made if there is none.
            change: From the data to the changed data; must not modify its argument.

        Returns:
            A function that takes the change away: when it is refused, or when the data has it.
        """
        query = self.query_cache.build(self, self.resolve_query_options({"key": key}))
        return query.overlay(change)

    def remove_queries(self, key: QueryKey = (), **filters: Unpack[QueryFilters]) -> None:
        """Forget all matching queries; their observers keep what they show."""
        for query in self.query_cache.find_all(key, **filters):
            self.query_cache.remove(query)

    # Fetching

    def fetch_query(self, **options: Unpack[QueryOptions[T]]) -> asyncio.Future[T]:
        """The query's data: from the cache if it is fresh, else fetched. Not repeated on failure unless `retry` says.

        Returns:
            The data. Fails with the function's error, or with `FetchCancelledError`. Cancelling it leaves the fetch
            alone: use `cancel_queries`.
        """
        return self._fetch(cast("Mapping[str, Any]", options))

    def prefetch_query(self, **options: Unpack[QueryOptions[Any]]) -> asyncio.Future[None]:
        """As `fetch_query`, for the cache only: the future has no data and never fails."""
        return all_settled([self._fetch(cast("Mapping[str, Any]", options))])

    def ensure_query_data(
        self, *, revalidate_if_stale: bool = False, **options: Unpack[QueryOptions[T]]
    ) -> asyncio.Future[T]:
        """The query's data: from the cache if there is any, fresh or not, else fetched.

        Args:
            revalidate_if_stale: Refetch in the background what is not fresh.
        """
        query = self.query_cache.find(options["key"])
        if query is None or query.state.data is None:
            return self.fetch_query(**options)
        data = cast("T", query.state.data)
        if revalidate_if_stale:
            self._fetch(cast("Mapping[str, Any]", options))
        return resolved(data)

    def fetch_infinite_query(
        self, **options: Unpack[InfiniteQueryOptions[P, K]]
    ) -> asyncio.Future[InfiniteData[P, K]]:
        """As `fetch_query`, for the pages of an infinite query: the option `pages` says how many."""
        return self._fetch({**cast("Mapping[str, Any]", options), "infinite": True})

    def _fetch(self, options: Mapping[str, Any]) -> asyncio.Future[Any]:
        resolved_options = self.resolve_query_options(options, retry=False)
        query = self.query_cache.build(self, resolved_options)
        if query.is_stale_by_time(resolve(resolved_options.stale_time, query)):
            return query.fetch(resolved_options)
        return resolved(query.state.data)

    def invalidate_queries(
        self,
        key: QueryKey = (),
        *,
        refetch_type: Literal["active", "inactive", "all", "none"] | None = None,
        cancel_refetch: bool = True,
        throw_on_error: bool = False,
        **filters: Unpack[QueryFilters],
    ) -> asyncio.Future[None]:
        """Mark all matching queries as out of date, and refetch those that are watched.

        Args:
            key: How their keys begin; () for all.
            filters: Further conditions.
            refetch_type: Which of them to refetch; by default the filter `type`, or else "active".
            cancel_refetch: Start refetches that are under way again, instead of joining them. One that is joined is
                followed by another, as its answer may be older than the invalidation.
            throw_on_error: Let the future fail if a refetch does.

        Returns:
            Done when the refetches are; those that wait for the network are not waited for.
        """
        queries = self.query_cache.find_all(key, **filters)
        for query in queries:
            query.invalidate()
        kind = refetch_type or filters.get("type", "active")
        if kind == "none":
            return resolved(None)
        if kind != "all":
            queries = [query for query in queries if query.is_active() is (kind == "active")]
        return self._refetch(queries, cancel_refetch=cancel_refetch, throw_on_error=throw_on_error)

    def refetch_queries(
        self,
        key: QueryKey = (),
        *,
        cancel_refetch: bool = True,
        throw_on_error: bool = False,
        **filters: Unpack[QueryFilters],
    ) -> asyncio.Future[None]:
        """Fetch all matching queries again, except those that are disabled or static.

        Returns:
            Done when the refetches are; those that wait for the network are not waited for.
        """
        queries = self.query_cache.find_all(key, **filters)
        return self._refetch(queries, cancel_refetch=cancel_refetch, throw_on_error=throw_on_error)

    def _refetch(
        self, queries: list[Query[Any]], *, cancel_refetch: bool, throw_on_error: bool
    ) -> asyncio.Future[None]:
        started: list[asyncio.Future[Any]] = []
        for query in queries:
            if not query.is_disabled() and not query.is_static():
                fetch = query.start_fetch(cancel_refetch=cancel_refetch)
                if query.state.fetch_status != "paused":
                    started.append(fetch)
        return all_settled(started, throw_on_error=throw_on_error)

    def cancel_queries(
        self,
        key: QueryKey = (),
        *,
        revert: bool = True,
        silent: bool = False,
        **filters: Unpack[QueryFilters],
    ) -> asyncio.Future[None]:
        """Cancel the fetches of all matching queries; their functions get `asyncio.CancelledError`.

        Args:
            key: How their keys begin; () for all.
            filters: Further conditions.
            revert: Put the states back to before the fetches; otherwise the cancellation is the queries' error.
            silent: Leave the states alone.

        Returns:
            Done when the functions have ended.
        """
        with self.notify_manager.batch():
            tasks = [
                query.cancel(revert=revert, silent=silent)
                for query in self.query_cache.find_all(key, **filters)
            ]
        return all_settled(task for task in tasks if task is not None)

    def reset_queries(
        self,
        key: QueryKey = (),
        *,
        cancel_refetch: bool = True,
        throw_on_error: bool = False,
        **filters: Unpack[QueryFilters],
    ) -> asyncio.Future[None]:
        """Put all matching queries back to their initial state, and refetch those that are watched.

        Returns:
            Done when the refetches are.
        """
        queries = self.query_cache.find_all(key, **filters)
        with self.notify_manager.batch():
            for query in queries:
                query.reset()
            active = [query for query in queries if query.is_active()]
            return self._refetch(active, cancel_refetch=cancel_refetch, throw_on_error=throw_on_error)

    def resume_paused_mutations(self) -> asyncio.Future[None]:
        """Let paused mutations go on, if online; done when they have ended."""
        if self.online_manager.is_online():
            return self.mutation_cache.resume_paused_mutations()
        return resolved(None)

    # Options

    def set_query_defaults(self, key: QueryKey, **options: Unpack[QueryDefaults[Any]]) -> None:
        """Options for all queries whose keys begin with `key`; where several match, the one set last wins."""
        self._query_defaults[hash_key(key)] = (key, cast("Mapping[str, Any]", options))

    def query_defaults(self, key: QueryKey) -> QueryDefaults[Any]:
        """The options that have been set for the beginnings of `key`."""
        return cast("QueryDefaults[Any]", _matching(self._query_defaults, key))

    def set_mutation_defaults(self, key: QueryKey, **options: Unpack[MutationDefaults[Any, Any]]) -> None:
        """Options for all mutations whose keys begin with `key`."""
        self._mutation_defaults[hash_key(key)] = (key, cast("Mapping[str, Any]", options))

    def mutation_defaults(self, key: QueryKey) -> MutationDefaults[Any, Any]:
        """The options that have been set for the beginnings of `key`."""
        return cast("MutationDefaults[Any, Any]", _matching(self._mutation_defaults, key))

    def resolve_query_options(self, options: Mapping[str, Any], **base: Any) -> ResolvedQueryOptions[Any]:
        """`options` over the defaults for their key, over the client's defaults, over `base`.

        Raises:
            ClientError: An option that does not exist, or a value that it cannot have.
            TypeError: A key that cannot be used.
        """
        defaults = _matching(self._query_defaults, options["key"])
        return resolve_query_options({**base, **self._default_query_options, **defaults, **options})

    def resolve_mutation_options(self, options: Mapping[str, Any]) -> ResolvedMutationOptions[Any, Any]:
        """The same for a mutation.

        Raises:
            ClientError: An option that does not exist.
        """
        key = options.get("key")
        defaults = {} if key is None else _matching(self._mutation_defaults, key)
        return resolve_mutation_options({**self._default_mutation_options, **defaults, **options})


def _matching(defaults: Mapping[str, tuple[QueryKey, Mapping[str, Any]]], key: QueryKey) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for prefix, options in defaults.values():
        if partial_match_key(key, prefix):
            merged.update(options)
    return merged


def _updated(updater: Any, data: Any) -> Any:
    return updater(data) if callable(updater) else updater
