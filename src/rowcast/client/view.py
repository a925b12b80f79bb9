"""A sorted, limited view of a subscription's rows, and which index each change moves from and to. No I/O.

The one rule of this room: a delta leads from the list before to the list after, exactly, when it is applied as written
in `ViewDelta`. A change costs O(log n) of all rows, however few of them the limit shows.

Rows stand in the order that PostgreSQL's ORDER BY gives with the collation "C": numbers by value, texts by code point,
NULL after everything (so first where the order is descending). Rows that are equal there stand by key, in the direction
of the first column.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice
from typing import Any, Final, TypeAlias

from rowcast.client.rows import Key, Row, RowChange, canonical_text

# The last steps to a place compare with entries that are in no processor cache, and a short chunk has few of them; the
# bounds of all chunks stay in the cache. Shorter still, and counting the chunks anew would cost more than that.
_CHUNK: Final = 128

_Entry: TypeAlias = tuple[Any, ...]
_Placed: TypeAlias = tuple[_Entry, Row, RowChange]


@dataclass(frozen=True, slots=True)
class ViewDelta:
    """What became of a view's list. To apply it: delete all of `removed` and all `moved` by their old index, highest
    index first; insert all of `inserted` and `moved` by their new index, lowest first; replace what is in `updated`.

    Attributes:
        removed: Old index and row.
        inserted: New index and row.
        moved: Old index, new index, and the row as it is now.
        updated: New index and row, of rows that have changed in their place.
        reset: The rows come from a new snapshot.
    """

    removed: list[tuple[int, Row]] = field(default_factory=list[tuple[int, Row]])
    inserted: list[tuple[int, Row]] = field(default_factory=list[tuple[int, Row]])
    moved: list[tuple[int, int, Row]] = field(default_factory=list[tuple[int, int, Row]])
    updated: list[tuple[int, Row]] = field(default_factory=list[tuple[int, Row]])
    reset: bool = False

    def __bool__(self) -> bool:
        return bool(self.removed or self.inserted or self.moved or self.updated)


class _Reversed:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


class _SortedEntries:
    """A list in order, as chunks, with the place of an entry in O(log n).

    No entry of a chunk lies beyond the chunk's bound, and all of the next chunk's do.
    """

    __slots__ = ("_bounds", "_chunks", "_tree")

    def __init__(self) -> None:
        self._chunks: list[list[_Entry]] = []
        self._recount()

    def __len__(self) -> int:
        return self._before(len(self._chunks))

    def place(self, entry: _Entry) -> int:
        """How many entries come before it."""
        number = bisect_left(self._bounds, entry)
        within = bisect_left(self._chunks[number], entry) if number < len(self._chunks) else 0
        return self._before(number) + within

    def replace(self, leaving: Sequence[_Entry], coming: Sequence[_Entry]) -> None:
        """Remove some entries, which must be there, and add others."""
        changed = len(leaving) + len(coming)
        if changed > len(self) // 8:  # sorting nearly sorted entries is cheaper then
            gone = set(leaving)
            ordered = sorted(chain((entry for entry in self if entry not in gone), coming))
            self._chunks = [ordered[start : start + _CHUNK] for start in range(0, len(ordered), _CHUNK)]
            self._recount()
            return
        chunks, bounds = self._chunks, self._bounds
        recount = changed > len(chunks)
        for entry in leaving:
            number = bisect_left(bounds, entry)
            chunk = chunks[number]
            del chunk[bisect_left(chunk, entry)]
            if not chunk:
                del chunks[number], bounds[number]
                recount = True
            elif not recount:
                self._count(number, -1)
        for entry in coming:
            number = bisect_left(bounds, entry)
            if number == len(chunks):
                number -= 1
                bounds[number] = entry
            chunk = chunks[number]
            insort(chunk, entry)
            if len(chunk) > 2 * _CHUNK:
                chunks[number : number + 1] = [chunk[:_CHUNK], chunk[_CHUNK:]]
                bounds.insert(number, chunk[_CHUNK - 1])
                recount = True
            elif not recount:
                self._count(number, 1)
        if recount:
            self._recount()

    def __iter__(self) -> Iterator[_Entry]:
        return chain.from_iterable(self._chunks)

    def __reversed__(self) -> Iterator[_Entry]:
        return chain.from_iterable(map(reversed, reversed(self._chunks)))

    def __getitem__(self, index: int) -> _Entry:
        number = 0
        step = 1 << (len(self._chunks).bit_length())
        while step:
            following = number + step
            if following < len(self._tree) and self._tree[following] <= index:
                number = following
                index -= self._tree[following]
            step >>= 1
        return self._chunks[number][index]

    def _recount(self) -> None:
        self._bounds = [chunk[-1] for chunk in self._chunks]
        # A Fenwick tree over the chunks' lengths.
        tree = [0] * (len(self._chunks) + 1)
        for number, chunk in enumerate(self._chunks, 1):
            tree[number] += len(chunk)
            parent = number + (number & -number)
            if parent < len(tree):
                tree[parent] += tree[number]
        self._tree = tree

    def _count(self, chunk: int, by: int) -> None:
        tree = self._tree
        number = chunk + 1
        while number < len(tree):
            tree[number] += by
            number += number & -number

    def _before(self, chunk: int) -> int:
        total = 0
        while chunk:
            total += self._tree[chunk]
            chunk &= chunk - 1
        return total


class View:
    """The first rows of a subscription in an order, kept so by `apply()`.

    Args:
        rows: The visible rows by key; looked at again after each change (`Store.rows()`).
        order_by: Column names, the first one first, a minus before those in descending order: `-created_at,name`.
            Empty for the order of the keys.
        limit: Only the first so many rows; None for all.
    """

    __slots__ = ("_descending", "_entries", "_entry", "_limit", "_rows")

    def __init__(
        self, rows: Mapping[Key, Row], order_by: str | Sequence[str] = (), limit: int | None = None
    ) -> None:
        terms = [term.strip() for term in (order_by.split(",") if isinstance(order_by, str) else order_by)]
        directions = [(term.removeprefix("-"), term.startswith("-")) for term in terms if term]
        # Entries ascend in the first column; where it shall descend, they are read from the end.
        self._descending = bool(directions) and directions[0][1]
        self._entry = _entry_maker([(column, down != self._descending) for column, down in directions])
        self._limit = limit
        self._rows = rows
        self._entries = _SortedEntries()
        self._entries.replace((), [self._entry(row, key) for key, row in rows.items()])

    @property
    def total(self) -> int:
        """How many rows there are without the limit."""
        return len(self._entries)

    def __len__(self) -> int:
        total = len(self._entries)
        return total if self._limit is None else min(total, self._limit)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._rows[self._entry_at(index)[-1]]

    @property
    def keys(self) -> list[Key]:
        """The keys of the rows shown, in order."""
        entries = reversed(self._entries) if self._descending else iter(self._entries)
        return [entry[-1] for entry in islice(entries, self._limit)]

    @property
    def rows(self) -> list[Row]:
        """The rows shown, in order."""
        return [self._rows[key] for key in self.keys]

    def apply(self, changes: Sequence[RowChange], *, reset: bool = False) -> ViewDelta:
        """Follow a `Delta` of the store, which `rows` shows already."""
        leaving: list[_Placed] = []
        coming: list[_Placed] = []
        staying: list[_Placed] = []
        entry = self._entry
        for change in changes:
            old, new = change.old, change.new
            old_entry = None if old is None else entry(old, change.old_key)
            new_entry = None if new is None else entry(new, change.key)
            if old is not None and old_entry is not None and old_entry != new_entry:
                leaving.append((old_entry, old, change))
            if new is not None and new_entry is not None:
                (staying if old_entry == new_entry else coming).append((new_entry, new, change))

        shown = len(self)
        left = self._shown(leaving)
        last = self._last(len(coming), left) if self._limit is not None else {}
        self._entries.replace([entry for entry, _, _ in leaving], [entry for entry, _, _ in coming])
        came = self._shown(coming)

        delta = ViewDelta(reset=reset)
        index_of = {id(change): index for index, (_, change) in came.items()}
        single = len(leaving) == len(coming) == 1
        moved: set[int] = set()
        for index, (old_row, change) in left.items():
            new_index = index_of.get(id(change))
            if new_index is None:
                delta.removed.append((index, old_row))
                continue
            moved.add(new_index)
            new_row = came[new_index][0]
            if single and index == new_index:
                delta.updated.append((index, new_row))
            else:
                delta.moved.append((index, new_index, new_row))
        delta.inserted.extend((index, row) for index, (row, _) in came.items() if index not in moved)

        # Rows that have not moved themselves fall off the limit's end, or come in there.
        missing = (len(self) - len(came)) - (shown - len(left))
        fallen = islice(last.items(), max(-missing, 0))
        entered = self._last(missing, came)
        delta.removed.extend((index, self._rows[key]) for index, key in fallen)
        delta.inserted.extend((index, self._rows[key]) for index, key in entered.items())
        delta.updated.extend(
            (index, row) for index, (row, _) in self._shown(staying).items() if index not in entered
        )
        return delta

    def _shown(self, placed: Sequence[_Placed]) -> dict[int, tuple[Row, RowChange]]:
        """Of entries that the view holds at present, those that are shown: by index."""
        entries = self._entries
        shown, total = len(self), len(entries)
        if shown < total:
            if not shown:
                return {}
            boundary = self._entry_at(shown - 1)
            if self._descending:
                placed = [each for each in placed if not each[0] < boundary]
            else:
                placed = [each for each in placed if not boundary < each[0]]
        if self._descending:
            return {total - 1 - entries.place(entry): (row, change) for entry, row, change in placed}
        return {entries.place(entry): (row, change) for entry, row, change in placed}

    def _last(self, count: int, taken: Container[int]) -> dict[int, Key]:
        """The last shown rows that are not at the indexes taken: index and key."""
        found: dict[int, Key] = {}
        index = len(self) - 1
        while len(found) < count and index >= 0:
            if index not in taken:
                found[index] = self._entry_at(index)[-1]
            index -= 1
        return found

    def _entry_at(self, index: int) -> _Entry:
        return self._entries[len(self._entries) - 1 - index if self._descending else index]


def _entry_maker(directions: Sequence[tuple[str, bool]]) -> Callable[[Row, Key], _Entry]:
    """What makes entries that sort by columns (True: against the direction of the first), then by key.

    An entry is flat, rank and value in turn, so that values of different types are never compared. It ends with the key.
    """
    if len(directions) == 1:
        column = directions[0][0]

        def entry_of_one(row: Row, key: Key) -> _Entry:
            value = row.get(column)
            try:
                return _RANKS[value.__class__], value, _RANKS[key.__class__], key
            except KeyError:
                return (*_ranked(value), *_ranked_key(key))

        return entry_of_one

    def entry(row: Row, key: Key) -> _Entry:
        parts: list[Any] = []
        for column, against in directions:
            rank, value = _ranked(row.get(column))
            parts += (-rank, _Reversed(value)) if against else (rank, value)
        return (*parts, *_ranked_key(key))

    return entry


_RANKS: Final[dict[type, int]] = {int: 0, float: 0, Decimal: 0, bool: 0, str: 1, type(None): 3}


def _ranked(value: Any) -> tuple[int, Any]:
    rank = _RANKS.get(value.__class__)
    return (2, canonical_text(value)) if rank is None else (rank, value)


def _ranked_key(key: Key) -> _Entry:
    return (2, canonical_text(key), key) if isinstance(key, tuple) else _ranked(key)
