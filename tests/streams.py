"""Tables, rows and transactions made by hand, for tests of the rooms that take them in."""

from __future__ import annotations

from rowcast.model import Change, Column, Operation, Position, Row, Table, Transaction, Value, make_position
from rowcast.values import TypeCatalog

EPOCH = "5e1f0c6a9d3b2e47"
_TYPES = {"bigint": 20, "text": 25, "boolean": 16, "integer": 23}
_catalog = TypeCatalog()


def at(number: int) -> Position:
    return make_position(EPOCH, number)


def table(
    name: str = "projects",
    columns: str = "id bigint, name text",
    *,
    key: tuple[int, ...] = (0,),
    schema: str = "public",
    oid: int = 1000,
) -> Table:
    """A table from a column list as SQL would have it; types are bigint, integer, text and boolean."""
    made = []
    for entry in columns.split(","):
        column, type_name = entry.split()
        oid_of_type = _TYPES[type_name]
        made.append(Column(column, oid_of_type, -1, type_name, _catalog.encoder(oid_of_type)))
    return Table(oid, schema, name, tuple(made), key, "full")


def row(*values: object) -> Row:
    """A row as PostgreSQL would write it; what is neither text, number nor None is taken as it is."""
    return tuple(_text(value) for value in values)


def _text(value: object) -> Value:
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, int | str):
        return str(value).encode()
    return value  # type: ignore[return-value]


def change(of: Table, operation: Operation, new: Row | None = None, old: Row | None = None) -> Change:
    return Change(of, operation, new, old, 0)


def transaction(number: int, *changes: Change, confirms: tuple[str, ...] = (), xid: int = 771) -> Transaction:
    """A commit whose end is at `number`."""
    for index, each in enumerate(changes):
        each.index = index
    return Transaction(at(number), xid, 1_763_717_400_123_456, list(changes), confirms, 100 * len(changes))


class Collector:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.data.append(data)

    def lines(self) -> list[bytes]:
        taken, self.data = self.data, []
        return b"".join(taken).splitlines()


__all__ = ["EPOCH", "Collector", "at", "change", "row", "table", "transaction"]
