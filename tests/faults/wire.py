"""The messages of a logical slot, decoded by hand.

The one rule of this room: nothing here uses Rowcast, whose decoder is among the things that are examined.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

# A column's value: its text, None for NULL, or UNCHANGED where PostgreSQL does not send it.
Values = tuple[Any, ...]
UNCHANGED: Final = object()


@dataclass(frozen=True, slots=True)
class Change:
    """What one message says.

    Attributes:
        operation: `I`, `U`, `D`, `T` for TRUNCATE, `M` for a message.
        table: Its name, with its schema where that is not public. Of a message, the prefix.
        columns: The table's columns as of then.
        content: Of a message.
    """

    operation: str
    table: str
    columns: tuple[str, ...] = ()
    old: Values | None = None
    new: Values | None = None
    content: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """A commit: its record's end in the WAL, its 32-bit id, and what it did."""

    end: int
    xid: int
    changes: tuple[Change, ...]


class Reader:
    """Makes transactions of messages. After a crash a slot tells again what it told before: that is left out."""

    def __init__(self) -> None:
        self._relations: dict[int, tuple[str, tuple[str, ...]]] = {}
        self._xid = self._end = 0
        self._changes: list[Change] = []

    def feed(self, data: bytes) -> Transaction | None:
        """Take the next message; a transaction when it is complete."""
        match data[:1]:
            case b"B":
                [self._xid] = struct.unpack_from("!I", data, 17)
                self._changes = []
            case b"C":
                [end] = struct.unpack_from("!Q", data, 10)
                if end > self._end:
                    self._end = end
                    return Transaction(end, self._xid, tuple(self._changes))
            case b"R":
                self._relation(data)
            case b"I" | b"U" | b"D" | b"T" | b"M":
                self._changes.extend(self._decode(data))
            case _:
                pass
        return None

    def _decode(self, data: bytes) -> Iterator[Change]:
        operation = data[:1].decode()
        if operation == "M":
            prefix, place = _read_text(data, 10)
            [length] = struct.unpack_from("!I", data, place)
            yield Change("M", prefix, content=data[place + 4 : place + 4 + length].decode())
            return
        if operation == "T":
            count, _ = struct.unpack_from("!IB", data, 1)
            for oid in struct.unpack_from(f"!{count}I", data, 6):
                yield Change("T", *self._relations[oid])
            return
        [oid] = struct.unpack_from("!I", data, 1)
        place = 5
        old: Values | None = None
        new: Values | None = None
        if operation != "I" and data[place : place + 1] != b"N":
            old, place = _read_tuple(data, place + 1)
        if operation != "D":
            new, _ = _read_tuple(data, place + 1)
        yield Change(operation, *self._relations[oid], old, new)

    def _relation(self, data: bytes) -> None:
        [oid] = struct.unpack_from("!I", data, 1)
        schema, place = _read_text(data, 5)
        name, place = _read_text(data, place)
        [count] = struct.unpack_from("!H", data, place + 1)
        place += 3
        columns: list[str] = []
        for _ in range(count):
            column, place = _read_text(data, place + 1)
            columns.append(column)
            place += 8
        self._relations[oid] = name if schema == "public" else f"{schema}.{name}", tuple(columns)


def _read_text(data: bytes, place: int) -> tuple[str, int]:
    end = data.index(b"\0", place)
    return data[place:end].decode(), end + 1


def _read_tuple(data: bytes, place: int) -> tuple[Values, int]:
    [count] = struct.unpack_from("!H", data, place)
    place += 2
    values: list[Any] = []
    for _ in range(count):
        kind = data[place : place + 1]
        place += 1
        if kind == b"t":
            [length] = struct.unpack_from("!I", data, place)
            place += 4
            values.append(data[place : place + length].decode())
            place += length
        else:
            values.append(None if kind == b"n" else UNCHANGED)
    return tuple(values), place
