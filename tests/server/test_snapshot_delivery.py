"""Snapshots on their way to one client, with more than one wish at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from websockets.asyncio.client import ClientConnection, connect

from rowcast import snapshot
from rowcast.capture.install import install
from rowcast.server import Rowcast, service
from rowcast.settings import Settings
from rowcast.testing.proxy import FaultProxy
from rowcast.testing.server import running

_ROWS = 6000  # of 2 kB: more than the sockets take while nobody reads


async def test_chunks_of_two_subscriptions_to_one_shape_are_not_mixed(
    dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    connection.execute(
        "INSERT INTO items SELECT n, repeat('x', 2000) FROM generate_series(1, %s) n", (_ROWS,)
    )
    install(dsn, ["items"])
    settings = Settings(database_url=dsn, port=0, session_queue_bytes=1 << 26)
    async with (
        running(Rowcast(settings)) as addresses,
        connect(addresses.websocket, max_size=None, max_queue=1) as client,
    ):
        await client.send(json.dumps({"type": "hello", "version": 1}))
        for name in ("first", "second"):
            wish = {"type": "subscribe", "id": name, "channel": "items", "snapshot": True}
            await client.send(json.dumps(wish))
            while (message := json.loads(await client.recv()))["type"] != "subscribed":
                pass
            assert message["id"] == name
        rows: dict[int, dict[str, Any]] = {}
        chunk = -1  # what came between the answers is not looked at: the next snapshot begins anew
        while chunk < 0 or not message.get("last"):
            message = json.loads(await client.recv())
            if message["type"] == "snapshot":
                if message["chunk"] == 0:
                    chunk = 0
                    rows.clear()
                elif chunk >= 0:
                    chunk += 1
                if chunk >= 0:
                    assert message["chunk"] == chunk, "chunks of another delivery came between"
                rows.update((row["id"], row) for row in message["rows"])
        assert sorted(rows) == list(range(1, _ROWS + 1))


async def snapshot_of(client: ClientConnection, name: str, channel: str) -> dict[str, Any]:
    """Subscribe; the error, or the snapshot's last chunk."""
    wish = {"type": "subscribe", "id": name, "channel": channel, "snapshot": True}
    await client.send(json.dumps(wish))
    while True:
        message: dict[str, Any] = json.loads(await client.recv())
        if message["type"] == "error" or message.get("last"):
            return message


async def test_a_snapshot_over_a_connection_that_died_in_silence_fails_and_the_next_one_does_not(
    dsn: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SILENCE_SECONDS", 0.2)
    connection.execute("CREATE TABLE one (id bigint PRIMARY KEY)")
    connection.execute("CREATE TABLE two (id bigint PRIMARY KEY)")
    install(dsn, ["one", "two"])
    async with FaultProxy(int(str(conninfo_to_dict(dsn)["port"]))) as link:
        through = f"{dsn.rsplit(':', 1)[0]}:{link.port}/{dsn.rsplit('/', 1)[1]}"
        settings = Settings(database_url=through, database_url_direct=dsn, port=0)
        async with running(Rowcast(settings)) as addresses, connect(addresses.websocket) as client:
            await client.send(json.dumps({"type": "hello", "version": 1}))
            assert (await snapshot_of(client, "1", "one"))["type"] == "snapshot"
            link.half_open()
            link.resume()
            failed = await snapshot_of(client, "2", "two")
            assert (failed["id"], failed["code"]) == ("2", "snapshot_failed")
            assert (await snapshot_of(client, "3", "two"))["type"] == "snapshot"


async def test_rows_that_were_kept_come_with_what_was_committed_before_they_were_asked_for(
    dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    install(dsn, ["items"])
    async with FaultProxy(int(str(conninfo_to_dict(dsn)["port"]))) as link:
        through = f"{dsn.rsplit(':', 1)[0]}:{link.port}/{dsn.rsplit('/', 1)[1]}"
        settings = Settings(database_url=dsn, database_url_direct=through, port=0)
        async with (
            running(Rowcast(settings)) as addresses,
            connect(addresses.websocket) as client,
            httpx.AsyncClient(base_url=addresses.http) as http,
        ):
            await client.send(json.dumps({"type": "hello", "version": 1}))
            assert (await snapshot_of(client, "1", "items"))["rows"] == []
            etag = {"if-none-match": (await http.get("/v1/rows/items")).headers["etag"]}
            link.stall()  # the stream stays behind
            connection.execute("INSERT INTO items VALUES (1)")
            told = asyncio.ensure_future(snapshot_of(client, "2", "items"))
            answers = [asyncio.ensure_future(http.get("/v1/rows/items", headers=each)) for each in ({}, etag)]
            done, _ = await asyncio.wait([told, *answers], timeout=0.3)
            assert not done
            link.resume()
            assert (await told)["rows"] == [{"id": 1}]
            for answer in answers:
                assert (await answer).json()["rows"] == [{"id": 1}]


async def test_a_query_that_takes_long_to_find_its_first_row_is_waited_for(
    dsn: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SILENCE_SECONDS", 0.1)
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    install(dsn, ["items"])
    settings = Settings(database_url=dsn, port=0)
    async with running(Rowcast(settings)) as addresses, connect(addresses.websocket) as client:
        await client.send(json.dumps({"type": "hello", "version": 1}))
        with psycopg.connect(dsn) as other:
            # Who reads waits for this lock, and the server's process is at it all the time.
            other.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
            wish = {"type": "subscribe", "id": "s", "channel": "items", "snapshot": True}
            await client.send(json.dumps(wish))
            waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'rowcast snapshot' AND wait_event_type = 'Lock'"
            async with asyncio.timeout(20):
                while not connection.execute(waiting).fetchone():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # it looks several times, and leaves it alone
        while (message := json.loads(await client.recv()))["type"] != "snapshot":
            assert message["type"] != "error", message


async def test_a_snapshot_after_a_restart_of_the_database_does_not_take_a_dead_connection(
    dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE one (id bigint PRIMARY KEY)")
    connection.execute("CREATE TABLE two (id bigint PRIMARY KEY)")
    install(dsn, ["one", "two"])
    settings = Settings(database_url=dsn, port=0)
    async with running(Rowcast(settings)) as addresses, connect(addresses.websocket) as client:
        await client.send(json.dumps({"type": "hello", "version": 1}))
        assert (await snapshot_of(client, "1", "one"))["type"] == "snapshot"
        ours = "FROM pg_stat_activity WHERE application_name = 'rowcast snapshot' AND datname = current_database()"
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {ours}".encode())
        assert (await snapshot_of(client, "2", "two"))["type"] == "snapshot"


async def test_a_kept_snapshot_that_the_log_cannot_complete_any_more_is_read_anew_for_a_plain_client(
    dsn: str, connection: psycopg.Connection
) -> None:
    """It is still good for others, who get corrections in place of the changes themselves."""
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    connection.execute("INSERT INTO items VALUES (1, 'there')")
    install(dsn, ["items"])
    settings = Settings(database_url=dsn, port=0, replay_window_bytes=2000)
    async with running(Rowcast(settings)) as addresses, connect(addresses.websocket) as client:
        await client.send(json.dumps({"type": "hello", "version": 1}))
        await snapshot_of(client, "first", "items")
        for number in (2, 3):  # one of these is more than the log keeps
            connection.execute("INSERT INTO items VALUES (%s, repeat('x', 3000))", (number,))
            while json.loads(await client.recv())["type"] != "transaction":
                pass
            await snapshot_of(client, f"after {number}", "items")
        async with connect(addresses.websocket) as plain:
            await plain.send('{"type":"subscribe","channel":"items","snapshot":true}')
            heard = [json.loads(await plain.recv())]
            while heard[-1].get("type") != "snapshot":
                heard.append(json.loads(await plain.recv()))
        heard = [message for message in heard if message.get("type") != "heartbeat"]
        kinds = [message.get("op") or message["type"] for message in heard]
        assert kinds == ["subscribed", "SNAPSHOT", "SNAPSHOT", "SNAPSHOT", "snapshot"]
        assert [message["new"]["id"] for message in heard[1:-1]] == [1, 2, 3]


async def test_a_long_reading_is_not_held_up_by_a_log_that_is_full_and_lets_go_all_the_time(
    dsn: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    install(dsn, ["items"])
    reading, written = asyncio.Event(), asyncio.Event()

    class SlowReader(snapshot.SnapshotReader):
        @asynccontextmanager
        async def read(self, *arguments: Any) -> AsyncGenerator[Any]:
            async def slowly(batches: AsyncIterator[Any]) -> AsyncIterator[Any]:
                reading.set()
                await written.wait()
                async for batch in batches:
                    yield batch

            async with super().read(*arguments) as (visibility, batches):
                yield visibility, slowly(batches)

    monkeypatch.setattr(service, "SnapshotReader", SlowReader)
    rowcast = Rowcast(Settings(database_url=dsn, port=0, replay_window_bytes=5000))
    async with (
        running(rowcast) as addresses,
        connect(addresses.websocket) as client,
        connect(addresses.websocket) as newcomer,
    ):

        async def hear(kind: str) -> None:
            while json.loads(await client.recv())["type"] != kind:
                pass

        async def write(number: int) -> None:
            connection.execute("INSERT INTO items VALUES (%s, repeat('x', 1500))", (number,))
            await hear("transaction")

        for each in (client, newcomer):
            await each.send('{"type":"hello","version":1}')
        await client.send('{"type":"subscribe","id":"s","channel":"items"}')
        await hear("subscribed")
        for number in range(5):  # three are what the log keeps
            await write(number)
        taking = asyncio.create_task(snapshot_of(newcomer, "n", "items"))
        await reading.wait()
        for number in range(5, 12):
            await write(number)
            rowcast.service.snapshots.purge()  # as the server does every second
        written.set()
        last = await taking
        assert [row["id"] for row in last["rows"]] == list(range(5, 12)), (
            "what the rows themselves do not show"
        )
        assert rowcast.service.snapshots.taken == 1
