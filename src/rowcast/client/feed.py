"""A query cache on the client's own connection: the stream, told in the cache's words.

The one rule of this room: what the cache may have missed is told to it as a gap, never passed over.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from rowcast.client.cache import ChangeEvent, RealtimeIntegration, TransactionEvent
from rowcast.client.events import Event, Interest, Refused, Resync, StateChanged, Subscribed, Transaction

logger: Final = logging.getLogger("rowcast.client")

# A resync may concern every client of a server: their refetches shall not reach the application's API together.
RESYNC_SECONDS: Final = 2.0


class CacheFeed:
    """Translates a connection's events for one integration.

    Args:
        integration: Of the cache that is to be fed.
        between: Returns a random number between two.

    Attributes:
        interests: What to subscribe to, by subscription.
    """

    def __init__(
        self, integration: RealtimeIntegration, *, between: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._integration = integration
        self._between = between
        self._tables = {f"cache:{table}": table for table in integration.tables}
        self._followed: set[str] = set()
        self.interests: Final = {name: Interest(table, rows=False) for name, table in self._tables.items()}

    def receive(self, events: Sequence[Event]) -> None:
        """Hand on what concerns the cache, in order."""
        for event in events:
            match event:
                case Transaction():
                    self._apply(event)
                case StateChanged():
                    self._integration.connection_state(event.state.status)
                case Subscribed() if event.subscription in self._tables:
                    if event.subscription not in self._followed:
                        # Answers from before may lack what was committed until now. Later, the stream resumes.
                        self._followed.add(event.subscription)
                        self._integration.gap([self._tables[event.subscription]])
                case Resync() if event.subscription in self._tables:
                    self._integration.gap(
                        [self._tables[event.subscription]], after_seconds=self._between(0.0, RESYNC_SECONDS)
                    )
                case Refused() if event.subscription in self._tables:
                    logger.error(
                        "the cache is not told of changes of %s, and polls: %s (%s)",
                        *(self._tables[event.subscription], event.message, event.code),
                    )
                    self._integration.gap([self._tables[event.subscription]])
                case _:
                    pass  # rows are not for the cache

    def _apply(self, event: Transaction) -> None:
        changes = [
            ChangeEvent(
                self._tables[name], each["op"], each.get("key") or {}, each.get("new"), each.get("old")
            )
            for name, its_changes in event.changes.items()
            if name in self._tables
            for each in its_changes
        ]
        if changes:
            self._integration.apply(TransactionEvent(event.position, event.txid, changes))
