"""One statement over whatever connection the application has.

The one rule of this room: it runs in the connection's present transaction, and neither begins nor ends one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from rowcast.errors import ConfigurationError

Rows: TypeAlias = list[tuple[Any, ...]]

_PLACEHOLDER: Final = re.compile(r"\$(\d)")


class AwaitableConnection(Protocol):
    """What type checkers take for an async connection."""

    def execute(self, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...


def is_async(connection: object) -> bool:
    """Whether its methods are to be awaited.

    Raises:
        ConfigurationError: It is no connection of a library that is known here.
    """
    library = _library(connection)
    if library == "sqlalchemy":
        return any(kind.__module__.startswith("sqlalchemy.ext.asyncio") for kind in type(connection).__mro__)
    if library == "psycopg":
        return any(kind.__name__.startswith("Async") for kind in type(connection).__mro__)
    return library == "asyncpg"


def query(connection: Any, statement: str, parameters: Sequence[str | None]) -> Rows:
    """Run a statement, with `$1` for the first parameter, over a connection that is not async.

    Args:
        connection: Of psycopg, psycopg2, SQLAlchemy (Connection or Session) or Django.
        statement: Which returns rows.
        parameters: Texts.
    """
    if _library(connection) == "sqlalchemy":
        return [tuple(row) for row in connection.execute(*_for_sqlalchemy(statement, parameters))]
    with connection.cursor() as cursor:
        cursor.execute(_PLACEHOLDER.sub("%s", statement), parameters)
        return [tuple(row) for row in cursor.fetchall()]


async def query_async(connection: Any, statement: str, parameters: Sequence[str | None]) -> Rows:
    """The same over an async connection of psycopg, asyncpg or SQLAlchemy (AsyncConnection or AsyncSession)."""
    library = _library(connection)
    if library == "asyncpg":
        return [tuple(row) for row in await connection.fetch(statement, *parameters)]
    if library == "sqlalchemy":
        return [tuple(row) for row in await connection.execute(*_for_sqlalchemy(statement, parameters))]
    cursor = await connection.execute(_PLACEHOLDER.sub("%s", statement), parameters)
    return [tuple(row) for row in await cursor.fetchall()]


def _for_sqlalchemy(statement: str, parameters: Sequence[str | None]) -> tuple[Any, dict[str, str | None]]:
    from sqlalchemy import text  # noqa: PLC0415 - only where the application has it

    named = _PLACEHOLDER.sub(r":p\1", statement.replace(":", r"\:"))
    return text(named), {f"p{number}": value for number, value in enumerate(parameters, 1)}


def _library(connection: object) -> str:
    for kind in type(connection).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in {"psycopg", "psycopg2", "asyncpg", "sqlalchemy", "django"}:
            return library
    raise ConfigurationError(
        f"{type(connection).__module__}.{type(connection).__qualname__} is no connection that is known here: give one "
        "of psycopg, psycopg2, asyncpg, SQLAlchemy or Django, or run the SQL yourself: SELECT rowcast.confirm(id)"
    )
