"""What subscriptions have missed: all of it, in one pass over the log, transaction by transaction.

The one rule of this room: what is not told is said. A subscription that cannot be resumed after all is told to resync,
at the place in the stream where that shows; what comes after it speaks for the others only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rowcast.hub.audience import Outlet, TransactionHeader
from rowcast.hub.shape import EncodedChange
from rowcast.hub.subscription import Subscriber, Subscription
from rowcast.model import Gap, Position, Transaction

# A replay longer than this costs more than a snapshot, for the client and for the others who wait meanwhile.
MAX_REPLAY_BYTES: Final = 16 * 1024 * 1024


class Replay:
    """One pass for one connection.

    Args:
        subscriptions: Those that are resumed, together.
        since: The position that all of them are told everything after.
        resync: Tells one of them to read its rows anew, for a reason, after a position.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        subscriptions: Iterable[Subscription],
        since: Position,
        resync: Callable[[Subscription, str, Position], None],
    ) -> None:
        self._subscriber = subscriber
        self._active = dict.fromkeys(subscriptions)
        self._base = since
        self._resync = resync
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def send(self, entries: Iterable[Transaction | Gap], head: Position) -> None:
        """Send what the log has, up to its head."""
        for entry in entries:
            if isinstance(entry, Gap):
                self._refuse(self._concerned(entry), entry.reason, entry.position)
                continue
            self._tell(entry)
            if self._size_bytes > MAX_REPLAY_BYTES:
                self._parts.clear()
                self._refuse(list(self._active), "log_expired", head)
                return
        self._flush()

    def _concerned(self, gap: Gap) -> list[Subscription]:
        return [each for each in self._active if gap.tables is None or each.shape.table.oid in gap.tables]

    def _tell(self, transaction: Transaction) -> None:
        subscriber = self._subscriber
        fragments, unknown, changed = self._fragments(transaction)
        self._refuse(unknown, "unchanged_value", self._base)
        self._refuse(changed, "schema_changed", self._base)
        if fragments or subscriber.waits_for(transaction.confirms):
            header = TransactionHeader.of(transaction)
            frame = subscriber.form.transaction(header, self._base, fragments, subscriber.framing)
            self._base = transaction.position
            self._parts.append(frame)
            self._size_bytes += len(frame)

    def _fragments(
        self, transaction: Transaction
    ) -> tuple[list[bytes], list[Subscription], list[Subscription]]:
        """A transaction's changes.

        Also the subscriptions for which one of them is not known, and those whose table had other columns then.
        """
        outlets: dict[Outlet, list[Subscription]] = {}
        for subscription in self._active:
            outlets.setdefault(subscription.outlet, []).append(subscription)
        fragments: list[bytes] = []
        unknown: list[Subscription] = []
        changed: list[Subscription] = []
        for change in transaction.changes:
            for outlet in list(outlets):
                shape = outlet.shape
                if shape.table.oid != change.table.oid:
                    continue
                if shape.table is not change.table and shape.table != change.table:
                    changed.extend(outlets.pop(outlet))
                    continue
                effect = shape.effect(change)
                if effect == "UNKNOWN":
                    unknown.extend(outlets.pop(outlet))
                elif effect is not None:
                    piece = EncodedChange(change, shape.projection, transaction.position)
                    fragment = outlet.fragment(effect, piece)
                    if fragment is not None:
                        fragments.append(fragment)
        return fragments, unknown, changed

    def _refuse(self, refused: Iterable[Subscription], reason: str, position: Position) -> None:
        for subscription in refused:
            del self._active[subscription]
            self._flush()
            self._resync(subscription, reason, position)

    def _flush(self) -> None:
        if self._parts:
            self._subscriber.sink.send(b"".join(self._parts))
            self._parts.clear()
