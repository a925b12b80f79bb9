"""Rows as the application's own types. No I/O.

The one rule of this room: a row that has not changed stays the same object, so that an application may compare by
identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from rowcast.client.rows import Row
from rowcast.errors import ClientError

T = TypeVar("T")


def row_reader(kind: type[T]) -> Callable[[Row], T]:
    """What makes a row an object of a type.

    Args:
        kind: `dict` for rows as they are (not to be changed), a TypedDict, a dataclass, a `msgspec.Struct`, or a
            pydantic model. Columns that the type does not have are left out; text becomes dates, UUIDs and decimals
            where the type says so.

    Returns:
        The function; it raises `ClientError` for a row that does not fit, and says which column.
    """
    if kind is dict or kind is Mapping:
        return cast("Callable[[Row], T]", _as_it_is)
    validate: Callable[[Any], T] | None = getattr(kind, "model_validate", None)
    name = kind.__name__

    def read(row: Row) -> T:
        try:
            return msgspec.convert(row, kind) if validate is None else validate(row)
        except ValueError as error:  # both libraries' validation errors are
            raise ClientError(f"a row does not fit the type {name}: {error}") from error

    return read


def _as_it_is(row: Row) -> Row:
    return row
