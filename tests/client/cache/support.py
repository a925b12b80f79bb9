"""A backend whose answers take time on the manual clock, and a recorder of what listeners hear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rowcast.client.cache import ManualClock, QueryFunctionContext


async def sleep(clock: ManualClock, seconds: float) -> None:
    """Wait on the manual clock."""
    awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_later(seconds, lambda: None if awake.done() else awake.set_result(None))
    try:
        await awake
    finally:
        timer.cancel()


@dataclass
class Backend:
    """Stands for an API: calling it is the query function.

    Attributes:
        value: What it answers; read when the call arrives, sent `seconds` later. A function makes it from the context.
        error: What it raises instead.
        failures: How many calls to fail before answering.
        snapshot: The header `Rowcast-Snapshot` of its answers, read with the value.
    """

    clock: ManualClock
    value: Any = "data"
    seconds: float = 1.0
    error: Exception | None = None
    failures: int = 0
    snapshot: str | None = None
    calls: list[float] = field(default_factory=list)
    finished: int = 0
    cancelled: int = 0
    contexts: list[QueryFunctionContext] = field(default_factory=list)

    async def __call__(self, context: QueryFunctionContext) -> Any:
        self.calls.append(self.clock.now())
        self.contexts.append(context)
        value: Any = self.value(context) if callable(self.value) else self.value
        snapshot, error = self.snapshot, self.error
        if self.failures:
            self.failures -= 1
            error = error or BackendError(f"call {len(self.calls)}")
        try:
            await sleep(self.clock, self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        if error is not None:
            raise error
        context.snapshot = snapshot
        return value


class BackendError(Exception):
    """What a backend raises."""


@dataclass
class Recorder:
    """A listener that keeps what it hears."""

    heard: list[Any] = field(default_factory=list)
    of: Callable[[Any], Any] = field(default=lambda event: event)

    def __call__(self, event: Any) -> None:
        self.heard.append(self.of(event))
