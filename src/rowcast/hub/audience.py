"""Audiences: the connections that get exactly the same bytes.

The one rule of this room: bytes are made once per audience and shared by all its members. An audience is the set
of connections with equal form, equal framing and equal outlets, so whatever one of them gets, all of them get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from rowcast.hub.shape import EncodedChange, Shape
from rowcast.model import Operation, Position, Transaction

_json: Final = msgspec.json.Encoder().encode


class Framing(Protocol):
    """How a transport wraps one message: a WebSocket header, an event stream's field names."""

    @property
    def name(self) -> str:
        """Framings of equal name write equal bytes."""
        ...

    def frame(self, message: bytes, *, event: str = "", position: str = "") -> bytes:
        """Wrap a JSON message.

        Args:
            event: The message's type where the transport distinguishes; empty for changes and transactions.
            position: The position that a client resumes from once it has this message; empty for none.
        """
        ...


class Form(Protocol):
    """How a protocol writes what the hub delivers. Equal names write equal bytes."""

    @property
    def name(self) -> str: ...

    @property
    def tells_confirms(self) -> bool:
        """Whether a transaction says which mutations it confirms, and is told for that alone."""
        ...

    def prefix(self, outlet: Outlet) -> bytes:
        """What every change of an outlet has in common."""
        ...

    def change(self, prefix: bytes, operation: Operation, encoded: EncodedChange) -> bytes: ...

    def transaction(
        self, transaction: TransactionHeader, base: Position, changes: Sequence[bytes], framing: Framing
    ) -> bytes:
        """The framed bytes of one transaction, from the changes that `change` made."""
        ...


class Sink(Protocol):
    """A connection, as the hub sees it."""

    def send(self, data: bytes) -> None:
        """Queue framed bytes. Never blocks, never raises; over its bound the sink drops and asks for a resync."""
        ...


@dataclass(slots=True)
class TransactionHeader:
    """What all messages of one transaction share, as JSON pieces."""

    position: Position
    txid: bytes
    timestamp: bytes
    confirms: bytes  # a JSON array

    @classmethod
    def of(cls, transaction: Transaction) -> TransactionHeader:
        return cls(
            transaction.position,
            b"%d" % transaction.xid,
            timestamp_json(transaction.timestamp_us),
            _json(transaction.confirms),
        )


class Outlet:
    """One way in which a shape is delivered.

    Attributes:
        number: The server's number for it, in frames.
        label: A plain client's name for it.
        only_changed: Whether an UPDATE tells the columns only that it has changed.
        uses: Subscriptions, active or not.
    """

    __slots__ = ("audiences", "form", "label", "number", "only_changed", "prefix", "shape", "uses")

    def __init__(self, number: int, shape: Shape, form: Form, label: str, *, only_changed: bool) -> None:
        self.number = number
        self.shape = shape
        self.form = form
        self.label = label
        self.only_changed = only_changed
        self.prefix = form.prefix(self)
        self.audiences: dict[Audience, None] = {}
        self.uses = 0

    @property
    def key(self) -> OutletKey:
        """What makes outlets of one shape equal."""
        return self.form.name, self.label, self.only_changed

    def fragment(self, operation: Operation, encoded: EncodedChange) -> bytes | None:
        """A change as the form writes it; None for an UPDATE that has changed nothing of what is told here."""
        if self.only_changed and operation == "UPDATE":
            differences = encoded.differences
            return None if differences is None else self.form.change(self.prefix, operation, differences)
        return self.form.change(self.prefix, operation, encoded)


class Audience:
    """Connections that get the same bytes.

    Attributes:
        last: The position of the last transaction written to it; the `base` of the next.
        pending: Framed bytes that leave together at the end of the hub's step.
    """

    __slots__ = ("form", "framing", "key", "last", "members", "outlets", "pending")

    def __init__(self, key: AudienceKey, form: Form, framing: Framing, last: Position) -> None:
        self.key = key
        self.form = form
        self.framing = framing
        self.outlets = key[3]
        self.members: dict[Sink, None] = {}
        self.last = last
        self.pending: list[bytes] = []
        for outlet in self.outlets:
            outlet.audiences[self] = None

    def flush(self) -> None:
        """Write what is pending to every member, as one piece."""
        if self.pending:
            data = self.pending[0] if len(self.pending) == 1 else b"".join(self.pending)
            self.pending = []
            for member in self.members:
                member.send(data)

    def dissolve(self) -> None:
        for outlet in self.outlets:
            del outlet.audiences[self]


OutletKey = tuple[str, str, bool]
AudienceKey = tuple[str, str, bool, frozenset[Outlet]]


def timestamp_json(timestamp_us: int) -> bytes:
    """Microseconds since 1970 as a JSON string in ISO 8601, UTC."""
    seconds, microseconds = divmod(timestamp_us, 1_000_000)
    return b'"%s.%06dZ"' % (_second_text(seconds), microseconds)


_last_second: tuple[int, bytes] = (0, b"1970-01-01T00:00:00")


def _second_text(seconds: int) -> bytes:
    # Transactions of one second follow each other; strftime is the slow part of a frame.
    global _last_second
    if _last_second[0] != seconds:
        text = datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _last_second = (seconds, text.encode())
    return _last_second[1]
