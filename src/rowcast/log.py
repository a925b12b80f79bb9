"""The bounded replay log: what a client that was away for a moment gets without asking the database.

The one rule of this room: it answers "everything after P" completely, or it says that it cannot. It never
answers with a part.

`Log` is the interface; `MemoryLog` keeps it in this process, which is enough because the WAL itself refills it
after a restart. A shared log (several gateways reading one stream) is another implementation of `Log`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

from rowcast.model import Gap, Position, Progress, Transaction, epoch_of

LogEntry: TypeAlias = Transaction | Gap | Progress

# A list's head is cut off when this many entries in front are dead: often enough that memory follows the
# bound, seldom enough that the cost of moving the rest disappears.
_COMPACT_ENTRIES: Final = 4096
# Which transactions were dropped is remembered for 16 million ids, in at most 2 MB. One of them can stay hidden from
# snapshots only as long as its commit waits for a synchronous standby.
_BLOCK_XIDS: Final = 65_536
_MAX_BLOCKS: Final = 256
# What an entry costs besides its values: the objects, the list's slots.
_ENTRY_BYTES: Final = 400


class Log(Protocol):
    """What hub and snapshots need of a log."""

    @property
    def floor(self) -> Position:
        """Everything after this position is here."""
        ...

    @property
    def head(self) -> Position:
        """The stream has been heard up to this position."""
        ...

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory."""
        ...

    @property
    def newest_evicted_xid(self) -> int:
        """The highest transaction id that was here and is not any more, or never came; 0 for none."""
        ...

    def has_evicted(self, xid: int) -> bool | None:
        """Whether a transaction was here and is not any more, or never came; None where that is too long ago to know."""
        ...

    def append(self, entry: LogEntry, now: float) -> None:
        """Add the next entry of the stream. `now` is monotonic time in seconds."""
        ...

    def reset(self, position: Position) -> None:
        """Forget everything; the stream starts after `position`."""
        ...

    def after(self, position: Position) -> Iterator[Transaction | Gap] | None:
        """Everything after `position` in order, or None if that cannot be told completely."""
        ...

    def trim(self, now: float) -> Position:
        """Drop what is over the bounds; return the new floor."""
        ...


class MemoryLog:
    """A log in memory, bounded by bytes and by age.

    Args:
        start: The position after which the stream begins.
        max_bytes: Bound on the transactions kept, in bytes of their values and a fixed cost each. A single
            transaction over the bound is kept until the next one comes.
        max_seconds: Entries older than this are dropped.
        first_xid: Transactions up to this id may have come before `start`.
    """

    def __init__(self, start: Position, *, max_bytes: int, max_seconds: float, first_xid: int = 0) -> None:
        self._evicted = _Xids(first_xid)
        self._positions: list[Position] = []
        self._entries: list[LogEntry] = []
        self._times: list[float] = []
        self._first = 0
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._head = start
        self.reset(start)

    def reset(self, position: Position) -> None:
        if epoch_of(position) == epoch_of(self._head):
            for entry in self._entries[self._first :]:
                self._evict(entry)
        else:
            # Another cluster's transactions have other ids; a slot that was made anew has waited for all that ran.
            self._evicted = _Xids(0)
        self._floor = self._head = position
        self._positions, self._entries, self._times = [], [], []
        self._first = 0
        self._size_bytes = 0

    @property
    def floor(self) -> Position:
        return self._floor

    @property
    def head(self) -> Position:
        return self._head

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def newest_evicted_xid(self) -> int:
        return self._evicted.newest

    def has_evicted(self, xid: int) -> bool | None:
        return self._evicted.has(xid)

    def append(self, entry: LogEntry, now: float) -> None:
        if isinstance(entry, Progress):
            if entry.position <= self._head:
                return
            # Progress only ages the floor; one mark a second does that as well as a thousand.
            last = len(self._entries) - 1
            if (
                last >= self._first
                and isinstance(self._entries[last], Progress)
                and now - self._times[last] < 1.0
            ):
                self._head = entry.position
                self._entries[last] = entry
                self._positions[last] = entry.position
                return
        elif isinstance(entry, Gap):
            self._evict(entry)
        self._head = entry.position
        self._positions.append(entry.position)
        self._entries.append(entry)
        self._times.append(now)
        self._size_bytes += _size(entry)

    def after(self, position: Position) -> Iterator[Transaction | Gap] | None:
        if epoch_of(position) != epoch_of(self._head) or position < self._floor:
            return None
        return self._read(bisect_right(self._positions, position, lo=self._first))

    def _read(self, start: int) -> Iterator[Transaction | Gap]:
        # A slice: the caller may take its time while entries are appended and dropped.
        for entry in self._entries[start:]:
            if not isinstance(entry, Progress):
                yield entry

    def trim(self, now: float) -> Position:
        oldest = now - self._max_seconds
        last = len(self._entries) - 1
        while self._first < last and (
            self._size_bytes > self._max_bytes or self._times[self._first] < oldest
        ):
            entry = self._entries[self._first]
            self._evict(entry)
            self._floor = entry.position
            self._size_bytes -= _size(entry)
            self._entries[self._first] = Progress(entry.position)  # the values go now, the slot later
            self._first += 1
        if self._first >= _COMPACT_ENTRIES and self._first * 2 >= len(self._entries):
            for column in (self._positions, self._entries, self._times):
                del column[: self._first]
            self._first = 0
        return self._floor

    def _evict(self, entry: LogEntry) -> None:
        if not isinstance(entry, Progress) and entry.xid:
            self._evicted.add(entry.xid)


class _Xids:
    """A set of transaction ids, a bit each: they are given out in order, so they lie close together.

    Args:
        known_from: Of ids up to this one, nothing is known.
    """

    def __init__(self, known_from: int) -> None:
        self.newest = known_from
        self._known_from = known_from
        self._blocks: dict[int, bytearray] = {}

    def add(self, xid: int) -> None:
        self.newest = max(self.newest, xid)
        number, place = divmod(xid, _BLOCK_XIDS)
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = bytearray(_BLOCK_XIDS // 8)
            if len(self._blocks) > _MAX_BLOCKS:
                oldest = min(self._blocks)
                del self._blocks[oldest]
                self._known_from = max(self._known_from, (oldest + 1) * _BLOCK_XIDS - 1)
        block[place >> 3] |= 1 << (place & 7)

    def has(self, xid: int) -> bool | None:
        if xid <= self._known_from:
            return None
        number, place = divmod(xid, _BLOCK_XIDS)
        block = self._blocks.get(number)
        return block is not None and bool(block[place >> 3] & 1 << (place & 7))


def _size(entry: LogEntry) -> int:
    return _ENTRY_BYTES + (entry.size_bytes if isinstance(entry, Transaction) else 0)
