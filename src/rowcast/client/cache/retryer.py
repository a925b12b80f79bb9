"""Runs one function until it succeeds or gives up: attempts, the pauses between them, and waiting for the network.

The one rule of this room: it never touches the state of a query or mutation; it says what happened through callbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from rowcast.errors import ClientError

from .clock import Clock, running_loop
from .focus_manager import FocusManager
from .online_manager import OnlineManager

T = TypeVar("T")

NetworkMode: TypeAlias = Literal["online", "always", "offline_first"]
Retry: TypeAlias = bool | int | Callable[[int, Exception], bool]
RetryDelay: TypeAlias = float | Callable[[int, Exception], float]

DEFAULT_RETRY: Final = 3
# As TanStack Query's: long enough for a restart of the server, short enough that somebody is still looking.
_LONGEST_RETRY_DELAY_SECONDS: Final = 30.0


class FetchCancelledError(ClientError):
    """A fetch was cancelled before there was an answer."""


class NotModified(Exception):  # noqa: N818 -- an answer, not an error
    """Raised by a query function to say that what the cache holds is still the answer (HTTP 304)."""


def default_retry_delay(failure_count: int, _error: Exception) -> float:
    """Seconds until the next attempt: 1, 2, 4, … 30."""
    return min(2.0**failure_count, _LONGEST_RETRY_DELAY_SECONDS)


class Environment:
    """What a retryer asks before it goes on."""

    def __init__(self, clock: Clock, focus_manager: FocusManager, online_manager: OnlineManager) -> None:
        self.clock = clock
        self.focus_manager = focus_manager
        self.online_manager = online_manager

    def can_fetch(self, network_mode: NetworkMode) -> bool:
        return network_mode != "online" or self.online_manager.is_online()


class Retryer(Generic[T]):
    """One run of a function, with its attempts.

    Args:
        function: Makes one attempt.
        can_run: Whether nothing else stands before it (the scope of a mutation).
        on_fail: Called with the number of failures so far and the error before each further attempt.
        on_pause: Called when it has to wait for focus, network or scope.
        on_continue: Called when it goes on.
    """

    def __init__(
        self,
        function: Callable[[], Awaitable[T]],
        *,
        environment: Environment,
        network_mode: NetworkMode,
        retry: Retry,
        retry_delay: RetryDelay,
        on_fail: Callable[[int, Exception], object],
        on_pause: Callable[[], object],
        on_continue: Callable[[], object],
        can_run: Callable[[], bool] = lambda: True,
    ) -> None:
        self._function = function
        self._environment = environment
        self._network_mode: NetworkMode = network_mode
        self._retry = retry
        self._retry_delay = retry_delay
        self._on_fail = on_fail
        self._on_pause = on_pause
        self._on_continue = on_continue
        self._can_run = can_run
        self._retry_cancelled = False
        self._waiting: tuple[asyncio.Future[None], Callable[[], bool]] | None = None

    def can_start(self) -> bool:
        """Whether a first attempt may be made now. Focus does not matter for it."""
        return self._environment.can_fetch(self._network_mode) and self._can_run()

    def can_continue(self) -> bool:
        """Whether a further attempt may be made now: only while somebody looks and the network is there."""
        environment = self._environment
        online = self._network_mode == "always" or environment.online_manager.is_online()
        return environment.focus_manager.is_focused() and online and self._can_run()

    def cancel_retry(self) -> None:
        """Let the attempt that is under way be the last."""
        self._retry_cancelled = True

    def continue_retry(self) -> None:
        """Take `cancel_retry` back."""
        self._retry_cancelled = False

    def resume(self) -> None:
        """Go on, if it was paused and no longer has to be."""
        if self._waiting is not None:
            future, can_resume = self._waiting
            if can_resume():
                _wake(future)

    async def run(self) -> T:
        """Make attempts until one succeeds.

        Returns:
            What the function returned.

        Raises:
            Exception: What the function raised last, when no further attempt is to be made.

        Cancelling it cancels the attempt or the wait that it is in.
        """
        if not self.can_start():
            await self._pause(self.can_start)
        failure_count = 0
        while True:
            try:
                return await self._attempt()
            except NotModified:
                raise
            except Exception as error:
                if self._retry_cancelled or not self._should_retry(failure_count, error):
                    raise
                delay = self._retry_delay
                delay_seconds = delay(failure_count, error) if callable(delay) else delay
                failure_count += 1
                self._on_fail(failure_count, error)
                await self._sleep(delay_seconds)
                if not self.can_continue():
                    await self._pause(self.can_continue)
                if self._retry_cancelled:
                    raise

    async def _attempt(self) -> T:
        try:
            return await self._function()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise FetchCancelledError(
                "the function was cancelled from within: something that it waited for was cancelled by somebody else"
            ) from None

    def _should_retry(self, failure_count: int, error: Exception) -> bool:
        if callable(self._retry):
            return self._retry(failure_count, error)
        return self._retry is True or failure_count < self._retry

    async def _sleep(self, delay_seconds: float) -> None:
        awake: asyncio.Future[None] = running_loop().create_future()
        timer = self._environment.clock.call_later(delay_seconds, partial(_wake, awake))
        try:
            await awake
        finally:
            timer.cancel()

    async def _pause(self, can_resume: Callable[[], bool]) -> None:
        self._waiting = (running_loop().create_future(), can_resume)
        self._on_pause()
        try:
            await self._waiting[0]
        finally:
            self._waiting = None
        self._on_continue()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
