"""The words of DESIGN as types: what flows from capture to the client. No I/O.

The one rule of this room: a value is either exactly what PostgreSQL wrote, as its text output in UTF-8 bytes,
or `None` for SQL NULL, or `MISSING` where PostgreSQL did not send it. Nothing here guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, NewType, TypeAlias

from msgspec import Struct


class Missing(Enum):
    """The type of `MISSING`; an enum so that type checkers can narrow on identity."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


# An unchanged TOAST value of an UPDATE, or a column outside the key in an old row that holds the key only.
MISSING: Final = Missing.MISSING

Value: TypeAlias = bytes | Missing | None
Row: TypeAlias = tuple[Value, ...]  # one per column of its Table, in the same order
Operation: TypeAlias = Literal["INSERT", "UPDATE", "DELETE", "TRUNCATE"]

# Where a transaction stands in the stream: 16 hex digits of epoch, "-", 16 hex digits of the commit's end LSN
# (or the outbox batch number). Within an epoch, plain string comparison orders positions.
Position = NewType("Position", str)
EPOCH_DIGITS: Final = 16
POSITION_LENGTH: Final = EPOCH_DIGITS + 1 + 16


def make_position(epoch: str, number: int) -> Position:
    """Build a position from an epoch (16 lower-case hex digits) and a 64-bit LSN or batch number."""
    return Position(f"{epoch}-{number:016x}")


def epoch_of(position: Position) -> str:
    return position[:EPOCH_DIGITS]


def number_of(position: Position) -> int:
    """The LSN or batch number of a position."""
    return int(position[EPOCH_DIGITS + 1 :], 16)


def parse_position(text: str) -> Position:
    """Check a position that came from outside.

    Raises:
        ValueError: It is not one of ours; the text says what a position looks like.
    """
    epoch, dash, number = text[:EPOCH_DIGITS], text[EPOCH_DIGITS : EPOCH_DIGITS + 1], text[EPOCH_DIGITS + 1 :]
    digits = set("0123456789abcdef")
    if (
        len(text) != POSITION_LENGTH
        or dash != "-"
        or not (digits.issuperset(epoch) and digits.issuperset(number))
    ):
        raise ValueError(
            "a position has 16 hex digits, a dash and 16 hex digits: send one back exactly as a frame gave it"
        )
    return Position(text)


@dataclass(frozen=True, slots=True)
class Collation:
    """How PostgreSQL compares text of a column, as far as it can be repeated outside of PostgreSQL.

    Attributes:
        name: For messages: `en_US.utf8`, `und-x-icu`, `C`.
        deterministic: Whether texts are equal only if their bytes are.
        code_point_order: Whether texts sort by their code points.
        lower: What lower() does: nothing outside ASCII; one character for one; full Unicode rules, which make two
            characters of one; or something else (Turkish, say).
    """

    name: str
    deterministic: bool
    code_point_order: bool
    lower: Literal["ascii", "simple", "full", "other"]


@dataclass(frozen=True, slots=True)
class ColumnTraits:
    """What the catalogs know of a column beyond its type's OID; filters need it, the stream does not tell it.

    Attributes:
        base_oid: The type below a domain (and domains over it); 0 where the column's type is no domain.
        element_oid: Of an array of a type that is not built in, the type of its elements; else 0.
        enum_labels: Of an enum, and of an array of one, the labels in their sort order; else empty.
        collation: Of text and arrays of it, the column's collation; of jsonb, the database's own, which `->>` has.
            None: only known to be deterministic.
    """

    base_oid: int = 0
    element_oid: int = 0
    enum_labels: tuple[str, ...] = ()
    collation: Collation | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table as the stream describes it.

    Attributes:
        name: The column's name as stored, without quotes.
        type_oid: OID of its type in pg_type.
        type_modifier: atttypmod; -1 for none.
        type_name: format_type() of it, for messages and for clients.
        to_json: Turns a non-NULL value's text output into JSON, both UTF-8 bytes; equal to to_jsonb().
        traits: What else filters need to know of it.
    """

    name: str
    type_oid: int
    type_modifier: int
    type_name: str
    to_json: Callable[[bytes], bytes] = field(compare=False, repr=False)
    traits: ColumnTraits = ColumnTraits()


ReplicaIdentity: TypeAlias = Literal["default", "nothing", "full", "index"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table at one moment of its life; a change of schema makes a new object.

    Attributes:
        key: Indexes into `columns` of the primary key's columns, in key order; without a primary key, of the
            replica identity's index; empty where there is neither.
    """

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    replica_identity: ReplicaIdentity

    @property
    def channel(self) -> str:
        """The name that clients subscribe to: `projects`, or `billing.invoices` outside the schema public."""
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"

    def index_of(self, column: str) -> int | None:
        """The place of a column by its name, or None."""
        for index, candidate in enumerate(self.columns):
            if candidate.name == column:
                return index
        return None


# The log keeps some hundred thousand of these two. The cyclic garbage collector has nothing to find in them, and to
# look through them would stop the server for a tenth of a second each time.
class Change(Struct, gc=False):
    """One row's INSERT, UPDATE or DELETE, or one table's TRUNCATE.

    Attributes:
        new: The row after it; None for DELETE and TRUNCATE. An unchanged TOAST value that the old row holds
            is filled in; one that nobody sent is MISSING.
        old: The row before it, as far as PostgreSQL sent it: all columns under REPLICA IDENTITY FULL, the key
            with MISSING elsewhere where only the key is known, None where nothing is.
        index: Its place among the transaction's captured changes, from 0: the same at every redelivery.
    """

    table: Table
    operation: Operation
    new: Row | None
    old: Row | None
    index: int


class Transaction(Struct, gc=False):
    """All captured changes of one commit.

    Attributes:
        xid: The 64-bit transaction id (xid8).
        timestamp_us: Commit time, microseconds since 1970-01-01 UTC.
        confirms: Mutation ids that this transaction confirms.
        size_bytes: About what it holds in memory: the sum of its values' lengths and a fixed cost per change.
    """

    position: Position
    xid: int
    timestamp_us: int
    changes: Sequence[Change]
    confirms: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The stream has passed `position` without a change to tell (heartbeat, keepalive)."""

    position: Position


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of the stream that cannot be delivered any more.

    Attributes:
        position: Where the stream goes on: everything after it will be delivered.
        reason: A stable word for metrics and `resync` frames: `slot_lost`, `transaction_too_large`, …
        tables: OIDs of the tables it concerns; None for all.
        xid: The transaction that is lost; 0 where it is none in particular.
    """

    position: Position
    reason: str
    tables: frozenset[int] | None = None
    xid: int = 0


@dataclass(frozen=True, slots=True)
class TablesChanged:
    """The set of captured tables, or a table's columns, are from here on as given.

    Attributes:
        tables: All captured tables by OID.
    """

    position: Position
    tables: Mapping[int, Table]


Event: TypeAlias = Transaction | Progress | Gap | TablesChanged
