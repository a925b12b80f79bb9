"""`only_changed` from the database to every kind of client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import psycopg
import pytest
from websockets.asyncio.client import connect

import rowcast
from rowcast.capture.install import install
from rowcast.client.live import LiveRows
from rowcast.client.rows import Row
from rowcast.client.state import TransportName
from rowcast.client.stream import Progress, Transaction, stream
from rowcast.server import Addresses, Rowcast
from rowcast.settings import Settings
from rowcast.testing.server import running


async def until(live: LiveRows[Row], wanted: Sequence[Row]) -> None:
    """Wait until the rows are the ones wanted."""
    async with asyncio.timeout(20), aclosing(live.changes()) as changes:
        async for _ in changes:
            if live.rows == wanted:
                return


@pytest.fixture
async def addresses(dsn: str, connection: psycopg.Connection) -> AsyncIterator[Addresses]:
    connection.execute("CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text, pages int)")
    connection.execute(
        "INSERT INTO notes SELECT n, 't' || n, repeat('long ', 900), n FROM generate_series(1, 300) n"
    )
    install(dsn, ["notes"])
    async with running(Rowcast(Settings(database_url=dsn, port=0))) as found:
        yield found


async def test_only_what_has_changed_comes_over_websockets_and_event_streams(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with (
        connect(addresses.websocket) as socket,
        httpx.AsyncClient(base_url=addresses.http) as http,
        http.stream("GET", "/sse?channel=notes&only_changed=true") as response,
    ):
        await socket.send(json.dumps({"type": "subscribe", "channel": "notes", "only_changed": True}))
        lines = response.aiter_lines()
        while '"subscribed"' not in await anext(lines):
            pass
        assert json.loads(await socket.recv())["type"] == "subscribed"
        connection.execute("UPDATE notes SET title = title, pages = 7 WHERE id = 5")
        message: dict[str, Any] = json.loads(await socket.recv())
        while '"UPDATE"' not in (line := await anext(lines)):
            pass
    assert message["new"] == {"id": 5, "pages": 7}
    assert message["old"] == {"id": 5, "pages": 5}
    assert json.loads(line.removeprefix("data: ")) == message


async def test_only_what_has_changed_comes_from_the_outbox(dsn: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE notes (id bigint PRIMARY KEY, title text, pages int)")
    connection.execute("INSERT INTO notes VALUES (5, 'five', 5)")
    install(dsn, ["notes"], capture="outbox")
    async with (
        running(Rowcast(Settings(database_url=dsn, port=0, capture="outbox"))) as found,
        connect(found.websocket) as socket,
    ):
        await socket.send(json.dumps({"type": "subscribe", "channel": "notes", "only_changed": True}))
        assert json.loads(await socket.recv())["type"] == "subscribed"
        connection.execute("UPDATE notes SET pages = 7")
        assert json.loads(await socket.recv())["new"] == {"id": 5, "pages": 7}


@pytest.mark.parametrize("transports", [("websocket",), ("sse",), ("polling",)])
async def test_live_rows_are_whole_whatever_comes(
    addresses: Addresses, connection: psycopg.Connection, transports: tuple[TransportName, ...]
) -> None:
    async with (
        rowcast.connect(addresses.http, transports=transports) as client,
        client.live("notes", only_changed=True, filter="pages=lt.400") as live,
    ):
        for number in range(1, 40):
            connection.execute("UPDATE notes SET pages = pages + 1, title = 'new' WHERE id = %s", (number,))
        connection.execute("UPDATE notes SET pages = 500 WHERE id = 1")
        connection.execute("UPDATE notes SET pages = 1 WHERE id = 1")
        connection.execute("UPDATE notes SET id = 1000 WHERE id = 2")
        wanted = connection.execute("SELECT id, title, body, pages FROM notes ORDER BY id").fetchall()
        names = ("id", "title", "body", "pages")
        await until(live, [dict(zip(names, row, strict=True)) for row in wanted])


async def test_rows_that_change_while_their_snapshot_is_read_are_whole(
    addresses: Addresses, dsn: str, connection: psycopg.Connection
) -> None:
    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer:
            for number in range(300):
                await writer.execute("UPDATE notes SET pages = pages + 1 WHERE id %% 50 = %s", (number % 50,))

    writing = asyncio.create_task(write())
    async with rowcast.connect(addresses.http) as client:
        lists = [
            await client.live("notes", only_changed=True, columns=["pages"], filter=f"id=gt.{number}").ready()
            for number in range(0, 60, 3)
        ]
        await writing
        wanted: dict[int, int] = dict(connection.execute("SELECT id, pages FROM notes").fetchall())
        for number, live in zip(range(0, 60, 3), lists, strict=True):
            expected: list[Row] = [
                {"id": key, "pages": wanted[key]} for key in sorted(wanted) if key > number
            ]
            await until(live, expected)


async def test_a_stream_without_rows_is_told_the_old_values_of_what_has_changed(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    events = stream(addresses.http, "notes", columns=["title"], only_changed=True)
    async with aclosing(events):
        change: dict[str, Any] = {}
        async with asyncio.timeout(20):
            async for event in events:
                if not isinstance(event, Transaction | Progress):
                    continue
                if isinstance(event, Transaction):
                    (change,) = event.changes
                    break
                connection.execute("UPDATE notes SET pages = 9 WHERE id = 1")
                connection.execute("UPDATE notes SET title = 'x' WHERE id = 2")
    assert (change["new"], change["old"]) == ({"id": 2, "title": "x"}, {"id": 2, "title": "t2"})


async def test_rows_over_http_are_unchanged_while_other_columns_change(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with httpx.AsyncClient(base_url=addresses.http) as http:
        url = "/v1/rows/notes?columns=title"
        headers = {"If-None-Match": (await http.get(url)).headers["etag"]}
        connection.execute("UPDATE notes SET pages = pages + 1")
        await http.get("/v1/rows/notes")  # takes until the server has heard of it
        assert (await http.get(url, headers=headers)).status_code == 304
        connection.execute("UPDATE notes SET title = 'x' WHERE id = 1")
        assert (await http.get(url + "&wait=20", headers=headers)).status_code == 200
