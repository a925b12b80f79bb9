"""What queries and mutations have in common: unused, they are forgotten after a while."""

from __future__ import annotations

import math

from .clock import Clock, Timer


class Removable:
    """Something that is removed when nobody has used it for `gc_time` seconds."""

    def __init__(self, clock: Clock) -> None:
        self.gc_time = 0.0
        self._clock = clock
        self._gc_timer: Timer | None = None

    def _update_gc_time(self, gc_time: float) -> None:
        # The longest anybody asked for counts: a short-lived user must not take the data from a long-lived one.
        self.gc_time = max(self.gc_time, gc_time)

    def _schedule_gc(self) -> None:
        self._clear_gc_timer()
        if self.gc_time != math.inf:
            self._gc_timer = self._clock.call_later(self.gc_time, self._optional_remove)

    def _clear_gc_timer(self) -> None:
        if self._gc_timer is not None:
            self._gc_timer.cancel()
            self._gc_timer = None

    def _optional_remove(self) -> None:
        """Remove it from its cache, if it is still unused."""
        raise NotImplementedError
