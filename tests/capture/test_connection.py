"""When a connection is taken for dead."""

from __future__ import annotations

from rowcast.capture import connection


async def test_who_is_between_two_statements_is_not_taken_for_dead(dsn: str) -> None:
    """A busy connection waits for an answer whenever one looks, and its server is often done with it by then."""
    async with await connection.connect(dsn) as asked:
        await asked.execute("SELECT 1")
        assert await connection._works(dsn, asked.info.backend_pid)
    assert not await connection._works(dsn, 0), "a process that is gone"
