"""All queries, by hash and by the beginnings of their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar, Unpack

import msgspec

from .key_index import KeyIndex
from .keys import QueryKey, hash_key
from .options import ResolvedQueryOptions
from .query import Answer, Query
from .query_state import FetchStatus, QueryAction, QueryState
from .subscribable import Subscribable, call_safely

if TYPE_CHECKING:
    from .query_client import QueryClient
    from .query_observer import QueryObserver

T = TypeVar("T")

QueryEventType: TypeAlias = Literal[
    "added",
    "removed",
    "updated",
    "observer_added",
    "observer_removed",
    "observer_results_updated",
    "observer_options_updated",
]


class QueryCacheEvent(msgspec.Struct, frozen=True, eq=False):
    """Something happened to a query of the cache.

    Attributes:
        action: For "updated", what changed its state.
        observer: For the events of an observer, which one.
    """

    type: QueryEventType
    query: Query[Any]
    action: QueryAction | None = None
    observer: QueryObserver[Any, Any] | None = None


class QueryFilters(TypedDict, total=False):
    """Which queries are meant, besides the beginning of their keys; all conditions must hold.

    Attributes:
        exact: The key itself, not its beginning.
        type: "active": watched by an enabled observer. "inactive": the others. "all" by default.
        stale: Whether they are out of date.
        fetch_status: What their functions are doing.
        predicate: Anything else.
    """

    exact: bool
    type: Literal["all", "active", "inactive"]
    stale: bool
    fetch_status: FetchStatus
    predicate: Callable[[Query[Any]], bool]


class FetchHook(Protocol):
    """Somebody who knows more about an answer than that it has come."""

    def fetch_started(self, query: Query[Any]) -> None:
        """A fetch begins now."""
        ...

    def answer_arrived(self, query: Query[Any], answer: Answer) -> Answer:
        """An answer has come; returns what is to be stored in its place."""
        ...

    def fetch_ended(self, query: Query[Any]) -> None:
        """A fetch has ended: with an answer, an error, or by cancellation."""
        ...


class QueryCache(Subscribable[QueryCacheEvent]):
    """The queries of a client.

    Args:
        on_success: Called with (data, query) once for each fetch that succeeds; not for data written by hand.
        on_error: Called with (error, query) once for each fetch that fails.
        on_settled: Called with (data or None, error or None, query) after either.

    Attributes:
        fetch_hooks: Who is asked about each answer before it is stored, in this order.
    """

    def __init__(
        self,
        *,
        on_success: Callable[[Any, Query[Any]], object] | None = None,
        on_error: Callable[[Exception, Query[Any]], object] | None = None,
        on_settled: Callable[[Any, Exception | None, Query[Any]], object] | None = None,
    ) -> None:
        super().__init__()
        self.fetch_hooks: list[FetchHook] = []
        self._on_success = on_success
        self._on_error = on_error
        self._on_settled = on_settled
        self._queries: dict[str, Query[Any]] = {}
        self._index: KeyIndex[Query[Any]] = KeyIndex()

    def __len__(self) -> int:
        return len(self._queries)

    def __iter__(self) -> Iterator[Query[Any]]:
        return iter(tuple(self._queries.values()))

    def build(
        self, client: QueryClient, options: ResolvedQueryOptions[T], state: QueryState[T] | None = None
    ) -> Query[T]:
        """The query of `options.key`; made if there is none, with `state` if given."""
        query = self._queries.get(options.hash)
        if query is None:
            query = self._queries[options.hash] = Query(client, options, state)
            self._index.add(query.key, query)
            self.notify("added", query)
        return query

    def get(self, query_hash: str) -> Query[Any] | None:
        """The query of that hash."""
        return self._queries.get(query_hash)

    def find(self, key: QueryKey) -> Query[Any] | None:
        """The query of that very key."""
        return self._queries.get(hash_key(key))

    def find_all(self, key: QueryKey = (), **filters: Unpack[QueryFilters]) -> list[Query[Any]]:
        """The queries whose keys begin with `key` and that pass the filters."""
        if filters.get("exact"):
            query = self.find(key)
            found = [] if query is None else [query]
        else:
            found = self._index.find(key) if key else list(self)
        kind = filters.get("type", "all")
        if kind != "all":
            found = [query for query in found if query.is_active() is (kind == "active")]
        if (stale := filters.get("stale")) is not None:
            found = [query for query in found if query.is_stale() is stale]
        if (fetch_status := filters.get("fetch_status")) is not None:
            found = [query for query in found if query.state.fetch_status == fetch_status]
        if (predicate := filters.get("predicate")) is not None:
            found = [query for query in found if predicate(query)]
        return found

    def remove(self, query: Query[Any]) -> None:
        """Forget a query; its observers keep their last result."""
        if self._queries.get(query.hash) is query:
            query.destroy()
            del self._queries[query.hash]
            self._index.remove(query.key)
            self.notify("removed", query)

    def clear(self) -> None:
        """Forget all queries."""
        for query in self:
            self.remove(query)

    def on_focus(self) -> None:
        for query in self:
            query.on_focus()

    def on_online(self) -> None:
        for query in self:
            query.on_online()

    def notify(
        self,
        event_type: QueryEventType,
        query: Query[Any],
        *,
        action: QueryAction | None = None,
        observer: QueryObserver[Any, Any] | None = None,
    ) -> None:
        """Tell the listeners."""
        if self._listeners:
            self._emit(QueryCacheEvent(event_type, query, action, observer))

    def settled(self, query: Query[Any], data: Any, error: Exception | None) -> None:
        """A fetch has ended: call the callbacks."""
        if error is None and self._on_success is not None:
            call_safely(self._on_success, data, query)
        if error is not None and self._on_error is not None:
            call_safely(self._on_error, error, query)
        if self._on_settled is not None:
            call_safely(self._on_settled, data, error, query)
