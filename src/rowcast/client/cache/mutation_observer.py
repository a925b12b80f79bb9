"""Calls a mutation on behalf of a user interface, and watches the last call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast

from .keys import hash_key
from .mutation import Mutation
from .mutation_state import Failure, MutationAction, MutationState, Success
from .options import MutationOptions, ResolvedMutationOptions
from .subscribable import Subscribable, call_safely

if TYPE_CHECKING:
    from .query_client import QueryClient

V = TypeVar("V")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _CallOptions(Generic[V, R]):
    on_success: Callable[[R, V, Any], object] | None
    on_error: Callable[[Exception, V, Any], object] | None
    on_settled: Callable[[R | None, Exception | None, V, Any], object] | None


class MutationObserver(Subscribable[MutationState[V, R]], Generic[V, R]):
    """Calls a mutation, and tells its listeners about the last call.

    Args:
        client: Whose cache.
        options: `ResolvedMutationOptions` explains them.

    Attributes:
        options: The options in use.
        current_result: The state of the last call; idle if there was none.
    """

    def __init__(self, client: QueryClient, **options: Unpack[MutationOptions[V, R]]) -> None:
        super().__init__()
        self._client = client
        self._mutation: Mutation[V, R] | None = None
        self._call_options: _CallOptions[V, R] | None = None
        self.options: ResolvedMutationOptions[V, R] = client.resolve_mutation_options(
            cast("dict[str, Any]", options)
        )

    @property
    def current_result(self) -> MutationState[V, R]:
        return MutationState() if self._mutation is None else self._mutation.state

    def set_options(self, **options: Unpack[MutationOptions[V, R]]) -> None:
        """Use other options; a call that is pending takes them too, another key forgets it.

        Raises:
            ClientError: An option that does not exist.
        """
        before = self.options.key
        self.options = self._client.resolve_mutation_options(cast("dict[str, Any]", options))
        after = self.options.key
        if before is not None and after is not None and hash_key(before) != hash_key(after):
            self.reset()
        elif self._mutation is not None and self._mutation.state.status == "pending":
            self._mutation.set_options(self.options)

    def mutate(
        self,
        variables: V,
        *,
        on_success: Callable[[R, V, Any], object] | None = None,
        on_error: Callable[[Exception, V, Any], object] | None = None,
        on_settled: Callable[[R | None, Exception | None, V, Any], object] | None = None,
    ) -> asyncio.Future[R]:
        """Call the mutation. The callbacks given here come after those of the options, and only if this is still the
        observer's last call and somebody listens then: for what concerns this screen alone.

        Returns:
            The function's answer, when all callbacks of the options have returned. Fails with the first error.
            Cancelling it, or ignoring it, leaves the mutation alone.
        """
        if self._mutation is not None:
            self._mutation.remove_observer(self)
        self._call_options = _CallOptions(on_success, on_error, on_settled)
        self._mutation = self._client.mutation_cache.build(self._client, self.options)
        self._mutation.add_observer(self)
        return self._mutation.execute(variables)

    def reset(self) -> None:
        """Forget the last call; if it runs, it runs on."""
        if self._mutation is not None:
            self._mutation.remove_observer(self)
            self._mutation = None
            self._emit(self.current_result)

    def on_mutation_update(self, action: MutationAction) -> None:
        """The state of the last call has changed."""
        state, call = self.current_result, self._call_options
        if call is not None and self.has_listeners():
            if isinstance(action, Success):
                _call(call.on_success, action.data, state.variables, state.context)
                _call(call.on_settled, action.data, None, state.variables, state.context)
            elif isinstance(action, Failure):
                _call(call.on_error, action.error, state.variables, state.context)
                _call(call.on_settled, None, action.error, state.variables, state.context)
        self._emit(state)

    def _on_subscribe(self) -> None:
        if self._mutation is not None:
            self._mutation.add_observer(self)

    def _on_unsubscribe(self) -> None:
        if not self.has_listeners() and self._mutation is not None:
            self._mutation.remove_observer(self)


def _call(callback: Callable[..., object] | None, *arguments: object) -> None:
    if callback is not None:
        call_safely(callback, *arguments)
