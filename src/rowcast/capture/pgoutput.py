"""Decoder for the messages of PostgreSQL's logical replication plugin pgoutput, protocol version 1. No I/O.

The one rule of this room: bytes in, one message out. A message is either understood to its last byte or a
`DecodeError`; values stay the text that PostgreSQL wrote, and what it did not send stays `MISSING`.

The decoder keeps one thing between messages: the columns of each table, as its Relation message described them.
PostgreSQL sends that before the first change of a table in a connection and again after each change of schema,
so a decoder belongs to one connection.

Format: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct, error as StructError  # noqa: N812 - struct's exception is named in lower case
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import msgspec

from rowcast.errors import DecodeError
from rowcast.model import MISSING, ReplicaIdentity, Row, Value

# PostgreSQL counts microseconds from 2000-01-01, everybody else from 1970-01-01.
POSTGRES_EPOCH_US: Final = 946_684_800_000_000


class Begin(msgspec.Struct, frozen=True):
    """A transaction's changes follow. `final_lsn` is where its commit record begins; `xid` has 32 bits."""

    final_lsn: int
    timestamp_us: int
    xid: int


class Commit(msgspec.Struct, frozen=True):
    """The transaction is complete; its commit record ends at `end_lsn`."""

    commit_lsn: int
    end_lsn: int
    timestamp_us: int


class LogicalMessage(msgspec.Struct, frozen=True):
    """What `pg_logical_emit_message()` wrote. Transactional ones stand between Begin and Commit."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


class Origin(msgspec.Struct, frozen=True):
    """The transaction came from another node by replication."""

    commit_lsn: int
    name: str


class Type(msgspec.Struct, frozen=True):
    """Names a type that is not built in; sent before a Relation that uses it."""

    oid: int
    schema: str
    name: str


class RelationColumn(NamedTuple):
    name: str
    type_oid: int
    type_modifier: int
    is_key: bool  # part of the replica identity


class Relation(msgspec.Struct, frozen=True):
    """A table's columns, valid for its changes until the next Relation of the same OID."""

    oid: int
    schema: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[RelationColumn, ...]


class Insert(msgspec.Struct, frozen=True, gc=False):
    oid: int
    new: Row


class Update(msgspec.Struct, frozen=True, gc=False):
    """`old` is None where PostgreSQL sent neither the old row nor the old key."""

    oid: int
    old: Row | None
    new: Row


class Delete(msgspec.Struct, frozen=True, gc=False):
    oid: int
    old: Row


class Truncate(msgspec.Struct, frozen=True):
    oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


Message: TypeAlias = (
    Begin | Commit | LogicalMessage | Origin | Type | Relation | Insert | Update | Delete | Truncate
)

_BEGIN: Final = Struct("!QqI")
_COMMIT: Final = Struct("!BQQq")
_MESSAGE: Final = Struct("!BQ")
_RELATION: Final = Struct("!BH")
_COLUMN: Final = Struct("!Ii")
_TRUNCATE: Final = Struct("!IB")
_ROW_HEAD: Final = Struct("!IBH")  # table, kind of tuple, number of columns
_TUPLE_HEAD: Final = Struct("!BH")  # kind of tuple, number of columns
_LENGTH: Final = Struct("!I")
_LSN: Final = Struct("!Q")

_NEW, _OLD, _KEY = b"NOK"
_TEXT, _NULL, _UNCHANGED = b"tnu"
_REPLICA_IDENTITIES: Final[Mapping[int, ReplicaIdentity]] = MappingProxyType(
    {ord("d"): "default", ord("n"): "nothing", ord("f"): "full", ord("i"): "index"}
)


class Decoder:
    """Turns pgoutput messages into objects, one call a message.

    Attributes:
        relations: The Relation of each table met so far, by OID.
        nulls_unknown: OIDs of tables in whose full old rows a NULL may stand for a value that was not logged; there
            it becomes MISSING. PostgreSQL describes a row by its partitioned table, but logs it as its partition's
            own replica identity says, and the message does not tell. Holds until the table's next Relation.
    """

    def __init__(self) -> None:
        self.relations: dict[int, Relation] = {}
        self.nulls_unknown: set[int] = set()
        self._decoders: dict[int, Callable[[bytes, int], Message]] = {
            ord("I"): self._insert,
            ord("U"): self._update,
            ord("D"): self._delete,
            ord("B"): _begin,
            ord("C"): _commit,
            ord("M"): _logical_message,
            ord("R"): self._relation,
            ord("T"): _truncate,
            ord("Y"): _type,
            ord("O"): _origin,
        }

    def decode(self, data: bytes, start: int = 0) -> Message:
        """Decode the message that begins at `start` and reaches to the end of `data`.

        Raises:
            DecodeError: It does not follow the format, or changes a table that no Relation has described.
        """
        try:
            return self._decoders[data[start]](data, start + 1)
        except KeyError:
            kind = data[start : start + 1]
            raise DecodeError(
                f"PostgreSQL sent a replication message of kind {kind!r}, which protocol version 1 does not have: "
                "the server is newer than this version of Rowcast understands"
            ) from None
        except (IndexError, StructError, ValueError) as error:
            raise DecodeError(
                f"a replication message of kind {data[start : start + 1]!r} and {len(data) - start} bytes "
                f"cannot be decoded ({error}): it is cut short or damaged"
            ) from error

    def _relation(self, data: bytes, offset: int) -> Relation:
        (oid,) = _LENGTH.unpack_from(data, offset)
        schema, offset = _string(data, offset + 4)
        name, offset = _string(data, offset)
        identity, count = _RELATION.unpack_from(data, offset)
        offset += 3
        columns: list[RelationColumn] = []
        for _ in range(count):
            flags = data[offset]
            column, offset = _string(data, offset + 1)
            type_oid, modifier = _COLUMN.unpack_from(data, offset)
            offset += 8
            columns.append(RelationColumn(column, type_oid, modifier, bool(flags & 1)))
        _expect_end(data, offset)
        if identity not in _REPLICA_IDENTITIES:
            raise DecodeError(
                f"table {schema}.{name} has a replica identity {chr(identity)!r} of unknown meaning"
            )
        # pg_catalog is sent as an empty name.
        relation = Relation(oid, schema or "pg_catalog", name, _REPLICA_IDENTITIES[identity], tuple(columns))
        self.relations[oid] = relation
        self.nulls_unknown.discard(oid)
        return relation

    def _insert(self, data: bytes, offset: int) -> Insert:
        oid, kind, count = _ROW_HEAD.unpack_from(data, offset)
        if kind != _NEW:
            raise DecodeError(f"an Insert holds a tuple of kind {chr(kind)!r} where a new row belongs")
        self._check_columns(oid, count)
        new, offset = _row(data, offset + 7, count)
        _expect_end(data, offset)
        return Insert(oid, new)

    def _update(self, data: bytes, offset: int) -> Update:
        oid, kind, count = _ROW_HEAD.unpack_from(data, offset)
        relation = self._check_columns(oid, count)
        offset += 7
        old: Row | None = None
        if kind != _NEW:
            old, offset = self._old_row(data, offset, kind, relation)
            kind, count = _TUPLE_HEAD.unpack_from(data, offset)
            if kind != _NEW:
                raise DecodeError(f"an Update holds a tuple of kind {chr(kind)!r} where a new row belongs")
            self._check_columns(oid, count)
            offset += 3
        new, offset = _row(data, offset, count)
        _expect_end(data, offset)
        if old is not None and MISSING in new:
            new = tuple(
                [before if value is MISSING else value for value, before in zip(new, old, strict=True)]
            )
        return Update(oid, old, new)

    def _delete(self, data: bytes, offset: int) -> Delete:
        oid, kind, count = _ROW_HEAD.unpack_from(data, offset)
        old, offset = self._old_row(data, offset + 7, kind, self._check_columns(oid, count))
        _expect_end(data, offset)
        return Delete(oid, old)

    def _old_row(self, data: bytes, offset: int, kind: int, relation: Relation) -> tuple[Row, int]:
        """A full old row, or an old key, whose other columns PostgreSQL sends as NULL, whatever they held."""
        row, offset = _row(data, offset, len(relation.columns))
        if kind == _KEY:
            columns = relation.columns
            row = tuple(
                [value if column.is_key else MISSING for value, column in zip(row, columns, strict=True)]
            )
        elif kind != _OLD:
            raise DecodeError(f"a tuple of kind {chr(kind)!r} stands where an old row or an old key belongs")
        elif relation.oid in self.nulls_unknown:
            row = tuple([MISSING if value is None else value for value in row])
        return row, offset

    def _check_columns(self, oid: int, count: int) -> Relation:
        relation = self.relations.get(oid)
        if relation is None:
            raise DecodeError(
                f"a change belongs to the table with OID {oid}, which no Relation message has described"
            )
        if count != len(relation.columns):
            raise DecodeError(
                f"a row of {relation.schema}.{relation.name} has {count} values, "
                f"but its Relation message named {len(relation.columns)} columns"
            )
        return relation


def _begin(data: bytes, offset: int) -> Begin:
    _expect_end(data, offset + _BEGIN.size)
    lsn, timestamp, xid = _BEGIN.unpack_from(data, offset)
    return Begin(lsn, timestamp + POSTGRES_EPOCH_US, xid)


def _commit(data: bytes, offset: int) -> Commit:
    _expect_end(data, offset + _COMMIT.size)
    _flags, lsn, end_lsn, timestamp = _COMMIT.unpack_from(data, offset)
    return Commit(lsn, end_lsn, timestamp + POSTGRES_EPOCH_US)


def _logical_message(data: bytes, offset: int) -> LogicalMessage:
    flags, lsn = _MESSAGE.unpack_from(data, offset)
    prefix, offset = _string(data, offset + _MESSAGE.size)
    (length,) = _LENGTH.unpack_from(data, offset)
    _expect_end(data, offset + 4 + length)
    return LogicalMessage(bool(flags & 1), lsn, prefix, data[offset + 4 :])


def _origin(data: bytes, offset: int) -> Origin:
    (lsn,) = _LSN.unpack_from(data, offset)
    name, offset = _string(data, offset + 8)
    _expect_end(data, offset)
    return Origin(lsn, name)


def _type(data: bytes, offset: int) -> Type:
    (oid,) = _LENGTH.unpack_from(data, offset)
    schema, offset = _string(data, offset + 4)
    name, offset = _string(data, offset)
    _expect_end(data, offset)
    return Type(oid, schema or "pg_catalog", name)


def _truncate(data: bytes, offset: int) -> Truncate:
    count, options = _TRUNCATE.unpack_from(data, offset)
    offset += _TRUNCATE.size
    _expect_end(data, offset + 4 * count)
    return Truncate(
        tuple(_LENGTH.unpack_from(data, offset + 4 * index)[0] for index in range(count)),
        bool(options & 1),
        bool(options & 2),
    )


def _row(data: bytes, offset: int, count: int) -> tuple[Row, int]:
    """The values of a tuple and the place behind it, which the caller compares with the message's end.

    A length that points behind the end gives a short slice here and is found by that comparison: one check a
    message in place of one a value.
    """
    values: list[Value] = []
    length_at = _LENGTH.unpack_from
    for _ in range(count):
        kind = data[offset]
        if kind == _TEXT:
            (length,) = length_at(data, offset + 1)
            end = offset + 5 + length
            values.append(data[offset + 5 : end])
            offset = end
            continue
        if kind == _NULL:
            values.append(None)
        elif kind == _UNCHANGED:
            values.append(MISSING)
        else:
            raise DecodeError(
                f"a value is of kind {chr(kind)!r}; only text, NULL and unchanged were asked for"
            )
        offset += 1
    return tuple(values), offset


def _string(data: bytes, offset: int) -> tuple[str, int]:
    end = data.index(0, offset)
    return data[offset:end].decode(), end + 1


def _expect_end(data: bytes, offset: int) -> None:
    if offset != len(data):
        raise DecodeError(f"a message of {len(data)} bytes should have ended at byte {offset}")
