"""A cache of what an application has asked for, with the semantics of TanStack Query v5, kept live by the stream.

The one rule of this room: whoever shows data learns from one place what it is, how old it is, and whether it is known
to be out of date. `QueryClient` is the way in; `docs/query-cache.md` the guide. No globals: a client, its clock and
its managers are instances, one client for each user.
"""

from __future__ import annotations

from .clock import Clock, ManualClock, SystemClock, Timer
from .entities import Entity, KeyFamily, Patch, PollingIntervals
from .focus_manager import FocusManager
from .freshness import Freshness, FreshnessLevel
from .infinite_query_observer import InfiniteQueryObserver, InfiniteQueryResult
from .journal import ChangeEvent, TransactionEvent
from .keys import QueryKey, hash_key
from .mutation import Mutation
from .mutation_cache import MutationCache, MutationCacheEvent, MutationFilters
from .mutation_observer import MutationObserver
from .mutation_state import MutationState, MutationStatus
from .notify import NotifyManager
from .online_manager import OnlineManager
from .options import (
    SKIP,
    InfiniteData,
    InfiniteQueryOptions,
    MutationDefaults,
    MutationOptions,
    QueryDefaults,
    QueryFunctionContext,
    QueryOptions,
    ResolvedMutationOptions,
    ResolvedQueryOptions,
)
from .persistence import CachePersistence, DehydratedState, FileStorage, Storage, dehydrate, hydrate
from .queries_observer import QueriesObserver
from .query import Query
from .query_cache import QueryCache, QueryCacheEvent, QueryFilters
from .query_client import QueryClient
from .query_observer import QueryObserver, QueryResult
from .query_state import FetchStatus, QueryState, QueryStatus
from .realtime import ConnectionState, Decision, RealtimeIntegration
from .retryer import FetchCancelledError, NotModified
from .row_patch import RowPatch
from .visibility import Snapshot, parse_snapshot

__all__ = [
    "SKIP",
    "CachePersistence",
    "ChangeEvent",
    "Clock",
    "ConnectionState",
    "Decision",
    "DehydratedState",
    "Entity",
    "FetchCancelledError",
    "FetchStatus",
    "FileStorage",
    "FocusManager",
    "Freshness",
    "FreshnessLevel",
    "InfiniteData",
    "InfiniteQueryObserver",
    "InfiniteQueryOptions",
    "InfiniteQueryResult",
    "KeyFamily",
    "ManualClock",
    "Mutation",
    "MutationCache",
    "MutationCacheEvent",
    "MutationDefaults",
    "MutationFilters",
    "MutationObserver",
    "MutationOptions",
    "MutationState",
    "MutationStatus",
    "NotModified",
    "NotifyManager",
    "OnlineManager",
    "Patch",
    "PollingIntervals",
    "QueriesObserver",
    "Query",
    "QueryCache",
    "QueryCacheEvent",
    "QueryClient",
    "QueryDefaults",
    "QueryFilters",
    "QueryFunctionContext",
    "QueryKey",
    "QueryObserver",
    "QueryOptions",
    "QueryResult",
    "QueryState",
    "QueryStatus",
    "RealtimeIntegration",
    "ResolvedMutationOptions",
    "ResolvedQueryOptions",
    "RowPatch",
    "Snapshot",
    "Storage",
    "SystemClock",
    "Timer",
    "TransactionEvent",
    "dehydrate",
    "hash_key",
    "hydrate",
    "parse_snapshot",
]
