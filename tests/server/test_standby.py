"""Commits that wait for a synchronous standby: the stream tells them before any other session can see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect

from rowcast.capture.install import install
from rowcast.server import Rowcast
from rowcast.settings import Settings
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.server import running


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A cluster for one test: which standbys commits wait for is a setting of the whole."""
    with EmbeddedPostgres() as server:
        yield server


async def hear(client: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
        if message["type"] == kind:
            return message


async def test_a_snapshot_waits_for_a_commit_that_the_log_has_dropped_and_nobody_sees_yet(
    own_postgres: EmbeddedPostgres,
) -> None:
    dsn = own_postgres.dsn()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
        install(dsn, ["items"])
        connection.execute("SET synchronous_commit = local")
        settings = Settings(database_url=dsn, port=0, replay_window_bytes=2000)
        async with (
            running(Rowcast(settings)) as addresses,
            connect(addresses.websocket) as follower,
            connect(addresses.websocket) as newcomer,
        ):
            for client in (follower, newcomer):
                await client.send('{"type":"hello","version":1}')
            await follower.send('{"type":"subscribe","id":"s","channel":"items"}')
            await hear(follower, "subscribed")
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
            connection.execute("SELECT pg_reload_conf()")
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as hidden:
                committing = asyncio.create_task(hidden.execute("INSERT INTO items VALUES (1, 'hidden')"))
                assert (await hear(follower, "transaction"))["changes"][0]["key"] == {"id": 1}
                for number in range(2, 6):  # one of these is more than the log keeps
                    connection.execute("INSERT INTO items VALUES (%s, repeat('x', 3000))", (number,))
                    await hear(follower, "transaction")
                await newcomer.send('{"type":"subscribe","id":"s","channel":"items","snapshot":true}')
                snapshot = asyncio.create_task(hear(newcomer, "snapshot"))
                too_early, _ = await asyncio.wait([snapshot, committing], timeout=0.3)
                connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
                connection.execute("SELECT pg_reload_conf()")
                await committing
                assert not too_early, "rows without a transaction that has been told already"
                assert [row["id"] for row in (await snapshot)["rows"]] == [1, 2, 3, 4, 5]
