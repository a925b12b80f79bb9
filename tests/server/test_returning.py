"""A crowd that comes, or comes back, at once: PostgreSQL is asked once for each shape, and by its own log no more."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect

from rowcast.capture.install import install
from rowcast.server import Addresses, Rowcast
from rowcast.settings import Settings
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.server import running

_CONNECTIONS = 12
_SUBSCRIPTIONS = 25  # on each
# Three shapes, one of them asked for in each language, and with spaces that mean nothing.
_WISHES: tuple[dict[str, Any], ...] = (
    {},
    {"filter": "org=eq.1"},
    {"where": "org = $1", "params": [1]},
    {"where": " org=1 "},
    {"filter": "org=in.(2,3)"},
)
_SHAPES = 3


class Database:
    """A cluster of its own, which writes every statement into its log."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.dsn = server.dsn()
        self._log = server.log_path

    @property
    def queries(self) -> int:
        """How often rows have been read from the table."""
        return len(
            re.findall(r"statement: COPY \(SELECT .* FROM \"public\"\.\"items\"", self._log.read_text())
        )


@pytest.fixture
def database() -> Iterator[Database]:
    with EmbeddedPostgres(settings={"log_statement": "all"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, org int NOT NULL)")
            connection.execute("INSERT INTO items SELECT n, n % 5 FROM generate_series(1, 500) n")
            install(server.dsn(), ["items"])
        yield Database(server)


def served(database: Database, **settings: Any) -> Rowcast:
    return Rowcast(Settings(database_url=database.dsn, port=0, max_messages_per_second=1000, **settings))


async def hear(client: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
        assert message["type"] != "error", message
        if message["type"] == kind:
            return message


async def rows_of(client: ClientConnection, shape: int) -> set[int]:
    """The ids of the rows of a shape, from a snapshot's first chunk on."""
    rows: set[int] = set()
    while True:
        message = await hear(client, "snapshot")
        if message["shape"] == shape:
            rows -= {key["id"] for key in message.get("deleted", ())}
            rows |= {row["id"] for row in message["rows"]}
            if message.get("last"):
                return rows


@asynccontextmanager
async def crowd(addresses: Addresses, count: int) -> AsyncIterator[list[ClientConnection]]:
    async with AsyncExitStack() as stack:
        opening = (connect(addresses.websocket, max_queue=None, ping_interval=None) for _ in range(count))
        clients = [await stack.enter_async_context(each) for each in opening]
        for client in clients:
            await client.send('{"type":"hello","version":1}')
        yield clients


async def subscribe(client: ClientConnection, name: str, **wish: Any) -> dict[str, Any]:
    await client.send(json.dumps({"type": "subscribe", "id": name, "channel": "items", **wish}))
    return await hear(client, "subscribed")


async def queries_by_the_metrics(addresses: Addresses) -> int:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{addresses.http}metrics")).text
    found = re.search(r"^rowcast_snapshots_total (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


async def test_hundreds_that_come_at_once_cost_one_query_for_each_shape(database: Database) -> None:
    async with (
        running(served(database)) as addresses,
        crowd(addresses, _CONNECTIONS) as clients,
        httpx.AsyncClient(base_url=addresses.http, timeout=30) as http,
    ):
        with psycopg.connect(database.dsn) as other:
            # No row can be read before everybody has asked.
            other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            shapes: list[dict[int, None]] = []
            for client in clients:
                wishes = [_WISHES[number % len(_WISHES)] for number in range(_SUBSCRIPTIONS)]
                asked = [
                    await subscribe(client, str(number), snapshot=True, **wish)
                    for number, wish in enumerate(wishes)
                ]
                shapes.append(dict.fromkeys(answer["shape"] for answer in asked))
            over_http = [
                asyncio.create_task(http.get("v1/rows/items", params={"filter": "org=eq.1"}))
                for _ in range(_CONNECTIONS)
            ]
        everything, first, second = shapes[0]
        expected = {
            everything: set(range(1, 501)),
            first: {number for number in range(1, 501) if number % 5 == 1},
            second: {number for number in range(1, 501) if number % 5 in {2, 3}},
        }
        for client, its_shapes in zip(clients, shapes, strict=True):
            assert list(its_shapes) == [everything, first, second]
            heard: dict[int, set[int]] = {shape: set() for shape in its_shapes}
            complete = 0
            while complete < len(its_shapes):
                message = await hear(client, "snapshot")
                heard[message["shape"]] |= {row["id"] for row in message["rows"]}
                complete += message.get("last", False)
            assert heard == expected
        for answer in await asyncio.gather(*over_http):
            assert {row["id"] for row in answer.json()["rows"]} == expected[first]
        assert database.queries == _SHAPES
        assert await queries_by_the_metrics(addresses) == _SHAPES


async def test_who_comes_a_little_later_gets_the_same_rows_with_what_has_changed_since(
    database: Database,
) -> None:
    async with running(served(database)) as addresses, crowd(addresses, 4) as clients:
        first, *others = clients
        shape = (await subscribe(first, "a", snapshot=True))["shape"]
        assert len(await rows_of(first, shape)) == 500
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute("INSERT INTO items VALUES (501, 1)")
            connection.execute("DELETE FROM items WHERE id <= 10")
        for _ in range(2):
            await hear(first, "transaction")
        for client in others:
            shape = (await subscribe(client, "a", snapshot=True))["shape"]
            assert await rows_of(client, shape) == set(range(11, 502))
        assert database.queries == 1


async def test_a_crowd_that_comes_back_after_a_restart_is_told_what_it_missed_without_a_query(
    database: Database,
) -> None:
    async with running(served(database)) as addresses, crowd(addresses, 1) as [client]:
        position = (await subscribe(client, "a"))["position"]
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO items VALUES (501, 1)")
    async with running(served(database)) as addresses, crowd(addresses, _CONNECTIONS) as clients:
        for client in clients:
            await subscribe(client, "a", since=position)
            [change] = (await hear(client, "transaction"))["changes"]
            assert change["key"] == {"id": 501}
    assert database.queries == 0


async def test_a_crowd_that_was_away_for_too_long_costs_one_query_together(database: Database) -> None:
    async with running(served(database, replay_window_bytes=2000)) as addresses:
        async with crowd(addresses, 1) as [client]:
            position = (await subscribe(client, "a"))["position"]
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                for number in range(501, 600):
                    connection.execute("INSERT INTO items VALUES (%s, 1)", (number,))
                    await hear(client, "transaction")
        async with crowd(addresses, _CONNECTIONS) as clients:
            for client in clients:
                await subscribe(client, "a", since=position)
                assert (await hear(client, "resync"))["reason"] == "log_expired"
            shapes = [(await subscribe(client, "b", snapshot=True))["shape"] for client in clients]
            for client, shape in zip(clients, shapes, strict=True):
                assert await rows_of(client, shape) == set(range(1, 600))
    assert database.queries == 1
