"""Query keys: canonical form, hash, and the partial match that filters use. No I/O.

A key is a list or tuple of JSON-like elements. Two keys are equal if their canonical JSON is: the order of an object's
fields does not matter, tuples are lists, `1.0` is `1`, and enums, UUIDs, dates and decimals stand for the text that an
API would see. `True` is not `1`, and `None` is a value, not an absence.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, cast

import msgspec

QueryKey: TypeAlias = Sequence[object]

# A key's element in canonical form: only None, bool, int, float, str, list and dict, down to the leaves.
Canonical: TypeAlias = Any

_encode = msgspec.json.Encoder(order="sorted").encode


def canonical(value: object) -> Canonical:
    """One element of a key in canonical form.

    Raises:
        TypeError: A value that has no canonical form; the text names it.
    """
    match value:
        case None | bool() | str() if not isinstance(value, enum.Enum):
            return value
        case enum.Enum():
            return canonical(value.value)
        case int():
            return int(value)
        case float():
            return _canonical_float(value)
        case list() | tuple():
            return [canonical(item) for item in cast("Sequence[object]", value)]
        case Mapping():
            return _canonical_object(cast("Mapping[object, object]", value))
        case dt.datetime():
            aware = value.tzinfo is not None
            return (
                (value.astimezone(dt.UTC).replace(tzinfo=None).isoformat() + "Z")
                if aware
                else value.isoformat()
            )
        case dt.date() | dt.time():
            return value.isoformat()
        case uuid.UUID() | decimal.Decimal():
            return str(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: canonical(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            raise TypeError(
                f"a query key cannot hold {value!r} of type {type(value).__name__}: "
                "use strings, numbers, booleans, None, lists, dicts, dataclasses, enums, UUIDs, dates or decimals"
            )


def _canonical_float(value: float) -> Canonical:
    if not math.isfinite(value):
        return None  # as in JSON, which knows no NaN
    return int(value) if value.is_integer() else value


def _canonical_object(value: Mapping[object, object]) -> Canonical:
    result: dict[str, Canonical] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            raise TypeError(f"a query key's object has the field {name!r}: names of fields must be strings")
        result[name] = canonical(item)
    return result


def canonical_key(key: QueryKey) -> tuple[Canonical, ...]:
    """A whole key, element by element.

    Raises:
        TypeError: It is not a list or tuple, or an element has no canonical form.
    """
    if not isinstance(key, list | tuple):
        raise TypeError(f"a query key is a list or tuple, not {key!r}: write [{key!r}]")
    return tuple(map(canonical, key))


def label(element: Canonical) -> str:
    """The canonical JSON of one element: equal elements have equal labels."""
    return _encode(element).decode()


def hash_labels(labels: Sequence[str]) -> str:
    return f"[{','.join(labels)}]"


def hash_key(key: QueryKey) -> str:
    """The canonical JSON of a key, which identifies its cache entry."""
    return hash_labels([label(element) for element in canonical_key(key)])


def partial_match(value: Canonical, pattern: Canonical) -> bool:
    """Whether `pattern` is part of `value`: lists by their beginning, objects by some of their fields, at any depth.

    An empty list or object asks for nothing, so it is part of any list or object.
    """
    if not pattern and (_is_list(pattern) or _is_object(pattern)):
        return _is_list(value) or _is_object(value)
    if _is_list(pattern):
        return _is_list(value) and len(pattern) <= len(value) and all(map(partial_match, value, pattern))
    if _is_object(pattern):
        return _is_object(value) and all(
            name in value and partial_match(value[name], item) for name, item in pattern.items()
        )
    return type(value) is type(pattern) and bool(value == pattern)


def _is_list(value: Canonical) -> TypeGuard[list[Canonical]]:
    return type(value) is list


def _is_object(value: Canonical) -> TypeGuard[dict[str, Canonical]]:
    return type(value) is dict


def partial_match_key(key: QueryKey, prefix: QueryKey) -> bool:
    """Whether a key begins with `prefix`, each element matched in part."""
    return partial_match(list(canonical_key(key)), list(canonical_key(prefix)))
