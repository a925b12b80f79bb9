"""`rowcast.confirm(connection, mutation_id)`: the one line that an application adds to its transaction.

The one rule of this room: it is part of the application's transaction. If that commits, the client that made the
mutation is told together with the changes; if it is rolled back, nobody is told anything.

In SQL it is `SELECT rowcast.confirm('…')`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, overload

from rowcast.contrib.context import current_mutation
from rowcast.contrib.driver import AwaitableConnection, is_async, query, query_async

_STATEMENT: Final = "SELECT rowcast.confirm($1)"


@overload
def confirm(connection: AwaitableConnection, mutation_id: str | None = None) -> Awaitable[None]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def confirm(connection: object, mutation_id: str | None = None) -> None: ...
def confirm(connection: object, mutation_id: str | None = None) -> Awaitable[None] | None:
    """Say, with this transaction's commit, that a mutation is in the data now.

    The client that shows it optimistically takes it off in the very step that brings the changes. Say it also where
    the transaction has changed nothing in the end.

    Args:
        connection: Of psycopg, psycopg2, asyncpg, SQLAlchemy (Core or ORM, async or not) or Django, in the
            transaction that does the mutation. For an async connection the result is to be awaited.
        mutation_id: From the request's header `Rowcast-Mutation`. Without it, the one that the middleware has found
            (`rowcast.contrib.asgi`, `rowcast.contrib.django`); where there is none, nothing happens.

    Raises:
        ConfigurationError: It is no connection of these libraries.
    """
    mutation = mutation_id or current_mutation()
    if is_async(connection):
        return _confirm_async(connection, mutation)
    if mutation is not None:
        query(connection, _STATEMENT, [mutation])
    return None


async def _confirm_async(connection: object, mutation: str | None) -> None:
    if mutation is not None:
        await query_async(connection, _STATEMENT, [mutation])
