"""Watches any number of queries as one list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .keys import hash_key
from .options import QueryOptions
from .query_observer import QueryObserver, QueryResult
from .subscribable import Subscribable

if TYPE_CHECKING:
    from .query_client import QueryClient


class QueriesObserver(Subscribable[list[QueryResult[Any]]]):
    """Watches several queries; its listeners get all results whenever one changes.

    Args:
        queries: The options of each query.

    Attributes:
        observers: The observer of each query, in the order of `queries`.
    """

    def __init__(self, client: QueryClient, queries: Sequence[QueryOptions[Any]]) -> None:
        super().__init__()
        self._client = client
        self._unsubscribe: dict[QueryObserver[Any, Any], Callable[[], None]] = {}
        self.observers: list[QueryObserver[Any, Any]] = []
        self.set_queries(queries)

    @property
    def current_result(self) -> list[QueryResult[Any]]:
        """The results, in the order of the queries."""
        return [observer.current_result for observer in self.observers]

    def set_queries(self, queries: Sequence[QueryOptions[Any]]) -> None:
        """Watch these from now on. The observers of queries that stay are kept."""
        unused: dict[str, list[QueryObserver[Any, Any]]] = {}
        for observer in self.observers:
            unused.setdefault(observer.query.hash, []).append(observer)
        before = self.current_result
        self.observers = []
        for options in queries:
            kept = unused.get(hash_key(options["key"]))
            if kept:
                observer = kept.pop(0)
                observer.set_options(**options)
            else:
                observer = QueryObserver(self._client, **options)
            self.observers.append(observer)
        for observer in [one for left in unused.values() for one in left]:
            self._unsubscribe.pop(observer, observer.destroy)()
        if self.has_listeners():
            self._watch()
            after = self.current_result
            if len(after) != len(before) or any(map(_other, before, after)):
                self._emit(after)

    def _on_subscribe(self) -> None:
        self._watch()

    def _on_unsubscribe(self) -> None:
        if not self.has_listeners():
            for unsubscribe in self._unsubscribe.values():
                unsubscribe()
            self._unsubscribe.clear()

    def _watch(self) -> None:
        for observer in self.observers:
            if observer not in self._unsubscribe:
                self._unsubscribe[observer] = observer.subscribe(partial(self._updated, observer))

    def _updated(self, observer: QueryObserver[Any, Any], _result: QueryResult[Any]) -> None:
        if observer in self.observers:
            self._emit(self.current_result)


def _other(left: object, right: object) -> bool:
    return left is not right
