"""Where each transaction stands in a capture's stream, found out from the WAL by what DESIGN §4 says of its order.

The one rule of this room: nothing here uses Rowcast's code; of the outbox, only what its tables say is read.

    place of a transaction   over the log: where its commit record ends
                             over the outbox: in the first batch whose snapshot sees it; in the batch, by its highest
                             LSN

Transactions without a row in the outbox, which only change a table's columns, have no position of their own there.
They stand behind everything that had committed before them, as the locks that they hold demand it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psycopg
from tests.faults.wire import Transaction

_EPOCH_DIGITS: Final = 16
_BATCH_SHIFT: Final = 24
_OUTBOX: Final = "rowcast.outbox"
_BATCH: Final = "rowcast.outbox_batch"
_INCARNATION: Final = "oracle_incarnation"
# What triggers write of one change: of an UPDATE, the old and the new row.
_ROWS: Final = {"I": 1, "U": 2, "D": 1, "T": 1, "M": 0}

# An era, and twice a position's number: between two positions is room for who has none.
Place = tuple[int, int]


class Order(Protocol):
    """One capture's order."""

    publications: tuple[str, ...]

    def prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Make what is needed in the database, before the slot."""
        ...

    def feed(self, transaction: Transaction) -> list[tuple[Place, Transaction]]:
        """Take the WAL's next transaction; those whose place is certain now, in order."""
        ...

    def place_of(self, position: str) -> Place: ...


class LogOrder:
    """That of the WAL, across all epochs."""

    publications: tuple[str, ...] = ()

    def prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Nothing is needed."""

    def feed(self, transaction: Transaction) -> list[tuple[Place, Transaction]]:
        return [((0, 2 * transaction.end), transaction)]

    def place_of(self, position: str) -> Place:
        return 0, 2 * int(position[_EPOCH_DIGITS + 1 :], 16)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A transaction that no batch has seen yet."""

    transaction: Transaction
    order: tuple[int, int]
    has_rows: bool


class OutboxOrder:
    """That of the batches. Each incarnation of the outbox is an era, and begins with what its first snapshot sees."""

    publications: tuple[str, ...] = ("oracle_order",)

    def __init__(self) -> None:
        self._eras: dict[str, int] = {}
        self._waiting: list[_Waiting] = []  # in the WAL's order
        self._lsn = 0
        self._count = 0

    def prepare(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(f"CREATE TABLE {_INCARNATION} (name text)".encode())
        connection.execute(
            f"CREATE FUNCTION {_INCARNATION}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO"
            f" public.{_INCARNATION} VALUES (new.origin || '/outbox/' || new.incarnation); RETURN NULL; END $$".encode()
        )
        connection.execute(
            f"CREATE TRIGGER {_INCARNATION} AFTER UPDATE ON rowcast.outbox_state FOR EACH ROW WHEN"
            f" (new.incarnation IS DISTINCT FROM old.incarnation) EXECUTE FUNCTION {_INCARNATION}()".encode()
        )
        connection.execute(
            f"CREATE PUBLICATION oracle_order FOR TABLE {_OUTBOX} (lsn, xid), {_BATCH} (number, snapshot),"
            f" {_INCARNATION} WITH (publish = 'insert')".encode()
        )

    def feed(self, transaction: Transaction) -> list[tuple[Place, Transaction]]:
        placed: list[tuple[Place, Transaction]] = []
        lsns: list[int] = []
        rows, others = 0, False
        for change in transaction.changes:
            values = dict(zip(change.columns, change.new or (), strict=True)) if change.new else {}
            if change.table == _INCARNATION:
                epoch = hashlib.sha256(values["name"].encode()).hexdigest()[:_EPOCH_DIGITS]
                self._eras[epoch] = len(self._eras) + 1
            elif change.table == _BATCH:
                placed += self._batch(int(values["number"]), values["snapshot"])
            elif change.table == _OUTBOX:
                high, low = values["lsn"].split("/")
                lsns.append(int(high, 16) << 32 | int(low, 16))
            else:
                rows += _ROWS[change.operation]
                others = True
        before, self._lsn = self._lsn, max([self._lsn, *lsns])
        if lsns or others:
            self._count += 1
            # Over its limit the outbox gets no more rows, and what it has of such a transaction says nothing of its
            # place. The batch that sees it is never told.
            whole = lsns and len(lsns) >= rows
            order = (max(lsns), transaction.xid) if whole else (before, 2**64 + self._count)
            self._waiting.append(_Waiting(transaction, order, bool(lsns)))
        return placed

    def _batch(self, number: int, snapshot: str) -> list[tuple[Place, Transaction]]:
        _, end, running = snapshot.split(":")
        hidden = set(running.split(","))
        seen: list[_Waiting] = []
        unseen: list[_Waiting] = []
        for each in self._waiting:
            xid = each.transaction.xid
            (seen if xid < int(end) and str(xid) not in hidden else unseen).append(each)
        self._waiting = unseen
        era = len(self._eras)
        if number == 1:
            return [((era, 0), each.transaction) for each in seen]
        place = 2 * (number << _BATCH_SHIFT)
        placed: list[tuple[Place, Transaction]] = []
        for each in sorted(seen, key=lambda each: each.order):
            if each.has_rows:
                place += 2
            placed.append(((era, place | (not each.has_rows)), each.transaction))
        return placed

    def place_of(self, position: str) -> Place:
        epoch = position[:_EPOCH_DIGITS]
        assert epoch in self._eras, f"there never was an incarnation {epoch}"
        return self._eras[epoch], 2 * int(position[_EPOCH_DIGITS + 1 :], 16)
