"""pgoutput's format the other way round: messages as PostgreSQL would send them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

from rowcast.capture.pgoutput import (
    POSTGRES_EPOCH_US,
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
)
from rowcast.model import MISSING, Row, Value

Tuples: TypeAlias = Sequence[tuple[bytes, Row]]

IDENTITIES = {"default": b"d", "nothing": b"n", "full": b"f", "index": b"i"}


def cstring(text: str) -> bytes:
    return text.encode() + b"\0"


def value(content: Value) -> bytes:
    if content is None:
        return b"n"
    if content is MISSING:
        return b"u"
    return b"t" + struct.pack("!I", len(content)) + content


def row_tuple(kind: bytes, row: Row) -> bytes:
    return kind + struct.pack("!H", len(row)) + b"".join(map(value, row))


def change(kind: bytes, oid: int, tuples: Tuples) -> bytes:
    return kind + struct.pack("!I", oid) + b"".join(row_tuple(*each) for each in tuples)


def encode(message: Message) -> bytes:
    """What PostgreSQL would send for it; old rows as full ones."""
    match message:
        case Begin(final_lsn, timestamp_us, xid):
            return b"B" + struct.pack("!QqI", final_lsn, timestamp_us - POSTGRES_EPOCH_US, xid)
        case Commit(commit_lsn, end_lsn, timestamp_us):
            return b"C" + struct.pack("!BQQq", 0, commit_lsn, end_lsn, timestamp_us - POSTGRES_EPOCH_US)
        case LogicalMessage(transactional, lsn, prefix, content):
            head = struct.pack("!BQ", transactional, lsn) + cstring(prefix)
            return b"M" + head + struct.pack("!I", len(content)) + content
        case Origin(commit_lsn, name):
            return b"O" + struct.pack("!Q", commit_lsn) + cstring(name)
        case Type(oid, schema, name):
            return b"Y" + struct.pack("!I", oid) + cstring(schema) + cstring(name)
        case Relation(oid, schema, name, replica_identity, columns):
            head = struct.pack("!I", oid) + cstring(schema) + cstring(name) + IDENTITIES[replica_identity]
            return (
                b"R"
                + head
                + struct.pack("!H", len(columns))
                + b"".join(
                    struct.pack("!B", is_key) + cstring(column) + struct.pack("!Ii", type_oid, modifier)
                    for column, type_oid, modifier, is_key in columns
                )
            )
        case Insert(oid, new):
            return change(b"I", oid, [(b"N", new)])
        case Update(oid, old, new):
            return change(b"U", oid, [*([] if old is None else [(b"O", old)]), (b"N", new)])
        case Delete(oid, old):
            return change(b"D", oid, [(b"O", old)])
        case Truncate(oids, cascade, restart_identity):
            options = cascade | restart_identity << 1
            return b"T" + struct.pack(f"!IB{len(oids)}I", len(oids), options, *oids)
