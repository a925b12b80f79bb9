"""Whose mutations a transaction confirms, and which were confirmed lately.

The one rule of this room: a client names the beginning of its own ids, and nothing else is known of whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from rowcast.hub.subscription import Subscriber, owner_of
from rowcast.model import Position, Transaction


class Confirms:
    """Owners by what the ids of their mutations begin with, and positions of recent confirms by id."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[Subscriber, None]] = {}
        self._positions: dict[str, Position] = {}  # of the transactions in the log, oldest first

    def add(self, subscriber: Subscriber) -> None:
        """A client is there; more than once does no harm."""
        if subscriber.mutations is not None:
            self._owners.setdefault(subscriber.mutations, {})[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """It is gone; more than once does no harm."""
        owners = self._owners.get(subscriber.mutations or "")
        if owners is not None:
            owners.pop(subscriber, None)
            if not owners:
                del self._owners[subscriber.mutations or ""]

    def owners(self, transaction: Transaction) -> Iterator[Subscriber]:
        """The connections that a transaction confirms a mutation of, each once."""
        for owner in dict.fromkeys(map(owner_of, transaction.confirms)):
            yield from self._owners.get(owner, ())

    def remember(self, transaction: Transaction, floor: Position) -> None:
        """Keep what it confirms for as long as the log keeps it, and let go of what the log has let go of."""
        positions = self._positions
        for confirm in transaction.confirms:
            positions.pop(confirm, None)
            positions[confirm] = transaction.position
        while positions:
            oldest = next(iter(positions))
            if positions[oldest] > floor:
                break
            del positions[oldest]

    def position_of(self, mutation: str) -> Position | None:
        """Where a recent transaction has confirmed a mutation; None if none in the log has."""
        return self._positions.get(mutation)

    def forget(self) -> None:
        """The log has been emptied."""
        self._positions.clear()
