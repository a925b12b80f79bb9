"""What a store holds, as records. No I/O.

The one rule of this room: it is all changed by `Step` and by nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rowcast.client.outputs import SubscriptionState
from rowcast.client.overlay import Mutation, Overlay
from rowcast.client.rows import BaseRows, Key, Row, is_behind


@dataclass(slots=True, eq=False)
class KnownRows:
    """One subscription's base, and what of it the overlay covers.

    Attributes:
        position: Where the base stands; empty before the first snapshot.
        overlaid: What is visible under the keys that patches are on.
        twins: Made-up key of a new row → key of a confirmed row that looks like it; the former is hidden then.
        loading: A snapshot that is being assembled, or is complete and held back (see `Step.finish`).
        loading_position: Where a complete snapshot stands; None while it is being assembled.
        shown: There has been a snapshot.
        valid: The stream can continue the base.
        linked: The server tells it on the present link.
        asked: Number of the last load that `Refetch` asked for.
        loaded: Number of the last of them that has arrived in the base.
        again: Another load is wanted when the present one has come.
        reason: Why it is not live.
    """

    name: str
    key_columns: tuple[str, ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    base: BaseRows = field(default_factory=BaseRows)
    position: str = ""
    overlaid: dict[Key, Row | None] = field(default_factory=dict[Key, Row | None])
    twins: dict[Key, Key] = field(default_factory=dict[Key, Key])
    loading: BaseRows | None = None
    loading_position: str | None = None
    shown: bool = False
    valid: bool = False
    linked: bool = False
    refused: bool = False
    asked: int = 0
    loaded: int = 0
    again: bool = False
    state: SubscriptionState = "loading"
    reason: str = ""

    def visible(self, key: Key) -> Row | None:
        overlaid = self.overlaid
        return overlaid[key] if key in overlaid else self.base.rows.get(key)

    def holds(self, position: str) -> bool:
        """Whether the base has everything up to a position."""
        return self.valid and not is_behind(self.position, position)

    def present_state(self) -> SubscriptionState:
        if self.refused:
            return "ended"
        if not self.shown:
            return "loading"
        return "live" if self.valid and self.linked else "stale"


class VisibleRows(Mapping[Key, Row]):
    """The visible rows of one subscription by key, as they are at the moment of each look."""

    __slots__ = ("_known",)

    def __init__(self, known: KnownRows) -> None:
        self._known = known

    def __getitem__(self, key: Key) -> Row:
        row = self._known.visible(key)
        if row is None:
            raise KeyError(key)
        return row

    def __iter__(self) -> Iterator[Key]:
        rows, overlaid = self._known.base.rows, self._known.overlaid
        for key in rows:
            if key not in overlaid or overlaid[key] is not None:
                yield key
        for key, row in overlaid.items():
            if row is not None and key not in rows:
                yield key

    def __len__(self) -> int:
        rows = self._known.base.rows
        return len(rows) + sum((row is not None) - (key in rows) for key, row in self._known.overlaid.items())


@dataclass(slots=True, eq=False)
class Contents:
    """All that a store holds.

    Attributes:
        rows: By subscription.
        complete: Of these, the ones with a complete snapshot that is not in the base yet.
        pending: The mutations that are neither confirmed nor rejected, oldest first.
        settling: Those whose end only needs the base to get there: confirmed ones whose patches still lie on a
            subscription, and those whose answer named a position or asked for a refetch.
        settled: Recent ones that are confirmed or rejected.
        by_transaction: Those whose answer named a transaction, by its txid.
        transactions: Recent transactions, txid → position.
        told: The furthest position that the stream has told.
    """

    rows: dict[str, KnownRows] = field(default_factory=dict[str, KnownRows])
    complete: dict[str, KnownRows] = field(default_factory=dict[str, KnownRows])
    overlay: Overlay = field(default_factory=Overlay)
    pending: dict[str, Mutation] = field(default_factory=dict[str, Mutation])
    settling: dict[str, Mutation] = field(default_factory=dict[str, Mutation])
    settled: OrderedDict[str, Mutation] = field(default_factory=OrderedDict[str, Mutation])
    by_transaction: dict[int, Mutation] = field(default_factory=dict[int, Mutation])
    transactions: OrderedDict[int, str] = field(default_factory=OrderedDict[int, str])
    told: str = ""
    connected: bool = False
