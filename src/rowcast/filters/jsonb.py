"""jsonb values as PostgreSQL compares them. No I/O.

The one rule of this room: numbers are compared by value and never pass through a float, keys have no order, and a
value taken out with `->` or `->>` reads exactly as PostgreSQL writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NoReturn, TypeAlias, cast

from rowcast.filters.decimals import read_decimal, trim_zeros
from rowcast.filters.expression import Unknowable

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | Number | bool | None"

_NULL: Final = object()  # JSON's, which is a value; None is SQL's
_MAX_LITERAL_LENGTH: Final = (
    4_096  # characters; the time of `@>` grows with the number of values on both sides
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number: equal to another of the same value, and written with the digits that it was stored with."""

    text: str = field(compare=False)
    canonical: str


def _stored_number(text: str) -> Number:
    return Number(text, trim_zeros(text.encode()).decode())


def _literal_number(text: str) -> Number:
    canonical = read_decimal(text)
    return Number(canonical, canonical)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON, which has no {name}")


_decode = json.JSONDecoder(parse_float=_stored_number, parse_int=_stored_number).decode
_decode_literal = json.JSONDecoder(
    parse_float=_literal_number, parse_int=_literal_number, parse_constant=_refuse_constant
).decode
_encode_string = json.JSONEncoder(ensure_ascii=False).encode


# Many filters read the same document one after the other, some of them a document within it.
@lru_cache(maxsize=8)
def _parse(text: bytes) -> JsonValue:
    try:
        return cast("JsonValue", _decode(text.decode()))
    except (RecursionError, UnicodeDecodeError):
        raise Unknowable from None


def read(text: str) -> str:
    """A literal → canonical text: numbers in shortest form, keys sorted.

    Raises:
        ValueError: It is not a jsonb value; the text is what is expected.
    """
    if len(text) > _MAX_LITERAL_LENGTH:
        raise ValueError(f"JSON of at most {_MAX_LITERAL_LENGTH} characters")
    try:
        return _write(_normalise(_decode_literal(text)))
    except json.JSONDecodeError:
        raise ValueError('JSON: text is "quoted", such as {"a": [1, true]}') from None
    except RecursionError:
        raise ValueError("JSON nested less deep") from None


def identity_of(text: bytes) -> Hashable:
    """An object that is equal to another's exactly if the values are equal."""
    try:
        return _freeze(_parse(text))
    except RecursionError:
        raise Unknowable from None


def contains(wanted: bytes) -> Callable[[bytes], bool]:
    """The test `value @> wanted`."""
    right = _parse(wanted)

    def test(text: bytes) -> bool:
        left = _parse(text)
        try:
            # An array contains a scalar; this holds at the top only.
            if isinstance(left, list) and not isinstance(right, dict | list):
                return right in left
            return _contains(left, right)
        except RecursionError:
            raise Unknowable from None

    return test


def extract(path: tuple[str | int, ...], *, as_text: bool) -> Callable[[bytes], bytes | None]:
    """What `->` and `->>` along the path give: text output, or None for NULL."""

    def get(text: bytes) -> bytes | None:
        value = _parse(text)
        for step in path:
            match value:
                case dict() if step in value:
                    value = value[step]
                case list() if isinstance(step, int) and -len(value) <= step < len(value):
                    value = value[step]
                case str() | Number() | bool() | None if step in {0, -1}:
                    pass  # a scalar stands in an array of its own
                case _:
                    return None
        if as_text and (value is None or isinstance(value, str)):
            return value if value is None else value.encode()
        try:
            return _write(value).encode()
        except RecursionError:
            raise Unknowable from None

    return get


def _normalise(value: JsonValue) -> JsonValue:
    match value:
        case dict():
            return {_check(key): _normalise(value[key]) for key in sorted(value)}
        case list():
            return [_normalise(item) for item in value]
        case str():
            return _check(value)
        case _:
            return value


def _check(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("JSON without NUL characters and halves of surrogate pairs")
    return text


def _freeze(value: JsonValue) -> Hashable:
    match value:
        case dict():
            return frozenset([(key, _freeze(item)) for key, item in value.items()])
        case list():
            return tuple([_freeze(item) for item in value])
        case None:
            return _NULL
        case _:
            return value


def _contains(left: JsonValue, right: JsonValue) -> bool:
    match left, right:
        case dict(), dict():
            return all(key in left and _contains(left[key], item) for key, item in right.items())
        case list(), list():
            return all(
                any(_contains(candidate, item) for candidate in left)
                if isinstance(item, dict | list)
                else item in left
                for item in right
            )
        case _:
            return not isinstance(right, dict | list) and left == right


def _write(value: JsonValue) -> str:
    match value:
        case dict():
            members = [f"{_encode_string(key)}: {_write(item)}" for key, item in value.items()]
            return f"{{{', '.join(members)}}}"
        case list():
            return f"[{', '.join([_write(item) for item in value])}]"
        case str():
            return _encode_string(value)
        case Number():
            return value.text
        case None:
            return "null"
        case _:
            return "true" if value else "false"
