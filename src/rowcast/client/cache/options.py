"""The options of queries and mutations: as keyword arguments, and resolved, with every default filled in.

All times are seconds. Options are looked up in this order: the call, the defaults for the key (`set_query_defaults`,
later ones first), the client's defaults, the values here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

from rowcast.errors import ClientError

from .keys import QueryKey, hash_key
from .query_state import FetchDirection
from .retryer import DEFAULT_RETRY, NetworkMode, Retry, RetryDelay, default_retry_delay

if TYPE_CHECKING:
    from .query import Query
    from .query_client import QueryClient

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")
P = TypeVar("P")
K = TypeVar("K")


class Skip(Enum):
    """The type of `SKIP`."""

    SKIP = "skip"


# In place of a query function: there is nothing to ask for yet. The query is disabled.
SKIP: Final = Skip.SKIP

# Five minutes, as TanStack Query: long enough to come back to a screen, short enough not to collect a day's screens.
DEFAULT_GC_TIME: Final = 300.0


@dataclass(slots=True)
class QueryFunctionContext:
    """What a query function is called with.

    Attributes:
        client: The client that asks.
        key: The query's key.
        meta: The option `meta`.
        page_param: Which page to load, for infinite queries.
        direction: Whether that page comes after or before the others.
        etag: The ETag of the answer in the cache, or None. A function that sends it as `If-None-Match` sets it to the
            new answer's, and raises `NotModified` on 304.
        snapshot: Set it to the answer's header `Rowcast-Snapshot`: the realtime integration then knows exactly which
            transactions the answer has seen.
    """

    client: QueryClient
    key: QueryKey
    meta: Mapping[str, object]
    page_param: Any = None
    direction: FetchDirection = "forward"
    etag: str | None = None
    snapshot: str | None = None


class InfiniteData(NamedTuple, Generic[P, K]):
    """The data of an infinite query: its pages, and the parameter that each was loaded with."""

    pages: list[P]
    page_params: list[K]


QueryFunction: TypeAlias = Callable[[QueryFunctionContext], Awaitable[T]]
StaleTime: TypeAlias = "float | Literal['static'] | Callable[[Query[Any]], float | Literal['static']]"
Enabled: TypeAlias = "bool | Callable[[Query[Any]], bool]"
RefetchOn: TypeAlias = "bool | Literal['always'] | Callable[[Query[Any]], bool | Literal['always']]"
RefetchInterval: TypeAlias = "float | Literal[False] | Callable[[Query[Any]], float | Literal[False]]"


class CommonQueryOptions(TypedDict, total=False):
    """Options that say nothing about the type of the data; `ResolvedQueryOptions` has their meanings."""

    stale_time: StaleTime
    gc_time: float
    retry: Retry
    retry_delay: RetryDelay
    retry_on_mount: bool
    network_mode: NetworkMode
    cancellable: bool
    enabled: Enabled
    keep_previous_data: bool
    structural_sharing: bool | Callable[[Any, Any], Any]
    refetch_on_mount: RefetchOn
    refetch_on_focus: RefetchOn
    refetch_on_reconnect: RefetchOn
    refetch_interval: RefetchInterval
    refetch_interval_in_background: bool
    notify_on_change_props: Collection[str] | None
    realtime: bool
    meta: Mapping[str, object]


class QueryDefaults(CommonQueryOptions, Generic[T], total=False):
    """A query's options without its key, as for `set_query_defaults`."""

    fn: QueryFunction[T] | Skip
    initial_data: T | Callable[[], T | None] | None
    initial_data_updated_at: float | Callable[[], float | None] | None
    placeholder_data: T | Callable[[T | None, Query[T] | None], T | None] | None


class QueryOptions(QueryDefaults[T], Generic[T]):
    """A query's options."""

    key: QueryKey


class InfiniteQueryOptions(CommonQueryOptions, Generic[P, K], total=False):
    """An infinite query's options; `fn` loads one page, for `context.page_param`."""

    key: QueryKey
    fn: QueryFunction[P] | Skip
    initial_page_param: K
    get_next_page_param: Callable[[InfiniteData[P, K]], K | None]
    get_previous_page_param: Callable[[InfiniteData[P, K]], K | None]
    max_pages: int
    pages: int
    initial_data: InfiniteData[P, K] | Callable[[], InfiniteData[P, K] | None] | None
    initial_data_updated_at: float | Callable[[], float | None] | None
    placeholder_data: InfiniteData[P, K] | Callable[[Any, Any], InfiniteData[P, K] | None] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResolvedQueryOptions(Generic[T]):
    """All options of a query, with their defaults.

    Attributes:
        fn: Loads the data; an `async def` that takes a `QueryFunctionContext`. Its answer must not be None.
        stale_time: Seconds for which an answer counts as fresh. `math.inf`: until invalidated. "static": for ever.
        gc_time: Seconds after which a query that nobody observes is forgotten; `math.inf` for never.
        retry: How often a failed attempt is repeated: a number, True for ever, or a function of (number of failures
            before this one, error). `fetch_query` and its kin do not repeat unless told to.
        retry_delay: Seconds before the next attempt, or a function of the same arguments.
        retry_on_mount: Whether a new observer fetches again what failed without any data.
        network_mode: "online": fetch only while online. "offline_first": try once, wait for the network before
            repeating. "always": ignore the network.
        cancellable: Whether the function is cancelled, and the state put back, when the last observer leaves.
            Otherwise it runs to its end and the answer is kept.
        enabled: Whether observers fetch by themselves.
        initial_data: What the query has before the first fetch; kept and aged like an answer.
        initial_data_updated_at: When the initial data was right, seconds since 1970 UTC; now by default.
        placeholder_data: What an observer shows until there is data; never cached. A function gets the data of the
            observer's last query that had any, and that query.
        keep_previous_data: Show the data of the observer's last query until there is data.
        structural_sharing: Whether equal parts of new data keep their old identity; or a function of (old, new).
        refetch_on_mount: Whether a new observer refetches: True if stale, "always", False.
        refetch_on_focus: The same, when the application comes back to the front.
        refetch_on_reconnect: The same, when the network comes back. Default: True unless `network_mode` is "always".
        refetch_interval: Seconds between refetches, from observers' own timers; False for none.
        refetch_interval_in_background: Whether they go on while nobody looks.
        notify_on_change_props: Names of the result's fields whose change the observer's listeners want to hear of;
            None for all.
        realtime: Whether the realtime integration may patch, invalidate or poll this query.
        meta: Anything of yours.
        infinite: Whether the data is `InfiniteData`.
        initial_page_param: The parameter of an infinite query's first page.
        get_next_page_param: From the data, the parameter of the page after it; None if that was the last.
        get_previous_page_param: The same for the page before it.
        max_pages: How many pages to keep; 0 for all.
        pages: How many pages to fetch at first, or again; 0 for as many as there are.
    """

    key: QueryKey
    hash: str
    fn: QueryFunction[Any] | Skip | None = None
    stale_time: StaleTime = 0.0
    gc_time: float = DEFAULT_GC_TIME
    retry: Retry = DEFAULT_RETRY
    retry_delay: RetryDelay = default_retry_delay
    retry_on_mount: bool = True
    network_mode: NetworkMode = "online"
    cancellable: bool = False
    enabled: Enabled = True
    initial_data: T | Callable[[], T | None] | None = None
    initial_data_updated_at: float | Callable[[], float | None] | None = None
    placeholder_data: Any = None
    keep_previous_data: bool = False
    structural_sharing: bool | Callable[[Any, Any], Any] = True
    refetch_on_mount: RefetchOn = True
    refetch_on_focus: RefetchOn = True
    refetch_on_reconnect: RefetchOn = True
    refetch_interval: RefetchInterval = False
    refetch_interval_in_background: bool = False
    notify_on_change_props: Collection[str] | None = None
    realtime: bool = True
    meta: Mapping[str, object]
    infinite: bool = False
    initial_page_param: Any = None
    get_next_page_param: Callable[[Any], Any] | None = None
    get_previous_page_param: Callable[[Any], Any] | None = None
    max_pages: int = 0
    pages: int = 0


class MutationDefaults(TypedDict, Generic[V, R], total=False):
    """A mutation's options without its key, as for `set_mutation_defaults`; `ResolvedMutationOptions` has the meanings."""

    fn: Callable[[V], Awaitable[R]]
    on_mutate: Callable[[V], object]
    on_success: Callable[[R, V, Any], object]
    on_error: Callable[[Exception, V, Any], object]
    on_settled: Callable[[R | None, Exception | None, V, Any], object]
    retry: Retry
    retry_delay: RetryDelay
    network_mode: NetworkMode
    gc_time: float
    scope: str | None
    meta: Mapping[str, object]


class MutationOptions(MutationDefaults[V, R], Generic[V, R], total=False):
    """A mutation's options."""

    key: QueryKey


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResolvedMutationOptions(Generic[V, R]):
    """All options of a mutation, with their defaults. Callbacks may be coroutine functions; they are awaited.

    Attributes:
        key: Names the mutation, for defaults and for finding it; needed where paused mutations are persisted.
        fn: Does it; an `async def` that takes the variables.
        on_mutate: Called first with the variables. What it returns is handed to the other callbacks as `context`.
        on_success: Called with (answer, variables, context).
        on_error: Called with (error, variables, context).
        on_settled: Called last with (answer or None, error or None, variables, context). The mutation stays pending
            until it has returned: return `client.invalidate_queries(…)` to wait for the refetch.
        retry: As for queries, but 0 by default.
        scope: Mutations with the same scope run one after the other.
        gc_time: Seconds for which a finished mutation is kept without observers.
    """

    key: QueryKey | None = None
    fn: Callable[[V], Awaitable[R]] | None = None
    on_mutate: Callable[[V], object] | None = None
    on_success: Callable[[R, V, Any], object] | None = None
    on_error: Callable[[Exception, V, Any], object] | None = None
    on_settled: Callable[[R | None, Exception | None, V, Any], object] | None = None
    retry: Retry = 0
    retry_delay: RetryDelay = default_retry_delay
    network_mode: NetworkMode = "online"
    gc_time: float = DEFAULT_GC_TIME
    scope: str | None = None
    meta: Mapping[str, object]


_QUERY_OPTIONS: Final = {field.name for field in fields(ResolvedQueryOptions)} - {"hash"}
_MUTATION_OPTIONS: Final = {field.name for field in fields(ResolvedMutationOptions)}


def resolve_query_options(options: Mapping[str, Any]) -> ResolvedQueryOptions[Any]:
    """Fill in the defaults.

    Raises:
        ClientError: An option that does not exist, or a value that it cannot have.
        TypeError: A key that cannot be used.
    """
    _refuse_unknown(options, _QUERY_OPTIONS)
    enabled = options.get("enabled", True)
    if not isinstance(enabled, bool) and not callable(enabled):
        raise ClientError(f"the option `enabled` is {enabled!r}: use True, False or a function of the query")
    filled: dict[str, Any] = {"meta": {}, **options, "hash": hash_key(options["key"])}
    filled.setdefault("refetch_on_reconnect", options.get("network_mode") != "always")
    if filled.get("fn") is SKIP:
        filled["enabled"] = False
    return ResolvedQueryOptions(**filled)


def resolve_mutation_options(options: Mapping[str, Any]) -> ResolvedMutationOptions[Any, Any]:
    """Fill in the defaults.

    Raises:
        ClientError: An option that does not exist.
    """
    _refuse_unknown(options, _MUTATION_OPTIONS)
    filled: dict[str, Any] = {"meta": {}, **options}
    return ResolvedMutationOptions(**filled)


def resolve(value: Any, query: Query[Any]) -> Any:
    """An option's value, where it may be a function of the query."""
    return value(query) if callable(value) else value


def is_finite(seconds: object) -> bool:
    """Whether a timer can be set for it."""
    return isinstance(seconds, int | float) and seconds is not False and 0 <= seconds < math.inf


def _refuse_unknown(options: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(options.keys() - known)
    if unknown:
        raise ClientError(f"there is no option {unknown[0]!r}; there are: {', '.join(sorted(known))}")
