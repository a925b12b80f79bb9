"""The payloads of a NOTIFY channel as rows. No I/O.

The one rule of this room: what a payload holds is passed on as it is, and what it does not say is not guessed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple, TypeAlias

import msgspec

from rowcast.model import MISSING, Change, Column, Operation, Row, Table, Value
from rowcast.values import TypeCatalog

_OPERATIONS: Final[dict[str, Operation]] = {
    "INSERT": "INSERT",
    "UPDATE": "UPDATE",
    "DELETE": "DELETE",
    "TRUNCATE": "TRUNCATE",
}
_Fields: TypeAlias = dict[str, msgspec.Raw]


class _Kind(NamedTuple):
    oid: int
    name: str


_TEXT: Final = _Kind(25, "text")
_NUMBER: Final = _Kind(1700, "numeric")
_BOOLEAN: Final = _Kind(16, "boolean")
_JSON: Final = _Kind(114, "json")

_catalog: Final = TypeCatalog()
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text: Final = msgspec.json.Decoder(str).decode
_any: Final = msgspec.json.Decoder(msgspec.Raw).decode
_encode: Final = msgspec.json.Encoder().encode


class Channel:
    """A channel as a table of its name, whose columns are found as they come.

    Attributes:
        table: As of the last payload; another object whenever its columns are others.
    """

    def __init__(self, oid: int, name: str) -> None:
        self.table = Table(oid, "public", name, (), (), "nothing")

    def read(self, payload: bytes) -> Change:
        """What a payload says; an INSERT of one column, `payload`, where it is not of the known form."""
        operation, new, old = self._change(payload) or ("INSERT", {"payload": _as_json(payload)}, None)
        for fields in (new, old):
            if fields:
                self._learn(fields)
        return Change(self.table, operation, self._row(new), self._row(old), 0)

    def _change(self, payload: bytes) -> tuple[Operation, _Fields | None, _Fields | None] | None:
        try:
            fields = _object(payload)
            operation = _OPERATIONS[_text(fields["op"]).upper()]
            if "table" in fields and _text(fields["table"]) not in {
                self.table.name,
                f"public.{self.table.name}",
            }:
                return None
            new, old = (_row_object(fields.get(name)) for name in ("new", "old"))
        except (msgspec.MsgspecError, KeyError, RecursionError):
            return None
        if operation == "TRUNCATE":
            return operation, None, None
        if operation == "DELETE":
            return None if old is None else (operation, None, old)
        return None if new is None else (operation, new, old if operation == "UPDATE" else None)

    def _learn(self, fields: _Fields) -> None:
        columns = {column.name: column for column in self.table.columns}
        for name, value in fields.items():
            kind = _kind(value)
            known = columns.get(name)
            if known is None:
                columns[name] = _column(name, kind or _JSON)
            elif kind is not None and known.type_oid not in {kind.oid, _JSON.oid}:
                columns[name] = _column(name, _JSON)
        if tuple(columns.values()) != self.table.columns:
            self.table = replace(self.table, columns=tuple(columns.values()))

    def _row(self, fields: _Fields | None) -> Row | None:
        if fields is None:
            return None
        return tuple(
            _value(fields[column.name], column) if column.name in fields else MISSING
            for column in self.table.columns
        )


def _row_object(value: msgspec.Raw | None) -> _Fields | None:
    return None if value is None or bytes(value) == b"null" else _object(value)


def _as_json(payload: bytes) -> msgspec.Raw:
    try:
        if payload.strip():
            return _any(payload.strip())
    except (msgspec.MsgspecError, RecursionError):
        pass
    return msgspec.Raw(_encode(payload.decode(errors="replace")))


def _kind(value: msgspec.Raw) -> _Kind | None:
    """The type of a JSON value by its first character; None for null."""
    first = bytes(value)[:1]
    if first == b"n":
        return None
    if first == b'"':
        return _TEXT
    if first in b"tf":
        return _BOOLEAN
    return _JSON if first in b"{[" else _NUMBER


def _column(name: str, kind: _Kind) -> Column:
    return Column(name, kind.oid, -1, kind.name, _catalog.encoder(kind.oid))


def _value(value: msgspec.Raw, column: Column) -> Value:
    """The text that PostgreSQL would write for a value of the column's type."""
    raw = bytes(value)
    if raw == b"null":
        return None
    if column.type_oid == _TEXT.oid:
        return _text(raw).encode()
    if column.type_oid == _BOOLEAN.oid:
        return raw[:1]
    return raw
