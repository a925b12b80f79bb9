"""The whole server over the outbox and over notifications: the same exactness, or what is promised instead of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from tests.server.test_snapshots import Follower, full_snapshot, http_rows, plain_snapshot, writers
from websockets.asyncio.client import connect

from rowcast.capture.install import install
from rowcast.server import Addresses, Rowcast
from rowcast.settings import Settings
from rowcast.testing.server import running


@pytest.fixture
async def addresses(dsn: str, connection: psycopg.Connection) -> AsyncIterator[Addresses]:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, org int NOT NULL, note text)")
    connection.execute("INSERT INTO items SELECT n, n % 5, 'start' FROM generate_series(1, 300) n")
    install(dsn, ["items"], capture="outbox")
    settings = Settings(database_url=dsn, port=0, capture="outbox", replay_window_bytes=1 << 24)
    async with running(Rowcast(settings)) as found:
        yield found


async def test_every_snapshot_over_the_outbox_is_the_query_at_its_position(
    dsn: str, addresses: Addresses
) -> None:
    follower, started = Follower(addresses.websocket), asyncio.Event()
    following = asyncio.create_task(follower.run(started))
    await started.wait()
    with writers(dsn, 6):
        for turn in range(12):
            org = turn % 5
            for taking, filtered in (
                (full_snapshot(addresses.websocket, None), False),
                (full_snapshot(addresses.websocket, f"org=eq.{org}"), True),
                (plain_snapshot(addresses.websocket), False),
                (http_rows(addresses.http, None), False),
                (http_rows(addresses.http, f"org=eq.{org}"), True),
            ):
                position, rows = await taking
                await follower.wait_for(position)
                expected = follower.at(position)
                if filtered:
                    expected = {key: row for key, row in expected.items() if row["org"] == org}
                assert rows == expected
    with psycopg.connect(dsn) as connection:
        last = {
            row[0]: {"id": row[0], "org": row[1], "note": row[2]} for row in connection.execute("TABLE items")
        }
    async with asyncio.timeout(10):
        position, rows = await full_snapshot(addresses.websocket, None)
        while rows != last:  # the stream is some milliseconds behind the commit
            position, rows = await full_snapshot(addresses.websocket, None)
    await follower.wait_for(position)
    assert follower.at(position) == last
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


async def test_a_client_resumes_over_a_restart_of_the_server(
    dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, org int NOT NULL, note text)")
    install(dsn, ["items"], capture="outbox")
    settings = Settings(database_url=dsn, port=0, capture="outbox")
    async with running(Rowcast(settings)) as first, connect(first.websocket) as client:
        await client.send(json.dumps({"type": "subscribe", "channel": "items"}))
        since = json.loads(await client.recv())["position"]
        connection.execute("INSERT INTO items VALUES (1, 1, 'by the first')")
        assert json.loads(await client.recv())["new"]["id"] == 1
    connection.execute("INSERT INTO items VALUES (2, 1, 'while there was none')")
    async with running(Rowcast(settings)) as second, connect(second.websocket) as client:
        await client.send(json.dumps({"type": "subscribe", "channel": "items", "since": since}))
        connection.execute("INSERT INTO items VALUES (3, 1, 'by the second')")
        told: list[int] = []
        async with asyncio.timeout(20):
            while told != [1, 2, 3]:
                message = json.loads(await client.recv())
                assert message.get("type") not in {"resync", "error"}, message
                if "op" in message:
                    told.append(message["new"]["id"])


async def test_notifications_arrive_as_flat_messages(dsn: str, connection: psycopg.Connection) -> None:
    settings = Settings(database_url=dsn, port=0, capture="notify", tables=("projects", "events"))
    async with running(Rowcast(settings)) as addresses, connect(addresses.websocket) as client:
        for channel in ("projects", "events"):
            await client.send(json.dumps({"type": "subscribe", "channel": channel}))
        subscribed = 0
        async with asyncio.timeout(20):
            while subscribed < 2:
                subscribed += json.loads(await client.recv())["type"] == "subscribed"
            connection.execute(
                'SELECT pg_notify(\'projects\', \'{"op":"UPDATE","table":"projects","new":{"id":7,"at":null}}\')'
            )
            connection.execute("SELECT pg_notify('events', 'something happened')")
            told: list[dict[str, Any]] = []
            while len(told) < 2:
                message = json.loads(await client.recv())
                if "op" in message:
                    told.append({name: message.get(name) for name in ("op", "table", "new", "old")})
        assert told == [
            {"op": "UPDATE", "table": "projects", "new": {"id": 7, "at": None}, "old": None},
            {"op": "INSERT", "table": "events", "new": {"payload": "something happened"}, "old": None},
        ]
