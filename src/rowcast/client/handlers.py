"""Lists kept by the application's own handlers instead of by a sorted view. No I/O.

The one rule of this room: the handlers alone say what the list is; they get every change, in order, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rowcast.client.rows import Key, Row, RowChange
from rowcast.client.view import ViewDelta

# Gets the list as it is and returns the list as it shall be; must not change the one that it got.
InsertHandler: TypeAlias = Callable[[Sequence[Row], Row], Sequence[Row]]
UpdateHandler: TypeAlias = Callable[[Sequence[Row], Row, Row], Sequence[Row]]  # list, old row, new row
DeleteHandler: TypeAlias = Callable[[Sequence[Row], Row], Sequence[Row]]


def append(rows: Sequence[Row], row: Row) -> Sequence[Row]:
    return [*rows, row]


def replace(rows: Sequence[Row], old: Row, new: Row) -> Sequence[Row]:
    return [new if each is old else each for each in rows]


def remove(rows: Sequence[Row], row: Row) -> Sequence[Row]:
    return [each for each in rows if each is not row]


@dataclass(frozen=True, slots=True)
class Handlers:
    """What keeps a list; each part has a plain default.

    Rows are the same objects from call to call until they change, so that they can be found with `is`.
    """

    insert: InsertHandler = append
    update: UpdateHandler = replace
    delete: DeleteHandler = remove


class HandledList:
    """Rows in the order that handlers give them; stands in for a `View`.

    Args:
        rows: The visible rows by key; each is handed to the insert handler, in the order of the keys.
        handlers: The application's.
    """

    def __init__(self, rows: Mapping[Key, Row], handlers: Handlers) -> None:
        self._handlers = handlers
        self.rows: Sequence[Row] = []
        for row in _by_key(rows.items()):
            self.rows = handlers.insert(self.rows, row)

    def __len__(self) -> int:
        return len(self.rows)

    def apply(self, changes: Sequence[RowChange], *, reset: bool = False) -> ViewDelta:
        """Hand the changes of one step to the handlers; returns what that did to the list."""
        before = self.rows
        for change in changes:
            if change.old is None and change.new is not None:
                self.rows = self._handlers.insert(self.rows, change.new)
            elif change.old is not None and change.new is not None:
                self.rows = self._handlers.update(self.rows, change.old, change.new)
            elif change.old is not None:
                self.rows = self._handlers.delete(self.rows, change.old)
        return _difference(before, self.rows, reset=reset)


def _by_key(items: Iterable[tuple[Key, Row]]) -> list[Row]:
    try:
        return [row for _, row in sorted(items)]
    except TypeError:  # keys of different types have no order
        return [row for _, row in items]


def _difference(before: Sequence[Row], after: Sequence[Row], *, reset: bool) -> ViewDelta:
    """What leads from one list to the other. Where rows that stay changed places, all of them count as moved."""
    old_index = {id(row): index for index, row in enumerate(before)}
    new_index = {id(row): index for index, row in enumerate(after)}
    staying = [id(row) for row in after if id(row) in old_index]
    in_place = [old_index[each] for each in staying] == sorted(old_index[each] for each in staying)
    return ViewDelta(
        removed=[(index, row) for index, row in enumerate(before) if id(row) not in new_index],
        inserted=[(index, row) for index, row in enumerate(after) if id(row) not in old_index],
        moved=[]
        if in_place
        else [(old_index[each], new_index[each], after[new_index[each]]) for each in staying],
        reset=reset,
    )
