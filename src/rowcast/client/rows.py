"""Rows as a client keeps them, and how one transaction's changes are applied to them. No I/O.

The one rule of this room: a row is never changed in place. An update makes a new dict, so whoever holds the old
one (a listener, a delta, a view) keeps holding what it was told.

A key is the value of the key's column; of several columns, the tuple of their values in the order of the columns'
names, so that a key can be built without knowing the table. A row of a table without a key is its own identity:
its key is its text and, because equal rows may stand there more than once, a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any, Final, TypeAlias

import msgspec

Row: TypeAlias = Mapping[str, Any]
Scalar: TypeAlias = str | int | float | Decimal | bool | None
Key: TypeAlias = Scalar | tuple[Scalar, ...]
Frame: TypeAlias = Mapping[str, Any]

_SCALARS: Final = (int, str, float, Decimal, NoneType)

# Rows by key as they were before a step; None where there was none.
Before: TypeAlias = dict[Key, Row | None]


_EPOCH_DIGITS: Final = 16


def is_comparable(position: str, other: str) -> bool:
    """Whether two positions are of one epoch, as far as is known (an empty one stands for none yet)."""
    return not position or not other or position[:_EPOCH_DIGITS] == other[:_EPOCH_DIGITS]


def is_behind(position: str, other: str) -> bool:
    """Whether a position lies before another one of the same epoch. Of another epoch's, nothing can be said."""
    return position < other and is_comparable(position, other)


def canonical_text(value: object) -> str:
    """JSON text that is equal for equal values, whatever the order of an object's members."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=repr)


def _scalar(value: object) -> Scalar:
    return value if isinstance(value, _SCALARS) else canonical_text(value)


def make_key(key: Mapping[str, object] | Key) -> Key:
    """The key of a `key` object (`{"id": 7}`), or of a single column's bare value (`7`)."""
    return key_of(key, sorted(key)) if isinstance(key, Mapping) else key


def key_of(row: Mapping[str, object], columns: Sequence[str]) -> Key:
    """The key of a row whose key columns, sorted by name, are given.

    Raises:
        KeyError: The row lacks one of them.
    """
    if len(columns) == 1:
        return _scalar(row[columns[0]])
    return tuple(_scalar(row[column]) for column in columns)


class RowChange(msgspec.Struct, frozen=True):
    """What one step did to one row.

    Attributes:
        key: The key that the row is under now; of a row that went, the key it was under.
        old: The row before the step, None if it was not there.
        new: The row after it, None if it is gone.
        old_key: The key before the step. Differs from `key` where the key itself changed: by an UPDATE of the key,
            or when the server's key replaces one that the client had made up.
    """

    key: Key
    old: Row | None
    new: Row | None
    old_key: Key


class BaseRows:
    """The confirmed rows of one subscription: written by snapshots and by the stream, and by nothing else.

    Attributes:
        rows: The rows by key. For reading.
    """

    __slots__ = ("_copies", "_key_columns", "_width", "rows")

    def __init__(self, key_columns: Iterable[str] = (), width: int = 0) -> None:
        """Start empty.

        Args:
            key_columns: Names of the key's columns; none for a table without a key.
            width: How many columns a complete row has; 0 where unknown.
        """
        self.rows: dict[Key, Row] = {}
        self._key_columns = tuple(sorted(key_columns))
        self._width = width
        self._copies: dict[str, int] = {}  # of equal rows, for tables without a key

    def load(self, rows: Iterable[Row], deleted: Iterable[Row] = ()) -> None:
        """Take in a snapshot's chunk: first remove the keys (whole rows, without a key) given, then add the rows."""
        for gone in deleted:
            if self._key_columns:
                self.rows.pop(key_of(gone, self._key_columns), None)
            else:
                self._remove(gone, {})
        if self._key_columns:
            self.rows.update((key_of(row, self._key_columns), row) for row in rows)
        else:
            for row in rows:
                self._add(row, {})

    def apply(self, changes: Iterable[Frame], before: Before, moved: dict[Key, Key]) -> bool:
        """Apply one transaction's changes, in order.

        Args:
            changes: As a `transaction` frame has them.
            before: Gets the old row of each key touched, where it does not hold one yet.
            moved: Gets new key → old key of rows whose key changed.

        Returns:
            False if a change cannot be applied for want of values; the rows are then worth nothing and need a
            snapshot.
        """
        displaced: dict[Key, Row] = {}
        try:
            for change in changes:
                if change["op"] == "TRUNCATE":
                    for key, row in self.rows.items():
                        before.setdefault(key, row)
                    self.rows.clear()
                    self._copies.clear()
                    displaced.clear()
                elif not (
                    self._apply_keyed(change, before, moved, displaced)
                    if self._key_columns
                    else self._apply_keyless(change, before)
                ):
                    return False
        except KeyError:
            return False  # a key column is missing in `new` or `old`
        return True

    def restore(self, before: Before) -> None:
        """Put back the rows that a failed `apply()` has touched. They can be read, and replaced, but not continued."""
        for key, row in before.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row

    def _apply_keyed(
        self, change: Frame, before: Before, moved: dict[Key, Key], displaced: dict[Key, Row]
    ) -> bool:
        columns = self._key_columns
        old: Row | None = change.get("old")
        if change["op"] == "DELETE":
            self._take(key_of(change.get("key") or change["old"], columns), before, displaced)
            return True
        new: Row = change["new"]
        rows = self.rows
        key = key_of(new, columns)
        occupant = rows.get(key)
        previous = occupant
        if change["op"] == "INSERT":
            if occupant is not None:
                displaced[key] = occupant
        elif old is not None and (old_key := key_of(old, columns)) != key:
            moved[key] = old_key if old_key in displaced else moved.pop(old_key, old_key)
            previous = self._take(old_key, before, displaced)
            if occupant is not None:
                displaced[key] = occupant
        if len(new) < self._width:
            if previous is None:
                return False
            new = {**previous, **new}
        if key not in before:
            before[key] = occupant
        rows[key] = new
        return True

    def _take(self, key: Key, before: Before, displaced: dict[Key, Row]) -> Row | None:
        """Remove the row of a key.

        A deferrable primary key lets two rows hold one key in the middle of a transaction (`SET id = id + 1`); the
        one that was there first is the one that goes then.
        """
        if key in displaced:
            return displaced.pop(key)
        row = self.rows.pop(key, None)
        if key not in before:
            before[key] = row
        return row

    def _apply_keyless(self, change: Frame, before: Before) -> bool:
        old: Row | None = change.get("old")
        new: Row | None = change.get("new")
        if change["op"] != "INSERT":
            if old is None or len(old) < self._width:
                return False
            self._remove(old, before)
        if new is not None:
            self._add(new if old is None or len(new) >= self._width else {**old, **new}, before)
        return True

    def _add(self, row: Row, before: Before) -> None:
        text = canonical_text(row)
        copies = self._copies.get(text, 0)
        self._copies[text] = copies + 1
        before.setdefault((text, copies), None)
        self.rows[text, copies] = row

    def _remove(self, row: Row, before: Before) -> None:
        text = canonical_text(row)
        copies = self._copies.get(text, 0)
        if copies:
            before.setdefault((text, copies - 1), row)
            del self.rows[text, copies - 1]
        if copies > 1:
            self._copies[text] = copies - 1
        else:
            self._copies.pop(text, None)
