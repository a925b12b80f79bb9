"""What a subscriber showed, in order, and the comparison of every state of it with the oracle.

The one rule of this room: a state is compared at the position that the subscriber claims for it, all rows at a
snapshot, and after it every row that either the subscriber or the oracle has touched since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.faults.oracle import JSONRow, Key, Oracle, Shape, canonical, difference
from tests.faults.schema import Filter, Table

_EPOCH_DIGITS: Final = 16


class WrongError(AssertionError):
    """A subscriber showed something that was never in the table, or not at that position."""


def same_epoch(position: str, other: str) -> bool:
    return position[:_EPOCH_DIGITS] == other[:_EPOCH_DIGITS]


def lsn_of(position: str) -> int:
    return int(position[_EPOCH_DIGITS + 1 :], 16)


@dataclass(frozen=True, slots=True)
class Loaded:
    """All rows, as they are from here on."""

    position: str
    columns: tuple[str, ...]
    rows: tuple[JSONRow, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """A transaction: what it made of which rows. Of a table without a key, how many of which rows came and went."""

    position: str
    changed: Mapping[Key, JSONRow | None] | Counter[str]
    txid: int | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """The same rows at a later position."""

    position: str


Entry = Loaded | Applied | Passed


@dataclass(slots=True)
class Journal:
    """The states of one subscription.

    Attributes:
        told: The last id of a change that was applied.
        invalid: The rows say nothing now: it was told to resync, or has not loaded yet.
    """

    name: str
    table: Table
    filter: Filter
    columns: tuple[str, ...] | None
    entries: list[Entry] = field(default_factory=list)
    rows: dict[Key, JSONRow] = field(default_factory=dict)
    bag: Counter[str] = field(default_factory=Counter)
    shown: tuple[str, ...] = ()
    position: str = ""
    told: str = ""
    invalid: bool = True
    resyncs: Counter[str] = field(default_factory=Counter)
    _checked: _Checked | None = None

    @property
    def shape(self) -> Shape:
        return Shape(self.table.name, self.filter.sql, self.columns)

    def load(self, position: str, columns: tuple[str, ...], rows: list[JSONRow]) -> None:
        if self.table.key:
            self.rows = {self.key_of(row): row for row in rows}
            if len(self.rows) != len(rows):
                raise WrongError(f"{self.name}: a snapshot holds a key twice")
        if position < self.position and same_epoch(position, self.position):
            raise WrongError(f"{self.name}: went back from {self.position} to {position}")
        self.bag = Counter() if self.table.key else Counter(map(canonical, rows))
        self.shown = columns
        self.entries.append(Loaded(position, columns, tuple(rows)))
        self.position = position
        self.invalid = False

    def apply(self, position: str, changes: list[dict[str, Any]], txid: int | None = None) -> None:
        """Apply a transaction as docs/protocol.md says."""
        changed: dict[Key, JSONRow | None] = {}
        bag: Counter[str] = Counter()
        for change in changes:
            if self.invalid:
                return
            identifier: str = change["id"]
            if (same_epoch(identifier, self.told) and identifier <= self.told) or not identifier.startswith(
                f"{position}-"
            ):
                raise WrongError(f"{self.name}: the id {identifier} comes after {self.told} at {position}")
            self.told = identifier
            if self.table.key:
                self._apply_keyed(change, changed)
            else:
                self._apply_whole(change, bag)
        if not self.invalid:
            self.entries.append(Applied(position, changed if self.table.key else bag, txid))
            self.position = position

    def show(self, position: str, changed: Mapping[Key, JSONRow | None]) -> None:
        """Other rows than before, all at once; of a table with a key."""
        for key, row in changed.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.entries.append(Applied(position, changed))
        self.position = position

    def forget(self, reason: str) -> None:
        """Told to resync."""
        self.resyncs[reason] += 1
        self.invalid = True

    def move_to(self, position: str) -> None:
        """Everything up to a position has been told."""
        if not self.invalid and position > self.position:
            self.position = position
            if self.entries and isinstance(self.entries[-1], Passed):
                self.entries.pop()
            self.entries.append(Passed(position))

    def key_of(self, row: JSONRow) -> Key:
        return tuple(row[name] for name in self.table.key)

    def _apply_keyed(self, change: dict[str, Any], changed: dict[Key, JSONRow | None]) -> None:
        operation = change["op"]
        if operation == "TRUNCATE":
            changed.update(dict.fromkeys(self.rows))
            self.rows.clear()
            return
        key = self.key_of(change["key"])
        old_key = key
        if operation == "UPDATE" and "old" in change:
            old_key = self.key_of(change["old"])
        before = self.rows.get(old_key)
        # Where PostgreSQL does not tell old rows, nobody can know whether the client has a row.
        if self.table.full and (before is None) != (operation == "INSERT"):
            raise WrongError(
                f"{self.name}: {operation} of {old_key}, which is {'not ' * (before is None)}there"
            )
        if before is not None and operation != "INSERT":
            del self.rows[old_key]
            changed[old_key] = None
        if operation == "DELETE":
            return
        new: JSONRow = change["new"]
        if self.key_of(new) != key:
            raise WrongError(f"{self.name}: the key {key} is not that of {new}")
        if len(new) < len(self.shown):
            if before is None:
                self.forget("own: a large value of an unknown row")
                return
            new = {**before, **new}
        self.rows[key] = changed[key] = new

    def _apply_whole(self, change: dict[str, Any], bag: Counter[str]) -> None:
        operation = change["op"]
        if operation == "TRUNCATE":
            bag.subtract(self.bag)
            self.bag.clear()
            return
        if operation != "INSERT":
            row = canonical(change["old"])
            if not self.bag[row]:
                raise WrongError(f"{self.name}: {operation} of a row that is not there: {row[:300]}")
            self.bag[row] -= 1
            bag[row] -= 1
        if operation != "DELETE":
            row = canonical(change["new"])
            self.bag[row] += 1
            bag[row] += 1

    # The comparison.

    def verify(self, oracle: Oracle) -> int:
        """Compare every state since the last time with the oracle; returns how many there were.

        Raises:
            WrongError: One of them was wrong.
        """
        entries, self.entries = self.entries, []
        for entry in entries:
            try:
                self._verify(oracle, entry)
            except WrongError as error:
                raise WrongError(
                    f"{self.name} ({self.table.name}, {self.filter.wire or 'all rows'}, columns {self.columns}) at"
                    f" {entry.position}, a {type(entry).__name__}: {error}\n    around it committed"
                    f" {oracle.around(oracle.number_at(entry.position))}"
                ) from None
        return len(entries)

    def _verify(self, oracle: Oracle, entry: Entry) -> None:
        count = oracle.number_at(entry.position)
        if isinstance(entry, Loaded):
            expected = oracle.rows_at(self.shape, count)
            _compare_all(
                expected, list(entry.rows), same_columns=oracle.columns_at(self.shape, count) == entry.columns
            )
            rows = {oracle.key_of(self.table.name, row): row for row in entry.rows} if self.table.key else {}
            self._checked = _Checked(count, rows, entry.columns)
            return
        checked = self._checked
        if checked is None:
            raise WrongError("a change came before the rows")
        if isinstance(entry, Applied) and entry.txid is not None:
            self._verify_commit(oracle, entry)
        if self.table.key:
            changed = entry.changed if isinstance(entry, Applied) else {}
            assert not isinstance(changed, Counter)
            self._verify_keys(oracle, checked, count, changed)
        else:
            delta = entry.changed if isinstance(entry, Applied) else Counter[str]()
            assert isinstance(delta, Counter)
            self._verify_bag(oracle, checked, count, delta)
        checked.count = count

    @staticmethod
    def _verify_commit(oracle: Oracle, entry: Applied) -> None:
        commit = oracle.commit_at(entry.position)
        if commit is None:
            raise WrongError("no transaction stands there")
        if commit.xid != entry.txid:
            raise WrongError(f"the transaction that stands there is {commit.xid}, not {entry.txid}")

    def _verify_keys(
        self, oracle: Oracle, checked: _Checked, count: int, changed: Mapping[Key, JSONRow | None]
    ) -> None:
        for key, row in changed.items():
            if row is None:
                checked.rows.pop(key, None)
            else:
                checked.rows[key] = row
        name, shape = self.table.name, self.shape
        columns = oracle.columns_at(shape, count)
        for row_id in oracle.touched_between(name, checked.count, count):
            key = oracle.json_key(name, row_id)
            expected, shown = oracle.row_at(shape, row_id, count), checked.rows.get(key)
            if key not in changed and columns != checked.columns:
                # The table has other columns by now, and the server tells it with the next row or within seconds.
                expected, shown = (_common(row, columns, checked.columns) for row in (expected, shown))
            if expected != shown:
                raise WrongError(f"the row {key} is {_short(shown)}, and in the query {_short(expected)}")
        for key in changed:
            if checked.rows.get(key) != oracle_row(oracle, shape, key, count):
                raise WrongError(
                    f"the row {key} was changed to {_short(checked.rows.get(key))}, and in the query it is"
                    f" {_short(oracle_row(oracle, shape, key, count))}"
                )

    def _verify_bag(self, oracle: Oracle, checked: _Checked, count: int, delta: Counter[str]) -> None:
        shape = self.shape
        expected: Counter[str] = Counter()
        for row_id in oracle.touched_between(self.table.name, checked.count, count):
            for at, sign in ((checked.count, -1), (count, 1)):
                row = oracle.row_at(shape, row_id, at)
                if row is not None:
                    expected[canonical(row)] += sign
        if {row: times for row, times in expected.items() if times} != {
            row: times for row, times in delta.items() if times
        }:
            raise WrongError(
                f"what came and went differs: {difference(delta, expected)}, {difference(-delta, -expected)}"
            )

    def verify_end(self, oracle: Oracle) -> None:
        """Compare the present rows with the query, while nobody writes."""
        shown = Counter(map(canonical, self.rows.values())) if self.table.key else +self.bag
        expected = oracle.select(self.shape)
        if shown != expected:
            raise WrongError(
                f"{self.name} ({self.filter.wire}) is not the query: {difference(shown, expected)}"
            )


@dataclass(slots=True)
class _Checked:
    """How far a journal has been compared."""

    count: int
    rows: dict[Key, JSONRow]
    columns: tuple[str, ...]


def oracle_row(oracle: Oracle, shape: Shape, key: Key, count: int) -> JSONRow | None:
    """The row of a JSON key."""
    row_id = oracle.row_id(shape.table, key)
    return None if row_id is None else oracle.row_at(shape, row_id, count)


def _compare_all(expected: list[JSONRow], shown: list[JSONRow], *, same_columns: bool) -> None:
    if not same_columns:
        names = {name for row in (expected[:1] + shown[:1]) for name in row}
        for rows in (expected, shown):
            names &= set(rows[0]) if rows else names
        expected = [{name: row[name] for name in names} for row in expected]
        shown = [{name: row[name] for name in names} for row in shown]
    ours, theirs = Counter(map(canonical, shown)), Counter(map(canonical, expected))
    if ours != theirs:
        raise WrongError(f"the rows are not the query: {difference(ours, theirs)}")


def _common(row: JSONRow | None, *columns: tuple[str, ...]) -> JSONRow | None:
    if row is None:
        return None
    names = set.intersection(*map(set, columns))
    return {name: value for name, value in row.items() if name in names}


def _short(row: JSONRow | None) -> str:
    return "absent" if row is None else canonical(row)[:400]
