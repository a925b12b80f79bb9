"""The cache's only source of time: the wall clock for freshness, timers for everything that happens later."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from rowcast.errors import ClientError


class Timer(Protocol):
    """A callback that will be called; `cancel` makes that not happen and may be called at any time."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the cache asks of time."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC. Freshness survives a restart of the process, so it is wall-clock time."""
        ...

    def call_later(self, delay_seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the event loop, at least one tick from now."""
        ...


def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop that the caller runs on.

    Raises:
        ClientError: There is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ClientError(
            "the query cache needs a running event loop, because it fetches and forgets on timers: "
            "call it from a coroutine or a callback of the loop"
        ) from None


class SystemClock:
    """The real clock, with the running event loop's timers."""

    def now(self) -> float:
        return time.time()

    def call_later(self, delay_seconds: float, callback: Callable[[], object]) -> Timer:
        return running_loop().call_later(delay_seconds, callback)


# Between two timers of a manual clock the loop must come to rest: a fetch passes through a handful of tasks and
# futures, each taking a turn of the loop. Fifty turns cost about 50 µs and are several times what the cache needs.
_TURNS_TO_REST: Final = 50


@dataclass(slots=True)
class _ManualTimer:
    callback: Callable[[], object] | None

    def cancel(self) -> None:
        self.callback = None


@dataclass(slots=True)
class ManualClock:
    """A clock for tests: time stands still until `advance` moves it.

    Attributes:
        current: The time in seconds since 1970-01-01 UTC.
    """

    current: float = 1_000_000.0
    _timers: list[tuple[float, int, _ManualTimer]] = field(
        default_factory=list[tuple[float, int, _ManualTimer]]
    )
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def now(self) -> float:
        return self.current

    def call_later(self, delay_seconds: float, callback: Callable[[], object]) -> Timer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (round(self.current + delay_seconds, 6), next(self._numbers), timer))
        return timer

    def pending(self) -> int:
        """How many timers are set."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    async def settle(self) -> None:
        """Let everything happen that needs no time to pass."""
        for _ in range(_TURNS_TO_REST):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Move time forward, call each timer at its own moment, and let its consequences settle before the next."""
        target = round(self.current + seconds, 6)
        await self.settle()
        while self._timers and self._timers[0][0] <= target:
            due, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self.current = max(self.current, due)
                timer.callback()
                await self.settle()
        self.current = target
