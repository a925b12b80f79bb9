"""What a client sends, decoded and checked. No I/O.

The one rule of this room: whatever is wrong with a frame is a `ProtocolError` whose text says what to write.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias, cast

import msgspec

from rowcast.errors import FilterError, ProtocolError
from rowcast.filters import Expression, parse_postgrest, parse_sql
from rowcast.hub import Request
from rowcast.model import Position, parse_position
from rowcast.protocol.forms import plain_label

# Long enough for "table:uuid" with a prefix, short enough that a million of them do not matter.
MAX_ID_CHARACTERS: Final = 128
# As the application's side has it: rowcast.mutation, and the header.
MAX_MUTATION_CHARACTERS: Final = 200
# Eight random characters are enough that two clients do not hear each other's confirms.
_MUTATIONS: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")

Identifier: TypeAlias = str | int
# Values for the $1, $2, … of `where`.
Parameters: TypeAlias = list[str | int | float | bool | None]


class _Wish(msgspec.Struct, kw_only=True):
    """What a subscription asks for."""

    channel: str
    columns: list[str] | None = None
    only_changed: bool = False
    filter: str | None = None
    where: str | None = None
    params: Parameters | None = None
    snapshot: bool = False
    since: str | None = None


class SubscribeFrame(_Wish, kw_only=True, tag_field="type", tag="subscribe"):
    id: str | None = None


class SubscriptionEntry(_Wish, kw_only=True):
    """An entry of `hello.subscriptions`: a subscribe frame without its type."""

    id: str


class HelloFrame(msgspec.Struct, tag_field="type", tag="hello"):
    version: int
    token: str | None = None
    client: str = ""
    old_rows: bool = False
    mutations: str | None = None
    subscriptions: list[SubscriptionEntry] = []


class UnsubscribeFrame(msgspec.Struct, tag_field="type", tag="unsubscribe"):
    id: str | None = None
    channel: str | None = None


class HeartbeatFrame(msgspec.Struct, tag_field="type", tag="heartbeat"):
    id: Identifier | None = None


class MutationFrame(msgspec.Struct, tag_field="type", tag="mutation"):
    id: str


class TokenFrame(msgspec.Struct, tag_field="type", tag="token"):
    token: str


ClientFrame: TypeAlias = (
    SubscribeFrame | HelloFrame | UnsubscribeFrame | HeartbeatFrame | MutationFrame | TokenFrame
)
_decoder: Final[msgspec.json.Decoder[ClientFrame]] = msgspec.json.Decoder(ClientFrame)
_TYPES: Final = ("subscribe", "unsubscribe", "hello", "heartbeat", "mutation", "token")


def parse_frame(text: bytes) -> ClientFrame:
    """Decode a client's frame; tell what is wrong with one that is not ours."""
    try:
        try:
            return _decoder.decode(text)
        except msgspec.ValidationError as error:
            reason = str(error)
            value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("malformed_json", f"the frame is not JSON: {error}") from None
    kind = cast("dict[str, object]", value).get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise ProtocolError(
            "invalid_frame", 'a frame is a JSON object with a "type", such as {"type":"subscribe"}'
        )
    if kind not in _TYPES:
        raise ProtocolError("unknown_type", f'there is no type "{kind[:40]}"; known: {", ".join(_TYPES)}')
    raise ProtocolError("invalid_frame", f"{kind}: {reason}")


def parse_request(fields: dict[str, object]) -> Request:
    """Read what to watch from the fields of a subscribe frame, for requests that are no subscription.

    Raises:
        ProtocolError: A field is wrong.
    """
    try:
        frame = msgspec.convert({"id": "request", **fields}, SubscriptionEntry)
    except msgspec.ValidationError as error:
        raise ProtocolError("invalid_frame", str(error)) from None
    return read_request(frame, frame.id, plain_label(frame.id, frame.channel))


def read_request(frame: SubscribeFrame | SubscriptionEntry, name: str, label: str) -> Request:
    """What a subscription watches.

    Raises:
        ProtocolError: A field is wrong.
    """
    return Request(
        subscription=name,
        channel=frame.channel,
        columns=None if frame.columns is None else tuple(frame.columns),
        expression=_expression(frame),
        since=None if frame.since is None else _position(frame.since),
        label=label,
        only_changed=frame.only_changed,
    )


def checked_mutations(text: str | None) -> str | None:
    """What a client says that the ids of its mutations begin with.

    Raises:
        ProtocolError: It cannot be that.
    """
    if text is None or _MUTATIONS.fullmatch(text):
        return text
    raise ProtocolError(
        "invalid_frame",
        "`mutations` is what the ids of your mutations begin with, up to their first dot: "
        "8 to 64 letters, digits, - and _, best random ones",
    )


def _expression(frame: SubscribeFrame | SubscriptionEntry) -> Expression | None:
    if frame.filter is not None and frame.where is not None:
        raise ProtocolError("invalid_filter", "`filter` and `where` exclude each other: send one of them")
    if frame.params is not None and frame.where is None:
        raise ProtocolError("invalid_filter", "`params` belong to `where`")
    try:
        if frame.filter is not None:
            return parse_postgrest(frame.filter)
        return None if frame.where is None else parse_sql(frame.where, frame.params or [])
    except FilterError as error:
        raise ProtocolError("invalid_filter", str(error)) from error


def _position(text: str) -> Position:
    try:
        return parse_position(text)
    except ValueError as error:
        raise ProtocolError("invalid_position", f"`since`: {error}") from None
