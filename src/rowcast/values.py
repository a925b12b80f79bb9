"""PostgreSQL's text output of a value → JSON, by type; and rows → JSON objects. No I/O.

The one rule of this room: under `SESSION_SETTINGS`, the JSON of a value equals what PostgreSQL's own `to_jsonb()`
makes of it, with every number written digit for digit (it never becomes a float). Encoders do not raise: text that
does not fit what is known of its type (the type was altered a moment ago) becomes a JSON string of that text. No
encoder's output holds a line break, so a row fits one line of an event stream.

A column of type `json` keeps duplicate keys, which `to_jsonb()` drops; readers of JSON take the last one, as it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast

import msgspec

from rowcast.model import MISSING, Column, Row

JsonEncoder: TypeAlias = Callable[[bytes], bytes]

# Every session whose text goes through this room sets these, so that a row from the stream, a row from a snapshot
# and a row from last year's server are byte-equal. `search_path` is not among them although the text of regclass and
# its kin depends on it: functions in row filters and policies may rely on it.
SESSION_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "client_encoding": "UTF8",  # JSON is UTF-8
        "datestyle": "ISO",  # the form that to_jsonb writes whatever the style is
        "timezone": "UTC",  # an instant has one spelling, wherever the session comes from
        "intervalstyle": "postgres",  # to_jsonb follows the session here; this is the server's default
        "extra_float_digits": "1",  # the shortest digits that read back as the same float
        "bytea_output": "hex",  # to_jsonb follows the session here too; `escape` is four times as long
        "lc_monetary": "C",  # money reads $1,234.56 whatever locale the server has
    }
)


def session_options() -> str:
    """`SESSION_SETTINGS` as a value for libpq's connection parameter `options`."""
    return " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())


_encode_str = msgspec.json.Encoder().encode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def _string(value: bytes) -> bytes:
    try:
        return _encode_str(value.decode())
    except UnicodeDecodeError:  # a database in SQL_ASCII holds whatever bytes it was given
        return _encode_str(value.decode(errors="replace"))


def _integer(value: bytes) -> bytes:
    return value


def _jsonb(value: bytes) -> bytes:
    return value


# RowEncoder spares itself the calls of these.
_UNCHANGED: Final = frozenset({_integer, _jsonb})


def _number(value: bytes) -> bytes:
    """float4, float8, numeric: only NaN and the infinities end in a letter."""
    return value if value[-1] <= 0x39 else b'"%b"' % value


_boolean: Final = {b"t": b"true", b"f": b"false"}.__getitem__


def _timestamp(value: bytes) -> bytes:
    return b'"%b"' % value.replace(b" ", b"T", 1)


def _timestamptz(value: bytes) -> bytes:
    if value[-1] == 0x30:  # …+00
        return b'"%b:00"' % value.replace(b" ", b"T")
    if value.endswith(b" BC"):
        return b'"%b:00 BC"' % value[:-3].replace(b" ", b"T")
    return b'"%b"' % value  # infinity


_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair of surrogates
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"  # half a pair
    rb"|\\."
)


def _json(value: bytes) -> bytes:
    """The type json keeps its input: line breaks, and halves of surrogate pairs that many parsers refuse."""
    if b"\\u" in value:
        value = _ESCAPES.sub(lambda match: rb"\ufffd" if match[1] else match[0], value)
    # A raw line break stands between tokens only: inside strings the type demands \n.
    return value.replace(b"\n", b" ").replace(b"\r", b" ")


def _int2vector(value: bytes) -> bytes:
    return b"[%b]" % value.replace(b" ", b",")


def _oidvector(value: bytes) -> bytes:
    return b'["%b"]' % value.replace(b" ", b'","') if value else b"[]"


_ARRAY_TO_JSON = bytes.maketrans(b"{}NUL", b"[]nul")


def _array(element: JsonEncoder, delimiter: str = ",") -> JsonEncoder:
    """Encoder of arrays: `{1,NULL,"a b"}`, nested `{{1},{2}}`, with bounds `[0:1]={1,2}`.

    Inside quotes, a backslash stands before quotes and backslashes.
    """
    mark = delimiter.encode()
    tokens = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[^"{}%b]+|[{}%b]' % ((re.escape(mark),) * 2), re.DOTALL)
    marks = {b"{": b"[", b"}": b"]", mark: b",", b"NULL": b"null"}

    def write(token: bytes) -> bytes:
        if token[0] == 0x22:
            token = token[1:-1].replace(rb"\"", b'"').replace(rb"\\", b"\\")
        return element(token)

    def encode(value: bytes) -> bytes:
        return b"".join(
            [marks.get(token) or write(token) for token in tokens.findall(value, value.index(b"{"))]
        )

    def encode_numbers(value: bytes) -> bytes:
        # All numbers of an array at once, unless one is NaN or infinite.
        if b"a" in value or b"y" in value:
            return encode(value)
        return value[value.index(b"{") :].translate(_ARRAY_TO_JSON)

    return encode_numbers if element in {_integer, _number} else encode


_FIELD = re.compile(rb',("[^"]*(?:""[^"]*)*"|[^,"]*)')


def _composite(attributes: Sequence[tuple[str, JsonEncoder]]) -> JsonEncoder:
    """Encoder of rows: `(1,,"a b")`. Nothing between commas is NULL; inside quotes, quotes and backslashes double."""
    prefixed = [(_encode_str(name) + b":", encoder) for name, encoder in attributes]

    def write(prefix: bytes, encoder: JsonEncoder, field: bytes) -> bytes:
        if not field:
            return prefix + b"null"
        if field[0] == 0x22:
            field = field[1:-1].replace(b'""', b'"').replace(rb"\\", b"\\")
        return prefix + encoder(field)

    def encode(value: bytes) -> bytes:
        # PostgreSQL does not tell the stream of an ALTER TYPE. A field under another attribute's type must not
        # spoil the frame that it travels in.
        fields: list[bytes] = _FIELD.findall(b"," + value[1:-1]) if prefixed else []
        try:
            written = b",".join([write(*pair, field) for pair, field in zip(prefixed, fields, strict=True)])
            _check_json(b"{%b}" % written)
        except (ValueError, KeyError, RecursionError):
            return _string(value)
        return b"{%b}" % written

    return encode


# OIDs below 10000 are the same in every PostgreSQL. A built-in type that is not named here is a string in JSON.
_BUILT_IN: Final[dict[int, JsonEncoder]] = {
    16: _boolean,
    20: _integer,  # int8
    21: _integer,  # int2
    22: _int2vector,
    23: _integer,  # int4
    30: _oidvector,
    114: _json,
    700: _number,  # float4
    701: _number,  # float8
    1114: _timestamp,
    1184: _timestamptz,
    1700: _number,  # numeric
    3802: _jsonb,
}
_BOX = 603
# OID of the array type: OID of its elements' type. box[] is the one that is delimited by semicolons.
_BUILT_IN_ARRAYS: Final = {
    143: 142, 199: 114, 271: 5069, 629: 628, 651: 650, 719: 718, 775: 774, 791: 790, 1000: 16, 1001: 17, 1002: 18,
    1003: 19, 1005: 21, 1006: 22, 1007: 23, 1008: 24, 1009: 25, 1010: 27, 1011: 28, 1012: 29, 1013: 30, 1014: 1042,
    1015: 1043, 1016: 20, 1017: 600, 1018: 601, 1019: 602, 1020: 603, 1021: 700, 1022: 701, 1027: 604, 1028: 26,
    1034: 1033, 1040: 829, 1041: 869, 1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1187: 1186, 1231: 1700,
    1270: 1266, 1561: 1560, 1563: 1562, 2201: 1790, 2207: 2202, 2208: 2203, 2209: 2204, 2210: 2205, 2211: 2206,
    2949: 2970, 2951: 2950, 3221: 3220, 3643: 3614, 3644: 3642, 3645: 3615, 3735: 3734, 3770: 3769, 3807: 3802,
    3905: 3904, 3907: 3906, 3909: 3908, 3911: 3910, 3913: 3912, 3927: 3926, 4073: 4072, 4090: 4089, 4097: 4096,
    4192: 4191, 5039: 5038, 6150: 4451, 6151: 4532, 6152: 4533, 6153: 4534, 6155: 4535, 6157: 4536,
}  # fmt: skip
_BUILT_IN.update(
    {
        array: _array(_BUILT_IN.get(element, _string), ";" if element == _BOX else ",")
        for array, element in _BUILT_IN_ARRAYS.items()
    }
)


TypeKind: TypeAlias = Literal["base", "array", "enum", "domain", "composite", "range", "multirange"]


@dataclass(frozen=True, slots=True)
class TypeDescription:
    """What pg_type (and pg_attribute) say about a type that is not built in.

    Attributes:
        element_oid: Of an array, the type of its elements.
        delimiter: Of an array, the character between its elements.
        base_oid: Of a domain, the type below it.
        attributes: Of a composite, name and type OID of each attribute, in order, without dropped ones.
        labels: Of an enum, its labels in their sort order.
    """

    oid: int
    name: str
    kind: TypeKind
    element_oid: int = 0
    delimiter: str = ","
    base_oid: int = 0
    attributes: tuple[tuple[str, int], ...] = ()
    labels: tuple[str, ...] = ()


class TypeCatalog:
    """Knows the JSON encoder of every type: of built-in ones by itself, of others from their descriptions."""

    def __init__(self, descriptions: Iterable[TypeDescription] = ()) -> None:
        self._descriptions = {description.oid: description for description in descriptions}
        self._encoders: dict[int, JsonEncoder] = {}

    def encoder(self, type_oid: int) -> JsonEncoder:
        """What turns the text output of a non-NULL value of that type into JSON, both UTF-8.

        A type that nobody described is a JSON string of its text, as `to_jsonb()` has it for every type without
        a form of its own.
        """
        encoder = _BUILT_IN.get(type_oid) or self._encoders.get(type_oid)
        if encoder is None:
            encoder = self._encoders[type_oid] = self._build(self._descriptions.get(type_oid))
        return encoder

    def _build(self, description: TypeDescription | None) -> JsonEncoder:
        match description:
            case TypeDescription(kind="array", element_oid=element_oid, delimiter=delimiter):
                return _array(self.encoder(element_oid), delimiter)
            case TypeDescription(kind="composite", attributes=attributes):
                return _composite([(name, self.encoder(type_oid)) for name, type_oid in attributes])
            case TypeDescription(kind="domain", base_oid=base_oid):
                return self.encoder(base_oid)
            case _:
                return _string


class RowEncoder:
    """Writes rows of some columns as JSON objects: `{"id":1,"name":"x"}`.

    NULL is null; a MISSING column is left out.

    Args:
        columns: All columns of the table, as in its rows.
        indexes: Which of them to write, and in which order; all without it.

    Attributes:
        encode: The function that writes one row. Build a RowEncoder once and keep this: it is made for its columns.
    """

    __slots__ = ("encode",)

    encode: Callable[[Row], bytes]

    def __init__(self, columns: Sequence[Column], indexes: Iterable[int] | None = None) -> None:
        chosen = tuple(range(len(columns)) if indexes is None else indexes)
        self.encode = _compile_row_encoder(
            chosen,
            tuple(_encode_str(columns[index].name) + b":" for index in chosen),
            tuple(columns[index].to_json for index in chosen),
        )


def _compile_row_encoder(
    indexes: tuple[int, ...], prefixes: tuple[bytes, ...], encoders: tuple[JsonEncoder, ...]
) -> Callable[[Row], bytes]:
    """Unroll the loop over the columns into a function: every row of every shape passes here.

    A loop with zip() takes 2.5 times as long. The source is made of the columns' numbers only.
    """

    def encode_partial(row: Row) -> bytes:
        return b"{%b}" % b",".join(
            [
                prefix + (b"null" if value is None else encoder(value))
                for index, prefix, encoder in zip(indexes, prefixes, encoders, strict=True)
                if (value := row[index]) is not MISSING
            ]
        )

    if not indexes:
        return encode_partial

    def written(place: int, encoder: JsonEncoder) -> str:
        call = f"v{place}" if encoder in _UNCHANGED else f"encode_{place}(v{place})"
        return f"{call} if v{place} is not None else b'null',"

    source = f"""def encode(row):
    {"; ".join(f"v{place} = row[{index}]" for place, index in enumerate(indexes))}
    if {" or ".join(f"v{place} is MISSING" for place in range(len(indexes)))}:
        return encode_partial(row)
    return template % ({" ".join(written(place, encoder) for place, encoder in enumerate(encoders))})
"""
    namespace: dict[str, object] = {
        "MISSING": MISSING,
        "encode_partial": encode_partial,
        "template": b"{%b}" % b",".join([prefix.replace(b"%", b"%%") + b"%b" for prefix in prefixes]),
        **{f"encode_{place}": encoder for place, encoder in enumerate(encoders)},
    }
    exec(source, namespace)  # noqa: S102 - no text from outside is in it
    return cast("Callable[[Row], bytes]", namespace["encode"])


_COPY_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_COPY_ESCAPES: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def parse_copy_line(line: bytes) -> Row:
    """Split one line of `COPY … TO STDOUT` in text format, with or without its line end, into a row.

    The line of a row without columns is as empty as that of one empty text: it is read as the latter.
    """
    fields = line.removesuffix(b"\n").split(b"\t")
    if b"\\" not in line:
        return tuple(fields)
    return tuple([_copy_field(field) if b"\\" in field else field for field in fields])


def _copy_field(field: bytes) -> bytes | None:
    if field == rb"\N":
        return None
    return _COPY_ESCAPE.sub(lambda match: _COPY_ESCAPES.get(match[1], match[1]), field)
