"""Shapes and routing: which subscriptions does one changed row concern, and how.

The one rule of this room: a change is matched once per shape, never per client, and the old and the new row
decide together: in→in is an UPDATE, out→in an INSERT, in→out a DELETE, out→out nothing. So leaving is an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from rowcast.filters import BoundFilter, FilterIndex
from rowcast.model import MISSING, Change, Missing, Operation, Position, Row, Table
from rowcast.values import RowEncoder

if TYPE_CHECKING:
    from rowcast.hub.audience import Outlet, OutletKey

# What a change is for one shape; UNKNOWN where a filter needs a value that PostgreSQL did not send.
Effect: TypeAlias = Operation | Literal["UNKNOWN"]


_ABSENT: Final = object()
ShapeKey: TypeAlias = tuple[int, frozenset[str] | None, str]


class Projection:
    """A table with a selection of its columns: everything that JSON of its rows depends on.

    Attributes:
        columns: Indexes of the delivered columns, in the table's order; always with the key.
    """

    __slots__ = ("columns", "key", "row", "table")

    def __init__(self, table: Table, names: frozenset[str] | None) -> None:
        self.table = table
        chosen = (
            range(len(table.columns))
            if names is None
            else sorted(
                {index for index, column in enumerate(table.columns) if column.name in names} | set(table.key)
            )
        )
        self.columns = tuple(chosen)
        self.row = RowEncoder(table.columns, self.columns).encode
        self.key = RowEncoder(table.columns, table.key).encode


class EncodedChange:
    """One change as JSON pieces for one projection, each made at most once and only when asked for."""

    __slots__ = ("_differences", "_new", "_old", "change", "id", "position", "projection")

    def __init__(self, change: Change, projection: Projection, position: Position) -> None:
        self.change = change
        self.projection = projection
        self.position = position
        self.id = b"%s-%08x" % (position.encode(), change.index)
        self._new: bytes | None = None
        self._old: bytes | None = None
        self._differences: EncodedChange | Missing | None = MISSING

    @property
    def new(self) -> bytes:
        if self._new is None:
            assert self.change.new is not None
            self._new = self.projection.row(self.change.new)
        return self._new

    @property
    def old(self) -> bytes | None:
        """The old row as far as it is known, or None."""
        if self._old is None and self.change.old is not None:
            self._old = self.projection.row(self.change.old)
        return self._old

    @property
    def key(self) -> bytes | None:
        """The key of the new row, or of the old one where there is no new; None without a key."""
        row = self.change.new if self.change.new is not None else self.change.old
        return self.projection.key(row) if row is not None and self.projection.table.key else None

    @property
    def old_key(self) -> bytes | None:
        """The key of the old row; None where the old row or a key is not known."""
        old = self.change.old
        return self.projection.key(old) if old is not None and self.projection.table.key else None

    @property
    def key_changed(self) -> bool:
        old, new = self.change.old, self.change.new
        return (
            old is not None and new is not None and any(old[i] != new[i] for i in self.projection.table.key)
        )

    @property
    def differences(self) -> EncodedChange | None:
        """An UPDATE with its key and the columns that it has changed only; None where these are none.

        Where the old row is not known, every column may have changed. Without a key the old row stays whole: it says
        which row it is.
        """
        if self._differences is MISSING:
            self._differences = self._find_differences()
        return self._differences

    def _find_differences(self) -> EncodedChange | None:
        change, projection = self.change, self.projection
        old, new = change.old, change.new
        assert new is not None
        if old is None:
            return self
        told = {i for i in projection.columns if new[i] is not MISSING and new[i] != old[i]}
        if not told:
            return None
        told.update(projection.table.key)

        def cut(row: Row) -> Row:
            return tuple(value if index in told else MISSING for index, value in enumerate(row))

        kept = cut(old) if projection.table.key else old
        return EncodedChange(
            Change(change.table, "UPDATE", cut(new), kept, change.index), projection, self.position
        )


class Shape:
    """Table, columns and filter: equal shapes are one object, however many clients watch it.

    Attributes:
        outlets: How it is delivered: one outlet for each way that is in use.
    """

    __slots__ = ("filter", "names", "outlets", "projection", "table")

    def __init__(
        self,
        table: Table,
        names: frozenset[str] | None,
        projection: Projection,
        bound: BoundFilter | None,
    ) -> None:
        self.table = table
        self.names = names
        self.projection = projection
        self.filter = bound
        self.outlets: dict[OutletKey, Outlet] = {}

    @property
    def key(self) -> ShapeKey:
        """What makes shapes equal."""
        return self.table.oid, self.names, self.filter.key if self.filter else ""

    def effect(self, change: Change) -> Effect | None:
        """What a change of its table means for this shape alone; None for nothing."""
        bound = self.filter
        if bound is None or change.operation == "TRUNCATE":
            return change.operation
        new_in = False if change.new is None else bound.evaluate(change.new)
        if new_in is MISSING:
            return "UNKNOWN"
        old_in = MISSING if change.old is None else bound.evaluate(change.old)
        return _effect(
            change.operation, new_in=new_in is True, old_in=old_in is True, may_be_old=old_in is MISSING
        )

    def columns_description(self) -> list[dict[str, str]]:
        columns = self.table.columns
        return [{"name": columns[i].name, "type": columns[i].type_name} for i in self.projection.columns]


class Routes:
    """The shapes of one table, found by what a changed row holds."""

    __slots__ = ("_filtered", "_index", "_unfiltered")

    def __init__(self) -> None:
        self._unfiltered: dict[Shape, None] = {}
        self._filtered: dict[Shape, None] = {}
        self._index: FilterIndex[Shape] = FilterIndex()

    def add(self, shape: Shape) -> None:
        if shape.filter is None:
            self._unfiltered[shape] = None
        else:
            self._filtered[shape] = None
            self._index.add(shape.filter, shape)

    def remove(self, shape: Shape) -> None:
        if shape.filter is None:
            del self._unfiltered[shape]
        else:
            del self._filtered[shape]
            self._index.remove(shape.filter, shape)

    def __iter__(self) -> Iterator[Shape]:
        yield from self._unfiltered
        yield from self._filtered

    def effects(self, change: Change) -> Iterable[tuple[Shape, Effect]]:
        """Every shape that the change concerns, with what it is there."""
        operation = change.operation
        for shape in self._unfiltered:
            yield shape, operation
        if not self._filtered:
            return
        if operation == "TRUNCATE":
            for shape in self._filtered:
                yield shape, operation
            return
        new_in, unknown = ([], []) if change.new is None else self._index.partition(change.new)
        for shape in unknown:
            yield shape, "UNKNOWN"
        if operation == "INSERT":
            for shape in new_in:
                yield shape, "INSERT"
            return
        if change.old is None:
            # PostgreSQL did not send the old row: whoever does not get the new one may have had it.
            old_in, may_be_old = list[Shape](), list(self._filtered)
        else:
            old_in, may_be_old = self._index.partition(change.old)
        left = dict.fromkeys((*old_in, *may_be_old))
        for shape in unknown:
            left.pop(shape, None)
        for shape in new_in:
            yield shape, "INSERT" if left.pop(shape, _ABSENT) is _ABSENT else "UPDATE"
        for shape in left:
            yield shape, "DELETE"


def _effect(operation: Operation, *, new_in: bool, old_in: bool, may_be_old: bool) -> Operation | None:
    """The table of rule 5. `may_be_old`: PostgreSQL did not send enough of the old row to know."""
    if operation == "INSERT":
        return "INSERT" if new_in else None
    if new_in:
        return "UPDATE" if old_in or may_be_old else "INSERT"
    return "DELETE" if old_in or may_be_old else None
