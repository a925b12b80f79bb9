"""The native protocol's two forms of a transaction, plain and full. No I/O.

The one rule of this room: docs/protocol.md says what stands here, field by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from rowcast.hub import EncodedChange, Framing, Outlet, TransactionHeader
from rowcast.model import Operation, Position

_json: Final = msgspec.json.Encoder().encode
_OPERATIONS: Final[dict[Operation, bytes]] = {
    "INSERT": b'"op":"INSERT"',
    "UPDATE": b'"op":"UPDATE"',
    "DELETE": b'"op":"DELETE"',
    "TRUNCATE": b'"op":"TRUNCATE"',
}


class PlainForm:
    """One flat message per change."""

    name: str = "plain"
    tells_confirms: bool = False

    def prefix(self, outlet: Outlet) -> bytes:
        subscription, channel = _split_label(outlet.label)
        table = outlet.shape.table
        fields = b',"table":%s,"schema":%s,"channel":%s' % (
            _json(table.name),
            _json(table.schema),
            _json(channel),
        )
        return fields + (b',"subscription":%s' % _json(subscription) if subscription else b"")

    def change(self, prefix: bytes, operation: Operation, encoded: EncodedChange) -> bytes:
        parts = [b"{", _OPERATIONS[operation], prefix]
        if operation != "TRUNCATE":
            key = _key(operation, encoded)
            if key is not None:
                parts += (b',"key":', key)
            if operation != "DELETE":
                parts += (b',"new":', encoded.new)
            if operation != "INSERT":
                old = encoded.old
                if old is not None:
                    parts += (b',"old":', old)
        parts += (b',"id":"', encoded.id, b'"')
        return b"".join(parts)

    def transaction(
        self,
        transaction: TransactionHeader,
        base: Position,  # noqa: ARG002 - plain clients do not check
        changes: Sequence[bytes],
        framing: Framing,
    ) -> bytes:
        tail = b',"position":"%s","txid":%s,"timestamp":%s}' % (
            transaction.position.encode(),
            transaction.txid,
            transaction.timestamp,
        )
        frame = framing.frame
        if len(changes) == 1:
            return frame(changes[0] + tail, position=transaction.position)
        frames = [frame(change + tail) for change in changes[:-1]]
        frames.append(frame(changes[-1] + tail, position=transaction.position))
        return b"".join(frames)


class FullForm:
    """One message per transaction, for clients that keep rows.

    Args:
        old_rows: Whether `old` is the whole old row, for clients that do not keep rows.
    """

    tells_confirms: bool = True

    def __init__(self, *, old_rows: bool = False) -> None:
        self.name = "full with old rows" if old_rows else "full"
        self._old_rows = old_rows

    def prefix(self, outlet: Outlet) -> bytes:
        return b'{"shape":%d,' % outlet.number

    def change(self, prefix: bytes, operation: Operation, encoded: EncodedChange) -> bytes:
        parts = [prefix, _OPERATIONS[operation], b',"id":"', encoded.id, b'"']
        if operation != "TRUNCATE":
            key = _key(operation, encoded)
            if key is not None:
                parts += (b',"key":', key)
            if operation != "DELETE":
                parts += (b',"new":', encoded.new)
            if key is None or self._old_rows:  # without a key the whole old row says which one
                old = encoded.old if operation != "INSERT" else None
            else:
                old = encoded.old_key if operation == "UPDATE" and encoded.key_changed else None
            if old is not None:
                parts += (b',"old":', old)
        parts.append(b"}")
        return b"".join(parts)

    def transaction(
        self, transaction: TransactionHeader, base: Position, changes: Sequence[bytes], framing: Framing
    ) -> bytes:
        message = (
            b'{"type":"transaction","base":"%s","position":"%s","txid":%s,"timestamp":%s,"changes":[%s],"confirms":%s}'
            % (
                base.encode(),
                transaction.position.encode(),
                transaction.txid,
                transaction.timestamp,
                b",".join(changes),
                transaction.confirms,
            )
        )
        return framing.frame(message, position=transaction.position)


def _key(operation: Operation, encoded: EncodedChange) -> bytes | None:
    """A row that leaves has to be named by the key under which the client knows it."""
    return (encoded.old_key or encoded.key) if operation == "DELETE" else encoded.key


PLAIN: Final = PlainForm()
FULL: Final = FullForm()
FULL_WITH_OLD_ROWS: Final = FullForm(old_rows=True)

# A label is what a plain client's changes carry: its channel and, where it gave one, the subscription's id.
_SEPARATOR: Final = "\0"


def plain_label(subscription: str, channel: str) -> str:
    """The label under which a plain subscription's changes are written."""
    return channel if subscription == channel else f"{subscription}{_SEPARATOR}{channel}"


def _split_label(label: str) -> tuple[str, str]:
    subscription, separator, channel = label.rpartition(_SEPARATOR)
    return (subscription, channel) if separator else ("", label)
