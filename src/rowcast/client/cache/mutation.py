"""One call of a mutation: its callbacks in their order, its attempts, its state.

The one rule of this room: every change of state is an action that goes through `mutation_state.reduce`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from rowcast.errors import ClientError

from .clock import running_loop
from .futures import quiet_future, resolved, share
from .mutation_state import (
    AttemptFailed,
    Continue,
    Failure,
    MutationAction,
    MutationState,
    Pause,
    SetContext,
    Submit,
    Success,
    reduce,
)
from .options import ResolvedMutationOptions
from .removable import Removable
from .retryer import FetchCancelledError, Retryer

if TYPE_CHECKING:
    from .mutation_observer import MutationObserver
    from .query_client import QueryClient

V = TypeVar("V")
R = TypeVar("R")

logger: Final = logging.getLogger("rowcast.client.cache")


class Mutation(Removable, Generic[V, R]):
    """One call of a mutation. Made by `MutationCache.build`, never directly.

    Attributes:
        number: Counts the mutations of a cache, from 1.
        options: Its options.
        state: What it knows.
    """

    def __init__(
        self,
        client: QueryClient,
        number: int,
        options: ResolvedMutationOptions[V, R],
        state: MutationState[V, R] | None = None,
    ) -> None:
        super().__init__(client.clock)
        self.number = number
        self.options = options
        self.state: MutationState[V, R] = MutationState() if state is None else state
        self._client = client
        self._observers: list[MutationObserver[Any, Any]] = []
        self._retryer: Retryer[R] | None = None
        self._task: asyncio.Task[None] | None = None
        self._future: asyncio.Future[R] | None = None
        self._update_gc_time(options.gc_time)
        self._schedule_gc()

    def __repr__(self) -> str:
        return f"<Mutation {self.number} {self.options.key} {self.state.status}>"

    def set_options(self, options: ResolvedMutationOptions[V, R]) -> None:
        """Use `options` from now on, for the callbacks that are still to come as well."""
        self.options = options
        self._update_gc_time(options.gc_time)

    def add_observer(self, observer: MutationObserver[Any, Any]) -> None:
        if observer not in self._observers:
            self._observers.append(observer)
            self._clear_gc_timer()
            self._client.mutation_cache.notify("observer_added", self, observer=observer)

    def remove_observer(self, observer: MutationObserver[Any, Any]) -> None:
        if observer in self._observers:
            self._observers.remove(observer)
            self._schedule_gc()
            self._client.mutation_cache.notify("observer_removed", self, observer=observer)

    def destroy(self) -> asyncio.Task[None] | None:
        """Stop its timer and cancel it if it runs; returns the cancelled task."""
        self._clear_gc_timer()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def resume(self) -> asyncio.Future[Any]:
        """Go on if it is paused; one that was restored from storage starts over with its variables.

        Returns:
            Its outcome. Cancelling it leaves the mutation alone.
        """
        if self._retryer is not None and self._future is not None:
            self._retryer.resume()
            return share(self._future)
        if self.state.status == "pending":
            return self.execute(self.state.variables)  # type: ignore[arg-type]  # pending means that it has some
        return resolved(None)

    def execute(self, variables: V) -> asyncio.Future[R]:
        """Run it. A plain `on_mutate` has been called when this returns, so that its optimism shows at once.

        Returns:
            What the function returned, once all callbacks have. Fails with the function's error, or that of
            `on_mutate`, `on_success` or `on_settled`. Cancelling it leaves the mutation alone.
        """
        retryer = self._retryer = Retryer(
            lambda: self._call_function(variables),
            environment=self._client.environment,
            network_mode=self.options.network_mode,
            retry=self.options.retry,
            retry_delay=self.options.retry_delay,
            can_run=lambda: self._client.mutation_cache.can_run(self),
            on_fail=lambda count, error: self._dispatch(AttemptFailed(count, error)),
            on_pause=lambda: self._dispatch(Pause()),
            on_continue=lambda: self._dispatch(Continue()),
        )
        future: asyncio.Future[R] = quiet_future()
        self._future = future
        if self.state.status == "pending":  # restored: its on_mutate has run in an earlier life
            self._dispatch(Continue())
            prepared: Awaitable[None] | Exception | None = None
        else:
            self._dispatch(Submit(variables, paused=not retryer.can_start(), at=self._clock.now()))
            prepared = self._prepare(variables)
        self._task = running_loop().create_task(self._run(variables, retryer, future, prepared))
        return share(future)

    def _prepare(self, variables: V) -> Awaitable[None] | Exception | None:
        """Call what comes before the function; returns what must still be awaited of it, or its error."""
        calls = self._callbacks("on_mutate", variables)
        context: object = None
        try:
            for call in calls:
                context = call()
                if inspect.isawaitable(context):
                    return self._finish_preparing(context, calls)
        except Exception as error:  # noqa: BLE001 -- takes the way of the function's errors
            return error
        self._take_context(context)
        return None

    async def _finish_preparing(
        self, awaitable: Awaitable[object], calls: Iterator[Callable[[], object]]
    ) -> None:
        context = await awaitable
        for call in calls:
            context = await _value(call())
        self._take_context(context)

    def _take_context(self, context: object) -> None:
        if self.options.on_mutate is not None and context is not None:
            self._dispatch(SetContext(context))

    def _callbacks(self, name: str, *arguments: object) -> Iterator[Callable[[], object]]:
        """The cache's callback of that name, then the mutation's own."""
        for_all = getattr(self._client.mutation_cache, name)
        if for_all is not None:
            yield partial(for_all, *arguments, self)
        own = getattr(self.options, name)
        if own is not None:
            yield partial(own, *arguments)

    async def _run(
        self,
        variables: V,
        retryer: Retryer[R],
        future: asyncio.Future[R],
        prepared: Awaitable[None] | Exception | None,
    ) -> None:
        try:
            data = await self._attempt(variables, retryer, prepared)
        except Exception as error:  # noqa: BLE001 -- whatever the function raises is the mutation's state
            await self._report(error, variables)
            self._end(Failure(error))
            future.set_exception(error)
        except asyncio.CancelledError:
            future.set_exception(
                FetchCancelledError(f"the mutation {self.options.key} was dropped with its cache")
            )
            raise
        else:
            self._end(Success(data))
            future.set_result(data)
        finally:
            self._task = self._retryer = None
            self._client.mutation_cache.run_next(self)

    async def _attempt(
        self, variables: V, retryer: Retryer[R], prepared: Awaitable[None] | Exception | None
    ) -> R:
        if isinstance(prepared, Exception):
            raise prepared
        if prepared is not None:
            await prepared
        # The mutations called together with this one prepare themselves before it goes to the network.
        await asyncio.sleep(0)
        if self.state.is_paused and retryer.can_start():
            self._dispatch(Continue())
        data = await retryer.run()
        for call in self._callbacks("on_success", data, variables, self.state.context):
            await _value(call())
        for call in self._callbacks("on_settled", data, None, variables, self.state.context):
            await _value(call())
        return data

    async def _report(self, error: Exception, variables: V) -> None:
        for call in self._callbacks("on_error", error, variables, self.state.context):
            await _aside(call)
        for call in self._callbacks("on_settled", None, error, variables, self.state.context):
            await _aside(call)

    def _call_function(self, variables: V) -> Awaitable[R]:
        if self.options.fn is None:
            raise ClientError(
                f"the mutation {self.options.key} has no function: pass `fn`, or set one with `set_mutation_defaults`"
            )
        return self.options.fn(variables)

    def _end(self, action: MutationAction) -> None:
        self._retryer = None
        self._dispatch(action)

    def _dispatch(self, action: MutationAction) -> None:
        self.state = reduce(self.state, action)
        self._client.notify_manager.deliver(lambda: self._notify(action))

    def _notify(self, action: MutationAction) -> None:
        for observer in tuple(self._observers):
            observer.on_mutation_update(action)
        self._client.mutation_cache.notify("updated", self, action=action)

    def _optional_remove(self) -> None:
        if not self._observers:
            if self.state.status == "pending":
                self._schedule_gc()
            else:
                self._client.mutation_cache.remove(self)


async def _value(result: object) -> object:
    return await result if inspect.isawaitable(result) else result


async def _aside(callback: Callable[[], object]) -> None:
    """Call a callback of a mutation that has failed already: its own error must not hide the first one."""
    try:
        await _value(callback())
    except Exception:
        logger.exception("a callback of a failed mutation raised; the mutation keeps its own error")
