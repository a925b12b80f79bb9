"""A mutation that is sent twice is done once: `run_once(connection, mutation_id, do)`.

The one rule of this room: the mark that a mutation was done is written by the transaction that does it, so the two
can never disagree, whatever breaks off in between.

`rowcast setup` makes the table `rowcast.mutation` and the functions that are used here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeVar, cast, overload

from rowcast.contrib.driver import Rows, is_async, query, query_async
from rowcast.errors import ConfigurationError

R = TypeVar("R")

_CLAIM: Final = "SELECT claimed, outcome::text FROM rowcast.claim_mutation($1)"
_SETTLE: Final = "SELECT rowcast.settle_mutation($1, CAST($2 AS jsonb))"
_STATUS: Final = "SELECT rowcast.mutation_status($1)"
_PURGE: Final = "SELECT rowcast.purge_mutations(CAST($1 AS interval))"


@overload
def run_once(connection: object, mutation_id: str | None, do: Callable[[], Awaitable[R]]) -> Awaitable[R]: ...
@overload
def run_once(connection: object, mutation_id: str | None, do: Callable[[], R]) -> R: ...
def run_once(connection: object, mutation_id: str | None, do: Callable[[], Any]) -> Any:
    """Do a mutation unless it has been done, confirm it, and return what it returned, now or then.

    Of two requests at the same time the second waits for the first. If the function raises, roll back: nothing is
    remembered, and the next attempt runs it.

    Args:
        connection: As for `rowcast.confirm`, in the transaction that does the mutation.
        mutation_id: From the request's header; with None the function simply runs.
        do: Does it, on this connection. Async for an async connection, and the result is then to be awaited. What it
            returns must be something that JSON can hold, for it is kept.

    Raises:
        ConfigurationError: It is no connection of a library that is known, or what was returned is no JSON.
    """
    if mutation_id is None:
        return do()
    if is_async(connection):
        return _run_once_async(connection, mutation_id, do)
    claimed, outcome = _claim(query(connection, _CLAIM, [mutation_id]))
    if not claimed:
        return outcome
    result = do()
    query(connection, _SETTLE, [mutation_id, _kept(result)])
    return result


async def _run_once_async(connection: object, mutation_id: str, do: Callable[[], Awaitable[Any]]) -> Any:
    claimed, outcome = _claim(await query_async(connection, _CLAIM, [mutation_id]))
    if not claimed:
        return outcome
    result = await do()
    await query_async(connection, _SETTLE, [mutation_id, _kept(result)])
    return result


def status(connection: object, mutation_id: str) -> Literal["committed", "unknown"]:
    """What became of a mutation, for a client that has lost the answer.

    Answer with it what the client's `status` function asks. `status_async` is the same for async connections.
    """
    return cast("Literal['committed', 'unknown']", query(connection, _STATUS, [mutation_id])[0][0])


async def status_async(connection: object, mutation_id: str) -> Literal["committed", "unknown"]:
    """See `status`."""
    rows = await query_async(connection, _STATUS, [mutation_id])
    return cast("Literal['committed', 'unknown']", rows[0][0])


def purge(connection: object, older_than_seconds: float = 86_400.0) -> int:
    """Forget mutations that were done longer ago than any client would still ask for; returns how many.

    At most 10,000 at a time: call it until it returns 0, or often. `purge_async` is the same for async connections.
    """
    return int(query(connection, _PURGE, [f"{older_than_seconds} seconds"])[0][0])


async def purge_async(connection: object, older_than_seconds: float = 86_400.0) -> int:
    """See `purge`."""
    return int((await query_async(connection, _PURGE, [f"{older_than_seconds} seconds"]))[0][0])


def _claim(rows: Rows) -> tuple[bool, Any]:
    claimed, outcome = rows[0]
    return claimed, None if outcome is None else json.loads(outcome)


def _kept(result: object) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"what a mutation returns is kept for a retry, as JSON, and this cannot be: {error}; return something simpler"
        ) from error
