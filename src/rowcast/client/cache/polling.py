"""The safety net: refetches an entity's queries now and then, more often the less the stream can be trusted.

The one rule of this room: its timers are its own. Neither events nor writes to the cache restart them, so that a busy
stream cannot keep the net from being drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .clock import Timer
from .entities import PollingIntervals
from .query_client import QueryClient

# An entity whose last event is younger than this has a stream that is known to work.
LIVE_SECONDS: Final = 30.0

# Sums of times are inexact; a timer that comes a millisecond early has come.
_ROUNDING_SECONDS: Final = 0.001


class Poller:
    """Polls one entity's queries, by turns: the next poll is planned when the last has ended.

    Args:
        intervals: How often.
        poll: Refetches them; its future fails if a refetch does.
        between: Returns a random number between two.

    Attributes:
        last_event_at: When the last event for the entity came, seconds since 1970 UTC; None if none has.
    """

    def __init__(
        self,
        client: QueryClient,
        intervals: PollingIntervals,
        poll: Callable[[], asyncio.Future[None]],
        between: Callable[[float, float], float],
    ) -> None:
        self._client = client
        self._intervals = intervals
        self._poll = poll
        self._between = between
        self._quiet_seconds = between(*intervals.quiet_seconds)
        self._connected = False
        self._failed = False
        self._polling = False
        self._stopped = False
        self._polled_at = client.clock.now()
        self._timer: Timer | None = None
        self.last_event_at: float | None = None
        self._unsubscribe = [
            client.focus_manager.subscribe(lambda _: self._arm()),
            client.online_manager.subscribe(lambda _: self._arm()),
        ]
        self._arm()

    @property
    def interval_seconds(self) -> float:
        """How long it is from the last poll to the next, as things are."""
        if not self._connected or self._failed:
            return self._intervals.disconnected_seconds
        return self._intervals.live_seconds if self.is_live() else self._quiet_seconds

    def is_live(self) -> bool:
        """Whether an event has come lately."""
        return self.last_event_at is not None and self._client.clock.now() - self.last_event_at < LIVE_SECONDS

    def set_connected(self, connected: bool) -> None:  # noqa: FBT001 -- the value itself
        """The connection has come or gone: plan the next poll anew."""
        self._connected = connected
        self._arm()

    def stop(self) -> None:
        """Poll no more."""
        self._stopped = True
        self._arm()
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        visible, online = self._client.focus_manager.is_focused(), self._client.online_manager.is_online()
        if visible and online and not self._stopped and not self._polling:
            self._timer = self._client.clock.call_later(max(self._remaining_seconds(), 0.0), self._due)

    def _remaining_seconds(self) -> float:
        return self._polled_at + self.interval_seconds - self._client.clock.now()

    def _due(self) -> None:
        # Events that have come since the timer was set may have made the interval longer.
        if self._remaining_seconds() > _ROUNDING_SECONDS:
            self._arm()
            return
        self._polling = True
        self._poll().add_done_callback(self._ended)

    def _ended(self, poll: asyncio.Future[None]) -> None:
        self._polling = False
        self._failed = poll.cancelled() or poll.exception() is not None
        self._polled_at = self._client.clock.now()
        self._quiet_seconds = self._between(*self._intervals.quiet_seconds)
        self._arm()
