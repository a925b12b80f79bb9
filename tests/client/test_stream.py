"""stream(): each transaction once and in order, or a resync that says so."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import psycopg
import pytest
from tests.client.scripted import ScriptedServer, position, take, until

from rowcast.client.state import TransportName
from rowcast.client.stream import (
    Progress,
    Resync,
    SnapshotChunk,
    StateChanged,
    StreamEvent,
    Subscribed,
    Transaction,
    stream,
)
from rowcast.errors import ClientError
from rowcast.server import Addresses
from rowcast.testing.proxy import FaultProxy


async def test_rows_first_then_whole_transactions(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5)")
    async with aclosing(stream(addresses.http, "projects", snapshot=True)) as events:
        subscribed = await take(events, Subscribed)
        assert (subscribed.schema, subscribed.table, subscribed.key) == ("public", "projects", ("id",))
        assert subscribed.columns == (("id", "bigint"), ("name", "text"), ("org", "integer"))
        rows: list[Any] = []
        while True:
            chunk = await take(events, SnapshotChunk)
            rows += chunk.rows
            if chunk.last:
                break
        assert rows == [{"id": 1, "name": "Atlas", "org": 5}]
        with connection.transaction():
            connection.execute("INSERT INTO projects VALUES (2, 'Boreas', 5)")
            connection.execute("DELETE FROM projects WHERE id = 1")
        transaction = await take(events, Transaction)
        assert [(each["op"], each["key"]) for each in transaction.changes] == [
            ("INSERT", {"id": 2}),
            ("DELETE", {"id": 1}),
        ]
        assert chunk.position < transaction.position


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_filters_and_columns_reach_the_server(
    addresses: Addresses, connection: psycopg.Connection, transport: TransportName
) -> None:
    following = stream(
        addresses.http, "projects", where="org = $1 AND name <> $2", params=[5, "it's"], columns=["name"],
        transports=[transport],
    )  # fmt: skip
    async with aclosing(following) as events:
        await take(events, Subscribed)
        connection.execute("INSERT INTO projects VALUES (1, 'other', 6), (2, 'it''s', 5), (3, 'mine', 5)")
        assert [each["new"] for each in (await take(events, Transaction)).changes] == [
            {"id": 3, "name": "mine"}
        ]


async def test_coming_back_with_the_last_position_brings_what_was_missed(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with aclosing(stream(addresses.websocket, "projects")) as events:
        await take(events, Subscribed)
        connection.execute("INSERT INTO projects VALUES (1)")
        last = (await take(events, Transaction)).position
    connection.execute("INSERT INTO projects VALUES (2)")
    async with aclosing(stream(addresses.websocket, "projects", since=last)) as events:
        assert (await take(events, Transaction)).changes[0]["key"] == {"id": 2}


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_every_change_once_and_in_order_while_links_break(
    proxy: FaultProxy,
    connection: psycopg.Connection,
    transport: TransportName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Links are cut at any moment, also in the middle of a frame, while a writer goes on."""
    monkeypatch.setattr("rowcast.client.backoff.STEPS_SECONDS", (0.05,))
    total = 1_000
    url = f"http://127.0.0.1:{proxy.port}"

    def write() -> None:
        for number in range(total):
            connection.execute("INSERT INTO projects (id, name) VALUES (%s, repeat('x', 2000))", (number,))

    async def break_links() -> None:
        await asyncio.sleep(0.05)
        for number in range(5):
            proxy.cut()
            await asyncio.sleep(0.08)
            proxy.drop_after(20_000 + 1_234 * number)
            await asyncio.sleep(0.08)
        proxy.resume()

    keys: list[int] = []
    ids: list[str] = []
    async with aclosing(stream(url, "projects", transports=[transport])) as events:
        await take(events, Subscribed)
        working = asyncio.gather(asyncio.to_thread(write), break_links())
        while len(keys) < total:
            for each in (await take(events, Transaction, 20)).changes:
                keys.append(each["key"]["id"])
                ids.append(each["id"])
        await working
    assert keys == list(range(total))
    assert ids == sorted(set(ids))
    assert proxy.accepted > 5


async def test_a_link_that_swallows_everything_is_noticed_and_replaced(
    proxy: FaultProxy, connection: psycopg.Connection
) -> None:
    async with aclosing(stream(f"http://127.0.0.1:{proxy.port}", "projects")) as events:
        await take(events, Subscribed)
        proxy.half_open()
        connection.execute("INSERT INTO projects VALUES (1)")
        lost = await take(events, StateChanged)
        assert lost.state.status == "reconnecting"
        assert "nothing heard from the server" in lost.state.reason
        proxy.resume()
        assert (await take(events, Transaction)).changes[0]["key"] == {"id": 1}


async def test_a_consumer_that_pauses_loses_nothing_and_holds_the_server_back(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    total = 5_000
    async with aclosing(stream(addresses.http, "projects")) as events:
        await take(events, Subscribed)
        await asyncio.to_thread(
            connection.execute,
            f"DO $$ BEGIN FOR i IN 1..{total} LOOP INSERT INTO projects VALUES (i); COMMIT; END LOOP; END $$",
        )
        await asyncio.sleep(1.5)  # longer than two and a half heartbeats of silence
        keys: list[int] = []
        async with asyncio.timeout(20):
            async for event in events:
                assert not isinstance(event, StateChanged | Resync), "the link is as good as ever"
                if isinstance(event, Transaction):
                    keys += [each["key"]["id"] for each in event.changes]
                    if len(keys) == total:
                        break
    assert keys == list(range(1, total + 1))


async def test_a_position_of_another_epoch_is_a_resync_and_the_stream_goes_on(
    scripted: ScriptedServer,
) -> None:
    await scripted.commit(("INSERT", "projects", {"id": 1}))
    old = position(1, "0" * 15 + "1")
    async with aclosing(stream(scripted.url, "projects", since=old)) as events:
        resync = await take(events, Resync)
        assert (resync.reason, resync.position) == ("epoch_changed", position(2))
        await scripted.commit(("INSERT", "projects", {"id": 2}))
        assert (await take(events, Transaction)).changes[0]["key"] == {"id": 2}


async def test_with_rows_a_resync_is_followed_by_a_new_snapshot(scripted: ScriptedServer) -> None:
    await scripted.commit(("INSERT", "projects", {"id": 1, "name": "Atlas"}))
    old = position(1, "0" * 15 + "1")
    told: list[StreamEvent] = []
    async with (
        aclosing(stream(scripted.url, "projects", since=old, snapshot=True)) as events,
        asyncio.timeout(5),
    ):
        async for event in events:
            if isinstance(event, Resync | SnapshotChunk):
                told.append(event)
            if isinstance(event, SnapshotChunk) and event.last:
                break
    assert [type(event) for event in told] == [Resync, SnapshotChunk, SnapshotChunk]


async def test_an_idle_table_makes_progress_while_others_are_busy(
    addresses: Addresses, connection: psycopg.Connection
) -> None:
    async with aclosing(stream(addresses.http, "projects")) as events:
        subscribed = await take(events, Subscribed)
        connection.execute("INSERT INTO jobs VALUES (1, 1)")
        progress = await take(events, Progress)
        while progress.position <= subscribed.position:
            progress = await take(events, Progress)


async def test_an_unknown_channel_is_an_error_that_names_the_known_ones(addresses: Addresses) -> None:
    with pytest.raises(ClientError, match=r"project: there is no channel .* jobs, projects"):
        async for _ in stream(addresses.http, "project"):
            pass


async def test_a_server_that_stays_away_is_an_error_where_attempts_are_limited() -> None:
    with pytest.raises(ClientError, match="gave up after 1 attempts"):
        async for _ in stream("ws://127.0.0.1:1", "projects", attempts=1):
            pass


async def test_leaving_the_loop_ends_the_connection(scripted: ScriptedServer) -> None:
    async with aclosing(stream(scripted.url, "projects")) as events:
        await take(events, Subscribed)
        assert len(scripted.open) == 1
    await until(lambda: not scripted.open)


async def test_cancelling_ends_the_connection(scripted: ScriptedServer) -> None:
    async def follow() -> None:
        async for _ in stream(scripted.url, "projects"):
            pass

    task = asyncio.create_task(follow())
    await until(lambda: len(scripted.open) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not scripted.open)
