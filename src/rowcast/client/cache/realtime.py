"""Keeps the cache up to date from the stream: patches, invalidates, replays over answers, and polls as a safety net.

The one rule of this room: nothing a user has seen may go back to something older. An event that an answer has not seen
is replayed over it; an event that the data has seen is not applied again; a patch makes nothing look fresh.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias
from weakref import WeakKeyDictionary

from rowcast.errors import ClientError

from .clock import Timer
from .coalescer import Coalescer
from .entities import Entity
from .freshness import Freshness, FreshnessLevel, FreshnessMonitor
from .futures import all_settled
from .journal import ChangeEvent, ChangesByTable, Journal, Replay, TransactionEvent, Versions, tables_of
from .keys import QueryKey, hash_key, partial_match_key
from .polling import LIVE_SECONDS, Poller
from .query import Answer, Query
from .query_cache import QueryCacheEvent
from .query_client import QueryClient
from .subscribable import Subscribable
from .visibility import parse_snapshot

logger: Final = logging.getLogger("rowcast.client.cache")

ConnectionState: TypeAlias = Literal[
    "connecting", "connected", "degraded", "reconnecting", "offline", "closed"
]
Outcome: TypeAlias = Literal["patched", "invalidated", "already_seen", "off"]

# Long enough that a burst of commits becomes one request, short enough to feel immediate.
DEFAULT_QUIET_SECONDS: Final = 0.1
# One request a second is what a client may cost under any storm.
DEFAULT_MAXIMUM_STALENESS_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a transaction for one query: for logs and developer tools.

    Attributes:
        outcome: "patched": its data was brought up to date. "invalidated": it is out of date; a refetch follows once
            somebody watches. "already_seen": its data was read after the transaction. "off": it has `realtime=False`.
    """

    position: str
    query_key: QueryKey
    outcome: Outcome


@dataclass(slots=True)
class _Watched:
    """What the integration remembers about one query.

    Attributes:
        entities: Those with a family that its key begins with, by table.
        fetch_mark: The number of the journal's last transaction when its fetch began.
        fetch_era: How many stretches of the stream had been lost by then.
        patched: Whether events have been patched into its data since the last answer.
        refused: Whether the last answer was refused.
    """

    entities: dict[str, Entity] = field(default_factory=dict[str, Entity])
    fetch_mark: int = 0
    fetch_era: int = 0
    patched: bool = False
    refused: bool = False


class RealtimeIntegration(Subscribable[Decision]):
    """Applies a stream of transactions to a client's cache. Listeners get each `Decision`.

    Args:
        client: Whose cache.
        entities: Which tables concern which queries.
        quiet_seconds: How long to wait for further events before a refetch; the first after a quiet time is at once.
        maximum_staleness_seconds: How long to wait at most.
        between: Returns a random number between two; for tests.

    Raises:
        ClientError: Two entities of one table.
    """

    def __init__(
        self,
        client: QueryClient,
        entities: Iterable[Entity],
        *,
        quiet_seconds: float = DEFAULT_QUIET_SECONDS,
        maximum_staleness_seconds: float = DEFAULT_MAXIMUM_STALENESS_SECONDS,
        between: Callable[[float, float], float] = random.uniform,
    ) -> None:
        super().__init__()
        self._client = client
        self._entities: dict[str, Entity] = {}
        for entity in entities:
            if entity.table in self._entities:
                raise ClientError(
                    f"the table {entity.table!r} has two entities: give one of them all its families"
                )
            self._entities[entity.table] = entity
        self._between = between
        self._journal = Journal()
        self._versions = Versions()
        self._coalescer = Coalescer(
            client.clock, quiet_seconds=quiet_seconds, maximum_staleness_seconds=maximum_staleness_seconds
        )
        self._watched: WeakKeyDictionary[Query[Any], _Watched] = WeakKeyDictionary()
        self._epoch: str | None = None
        self._era = 0  # counts what was lost: snapshots from before cannot be compared with those after it
        self._connection: ConnectionState = "connecting"
        self._enabled = True
        self._last_event_at: dict[str, float] = {}
        self._pollers: dict[str, Poller] = {}
        self._quiet_timer: Timer | None = None
        self._monitor = FreshnessMonitor(client, self._freshness)
        self._start_pollers()
        client.query_cache.fetch_hooks.append(self)
        self._unsubscribe = client.query_cache.subscribe(self._cache_event)

    def close(self) -> None:
        """Let go of the cache; what it holds stays."""
        self._enabled = False
        self._stop_pollers()
        self._coalescer.close()
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()
        self._unsubscribe()
        if self in self._client.query_cache.fetch_hooks:
            self._client.query_cache.fetch_hooks.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tables(self) -> list[str]:
        """The channels whose transactions it wants to hear of."""
        return list(self._entities)

    @property
    def enabled(self) -> bool:
        """Whether events are applied and queries polled.

        Set it to False to have the plain cache. When it is set to True again, everything counts as out of date, because
        nobody knows what has happened in between.
        """
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled == self._enabled:
            return
        self._enabled = enabled
        if enabled:
            self._start_pollers()
            self.gap()
        else:
            self._stop_pollers()
            self._coalescer.close()
        self._monitor.refresh()

    # The stream

    def apply(self, transaction: TransactionEvent) -> None:
        """Apply one transaction. All queries have changed before any listener hears of it.

        Changes that are not newer than what is known of their rows are ignored: a transaction may come again, and an
        older one may come late.
        """
        if not self._enabled:
            return
        self._enter_epoch(transaction.position)
        known = [change for change in transaction.changes if change.table in self._entities]
        news = self._versions.admit(transaction.position, known)
        changes = tables_of(news.changes)
        with self._client.notify_manager.atomic():
            if changes:
                self._journal.append(transaction.txid, changes)
                self._hear_of(changes)
                for query, concerned in self._concerned(changes).items():
                    outcome = self._deliver(query, concerned, transaction.txid)
                    decision = Decision(transaction.position, query.key, outcome)
                    self._client.notify_manager.deliver(partial(self._emit, decision))
            if news.doubtful:
                self._outdate(news.doubtful)
        self._monitor.refresh()

    def connection_state(self, state: ConnectionState) -> None:
        """The connection's state has changed: while it is not "connected", polling is faster."""
        self._connection = state
        for poller in self._pollers.values():
            poller.set_connected(state == "connected")
        self._monitor.refresh()

    def gap(self, tables: Collection[str] | None = None, *, after_seconds: float = 0.0) -> None:
        """A stretch of the stream is lost: what it concerned is out of date, and so are answers that are on their way.

        Args:
            tables: Which tables; None for all.
            after_seconds: When to refetch, so that not all clients come together.
        """
        self._era += 1
        self._journal.lose()
        for query in self._outdate(self._entities if tables is None else tables, after_seconds):
            query.snapshots = ()

    def _outdate(self, tables: Collection[str], after_seconds: float = 0.0) -> list[Query[Any]]:
        queries = self._queries_of(self._entities[table] for table in tables if table in self._entities)
        for query in queries:
            query.invalidate()
            if after_seconds:
                self._client.clock.call_later(after_seconds, partial(self._request, query))
            else:
                self._request(query)
        return queries

    def _request(self, query: Query[Any]) -> None:
        if self._enabled:
            self._coalescer.request(query)

    def _enter_epoch(self, position: str) -> None:
        epoch = position.rpartition("-")[0]
        if self._epoch is not None and epoch != self._epoch:
            # Positions and transaction ids from before cannot be compared with those to come.
            self._versions.clear()
            self._journal.clear()
            self.gap()
        self._epoch = epoch

    def _hear_of(self, tables: Iterable[str]) -> None:
        now = self._client.clock.now()
        for table in tables:
            self._last_event_at[table] = now
            if table in self._pollers:
                self._pollers[table].last_event_at = now
        if self._quiet_timer is None:
            self._quiet_timer = self._client.clock.call_later(LIVE_SECONDS, self._fall_quiet)

    def _fall_quiet(self) -> None:
        """Half a minute after an event: queries that were live may have become quiet."""
        self._monitor.refresh()
        remaining = max(self._last_event_at.values()) + LIVE_SECONDS - self._client.clock.now()
        self._quiet_timer = (
            self._client.clock.call_later(remaining, self._fall_quiet) if remaining > 0 else None
        )

    def _concerned(self, changes: ChangesByTable) -> Mapping[Query[Any], ChangesByTable]:
        """Which queries the changes of a transaction concern, and which of them."""
        found: dict[Query[Any], dict[str, Sequence[ChangeEvent]]] = {}
        for table, of_table in changes.items():
            narrowed: dict[Query[Any], dict[int, ChangeEvent]] = {}
            for family in self._entities[table].key_families:
                if family.narrow is None:
                    for query in self._client.query_cache.find_all(family.prefix):
                        found.setdefault(query, {})[table] = of_table
                    continue
                for index, change in enumerate(of_table):
                    for key in family.narrow(change):
                        for query in self._client.query_cache.find_all(key):
                            if table in self._watch(query).entities:
                                narrowed.setdefault(query, {})[index] = change
            for query, by_index in narrowed.items():
                found.setdefault(query, {}).setdefault(table, [by_index[index] for index in sorted(by_index)])
        return found

    def _deliver(self, query: Query[Any], changes: ChangesByTable, txid: int) -> Outcome:
        if not query.options.realtime:
            return "off"
        if query.snapshots and all(parse_snapshot(text).sees(txid) for text in query.snapshots):
            return "already_seen"
        outdated = True
        base = query.base
        if base is not None:
            data, outdated = self._patched(query, base, changes)
            if data is not base:
                query.patch(data)
                self._watch(query).patched = True
        if not outdated:
            return "patched"
        query.mark_stale()
        self._coalescer.request(query)
        return "invalidated"

    def _patched(self, query: Query[Any], data: Any, changes: ChangesByTable) -> tuple[Any, bool]:
        """The data after the changes, as far as the entities can tell, and whether there is more to it than they can."""
        outdated = False
        for table, of_table in changes.items():
            patch = self._entities[table].patch
            try:
                patched = None if patch is None else patch(data, of_table, query.key)
            except Exception:
                logger.exception("the patch of the entity %r raised; the query is refetched instead", table)
                patched = None
            if patched is None:
                outdated = True
            else:
                data = patched
        return data, outdated

    # Answers: the cache asks, as a FetchHook

    def fetch_started(self, query: Query[Any]) -> None:
        """What comes from now on may be missing in the answer."""
        watched = self._watch(query)
        watched.fetch_mark, watched.fetch_era = self._journal.last_number, self._era
        self._coalescer.fetch_started(query)

    def answer_arrived(self, query: Query[Any], answer: Answer) -> Answer:
        """Replay over an answer what it has not seen.

            fetch      [=============]
            events       a    b
            with the header Rowcast-Snapshot: those of a, b and the ones before that the read has not seen
            without it: a and b

        An answer that would put the data back to something older is refused: what is shown stays, and is fetched again.
        """
        watched = self._watch(query)
        if not self._enabled or not query.options.realtime or not watched.entities:
            return answer
        texts = answer.snapshots if watched.fetch_era == self._era else ()
        snapshots = [parse_snapshot(text) for text in texts]
        replay = self._journal.unseen(snapshots) if snapshots else self._journal.since(watched.fetch_mark)
        # Pages are read in snapshots of their own, one by one; only a single one can be older than another.
        older = len(snapshots) == len(query.snapshots) == 1 and not snapshots[0].covers(
            parse_snapshot(query.snapshots[0])
        )
        overflown = not replay.complete and watched.patched and not watched.refused
        if query.base is not None and (older or overflown):
            watched.refused = True
            self._coalescer.answered(query, outdated=True)
            return Answer(query.base, query.snapshots, outdated=True)
        data, outdated = self._patched(query, answer.data, self._of_replay(query, watched, replay))
        outdated = outdated or answer.outdated or not replay.complete
        watched.refused, watched.patched = False, data is not answer.data
        self._coalescer.answered(query, outdated=outdated)
        return Answer(data, texts, outdated)

    def fetch_ended(self, query: Query[Any]) -> None:
        """A further fetch follows, if the answer has not shown everything."""
        self._coalescer.fetch_ended(query)

    def _of_replay(self, query: Query[Any], watched: _Watched, replay: Replay) -> ChangesByTable:
        found: dict[str, list[ChangeEvent]] = {}
        for entry in replay.entries:
            for table, changes in entry.changes.items():
                if table in watched.entities:
                    concerning = watched.entities[table].concerning(changes, query.key)
                    if concerning:
                        found.setdefault(table, []).extend(concerning)
        return found

    def _watch(self, query: Query[Any]) -> _Watched:
        watched = self._watched.get(query)
        if watched is None:
            watched = self._watched[query] = _Watched(
                {
                    table: entity
                    for table, entity in self._entities.items()
                    if any(partial_match_key(query.key, family.prefix) for family in entity.key_families)
                }
            )
        return watched

    # The safety net

    def _start_pollers(self) -> None:
        for table, entity in self._entities.items():
            if entity.polling is not None:
                poller = Poller(self._client, entity.polling, partial(self._poll, entity), self._between)
                poller.last_event_at = self._last_event_at.get(table)
                poller.set_connected(self._connection == "connected")
                self._pollers[table] = poller

    def _stop_pollers(self) -> None:
        for poller in self._pollers.values():
            poller.stop()
        self._pollers.clear()

    def _poll(self, entity: Entity) -> asyncio.Future[None]:
        watched = [
            query for query in self._queries_of([entity]) if query.is_active() and not query.is_static()
        ]
        return all_settled([query.start_fetch() for query in watched], throw_on_error=True)

    def _queries_of(self, entities: Iterable[Entity]) -> list[Query[Any]]:
        families = [family for entity in entities for family in entity.key_families]
        found = dict.fromkeys(
            query for family in families for query in self._client.query_cache.find_all(family.prefix)
        )
        return [query for query in found if query.options.realtime]

    # Freshness

    def freshness(self, key: QueryKey) -> Freshness:
        """How far the data of the query of that very key can be trusted."""
        return self._freshness(hash_key(key))

    def watch_freshness(self, key: QueryKey, listener: Callable[[Freshness], object]) -> Callable[[], None]:
        """Call `listener` whenever the level of that query's freshness changes; returns what ends that."""
        return self._monitor.watch(hash_key(key), listener)

    def _freshness(self, query_hash: str) -> Freshness:
        query = self._client.query_cache.get(query_hash)
        if query is None:
            return Freshness("off", 0.0, None)
        tables = self._watch(query).entities
        events = [self._last_event_at[table] for table in tables if table in self._last_event_at]
        last_event_at = max(events, default=None)
        level: FreshnessLevel
        if not self._enabled or not query.options.realtime or not tables:
            level = "off"
        elif query.state.is_invalidated or query.state.data is None:
            level = "outdated"
        elif self._connection != "connected":
            level = "polling"
        elif last_event_at is not None and self._client.clock.now() - last_event_at < LIVE_SECONDS:
            level = "live"
        else:
            level = "quiet"
        return Freshness(level, query.state.data_updated_at, last_event_at)

    def _cache_event(self, event: QueryCacheEvent) -> None:
        if event.type == "removed":
            self._coalescer.forget(event.query)
        if event.type in {"added", "removed", "updated"}:
            self._monitor.refresh(event.query.hash)
