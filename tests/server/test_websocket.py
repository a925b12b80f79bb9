"""The server as its clients meet it: real PostgreSQL, real WebSockets, our own protocol class."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rowcast.capture.install import install
from rowcast.server import Addresses, Rowcast
from rowcast.settings import Settings
from rowcast.testing.server import running


@pytest.fixture
async def addresses(dsn: str, connection: psycopg.Connection) -> AsyncIterator[Addresses]:
    """A running server over tables `projects` and `jobs`."""
    connection.execute("CREATE TABLE projects (id bigint PRIMARY KEY, name text, org int)")
    connection.execute("CREATE TABLE jobs (id bigint PRIMARY KEY, project bigint)")
    install(dsn, ["projects", "jobs"])
    settings = Settings(database_url=dsn, port=0, max_message_bytes=10_000, max_messages_per_second=20)
    async with running(Rowcast(settings)) as found:
        yield found


async def hear(client: ClientConnection) -> dict[str, Any]:
    """The next message that is not a heartbeat."""
    while True:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 10))
        if message.get("type") != "heartbeat":
            return message


async def ask(client: ClientConnection, **message: object) -> dict[str, Any]:
    await client.send(json.dumps(message))
    return await hear(client)


async def test_a_client_of_ten_lines(addresses: Addresses, connection: psycopg.Connection) -> None:
    async with connect(addresses.websocket) as client:
        answer = await ask(client, type="subscribe", channel="projects")
        assert answer["type"] == "subscribed"
        connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
        connection.execute("UPDATE projects SET name = 'Boreas'")
        connection.execute("DELETE FROM projects")
        connection.execute("TRUNCATE projects")
        messages = [await hear(client) for _ in range(4)]
    assert [message["op"] for message in messages] == ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    assert messages[0]["new"] == {"id": 1, "name": "Atlas", "org": 5}
    assert messages[1]["old"] == {"id": 1, "name": "Atlas", "org": 5}
    assert messages[1]["new"] == {"id": 1, "name": "Boreas", "org": 5}
    assert messages[2]["old"] == {"id": 1, "name": "Boreas", "org": 5}
    assert "new" not in messages[2]
    ids = [message["id"] for message in messages]
    assert ids == sorted(set(ids))
    assert all(message["position"] in message["id"] for message in messages)


async def test_a_transaction_over_two_subscriptions_is_one_message(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as client:
        welcome = await ask(client, type="hello", version=1)
        assert welcome["type"] == "welcome"
        projects = await ask(client, type="subscribe", id="p", channel="projects")
        jobs = await ask(client, type="subscribe", id="j", channel="public.jobs")
        with connection.transaction():
            connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
            connection.execute("INSERT INTO jobs VALUES (9, 1)")
            connection.execute("SELECT rowcast.confirm('m-1')")
        message = await hear(client)
        assert message["type"] == "transaction"
        assert [(each["shape"], each["key"]) for each in message["changes"]] == [
            (projects["shape"], {"id": 1}),
            (jobs["shape"], {"id": 9}),
        ]
        assert message["confirms"] == ["m-1"]
        assert message["base"] <= jobs["position"] < message["position"]


async def test_a_confirmation_is_told_when_no_visible_row_has_changed(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as client:
        await ask(client, type="hello", version=1)
        connection.execute("SELECT rowcast.confirm('m-2')")
        message = await hear(client)
    assert (message["changes"], message["confirms"]) == ([], ["m-2"])


async def test_a_confirmation_finds_its_owner_over_every_transport(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    url = "/sse?channel=jobs&form=full&mutations="
    async with (
        connect(addresses.websocket) as mine,
        connect(addresses.websocket) as other,
        httpx.AsyncClient(base_url=addresses.http) as http,
        http.stream("GET", f"{url}client-01") as stream,
        http.stream("GET", f"{url}client-02") as other_stream,
    ):
        await ask(mine, type="hello", version=1, mutations="client-01")
        await ask(other, type="hello", version=1, mutations="client-02")
        for number, lines in ((1, stream.aiter_lines()), (2, other_stream.aiter_lines())):
            while '"subscribed"' not in await anext(lines):
                pass
            # The other's came first, and was for others.
            connection.execute(f"SELECT rowcast.confirm('client-0{3 - number}.a')".encode())
            connection.execute(f"SELECT rowcast.confirm('client-0{number}.b')".encode())
            told: list[str] = []
            while not told:
                line = await anext(lines)
                if "confirms" in line:
                    told = json.loads(line.removeprefix("data: "))["confirms"]
            assert told == ([f"client-0{number}.b"] if number == 1 else ["client-02.a"])
        assert [(await hear(mine))["confirms"] for _ in range(2)] == [["client-01.b"], ["client-01.a"]]
        assert [(await hear(other))["confirms"] for _ in range(2)] == [["client-02.a"], ["client-02.b"]]


async def test_coming_back_with_a_position_brings_what_was_missed(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as client:
        position = (await ask(client, type="subscribe", channel="projects"))["position"]
    connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
    connection.execute("INSERT INTO jobs VALUES (9, 1)")
    connection.execute("UPDATE projects SET org = 6")
    async with connect(addresses.websocket) as client:
        await ask(client, type="subscribe", channel="projects", since=position)
        assert [(await hear(client))["op"] for _ in range(2)] == ["INSERT", "UPDATE"]
    async with connect(addresses.websocket) as client:
        wishes = [{"id": name, "channel": name, "since": position} for name in ("projects", "jobs")]
        await ask(client, type="hello", version=1, subscriptions=wishes)
        assert [(await hear(client))["type"] for _ in range(2)] == ["subscribed", "subscribed"]
        heard = [await hear(client) for _ in range(3)]
        bases = [message["base"] for message in heard]
        positions = [message["position"] for message in heard]
        assert bases == [position, *positions[:2]], "each transaction names the one before it"


@pytest.mark.parametrize(
    ("since", "reason"),
    [
        ("0" * 16 + "-" + "0" * 16, "epoch_changed"),
        ("{epoch}-" + "f" * 16, "position_unknown"),
        ("{epoch}-" + "0" * 16, "log_expired"),
    ],
)
async def test_a_position_that_cannot_be_resumed_is_answered_by_a_resync(
    addresses: Addresses, since: str, reason: str
) -> None:
    async with connect(addresses.websocket) as client:
        position = (await ask(client, type="subscribe", channel="jobs"))["position"]
        await ask(client, type="subscribe", channel="projects", since=since.format(epoch=position[:16]))
        message = await hear(client)
    assert (message["type"], message["reason"], message["channel"]) == ("resync", reason, "projects")
    assert message["after_ms"] >= 0


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "malformed_json"),
        ("[" * 100_000, None),
        ("[" * 9_000, "malformed_json"),
        ('{"type":"subscribe","channel":"\\ud800"}', "malformed_json"),
        ("[]", "invalid_frame"),
        ('{"type":7}', "invalid_frame"),
        ('{"type":"subscribe"}', "invalid_frame"),
        ('{"type":"dance"}', "unknown_type"),
        ('{"type":"subscribe","channel":"nowhere"}', "unknown_channel"),
        ('{"type":"subscribe","channel":"projects","columns":["nothing"]}', "unknown_column"),
        ('{"type":"subscribe","channel":"projects","since":"yesterday"}', "invalid_position"),
        ('{"type":"unsubscribe","channel":"projects"}', "unknown_subscription"),
        ('{"type":"hello","version":99}', "unsupported_version"),
        (b"\x00\x01", "binary_frame"),
    ],
)
async def test_a_bad_frame_costs_its_sender_an_error_and_nobody_a_connection(
    addresses: Addresses, connection: psycopg.Connection, frame: str | bytes, code: str | None
) -> None:
    async with connect(addresses.websocket) as other, connect(addresses.websocket) as client:
        await ask(other, type="subscribe", channel="projects")
        await client.send(frame)
        if code is None:
            with pytest.raises(ConnectionClosed) as closed:
                await hear(client)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        else:
            message = await hear(client)
            assert (message["type"], message["code"]) == ("error", code)
            assert len(message["message"]) > 10
            assert (await ask(client, type="subscribe", channel="jobs"))["type"] == "subscribed"
        connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
        assert (await hear(other))["op"] == "INSERT"


async def test_hello_comes_first_or_not_at_all(addresses: Addresses) -> None:
    async with connect(addresses.websocket) as client:
        await ask(client, type="subscribe", channel="projects")
        assert (await ask(client, type="hello", version=1))["code"] == "late_hello"
        assert (await ask(client, type="subscribe", channel="projects"))["code"] == "duplicate_subscription"


async def test_a_fragmented_message_is_one_message(addresses: Addresses) -> None:
    async with connect(addresses.websocket) as client:
        await client.send(['{"type":"subs', 'cribe","chan', 'nel":"projects"}'])
        assert (await hear(client))["type"] == "subscribed"
        await client.send([b"\x00", b"\x01"])
        assert (await hear(client))["code"] == "binary_frame"


async def test_a_flood_is_warned_and_then_disconnected(addresses: Addresses) -> None:
    async with connect(addresses.websocket) as client:
        codes: set[str] = set()
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(1000):
                await client.send('{"type":"subscribe","channel":"nowhere"}')
            while True:
                codes.add((await hear(client))["code"])
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4003


async def test_a_foreign_origin_is_refused_and_the_own_one_is_not(addresses: Addresses) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(addresses.websocket, origin="https://evil.example")  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403
    own = addresses.http.rstrip("/")
    async with connect(addresses.websocket, origin=own) as client:  # type: ignore[arg-type]
        assert (await ask(client, type="subscribe", channel="projects"))["type"] == "subscribed"


async def test_another_path_is_no_websocket(addresses: Addresses) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(addresses.websocket + "x")
    assert refused.value.response.status_code == 404


async def test_half_a_frame_and_silence_harms_nobody(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    host, port = addresses.websocket.removeprefix("ws://").removesuffix("/ws").split(":")
    with socket.create_connection((host, int(port))) as half:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
        half.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n".encode()
        )
        half.sendall(b"\x81\xfe\x10\x00ab")
        async with connect(addresses.websocket) as client:
            await ask(client, type="subscribe", channel="projects")
            connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
            assert (await hear(client))["op"] == "INSERT"


async def test_columns_can_be_chosen_and_the_key_always_comes(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as client:
        await ask(client, type="subscribe", channel="projects", columns=["name"], id="names")
        connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
        message = await hear(client)
    assert message["new"] == {"id": 1, "name": "Atlas"}
    assert message["subscription"] == "names"


async def test_unsubscribing_ends_the_stream_and_the_shape(
    dsn: str, addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as client:
        await ask(client, type="subscribe", channel="projects")
        await ask(client, type="subscribe", channel="jobs")
        assert (await ask(client, type="unsubscribe", channel="projects"))["channel"] == "projects"
        connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
        connection.execute("INSERT INTO jobs VALUES (9, 1)")
        assert (await hear(client))["table"] == "jobs"


async def test_strange_names_and_values_come_through(dsn: str, connection: psycopg.Connection) -> None:
    connection.execute('CREATE SCHEMA "My.Schema"')
    connection.execute(
        'CREATE TABLE "My.Schema"."We ""ird"" 🦆.T" ("Id %s" int PRIMARY KEY, "a.b c""d" text)'
    )
    install(dsn, ['"My.Schema"."We ""ird"" 🦆.T"'])
    async with running(Rowcast(Settings(database_url=dsn, port=0))) as addresses:
        async with connect(addresses.websocket) as client:
            channel = 'My.Schema.We "ird" 🦆.T'
            assert (await ask(client, type="subscribe", channel=channel))["type"] == "subscribed"
            connection.execute(
                'INSERT INTO "My.Schema"."We ""ird"" 🦆.T" VALUES (1, %s)',
                ('</script> "🦆" \\ \n \u2028 %s',),
            )
            message = await hear(client)
    assert message["new"] == {"Id %s": 1, 'a.b c"d': '</script> "🦆" \\ \n \u2028 %s'}


async def test_rows_of_100_kB_and_20_MB_and_of_a_thousand_columns_come_whole(
    dsn: str, connection: psycopg.Connection
) -> None:
    columns = ", ".join(f"c{number} int" for number in range(1000))
    connection.execute(f"CREATE TABLE wide (id int PRIMARY KEY, {columns})".encode())
    connection.execute("CREATE TABLE large (id int PRIMARY KEY, body text)")
    install(dsn, ["wide", "large"])
    async with running(Rowcast(Settings(database_url=dsn, port=0))) as addresses:
        async with connect(addresses.websocket, max_size=None) as client:
            await ask(client, type="subscribe", channel="wide")
            await ask(client, type="subscribe", channel="large")
            for size in (100_000, 20_000_000):
                connection.execute("INSERT INTO large VALUES (%s, repeat('x', %s))", (size, size))
                message = await hear(client)
                assert len(message["new"]["body"]) == size
            connection.execute(f"INSERT INTO wide VALUES (1, {', '.join(map(str, range(1000)))})".encode())
            message = await hear(client)
            assert message["new"]["c999"] == 999
            assert len(message["new"]) == 1001
