"""When listeners hear: at once, together at the loop's next turn, or after a whole transaction has been applied."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from .subscribable import call_safely

A = TypeVar("A")


class NotifyManager:
    """Decides when listeners are called.

    Observers tell their listeners synchronously. A user interface that wants to draw once instead of five times wraps
    its listener in `batch_calls`: the calls made inside one `batch` are then delivered together, by the scheduler.

    Args:
        scheduler: Called with a function to run soon. The default of `QueryClient` is the loop's next turn; a toolkit
            with a loop or thread of its own passes its `call_soon_threadsafe`, `call_from_thread` or the like.
    """

    def __init__(self, scheduler: Callable[[Callable[[], None]], object]) -> None:
        self._scheduler = scheduler
        self._batches = 0
        self._queue: list[Callable[[], object]] = []
        self._held: list[Callable[[], object]] | None = None

    def set_scheduler(self, scheduler: Callable[[Callable[[], None]], object]) -> None:
        """Deliver scheduled calls through `scheduler` from now on."""
        self._scheduler = scheduler

    @contextmanager
    def batch(self) -> Generator[None]:
        """Deliver all calls scheduled inside together, after the outermost batch."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches:
                self._flush()

    @contextmanager
    def atomic(self) -> Generator[None]:
        """Hold every notification until the block ends, so that no listener sees half of what it does."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            with self.batch():
                for call in held:
                    call()

    def deliver(self, call: Callable[[], object]) -> None:
        """Tell of a change that has been made: now, or at the end of the `atomic` block around it."""
        if self._held is not None:
            self._held.append(call)
            return
        self._batches += 1
        try:
            call()
        finally:
            self._batches -= 1
            if self._queue and not self._batches:
                self._flush()

    def schedule(self, call: Callable[[], object]) -> None:
        """Call it through the scheduler; inside a batch, together with the rest of the batch."""
        self._queue.append(call)
        if not self._batches:
            self._flush()

    def batch_calls(self, callback: Callable[[A], object]) -> Callable[[A], None]:
        """A listener that passes its argument on to `callback` by `schedule`."""

        def scheduled(argument: A) -> None:
            self.schedule(lambda: callback(argument))

        return scheduled

    def _flush(self) -> None:
        if not self._queue:
            return
        calls, self._queue = self._queue, []

        def run() -> None:
            for call in calls:
                call_safely(call)

        self._scheduler(run)
