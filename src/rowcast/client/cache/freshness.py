"""How far a query's data can be trusted, as something to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .query_client import QueryClient
from .subscribable import call_safely

FreshnessLevel: TypeAlias = Literal["live", "quiet", "outdated", "polling", "off"]


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far a query's data can be trusted.

    Attributes:
        level: "live": connected, with events for it in the last half minute. "quiet": connected, without.
            "outdated": something has changed that it does not show; a refetch runs or is due, once somebody watches.
            "polling": not connected; as old as the last poll. "off": realtime does not care for this query.
        updated_at: When the data was last known to be right, seconds since 1970 UTC; 0.0 for never.
        last_event_at: When the last event for its tables came; None if none has.
    """

    level: FreshnessLevel
    updated_at: float
    last_event_at: float | None


class FreshnessMonitor:
    """Tells listeners when the level of a query changes.

    Args:
        client: Whose queries.
        freshness: Works it out, by the query's hash.
    """

    def __init__(self, client: QueryClient, freshness: Callable[[str], Freshness]) -> None:
        self._client = client
        self._freshness = freshness
        self._levels: dict[str, FreshnessLevel] = {}
        self._listeners: dict[str, list[Callable[[Freshness], object]]] = {}

    def watch(self, query_hash: str, listener: Callable[[Freshness], object]) -> Callable[[], None]:
        """Call `listener` whenever the level changes; returns what ends that."""
        self._listeners.setdefault(query_hash, []).append(listener)
        self._levels[query_hash] = self._freshness(query_hash).level

        def unwatch() -> None:
            listeners = self._listeners.get(query_hash, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(query_hash, None)
                self._levels.pop(query_hash, None)

        return unwatch

    def refresh(self, query_hash: str | None = None) -> None:
        """Something may have changed: for one query, or for all."""
        for watched in (query_hash,) if query_hash is not None else tuple(self._levels):
            if watched in self._levels:
                freshness = self._freshness(watched)
                if freshness.level != self._levels[watched]:
                    self._levels[watched] = freshness.level
                    for listener in tuple(self._listeners[watched]):
                        call_safely(listener, freshness)
