"""From the rows of rowcast.outbox to events. No I/O.

The one rule of this room: the same batch makes the same positions and ids, whenever and however often it is read.

A batch comes ordered by transaction and, inside one, by statement. Where a transaction stands in the stream is the
batch's number and its place in the batch: `BATCH_SHIFT` bits of a position are the place, counted from 1, and place 0
of batch n + 1 is the end of batch n.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rowcast.capture.assembly import CHANGE_BYTES, VALUE_BYTES
from rowcast.capture.pgoutput import POSTGRES_EPOCH_US
from rowcast.model import (
    Change,
    Event,
    Gap,
    Operation,
    Position,
    Row,
    Table,
    Transaction,
    Value,
    make_position,
)

# Sixteen million transactions in a batch, which is what an hour without a server leaves at 4,600 commits a second;
# and a trillion batches.
BATCH_SHIFT: Final = 24
_MAX_PLACE: Final = (1 << BATCH_SHIFT) - 1

# One row of `COPY … (FORMAT binary)`: the number of columns, and before each its length. The columns are xid, at,
# statement, table_oid, operation and content.
_HEAD: Final = struct.Struct("!hiqiqiqiIici")
_NULL: Final = -1
_COPY_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_COPY_HEADER_BYTES: Final = 19
_COPY_TRAILER: Final = b"\xff\xff"
_FIELD: Final = re.compile(rb',("[^"]*(?:""[^"]*)*"|[^,"]*)')


@dataclass(frozen=True, slots=True)
class Member:
    """A table with triggers: a watched table, or a partition of one, which has columns in an order of its own.

    Attributes:
        table: What its changes are told of.
        columns: All of its columns, generated ones too, as its rows have them.
    """

    oid: int
    table: Table
    columns: tuple[str, ...]

    @property
    def places(self) -> tuple[int, ...] | None:
        """Where the table's columns are in the member's rows; None if that is where they are in the table's."""
        places = tuple(self.columns.index(column.name) for column in self.table.columns)
        return None if places == tuple(range(len(self.columns))) else places


def parse_record(text: bytes) -> list[Value]:
    """Split PostgreSQL's text of a record, `(1,,"a b")`, into the texts of its columns."""
    if b'"' not in text:
        return [field or None for field in text[1:-1].split(b",")]
    return [
        None if not field else _unquoted(field) if field[0] == 0x22 else field
        for field in _FIELD.findall(b"," + text[1:-1])
    ]


def _unquoted(field: bytes) -> bytes:
    return field[1:-1].replace(b'""', b'"').replace(rb"\\", b"\\")


class Batch:
    """Collects the transactions of one batch as its rows are fed.

    Args:
        epoch: The first part of every position.
        number: The batch's.
        told: How many of its transactions have been told before; they are passed over.
        members: By OID. Rows of others are left out.
        stale: Members whose rows in this batch may have other columns than they have now: they are left out too.
        max_transaction_bytes: Above this a transaction's changes are not kept.

    Attributes:
        events: What is ready; the caller takes it and empties it.
        row_count: How many rows have been fed.
        lost: Watched tables of which rows had to be left out. A Gap comes before the first transaction that lacks some,
            so that nobody takes it for the whole, and another one has to follow the batch.
        missed: Watched tables of which rows may not have been written: they had no triggers for a while, or a
            partition has come or gone.
        overflowed: There were more transactions than places: the rest was left out.
    """

    def __init__(
        self,
        epoch: str,
        number: int,
        told: int,
        members: Mapping[int, Member],
        stale: frozenset[int],
        max_transaction_bytes: int,
    ) -> None:
        self.events: list[Event] = []
        self.row_count = 0
        self.lost: set[int] = set()
        self.missed: set[int] = set()
        self.overflowed = False
        self._announced: frozenset[int] = frozenset()  # of `lost`, those that the Gaps so far have named
        self._epoch = epoch
        self._number = number
        self._told = told
        self._members = {oid: (member, member.places) for oid, member in members.items()}
        self._stale = stale
        self._max_bytes = max_transaction_bytes
        self._place = 0
        self._at = 0
        self._begin(0)

    @property
    def end(self) -> Position:
        """The position behind all of its transactions."""
        return make_position(self._epoch, (self._number + 1) << BATCH_SHIFT)

    def feed(self, data: bytes) -> None:
        """Take the next piece of copy data: a row, the first one behind the header, or the trailer."""
        if data.startswith(_COPY_SIGNATURE):
            data = data[_COPY_HEADER_BYTES:]
        if data == _COPY_TRAILER:
            return
        _, _, xid, _, at, _, statement, _, oid, _, operation, length = _HEAD.unpack_from(data)
        self.row_count += 1
        if xid != self._xid:
            self._commit()
            self._begin(xid)
        self._at = max(self._at, at)
        if self._updating is not None and (
            operation not in b"ON" or (statement, oid) != self._updating or (operation == b"O" and self._new)
        ):
            self._pair()
        if operation == b"C":
            self._confirms.append(data[_HEAD.size :].decode(errors="replace"))
            self._grow(length + VALUE_BYTES)
        elif operation == b"G":
            if oid in self._members:
                self.missed.add(self._members[oid][0].table.oid)
        elif operation != b"W":
            self._change(operation, statement, oid, None if length == _NULL else data[_HEAD.size :])

    def finish(self) -> list[Event]:
        """There are no more rows: the events that are left."""
        self._commit()
        return self.events

    def _begin(self, xid: int) -> None:
        if xid:
            self.overflowed = self._place == _MAX_PLACE
            self._place = min(self._place + 1, _MAX_PLACE)
        self._xid = xid
        self._at = 0
        self._index = 0
        self._changes: list[Change] = []
        self._confirms: list[str] = []
        self._size_bytes = 0
        self._too_large = False
        self._touched: set[int] = set()
        self._truncated: set[tuple[int, int]] = set()
        self._updating: tuple[int, int] | None = None  # statement and table
        self._old: list[Row | None] = []
        self._new: list[Row | None] = []

    def _change(self, operation: bytes, statement: int, oid: int, content: bytes | None) -> None:
        member, places = self._members.get(oid, (None, None))
        if operation == b"T":
            self._truncate(statement, oid, member)
            return
        row = None
        if member is not None:
            self._touched.add(member.table.oid)
            if content is None:
                self._grow(self._max_bytes + 1)  # over any bound that a transaction may have
            elif not self._too_large:
                row = self._row(content, member, places)
        if operation == b"I":
            self._insert(oid, row)
        elif operation == b"D":
            self._delete(oid, row)
        else:
            self._updating = (statement, oid)
            (self._old if operation == b"O" else self._new).append(row)

    def _row(self, content: bytes, member: Member, places: tuple[int, ...] | None) -> Row | None:
        """None where it cannot be told, because the columns are not what they were."""
        fields = parse_record(content) if member.columns else []
        if member.oid in self._stale or len(fields) != len(member.columns):
            self.lost.add(member.table.oid)
            return None
        row = tuple(fields) if places is None else tuple([fields[place] for place in places])
        self._grow(len(content) + CHANGE_BYTES + VALUE_BYTES * len(row))
        return row

    def _add(self, oid: int, operation: Operation, new: Row | None, old: Row | None, *, known: bool) -> None:
        index = self._index
        self._index += 1  # also for what is left out, so that an index is the same at every redelivery
        if known and not self._too_large:
            self._changes.append(Change(self._members[oid][0].table, operation, new, old, index))

    def _insert(self, oid: int, new: Row | None) -> None:
        self._add(oid, "INSERT", new, None, known=new is not None)

    def _delete(self, oid: int, old: Row | None) -> None:
        self._add(oid, "DELETE", None, old, known=old is not None)

    def _truncate(self, statement: int, oid: int, member: Member | None) -> None:
        index = self._index
        self._index += 1
        if member is None:
            return
        table = member.table
        self._touched.add(table.oid)
        if oid == table.oid:
            self._truncated.add((statement, oid))
            if not self._too_large:
                self._changes.append(Change(table, "TRUNCATE", None, None, index))
                self._grow(CHANGE_BYTES)
        elif (statement, table.oid) not in self._truncated:
            self.missed.add(table.oid)  # a partition alone: nobody knows which rows those were

    def _pair(self) -> None:
        """An UPDATE's old and new rows are complete: they were written in the same order.

        Unless there are more old ones, because a row moved to another partition and a trigger there refused it.
        """
        assert self._updating is not None
        _, oid = self._updating
        if len(self._old) == len(self._new):
            for old, new in zip(self._old, self._new, strict=True):
                self._add(oid, "UPDATE", new, old, known=old is not None and new is not None)
        else:
            for old in self._old:
                self._delete(oid, old)
            for new in self._new:
                self._insert(oid, new)
        self._updating = None
        self._old = []
        self._new = []

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        if self._size_bytes > self._max_bytes and not self._too_large:
            self._too_large = True
            self._changes = []
            self._confirms = []
            self._old = []
            self._new = []

    def _commit(self) -> None:
        if self._updating is not None:
            self._pair()
        if self._place <= self._told or self.overflowed:
            return
        position = make_position(self._epoch, self._number << BATCH_SHIFT | self._place)
        if fresh := self.lost - self._announced:
            self.events.append(Gap(position, "schema_changed", frozenset(fresh), self._xid))
            self._announced |= fresh
        if self._too_large:
            self.events.append(Gap(position, "transaction_too_large", frozenset(self._touched), self._xid))
        elif self._changes or self._confirms:
            self.events.append(
                Transaction(
                    position,
                    self._xid,
                    self._at + POSTGRES_EPOCH_US,
                    self._changes,
                    tuple(self._confirms),
                    self._size_bytes,
                )
            )
