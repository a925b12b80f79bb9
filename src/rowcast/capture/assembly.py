"""From the messages of one replication connection to events. No I/O.

The one rule of this room: a transaction leaves it whole, at its Commit, or as a `Gap` that names what is missing.

An assembler belongs to one connection, as its decoder does. It must be told which `Table` a change belongs to:
`feed` returns the OID it does not know, the caller `bind`s it and feeds the same message again.
"""

from __future__ import annotations

import struct
from typing import Final

from rowcast.capture import pgoutput
from rowcast.model import (
    Change,
    Event,
    Gap,
    Operation,
    Position,
    Progress,
    Row,
    Table,
    Transaction,
    make_position,
)

MESSAGE_PREFIX: Final = "rowcast"  # of pg_logical_emit_message(); the contents follow
HEARTBEAT: Final = b"heartbeat"
TABLES: Final = b"tables"
PUBLICATION: Final = 0  # in place of an OID; no table has this one
_CONFIRM: Final = b"confirm "

# What CPython 3.11 holds for a row beyond its bytes: a Change and a tuple, and for each value a bytes object's head
# and its place in the tuple. It makes `max_transaction_bytes` a bound of memory rather than of the wire.
CHANGE_BYTES: Final = 160
VALUE_BYTES: Final = 41

_XIDS: Final = 2**32  # how many there are before they begin anew
_ROW_KINDS: Final = frozenset(b"IUD")
_OID: Final = struct.Struct("!I")


class Assembler:
    """Collects changes between Begin and Commit.

    Args:
        epoch: The first part of every position.
        delivered: The LSN up to which everything has been told.
        xid: A 64-bit transaction id of about now, to widen the 32-bit ones by.
        max_transaction_bytes: Above this a transaction's changes are not kept.

    Attributes:
        position_number: The LSN up to which all events have been made.
        events: What is ready; the caller takes it and empties it.
        xid: The 64-bit id of the latest transaction.
    """

    def __init__(self, epoch: str, delivered: int, xid: int, max_transaction_bytes: int) -> None:
        self.position_number = delivered
        self.events: list[Event] = []
        self.xid = xid
        self._epoch = epoch
        self._max_bytes = max_transaction_bytes
        self._decoder = pgoutput.Decoder()
        self._bound: dict[int, Table | None] = {}
        self._last_bound: dict[int, Table | None] = {}
        self._in_transaction = False
        self._changes: list[Change] = []
        self._confirms: list[str] = []
        self._index = 0
        self._size_bytes = 0
        self._too_large = False
        self._touched: set[int] = set()
        self._reshaped: set[int] = set()
        self._tables_message = False

    @property
    def position(self) -> Position:
        return make_position(self._epoch, self.position_number)

    def relation(self, oid: int) -> pgoutput.Relation:
        """The latest Relation message of a table."""
        return self._decoder.relations[oid]

    def bind(self, oid: int, table: Table | None) -> None:
        """Say which Table the changes after the latest Relation message belong to; None leaves them out.

        A table that changes its columns in the middle of a transaction has rows of two forms in it: those are
        left out, and a Gap comes before the transaction.
        """
        self._bound[oid] = table
        if table is not None and any(
            change.table.oid == oid and change.table != table for change in self._changes
        ):
            self._reshaped.add(oid)

    def distrust_nulls(self, oid: int) -> None:
        """Some partition of this table does not log full old rows; see `Decoder.nulls_unknown`."""
        self._decoder.nulls_unknown.add(oid)

    def unbind(self, oid: int) -> None:
        """Ask again at the next change of this table."""
        self._bound.pop(oid, None)

    def bound(self, oid: int) -> Table | None:
        """The Table that changes are told with, where the stream has described it."""
        return self._bound.get(oid)

    def pass_keepalive(self, number: int) -> None:
        """PostgreSQL has read its log up to here, and what it found has been sent before."""
        if not self._in_transaction and number > self.position_number:
            self._progress(number)

    def feed(self, data: bytes, start: int = 0) -> int | None:
        """Take the message that begins at `start`.

        Returns:
            None when it is taken. An OID: `bind` that table and feed the same message again. `PUBLICATION`: it is
            taken, and from here on the publication may hold other tables.

        Raises:
            DecodeError: The bytes do not follow the format.
        """
        if self._too_large and data[start] in _ROW_KINDS:
            self._touched.update(_OID.unpack_from(data, start + 1))
            return None
        message = self._decoder.decode(data, start)
        if isinstance(message, pgoutput.Insert):
            return self._change(message.oid, "INSERT", message.new, None, len(data))
        if isinstance(message, pgoutput.Update):
            return self._change(message.oid, "UPDATE", message.new, message.old, len(data))
        if isinstance(message, pgoutput.Delete):
            return self._change(message.oid, "DELETE", None, message.old, len(data))
        if isinstance(message, pgoutput.Begin):
            self._begin(message)
        elif isinstance(message, pgoutput.Commit):
            return self._commit(message)
        elif isinstance(message, pgoutput.Relation):
            self._bound.pop(message.oid, None)
        elif isinstance(message, pgoutput.Truncate):
            return self._truncate(message)
        elif isinstance(message, pgoutput.LogicalMessage):
            self._message(message)
        return None

    def _begin(self, begin: pgoutput.Begin) -> None:
        distance = (begin.xid - self.xid) % _XIDS
        self.xid += distance if distance < _XIDS // 2 else distance - _XIDS
        self._in_transaction = True
        self._changes = []
        self._confirms = []
        self._index = 0
        self._size_bytes = 0
        self._too_large = False
        self._touched = set()
        self._reshaped = set()
        self._tables_message = False

    def _change(
        self, oid: int, operation: Operation, new: Row | None, old: Row | None, size_bytes: int
    ) -> int | None:
        try:
            table = self._bound[oid]
        except KeyError:
            return oid
        index = self._index
        self._index += 1  # also for what is left out, so that an index is the same at every redelivery
        if table is not None:
            self._changes.append(Change(table, operation, new, old, index))
            values = len(table.columns) if new is None or old is None else 2 * len(table.columns)
            self._grow(size_bytes + CHANGE_BYTES + VALUE_BYTES * values)
        return None

    def _truncate(self, truncate: pgoutput.Truncate) -> int | None:
        for oid in truncate.oids:
            if oid not in self._bound:
                return oid
        if self._too_large:
            self._touched.update(truncate.oids)
            return None
        for oid in truncate.oids:
            self._change(oid, "TRUNCATE", None, None, 0)
        return None

    def _message(self, message: pgoutput.LogicalMessage) -> None:
        if message.prefix != MESSAGE_PREFIX or not message.transactional:
            return
        if message.content == TABLES:
            self._tables_message = True
        elif message.content.startswith(_CONFIRM) and not self._too_large:
            self._confirms.append(message.content[len(_CONFIRM) :].decode(errors="replace"))
            self._grow(len(message.content) + VALUE_BYTES)

    def _grow(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        if self._size_bytes > self._max_bytes and not self._too_large:
            self._too_large = True
            self._touched.update(change.table.oid for change in self._changes)
            self._changes = []
            self._confirms = []

    def _commit(self, commit: pgoutput.Commit) -> int | None:
        self._in_transaction = False
        self.position_number = commit.end_lsn
        changes, lost = self._changes, self._reshaped
        if self._too_large:
            self.events.append(
                Gap(self.position, "transaction_too_large", frozenset(self._touched), self.xid)
            )
        else:
            if lost:
                # Before the rest of the transaction, so that nobody takes it for the whole.
                self.events.append(Gap(self.position, "schema_changed", frozenset(lost), self.xid))
                changes = [change for change in changes if change.table.oid not in lost]
            if changes or self._confirms:
                self.events.append(
                    Transaction(
                        self.position,
                        self.xid,
                        commit.timestamp_us,
                        tuple(changes),
                        tuple(self._confirms),
                        self._size_bytes,
                    )
                )
            else:
                self._progress(commit.end_lsn)
        self._changes = []
        self._confirms = []
        return PUBLICATION if self._tables_message else None

    def _progress(self, number: int) -> None:
        self.position_number = number
        progress = Progress(self.position)
        if self.events and isinstance(self.events[-1], Progress):
            self.events[-1] = progress
        else:
            self.events.append(progress)
