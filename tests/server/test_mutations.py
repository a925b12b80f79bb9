"""`{"type":"mutation"}`: what became of a mutation whose answer was lost."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from rowcast.capture.install import install
from rowcast.contrib.idempotency import run_once
from rowcast.server import Addresses, Rowcast, mutations, serve
from rowcast.settings import Settings
from rowcast.testing.proxy import FaultProxy
from rowcast.testing.server import running


@pytest.fixture
async def addresses(dsn: str, connection: psycopg.Connection) -> AsyncIterator[Addresses]:
    connection.execute("CREATE TABLE notes (id bigint PRIMARY KEY)")
    install(dsn, ["notes"])
    async with running(Rowcast(Settings(database_url=dsn, port=0))) as found:
        yield found


async def ask(client: ClientConnection, mutation: str) -> dict[str, Any]:
    await client.send(json.dumps({"type": "mutation", "id": mutation}))
    while True:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
        if message["type"] in {"mutation", "error"}:
            return message


async def test_what_the_stream_has_confirmed_is_committed_at_that_position(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as listener, connect(addresses.websocket) as client:
        await listener.send('{"type":"hello","version":1}')
        connection.execute("SELECT rowcast.confirm('client-01.a')")
        while (message := json.loads(await listener.recv()))["type"] != "transaction":
            pass
        answer = await ask(client, "client-01.a")
        assert answer == {
            "type": "mutation",
            "id": "client-01.a",
            "state": "committed",
            "position": message["position"],
        }
        assert (await ask(client, "client-01.b"))["state"] == "unknown"


async def test_what_the_database_remembers_is_committed_at_a_position_behind_it(
    addresses: Addresses, dsn: str, connection: psycopg.Connection
) -> None:
    with psycopg.connect(dsn) as other:
        run_once(other, "client-01.a", lambda: other.execute("INSERT INTO notes VALUES (1)").rowcount)
    async with (
        running(Rowcast(Settings(database_url=dsn, port=0, slot="other"))) as later,
        connect(later.websocket) as client,
    ):
        answer = await ask(client, "client-01.a")
        assert answer["state"] == "committed"
        await client.send(json.dumps({"type": "subscribe", "channel": "notes", "since": answer["position"]}))
        while (message := json.loads(await client.recv()))["type"] != "subscribed":
            pass
        assert message["position"] == answer["position"], "the stream had come there"


async def test_without_the_table_of_marks_nothing_is_known(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    connection.execute("DROP FUNCTION rowcast.mutation_status(text)")
    async with connect(addresses.websocket) as client:
        assert (await ask(client, "client-01.a"))["state"] == "unknown"


async def test_while_the_database_is_away_the_answer_waits_for_it(
    addresses: Addresses, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutations, "_RETRY_SECONDS", 0.05)
    with psycopg.connect(dsn) as other:
        run_once(other, "client-01.a", lambda: None)
    async with FaultProxy(int(str(conninfo_to_dict(dsn)["port"]))) as link:
        through = f"{dsn.rsplit(':', 1)[0]}:{link.port}/{dsn.rsplit('/', 1)[1]}"
        settings = Settings(database_url=through, database_url_direct=dsn, port=0, slot="other")
        async with running(Rowcast(settings)) as found, connect(found.websocket) as client:
            link.refuse()
            answer = asyncio.create_task(ask(client, "client-01.a"))
            async with connect(found.websocket) as leaving:
                await leaving.send('{"type":"mutation","id":"client-01.a"}')
                await leaving.send('{"type":"heartbeat","id":1}')
                await leaving.recv()  # it has been read
            assert not answer.done()
            link.resume()
            assert (await answer)["state"] == "committed"


async def test_a_question_before_the_server_is_ready_is_answered_when_it_is(
    addresses: Addresses, dsn: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = asyncio.Event()
    async with FaultProxy(int(str(conninfo_to_dict(dsn)["port"]))) as link:
        through = f"{dsn.rsplit(':', 1)[0]}:{link.port}/{dsn.rsplit('/', 1)[1]}"
        link.refuse()
        settings = Settings(database_url=through, port=port, slot="other", max_messages_per_second=10_000)
        serving = asyncio.create_task(serve(Rowcast(settings), stop=stop))
        await asyncio.sleep(0)  # it listens
        url = f"ws://127.0.0.1:{port}/ws"
        async with connect(url) as client, connect(url) as flood:
            answer = asyncio.create_task(ask(client, "client-01.a"))
            for number in range(2_001):
                await flood.send(json.dumps({"type": "mutation", "id": f"client-02.{number}"}))
            with pytest.raises(ConnectionClosed) as closed:
                await flood.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4003
            assert not answer.done()
            link.resume()
            assert (await answer)["state"] == "unknown"
        stop.set()
        await serving


async def test_too_many_questions_are_refused(addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "_MAX_ASKED", 0)
    async with connect(addresses.websocket) as client:
        assert (await ask(client, "client-01.a"))["code"] == "rate_limited"
