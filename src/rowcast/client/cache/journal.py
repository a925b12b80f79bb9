"""What the stream has said lately: to be replayed over answers that have not seen it, and never to be applied twice.

No I/O. The one rule of this room: it is bounded, and says so when it no longer knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from .visibility import Snapshot

# One second of the busiest stream that a client is built for; at 1 kB a row, 10 MB.
JOURNAL_CHANGES: Final = 10_000

# A key and a position take about 300 bytes: 30 MB for rows that have changed while the application ran.
VERSIONED_KEYS: Final = 100_000

_Row: TypeAlias = tuple[
    object, ...
]  # the table, then name and value of each key column; for TRUNCATE, the table alone
Operation: TypeAlias = Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One row's change, as the stream tells it.

    Attributes:
        key: The row's primary key, by column; empty for TRUNCATE.
        new: The row after it, for INSERT and UPDATE; columns that were not sent are absent.
        old: The row before it, as far as it is known.
    """

    table: str
    op: Operation
    key: Mapping[str, object]
    new: Mapping[str, object] | None = None
    old: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class TransactionEvent:
    """All changes of one commit.

    Attributes:
        position: Where it stands in the stream; within an epoch, string comparison orders positions.
        txid: Its 64-bit transaction id.
    """

    position: str
    txid: int
    changes: Sequence[ChangeEvent]


# Each table's changes in their order.
ChangesByTable: TypeAlias = Mapping[str, Sequence[ChangeEvent]]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A transaction's changes that were news, and its number in the journal."""

    number: int
    txid: int
    changes: ChangesByTable


@dataclass(frozen=True, slots=True)
class Replay:
    """What an answer has not seen.

    Attributes:
        complete: False if there may have been more, which the journal no longer holds.
    """

    entries: Sequence[JournalEntry]
    complete: bool


class Journal:
    """The last transactions, up to a number of changes.

    Attributes:
        last_number: The number of the last transaction; 0 before the first.
    """

    def __init__(self, maximum_changes: int = JOURNAL_CHANGES) -> None:
        self._maximum_changes = maximum_changes
        self.last_number = 0
        self._entries: deque[JournalEntry] = deque()
        self._changes = 0
        self._evicted_number = 0
        self._evicted_txid = 0
        self._lost = False

    def append(self, txid: int, changes: ChangesByTable) -> None:
        """Write a transaction down; over the bound, the oldest are forgotten."""
        self.last_number += 1
        self._entries.append(JournalEntry(self.last_number, txid, changes))
        self._changes += sum(map(len, changes.values()))
        if self._lost:
            # What was lost came before this one, so that a read which has seen all below its id has seen it.
            self._lost = False
            self._evicted_txid = max(self._evicted_txid, txid)
        while self._changes > self._maximum_changes:
            evicted = self._entries.popleft()
            self._changes -= sum(map(len, evicted.changes.values()))
            self._evicted_number = evicted.number
            self._evicted_txid = max(self._evicted_txid, evicted.txid)

    def lose(self) -> None:
        """A stretch of the stream will never be written down."""
        self._lost = True
        self._evicted_number = self.last_number

    def clear(self) -> None:
        """Forget everything: transaction ids from before say nothing about those to come."""
        self._entries.clear()
        self._changes = self._evicted_txid = 0
        self._evicted_number = self.last_number

    def since(self, number: int) -> Replay:
        """Everything after the transaction of that number."""
        entries = [entry for entry in self._entries if entry.number > number]
        return Replay(entries, complete=number >= self._evicted_number)

    def unseen(self, snapshots: Sequence[Snapshot]) -> Replay:
        """What a read has not seen; with several snapshots, everything from the first that one of them has not."""
        complete = all(self._evicted_txid < snapshot.xmin for snapshot in snapshots)
        if len(snapshots) == 1:
            return Replay([entry for entry in self._entries if not snapshots[0].sees(entry.txid)], complete)
        entries = list(self._entries)
        unseen = (
            index
            for index, one in enumerate(entries)
            if not all(snapshot.sees(one.txid) for snapshot in snapshots)
        )
        return Replay(entries[next(unseen, len(entries)) :], complete)


class News(NamedTuple):
    """What of a transaction is news.

    Attributes:
        changes: Those that are newer than anything known of their rows.
        doubtful: Tables with changes of which that cannot be said any more.
    """

    changes: list[ChangeEvent]
    doubtful: set[str]


class Versions:
    """The last position of each row: nothing may put a row back to an older one, nor revive a deleted one."""

    def __init__(self, maximum_keys: int = VERSIONED_KEYS) -> None:
        self._maximum_keys = maximum_keys
        self._positions: dict[_Row, str] = {}
        # The newest position among those forgotten: what is older than that may or may not be news.
        self._forgotten = ""

    def admit(self, position: str, changes: Iterable[ChangeEvent]) -> News:
        """What of a transaction is news; what is, or may be, gives its rows their positions from now on."""
        news = News([], set())
        verdicts: dict[_Row, bool | None] = {}
        for change in changes:
            row = _row(change.table, change.key)
            if row not in verdicts:  # a row that changes twice in a transaction is news twice
                verdicts[row] = self._is_news(row, position)
                if verdicts[row] is not False:
                    self._put(row, position)
            if verdicts[row]:
                news.changes.append(change)
            elif verdicts[row] is None:
                news.doubtful.add(change.table)
            old_row = _old_row(change)
            if verdicts[row] and old_row is not None:
                verdicts.setdefault(old_row, True)
                self._put(old_row, position)
        return news

    def clear(self) -> None:
        """Forget everything: a new epoch's positions cannot be compared with these."""
        self._positions.clear()
        self._forgotten = ""

    def _is_news(self, row: _Row, position: str) -> bool | None:
        known, truncated = self._positions.get(row), self._positions.get(row[:1], "")
        if (known is not None and position <= known) or position <= truncated:
            return False
        return None if known is None and position <= self._forgotten else True

    def _put(self, row: _Row, position: str) -> None:
        self._positions.pop(row, None)
        self._positions[row] = position
        if len(self._positions) > self._maximum_keys:
            oldest = next(iter(self._positions))
            self._forgotten = max(self._forgotten, self._positions.pop(oldest))


def _row(table: str, key: Mapping[str, object]) -> _Row:
    return (table, *sorted(key.items()))


def _old_row(change: ChangeEvent) -> _Row | None:
    """The row that an UPDATE of the key has left."""
    if change.old is None or not change.old.keys() >= change.key.keys():
        return None
    old_key = {name: change.old[name] for name in change.key}
    return None if old_key == change.key else _row(change.table, old_key)


def tables_of(changes: Iterable[ChangeEvent]) -> dict[str, list[ChangeEvent]]:
    """Changes by table, each table's in their order."""
    grouped: dict[str, list[ChangeEvent]] = {}
    for change in changes:
        grouped.setdefault(change.table, []).append(change)
    return grouped
