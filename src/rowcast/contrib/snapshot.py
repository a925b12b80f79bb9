"""The header `Rowcast-Snapshot`: what a read of the application's own has seen.

A client that fetches rows through the application's API, and follows the stream as well, replays over the answer
exactly the transactions that the read could not see.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, overload

from rowcast.contrib.driver import AwaitableConnection, is_async, query, query_async

SNAPSHOT_HEADER: Final = "Rowcast-Snapshot"
_STATEMENT: Final = "SELECT pg_current_snapshot()::text"


@overload
def snapshot_header(connection: AwaitableConnection) -> Awaitable[str]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
@overload
def snapshot_header(connection: object) -> str: ...
def snapshot_header(connection: object) -> str | Awaitable[str]:
    """The value for the header `Rowcast-Snapshot`: `response.headers[SNAPSHOT_HEADER] = await snapshot_header(conn)`.

    Call it before the reads that make the answer, on the same connection. In a transaction that is REPEATABLE READ it
    is exact. In the default READ COMMITTED the reads may see more than it says, never less, and what the client then
    replays a second time changes nothing.

    Args:
        connection: As for `rowcast.confirm`; for an async one the result is to be awaited.

    Raises:
        ConfigurationError: It is no connection of a library that is known.
    """
    if is_async(connection):
        return _snapshot_async(connection)
    return str(query(connection, _STATEMENT, [])[0][0])


async def _snapshot_async(connection: object) -> str:
    return str((await query_async(connection, _STATEMENT, []))[0][0])
