"""Slow, silent and leaving clients: each costs only itself, and each is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from rowcast.capture.install import install
from rowcast.server import Addresses, Rowcast, metrics, serve as run_server
from rowcast.settings import Settings
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.proxy import FaultProxy
from rowcast.testing.server import running

Serve = Callable[..., AbstractAsyncContextManager[Addresses]]


@pytest.fixture
def serve(dsn: str, connection: psycopg.Connection) -> Serve:
    connection.execute("CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
    install(dsn, ["notes"])
    return lambda **values: running(Rowcast(Settings(database_url=dsn, port=0, **values)))


async def hear(client: ClientConnection, *kinds: str) -> dict[str, Any]:
    """The next message of these types; an empty type is a change."""
    while True:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
        if message.get("type", "") in kinds:
            return message


async def subscribe(client: ClientConnection, **more: object) -> dict[str, Any]:
    await client.send(json.dumps({"type": "subscribe", "channel": "notes", **more}))
    return await hear(client, "subscribed")


async def closed_with(client: ClientConnection) -> int | None:
    """Read until the connection is closed; the code it was closed with."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await asyncio.wait_for(client.recv(), 20)
    return closed.value.rcvd.code if closed.value.rcvd else None


def unread_client(addresses: Addresses) -> socket.socket:
    """A client that subscribes and then never reads."""
    host, port = addresses.websocket.removeprefix("ws://").removesuffix("/ws").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    client.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    message = b'{"type":"subscribe","channel":"notes"}'
    mask = bytes(4)
    client.sendall(bytes([0x81, 0x80 | len(message)]) + mask + message)
    return client


async def test_a_reader_that_stops_holds_up_nobody_and_is_bounded(dsn: str, serve: Serve) -> None:
    bound = 200_000
    rowcast = Rowcast(
        Settings(
            database_url=dsn,
            port=0,
            session_queue_bytes=bound,
            slow_client_seconds=1.0,
            heartbeat_seconds=2.0,
        )
    )
    async with (
        running(rowcast) as addresses,
        connect(addresses.websocket) as reader,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer,
    ):
        await subscribe(reader)
        with await asyncio.to_thread(unread_client, addresses):
            most = 0
            async with asyncio.timeout(30):
                while len(rowcast.service.connections) < 2:
                    await writer.execute("SELECT 1")
                while len(rowcast.service.connections) > 1:
                    await writer.execute("INSERT INTO notes (body) VALUES (repeat('x', 100000))")
                    assert (await hear(reader, ""))["op"] == "INSERT"
                    most = max(most, *(each.queued_bytes for each in rowcast.service.connections))
            assert 0 < most <= bound + 101_000, "the bound, and the one message that went over it"


async def test_a_client_that_was_slow_is_told_to_resync_and_goes_on(
    serve: Serve, connection: psycopg.Connection
) -> None:
    async with serve(session_queue_bytes=100_000, slow_client_seconds=60.0) as addresses:
        # The client library stops reading when 16 messages wait: slow by not asking for them.
        async with (
            connect(addresses.websocket, max_size=None) as slow,
            connect(addresses.websocket) as reader,
        ):
            await subscribe(reader)
            await subscribe(slow)
            ids = []
            for _ in range(150):
                await asyncio.to_thread(
                    connection.execute, "INSERT INTO notes (body) VALUES (repeat('x', 100000))"
                )
                ids.append((await hear(reader, ""))["id"])
            heard, resync = [], None
            while resync is None:
                message = await hear(slow, "", "resync")
                if message.get("type") == "resync":
                    resync = message
                else:
                    heard.append(message["id"])
            assert resync["reason"] == "slow_client"
            assert heard == ids[: len(heard)], "what came before the gap is complete and in order"
            connection.execute("INSERT INTO notes (body) VALUES ('after')")
            following = await hear(slow, "")
            assert following["position"] > resync["position"]
            assert following["id"] == (await hear(reader, ""))["id"] or following["id"] in ids


async def take(client: ClientConnection, rows: dict[int, str], kind: str) -> None:
    """Keep rows up to date until a message of this type has come whole."""
    while True:
        message = json.loads(await asyncio.wait_for(client.recv(), 20))
        if message["type"] == "snapshot":
            if message["chunk"] == 0:
                rows.clear()
            rows.update((row["id"], row["body"]) for row in message["rows"])
        for change in message.get("changes", ()):
            rows[change["key"]["id"]] = change["new"]["body"]
        if message["type"] == kind and (kind != "snapshot" or message.get("last")):
            return


async def test_clients_that_stay_behind_are_told_again_and_again_and_end_with_the_rows_as_they_are(
    dsn: str, serve: Serve, connection: psycopg.Connection
) -> None:
    connection.execute("INSERT INTO notes (body) SELECT 'start' FROM generate_series(1, 3)")
    settings = Settings(database_url=dsn, port=0, session_queue_bytes=100_000, slow_client_seconds=60.0)
    rowcast = Rowcast(settings)
    async with contextlib.AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(running(rowcast))
        clients = [
            await stack.enter_async_context(connect(addresses.websocket, max_size=None, max_queue=1))
            for _ in range(3)
        ]
        writer = await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn, autocommit=True))
        kept: list[dict[int, str]] = [{} for _ in clients]
        for client in clients:
            await client.send('{"type":"hello","version":1}')
        for attempt in range(3):
            wish = {"type": "subscribe", "id": f"{attempt}", "channel": "notes", "snapshot": True}
            for client, rows in zip(clients, kept, strict=True):
                await client.send(json.dumps(wish))
                await take(client, rows, "snapshot")
            number = 0
            async with asyncio.timeout(60):
                while attempt < 2 and len(rowcast.service.slow) < len(clients):
                    number += 1
                    await writer.execute(
                        "UPDATE notes SET body = %s || repeat('x', 100000)", (f"{attempt}.{number} ",)
                    )
            for client, rows in zip(clients, kept, strict=True):
                if attempt < 2:
                    await take(client, rows, "resync")
                    await client.send(json.dumps({"type": "unsubscribe", "id": f"{attempt}"}))
                    await take(client, rows, "unsubscribed")
        expected: dict[int, str] = dict(connection.execute("SELECT id, body FROM notes").fetchall())
        assert kept == [expected] * len(clients)
        told = re.search(
            r'resyncs_total\{reason="slow_client"\} (.*)', metrics.render(rowcast.service).decode()
        )
        assert told is not None
        assert float(told[1]) >= 2 * len(clients)


async def test_heartbeats_carry_the_position_and_answer_at_once_when_asked(
    serve: Serve, connection: psycopg.Connection
) -> None:
    async with serve(heartbeat_seconds=0.3) as addresses, connect(addresses.websocket) as client:
        position = (await subscribe(client))["position"]
        assert (await hear(client, "heartbeat"))["position"] >= position
        await client.send('{"type":"heartbeat","id":"round"}')
        while (beat := await hear(client, "heartbeat")).get("id") != "round":
            pass
        assert beat["position"] >= position


async def test_a_full_client_without_a_sign_of_life_is_closed_with_4002(serve: Serve) -> None:
    async with serve(heartbeat_seconds=0.2) as addresses:
        async with connect(addresses.websocket, ping_interval=None) as client:
            await client.send('{"type":"hello","version":1}')
            assert await closed_with(client) == 4002


async def test_a_plain_client_lives_by_answering_pings(serve: Serve) -> None:
    async with serve(heartbeat_seconds=0.2) as addresses:
        async with connect(addresses.websocket, ping_interval=None) as client:
            await subscribe(client)
            for _ in range(8):
                await hear(client, "heartbeat")


async def test_a_connection_that_never_subscribes_is_closed_with_4004(serve: Serve) -> None:
    async with serve(handshake_seconds=0.5, heartbeat_seconds=1.0) as addresses:
        async with connect(addresses.websocket) as client:
            assert await closed_with(client) == 4004


@pytest.mark.parametrize("said", [b"", b"GET /ws HT", b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: web"])
async def test_a_handshake_that_never_ends_is_ended(serve: Serve, said: bytes) -> None:
    async with serve(handshake_seconds=0.3) as addresses:
        host, port = addresses.http.removeprefix("http://").rstrip("/").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        async with connect(addresses.websocket) as client:
            await subscribe(client)
            await asyncio.wait_for(client.ping(), 10)


async def test_a_shutdown_says_goodbye_after_everything_queued(
    serve: Serve, connection: psycopg.Connection
) -> None:
    async with serve() as addresses:
        client = await connect(addresses.websocket, max_size=None)
        await subscribe(client)
        connection.execute("INSERT INTO notes (body) SELECT repeat('x', 100000) FROM generate_series(1, 30)")
        first = await hear(client, "")
    rows = [first]
    while True:
        message = await hear(client, "", "goodbye")
        if message.get("type") == "goodbye":
            break
        rows.append(message)
    assert len(rows) == 30
    assert 0 <= message["after_ms"] < 10_000
    assert await closed_with(client) == 1001


async def test_losing_the_database_is_told_and_nothing_is_lost(
    serve: Serve, connection: psycopg.Connection
) -> None:
    async with serve(heartbeat_seconds=1.0) as addresses, connect(addresses.websocket) as client:
        await subscribe(client)
        connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        assert (await hear(client, "status"))["state"] == "degraded"
        connection.execute("INSERT INTO notes (body) VALUES ('meanwhile')")
        states, change = [], None
        while change is None or "live" not in states:
            message = await hear(client, "", "status", "resync")
            assert message.get("type") != "resync"
            if message.get("type") == "status":
                states.append(message["state"])
            else:
                change = message
        assert change["new"]["body"] == "meanwhile"


async def test_a_client_may_leave_before_postgresql_can_be_reached(
    dsn: str, postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = asyncio.Event()
    async with FaultProxy(postgres.port) as link, httpx.AsyncClient(timeout=20) as http:
        link.refuse()
        settings = Settings(database_url=dsn.replace(str(postgres.port), str(link.port)), port=port)
        serving = asyncio.create_task(run_server(Rowcast(settings), stop=stop))
        await asyncio.sleep(0)  # it listens
        async with connect(f"ws://127.0.0.1:{port}/ws") as client:
            await client.send('{"type":"hello","version":1}')
            await hear(client, "welcome")
        async with asyncio.timeout(20):
            while "rowcast_connections 0" not in (await http.get(f"http://127.0.0.1:{port}/metrics")).text:
                pass
        stop.set()
        await serving
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
