"""The types whose values filters can compare: how PostgreSQL reads a literal of them, what is equal, what sorts first.

The one rule of this room: `read` accepts a part of what PostgreSQL accepts, and gives what PostgreSQL would give; what
depends on settings, versions or the clock is refused. Values come as PostgreSQL's text output under the settings that
all our sessions have (values.SESSION_SETTINGS); where that text is canonical, equality is equality of bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import total_ordering
from typing import Any, Final, Literal, TypeAlias

from rowcast.filters import jsonb, moments
from rowcast.filters.decimals import SPACE, SPECIAL, is_number, read_decimal, trim_zeros
from rowcast.filters.expression import Unknowable
from rowcast.model import Collation

Family: TypeAlias = Literal[
    "integer", "numeric", "float8", "float4", "boolean", "text", "jsonb", "array", "other"
]


@dataclass(frozen=True, slots=True)
class ValueType:
    """One type, for one column: of text it knows the collation, of an enum the labels.

    Attributes:
        name: As a cast in a filter may name it.
        family: What else than comparison it takes part in.
        read: A literal → canonical text. Raises ValueError with the form that is expected.
        identity: Text output → an object that equals another's exactly if `=` is true. None: the text is its own.
        order: Text output → an object that sorts as `<` does.
        disorder: Why `<` cannot be used here; empty if it can.
        collation: Of text.
        element: Of an array, the type of its elements.
    """

    name: str
    family: Family
    read: Callable[[str], str]
    identity: Callable[[bytes], Hashable] | None = None
    order: Callable[[bytes], Any] = bytes
    disorder: str = ""
    collation: Collation | None = None
    element: ValueType | None = None

    def identify(self, text: bytes) -> Hashable:
        return text if self.identity is None else self.identity(text)


@total_ordering
class _Greatest:
    """NaN: equal to itself and greater than everything else, as PostgreSQL has it."""

    __slots__ = ()

    def __gt__(self, other: object) -> bool:
        return other is not self

    def __eq__(self, other: object) -> bool:
        return other is self

    def __hash__(self) -> int:
        return id(_Greatest)


NAN: Final = _Greatest()

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,30}")


def _integer(name: str, low: int, high: int) -> ValueType:
    def read(text: str) -> str:
        text = text.strip(SPACE)
        if not _WHOLE.fullmatch(text):
            raise ValueError("a whole number, such as 42")
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return str(value)

    return ValueType(name, "integer", read, order=int)


def _read_numeric(text: str) -> str:
    return SPECIAL.get(text.strip(SPACE).lower()) or read_decimal(text)


def _order_numeric(text: bytes) -> Decimal | _Greatest:
    return NAN if text == b"NaN" else Decimal(text.decode())


def _float(name: Literal["float4", "float8"], parse: Callable[[bytes], float], digits: str) -> ValueType:
    def read(text: str) -> str:
        text = text.strip(SPACE)
        if special := SPECIAL.get(text.lower()):
            return special
        if not is_number(text):
            raise ValueError("a number, such as 0.5")
        try:
            value = parse(text.encode())
        except OverflowError:
            value = float("inf")
        if value in {float("inf"), float("-inf")} or (value == 0 and Decimal(text) != 0):
            raise ValueError(f"a number within the range of {name}")
        return format(value + 0.0, digits)  # of -0, which equals it, it makes 0

    def value_of(text: bytes) -> float | _Greatest:
        return NAN if text == b"NaN" else parse(text)

    return ValueType(name, name, read, identity=value_of, order=value_of)


def to_float4(text: bytes) -> float:
    """The float4 that is nearest to a decimal number, exactly as strtof() rounds.

    Raises:
        OverflowError: It is beyond the largest one.
    """
    value = float(text)
    [bits] = struct.unpack("<q", struct.pack("<d", value))
    [nearest] = struct.unpack("<f", struct.pack("<f", value))
    # Rounding twice goes wrong only where the double stands exactly between two float4, or below the normal ones.
    if value == 0 or (abs(value) >= 2.0**-126 and bits & 0x1FFFFFFF != 0x10000000):
        return float(nearest)
    exact = Fraction(text.decode())
    [center] = struct.unpack("<i", struct.pack("<f", abs(nearest)))
    candidates = [
        (number, *struct.unpack("<f", struct.pack("<i", number))) for number in range(center - 1, center + 2)
    ]
    _, _, nearest = min(
        (abs(Fraction(candidate) - abs(exact)), number & 1, candidate)
        for number, candidate in candidates
        if number >= 0 and candidate < float("inf")
    )
    return float(nearest) if value > 0 else -float(nearest)


def _read_boolean(text: str) -> str:
    word = text.strip(SPACE).lower()
    if word in {"t", "true", "y", "yes", "on", "1"}:
        return "t"
    if word in {"f", "false", "n", "no", "off", "0"}:
        return "f"
    raise ValueError("true or false")


_UUID: Final = re.compile(r"\{?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})\}?")


def _read_uuid(text: str) -> str:
    match = _UUID.fullmatch(text.lower())
    if match is None or text.startswith("{") != text.endswith("}"):
        raise ValueError("a uuid, such as 0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11")
    return "-".join(match.groups())


_BYTEA: Final = re.compile(r"\\x(?:[0-9a-f]{2})*")


def _read_bytea(text: str) -> str:
    if not _BYTEA.fullmatch(text.lower()):
        raise ValueError(r"bytes in hex, such as \x00ff")
    return text.lower()


def _moment(name: str, read: Callable[[str], str], order: Callable[[bytes], bytes]) -> ValueType:
    return ValueType(name, "other", lambda text: read(text.strip(SPACE)), order=order)


_BY_OID: Final[dict[int, ValueType]] = {
    16: ValueType("bool", "boolean", _read_boolean),
    17: ValueType("bytea", "other", _read_bytea),
    20: _integer("int8", -(2**63), 2**63 - 1),
    21: _integer("int2", -(2**15), 2**15 - 1),
    23: _integer("int4", -(2**31), 2**31 - 1),
    26: _integer("oid", 0, 2**32 - 1),
    700: _float("float4", to_float4, ".9g"),
    701: _float("float8", float, ""),
    1082: _moment("date", moments.read_date, moments.order_of),
    1083: _moment("time", moments.read_time, bytes),
    1114: _moment("timestamp", moments.read_timestamp, moments.order_of),
    1184: _moment("timestamptz", moments.read_timestamptz, moments.order_of),
    1700: ValueType("numeric", "numeric", _read_numeric, identity=trim_zeros, order=_order_numeric),
    2950: ValueType("uuid", "other", _read_uuid),
    3802: ValueType(
        "jsonb",
        "jsonb",
        jsonb.read,
        identity=jsonb.identity_of,
        disorder="the order of jsonb values is PostgreSQL's own: compare a text or number within it",
    ),
}
NUMBERS: Final = {_BY_OID[oid].name: _BY_OID[oid] for oid in (20, 21, 23, 26, 700, 701, 1700)}


def built_in(oid: int) -> ValueType | None:
    """The type with this OID, if it is one that needs no collation and no labels."""
    return _BY_OID.get(oid)


TEXT_OID: Final = 25
_TEXT_NAMES: Final = {19: "name", 25: "text", 1042: "bpchar", 1043: "varchar"}


def text_type(oid: int, collation: Collation | None) -> ValueType | None:
    """The text type with this OID under a collation (None: known to be deterministic only)."""
    name = _TEXT_NAMES.get(oid)
    # Literals of the type name have the collation C. PostgreSQL fails to choose between that and another one.
    if name is None or (name == "name" and collation is not None and collation.name != "C"):
        return None
    identity = _without_padding if name == "bpchar" else None
    if collation is not None and collation.code_point_order:
        # UTF-8 sorts by code points.
        disorder = ""
    else:
        sorting = (
            f"it sorts by the collation {collation.name}" if collation else "its collation is not known here"
        )
        disorder = f'{sorting}, which only PostgreSQL can do: compare a column with COLLATE "C"'
    return ValueType(name, "text", _READ_TEXT[name], identity, identity or bytes, disorder, collation)


def _without_padding(text: bytes) -> bytes:
    return text.rstrip(b" ")


def _read_name(text: str) -> str:
    if len(text.encode()) > 63:
        raise ValueError("a name of at most 63 bytes")
    return text


_READ_TEXT: Final[dict[str, Callable[[str], str]]] = {
    "name": _read_name,
    "text": str,
    "varchar": str,
    "bpchar": lambda text: text.rstrip(" "),
}


def enum_type(name: str, labels: tuple[str, ...]) -> ValueType:
    """An enum with its labels in their order."""
    places = {label.encode(): place for place, label in enumerate(labels)}

    def read(text: str) -> str:
        if text not in labels:
            raise ValueError(f"one of {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}")
        return text

    def order(text: bytes) -> int:
        try:
            return places[text]
        except KeyError:
            raise Unknowable from None

    return ValueType(name, "other", read, order=order)
