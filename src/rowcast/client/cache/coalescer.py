"""Refetches what events have made out of date: one run at a time for each query, and one more for what came during it.

    events   | | ||||||||||||||||||||||||||||||||||||||||  |
    runs     [==]             [==]             [==]   [==] [==]
             at once     maximum staleness          quiet  at once

A run is never cancelled for a newer event: under a busy stream it would never end. After a quiet time the first event
is served at once; the events that follow closely are served together, when the stream has been quiet for
`quiet_seconds`, and no later than `maximum_staleness_seconds` after the first of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from .clock import Clock, Timer
from .query import Query

# A lagging copy that is asked again and again must not be asked in a tight loop, even if `quiet_seconds` is 0.
_LEAST_BACKOFF_SECONDS: Final = 0.05


@dataclass(slots=True)
class _Demand:
    """What one query is owed.

    Attributes:
        first_at: When the first event came that no run has served yet.
        last_at: When the last event came.
        fruitless: Runs in a row whose answers were out of date although no event came during them.
        timer: The next run.
    """

    first_at: float | None = None
    last_at: float = -math.inf
    fruitless: int = 0
    timer: Timer | None = None


class Coalescer:
    """Decides when a query that events have made out of date is fetched again.

    Args:
        quiet_seconds: How long to wait for further events.
        maximum_staleness_seconds: How long to wait at most.
    """

    def __init__(self, clock: Clock, *, quiet_seconds: float, maximum_staleness_seconds: float) -> None:
        self._clock = clock
        self._quiet_seconds = quiet_seconds
        self._maximum_staleness_seconds = maximum_staleness_seconds
        self._demands: WeakKeyDictionary[Query[Any], _Demand] = WeakKeyDictionary()

    def request(self, query: Query[Any]) -> None:
        """Something has changed that the query's data does not show."""
        demand, now = self._demand(query), self._clock.now()
        calm = now - demand.last_at >= self._quiet_seconds
        demand.last_at, demand.fruitless = now, 0
        if demand.first_at is None:
            demand.first_at = now
        if query.state.fetch_status == "idle":
            if calm and demand.timer is None:
                self._run(query)
            else:
                self._arm(query, demand)

    def fetch_started(self, query: Query[Any]) -> None:
        """A run begins, whoever started it: it serves all events so far."""
        demand = self._demands.get(query)
        if demand is not None:
            demand.first_at = None
            self._disarm(demand)

    def answered(self, query: Query[Any], *, outdated: bool) -> None:
        """The answer of a run has come.

        Args:
            query: Whose answer.
            outdated: It does not show everything that is known to have happened.
        """
        if not outdated:
            if (demand := self._demands.get(query)) is not None:
                demand.first_at, demand.fruitless = None, 0
            return
        demand = self._demand(query)
        if demand.first_at is None:
            # Nothing came during the run, and yet it is out of date: it was read from a lagging copy. Ask less often.
            demand.first_at = self._clock.now()
            demand.fruitless += 1

    def fetch_ended(self, query: Query[Any]) -> None:
        """A run has ended, with an answer or without."""
        demand = self._demands.get(query)
        if demand is not None and demand.first_at is not None:
            self._arm(query, demand)

    def forget(self, query: Query[Any]) -> None:
        """The query is gone."""
        demand = self._demands.pop(query, None)
        if demand is not None:
            self._disarm(demand)

    def close(self) -> None:
        """Forget all queries."""
        for query in tuple(self._demands):
            self.forget(query)

    def _demand(self, query: Query[Any]) -> _Demand:
        demand = self._demands.get(query)
        if demand is None:
            demand = self._demands[query] = _Demand()
        return demand

    def _arm(self, query: Query[Any], demand: _Demand) -> None:
        self._disarm(demand)
        now = self._clock.now()
        first_at = now if demand.first_at is None else demand.first_at
        if demand.fruitless:
            due = now + max(self._quiet_seconds, _LEAST_BACKOFF_SECONDS) * 2.0**demand.fruitless
        else:
            due = demand.last_at + self._quiet_seconds
        due = min(due, first_at + self._maximum_staleness_seconds)
        demand.timer = self._clock.call_later(max(due - now, 0.0), partial(self._run, query))

    def _disarm(self, demand: _Demand) -> None:
        if demand.timer is not None:
            demand.timer.cancel()
            demand.timer = None

    def _run(self, query: Query[Any]) -> None:
        self._disarm(self._demand(query))
        # What nobody watches stays marked as out of date, and is fetched when somebody does.
        if query.is_active() and not query.is_static() and query.state.fetch_status == "idle":
            query.start_fetch()
