"""All mutations, and the queues of those that must run one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar, Unpack

import msgspec

from .futures import all_settled
from .keys import QueryKey, hash_key, partial_match_key
from .mutation import Mutation
from .mutation_state import MutationAction, MutationState, MutationStatus
from .options import ResolvedMutationOptions
from .subscribable import Subscribable

if TYPE_CHECKING:
    from .mutation_observer import MutationObserver
    from .query_client import QueryClient

V = TypeVar("V")
R = TypeVar("R")

MutationEventType: TypeAlias = Literal["added", "removed", "updated", "observer_added", "observer_removed"]


class MutationCacheEvent(msgspec.Struct, frozen=True, eq=False):
    """Something happened to a mutation of the cache.

    Attributes:
        action: For "updated", what changed its state.
        observer: For the events of an observer, which one.
    """

    type: MutationEventType
    mutation: Mutation[Any, Any]
    action: MutationAction | None = None
    observer: MutationObserver[Any, Any] | None = None


class MutationFilters(TypedDict, total=False):
    """Which mutations are meant, besides the beginning of their keys; all conditions must hold.

    Attributes:
        exact: The key itself, not its beginning.
        status: Their state.
        predicate: Anything else.
    """

    exact: bool
    status: MutationStatus
    predicate: Callable[[Mutation[Any, Any]], bool]


class MutationCache(Subscribable[MutationCacheEvent]):
    """The mutations of a client.

    Args:
        on_mutate: Called with (variables, mutation) before each mutation's own `on_mutate`.
        on_success: Called with (answer, variables, context, mutation) before its own `on_success`.
        on_error: Called with (error, variables, context, mutation) before its own `on_error`.
        on_settled: Called with (answer or None, error or None, variables, context, mutation) before its own.
    """

    def __init__(
        self,
        *,
        on_mutate: Callable[[Any, Mutation[Any, Any]], object] | None = None,
        on_success: Callable[[Any, Any, Any, Mutation[Any, Any]], object] | None = None,
        on_error: Callable[[Exception, Any, Any, Mutation[Any, Any]], object] | None = None,
        on_settled: Callable[[Any, Exception | None, Any, Any, Mutation[Any, Any]], object] | None = None,
    ) -> None:
        super().__init__()
        self.on_mutate = on_mutate
        self.on_success = on_success
        self.on_error = on_error
        self.on_settled = on_settled
        self._mutations: dict[int, Mutation[Any, Any]] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._mutations)

    def __iter__(self) -> Iterator[Mutation[Any, Any]]:
        return iter(tuple(self._mutations.values()))

    def build(
        self,
        client: QueryClient,
        options: ResolvedMutationOptions[V, R],
        state: MutationState[V, R] | None = None,
    ) -> Mutation[V, R]:
        """A new mutation, with `state` if given."""
        self._last_number += 1
        mutation = Mutation(client, self._last_number, options, state)
        self._mutations[mutation.number] = mutation
        self.notify("added", mutation)
        return mutation

    def find_all(self, key: QueryKey = (), **filters: Unpack[MutationFilters]) -> list[Mutation[Any, Any]]:
        """The mutations whose keys begin with `key` and that pass the filters, in the order of their calls."""
        found = list(self)
        if key and filters.get("exact"):
            found = [one for one in found if one.options.key and hash_key(one.options.key) == hash_key(key)]
        elif key:
            found = [one for one in found if one.options.key and partial_match_key(one.options.key, key)]
        if (status := filters.get("status")) is not None:
            found = [one for one in found if one.state.status == status]
        if (predicate := filters.get("predicate")) is not None:
            found = [one for one in found if predicate(one)]
        return found

    def remove(self, mutation: Mutation[Any, Any]) -> None:
        """Forget a mutation; if it runs, it runs on."""
        if self._mutations.pop(mutation.number, None) is not None:
            self.notify("removed", mutation)

    def clear(self) -> None:
        """Forget all mutations."""
        for mutation in self:
            self.remove(mutation)

    def can_run(self, mutation: Mutation[Any, Any]) -> bool:
        """Whether no mutation of the same scope is pending before it."""
        scope = mutation.options.scope
        if scope is None:
            return True
        first = next(
            (one for one in self if one.options.scope == scope and one.state.status == "pending"), mutation
        )
        return first is mutation

    def run_next(self, mutation: Mutation[Any, Any]) -> None:
        """`mutation` has ended: let the next of its scope go on."""
        scope = mutation.options.scope
        if scope is None:
            return
        waiting = (one for one in self if one.options.scope == scope and one.state.is_paused)
        following = next((one for one in waiting if one is not mutation), None)
        if following is not None:
            following.resume()

    def resume_paused_mutations(self) -> asyncio.Future[None]:
        """Let all paused mutations go on, in the order of their calls; done when all have ended."""
        return all_settled(mutation.resume() for mutation in self if mutation.state.is_paused)

    def notify(
        self,
        event_type: MutationEventType,
        mutation: Mutation[Any, Any],
        *,
        action: MutationAction | None = None,
        observer: MutationObserver[Any, Any] | None = None,
    ) -> None:
        """Tell the listeners."""
        if self._listeners:
            self._emit(MutationCacheEvent(event_type, mutation, action, observer))
