"""Snapshot + stream = the query: at every position, over every way of getting rows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from tests.cli.processes import eventually
from websockets.asyncio.client import connect

from rowcast.capture.catalog import load_tables_by_oid
from rowcast.capture.install import install
from rowcast.hub import Hub, Request
from rowcast.log import MemoryLog
from rowcast.model import Gap, Position, Progress, Table, make_position
from rowcast.server import Addresses, Rowcast
from rowcast.server.snapshots import Snapshots
from rowcast.settings import Settings
from rowcast.snapshot import SnapshotReader
from rowcast.testing.server import running

Rows = dict[int, dict[str, Any]]


@pytest.fixture
async def addresses(dsn: str, connection: psycopg.Connection) -> AsyncIterator[Addresses]:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, org int NOT NULL, note text)")
    connection.execute("INSERT INTO items SELECT n, n % 5, 'start' FROM generate_series(1, 300) n")
    install(dsn, ["items"])
    async with running(Rowcast(Settings(database_url=dsn, port=0, replay_window_bytes=1 << 24))) as found:
        yield found


@contextmanager
def writers(dsn: str, count: int) -> Iterator[None]:
    """Writers in a process of their own until the block ends: with threads here they would hold up the server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.writers", dsn, str(count)], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        process.communicate()
        assert process.returncode == 0


def apply(rows: Rows, transaction: dict[str, Any]) -> None:
    for change in transaction["changes"]:
        old = change.get("old", change.get("key"))
        if change["op"] == "TRUNCATE":
            rows.clear()
            continue
        if change["op"] != "INSERT" and old is not None:
            rows.pop(old["id"], None)
        if change["op"] != "DELETE":
            rows[change["new"]["id"]] = change["new"]


class Follower:
    """Takes the whole stream and knows the table at every position of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.start = ""
        self.first: Rows = {}
        self.transactions: list[dict[str, Any]] = []
        self.reached = asyncio.Condition()
        self.position = ""

    async def run(self, started: asyncio.Event) -> None:
        async with connect(self.url, max_size=None) as client:
            await client.send(json.dumps({"type": "hello", "version": 1}))
            wish = {"type": "subscribe", "id": "all", "channel": "items", "snapshot": True}
            await client.send(json.dumps(wish))
            async for text in client:
                message = json.loads(text)
                if message["type"] == "snapshot":
                    for row in message["rows"]:
                        self.first[row["id"]] = row
                    for key in message.get("deleted", ()):
                        self.first.pop(key["id"], None)
                    if message.get("last"):
                        self.start = message["position"]
                        started.set()
                if message["type"] == "transaction":
                    self.transactions.append(message)
                if "position" in message:
                    async with self.reached:
                        self.position = max(self.position, message["position"])
                        self.reached.notify_all()

    def at(self, position: str) -> Rows:
        rows = dict(self.first)
        for transaction in self.transactions:
            if self.start < transaction["position"] <= position:
                apply(rows, transaction)
        return rows

    async def wait_for(self, position: str) -> None:
        async with asyncio.timeout(20), self.reached:
            await self.reached.wait_for(lambda: self.position >= position)


async def full_snapshot(url: str, filter_text: str | None) -> tuple[str, Rows]:
    """Subscribe with a snapshot and two seconds' worth of nothing: the rows and their position."""
    async with connect(url, max_size=None, max_queue=None) as client:
        await client.send(json.dumps({"type": "hello", "version": 1}))
        wish = {"type": "subscribe", "id": "s", "channel": "items", "snapshot": True, "filter": filter_text}
        await client.send(json.dumps({name: value for name, value in wish.items() if value is not None}))
        rows: Rows = {}
        async for text in client:
            message = json.loads(text)
            assert message["type"] != "error", message
            if message["type"] == "snapshot":
                if message["chunk"] == 0:
                    rows.clear()
                for key in message.get("deleted", ()):
                    rows.pop(key["id"], None)
                for row in message["rows"]:
                    rows[row["id"]] = row
                if message.get("last"):
                    return message["position"], rows
    raise AssertionError("the connection ended before the snapshot")


async def plain_snapshot(url: str) -> tuple[str, Rows]:
    async with connect(url, max_size=None, max_queue=None) as client:
        await client.send(json.dumps({"type": "subscribe", "channel": "items", "snapshot": True}))
        rows: Rows = {}
        async for text in client:
            message = json.loads(text)
            if message.get("op") == "SNAPSHOT":
                rows[message["new"]["id"]] = message["new"]
            elif "op" in message:
                apply(rows, {"changes": [message]})
            elif message["type"] == "resync":
                rows.clear()
            elif message["type"] == "snapshot":
                return message["position"], rows
    raise AssertionError("the connection ended before the snapshot")


async def http_rows(url: str, filter_text: str | None) -> tuple[str, Rows]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(
            f"{url}v1/rows/items", params={"filter": filter_text} if filter_text else {}
        )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert answer.headers["etag"] == f'"{document["position"]}"'
    return document["position"], {row["id"]: row for row in document["rows"]}


async def test_every_snapshot_is_the_query_at_its_position(dsn: str, addresses: Addresses) -> None:
    follower, started = Follower(addresses.websocket), asyncio.Event()
    following = asyncio.create_task(follower.run(started))
    await started.wait()
    with writers(dsn, 6):
        for turn in range(25):
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
    position, rows = await full_snapshot(addresses.websocket, None)
    while rows != last:  # the stream is some milliseconds behind the commit
        position, rows = await asyncio.wait_for(full_snapshot(addresses.websocket, None), 10)
    await follower.wait_for(position)
    assert follower.at(position) == last
    following.cancel()


async def test_the_end_of_a_snapshot_comes_after_every_transaction_up_to_its_position(
    dsn: str, addresses: Addresses
) -> None:
    ends: list[str] = []
    told: list[str] = []
    async with connect(addresses.websocket, max_size=None) as client:

        async def hear(kind: str) -> dict[str, Any]:
            while True:
                message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 20))
                if message["type"] == "transaction":
                    assert message["position"] > max([*ends, *told], default="")
                    told.append(message["position"])
                if message["type"] == kind and (kind != "snapshot" or message.get("last")):
                    return message

        await client.send(json.dumps({"type": "hello", "version": 1}))
        await client.send(json.dumps({"type": "subscribe", "id": "all", "channel": "items"}))
        await hear("subscribed")
        with writers(dsn, 6):
            await hear("transaction")
            for turn in range(30):
                wish = {"type": "subscribe", "id": f"{turn}", "channel": "items", "snapshot": True}
                await client.send(json.dumps({**wish, "filter": f"org=eq.{turn % 5}"}))
                ends.append((await hear("snapshot"))["position"])
                await client.send(json.dumps({"type": "unsubscribe", "id": f"{turn}"}))
    assert len(told) > len(set(ends)) > 5, "there was something to come too late"


async def test_a_table_added_under_a_running_transaction_waits_for_it(
    dsn: str, addresses: Addresses, connection: psycopg.Connection
) -> None:
    """The stream has only the rows that were written after the table was added; the snapshot must have the others."""
    connection.execute("CREATE TABLE late (id bigint PRIMARY KEY)")
    connection.execute("ALTER TABLE late REPLICA IDENTITY FULL")
    with psycopg.connect(dsn) as writer:
        writer.execute("INSERT INTO late VALUES (1)")
        install(dsn, ["late"])
        async with asyncio.timeout(10), httpx.AsyncClient(timeout=20) as client:
            while '"late"' not in (await client.get(f"{addresses.http}v1/channels")).text:
                pass
            reading = asyncio.create_task(client.get(f"{addresses.http}v1/rows/late"))
            done, _ = await asyncio.wait([reading], timeout=0.3)
            assert not done, "the writer may still add rows whose first half the stream never had"
            writer.execute("INSERT INTO late VALUES (2)")
            writer.commit()
            rows = (await reading).json()["rows"]
    assert rows == [{"id": 1}, {"id": 2}]


async def test_after_a_lost_transaction_and_new_columns_rows_can_be_read_at_once(
    dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    install(dsn, ["items"])
    settings = Settings(database_url=dsn, port=0, max_transaction_bytes=100_000, capture_heartbeat_seconds=1)
    async with running(Rowcast(settings)) as addresses, httpx.AsyncClient(timeout=20) as client:
        connection.execute("INSERT INTO items SELECT n, repeat('x', 100) FROM generate_series(1, 2000) n")
        connection.execute("ALTER TABLE items ADD COLUMN colour text")
        connection.execute("INSERT INTO items VALUES (3000, 'after', 'red')")
        async with asyncio.timeout(20):
            rows: list[dict[str, Any]] = []
            while len(rows) < 2001 or "colour" not in rows[0]:
                rows = (await client.get(f"{addresses.http}v1/rows/items")).json().get("rows", rows)
    assert rows[-1] == {"id": 3000, "note": "after", "colour": "red"}


@pytest.fixture
async def items(dsn: str, connection: psycopg.Connection) -> Mapping[int, Table]:
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    connection.execute("INSERT INTO items VALUES (1)")
    async with await psycopg.AsyncConnection.connect(dsn) as looking:
        cursor = await looking.execute("SELECT 'items'::regclass::oid::bigint")
        [[oid]] = await cursor.fetchall()
        return await load_tables_by_oid(looking, [oid])


@pytest.mark.parametrize("epochs", [("0" * 16, "f" * 16), ("f" * 16, "0" * 16)])
async def test_a_snapshot_that_waits_for_the_stream_goes_on_in_the_next_epoch_however_they_are_ordered(
    dsn: str, items: Mapping[int, Table], epochs: tuple[str, str]
) -> None:
    before, after = (make_position(epoch, 10) for epoch in epochs)
    hub = Hub(MemoryLog(before, max_bytes=1000, max_seconds=1000), items)
    asked = asyncio.Event()

    async def mark() -> Position:
        asked.set()
        return hub.head if hub.head == after else make_position(epochs[0], 11)

    snapshots = Snapshots(SnapshotReader(dsn, ""), hub, lambda: asyncio.ensure_future(mark()), lambda: 0.0)
    reading = asyncio.create_task(snapshots.frozen(Request("s", "items")))
    await asyncio.wait_for(asked.wait(), 20)
    hub.publish([Gap(after, "slot_lost")], 0.0)
    snapshots.heard()
    frozen = await asyncio.wait_for(reading, 20)
    assert (frozen.position, list(frozen.batches())) == (after, [[b'{"id":1}'], []])
    await snapshots.close()


async def test_a_snapshot_that_was_asked_for_in_the_epoch_before_waits_for_its_end_in_the_new_one(
    dsn: str, connection: psycopg.Connection, items: Mapping[int, Table]
) -> None:
    before, after, end = (
        make_position(epoch * 16, number) for epoch, number in [("0", 10), ("1", 10), ("1", 15)]
    )
    hub = Hub(MemoryLog(before, max_bytes=1000, max_seconds=1000), items)
    asked = asyncio.Event()

    async def mark() -> Position:
        asked.set()
        return end

    snapshots = Snapshots(SnapshotReader(dsn, ""), hub, lambda: asyncio.ensure_future(mark()), lambda: 0.0)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE items")
        reading = asyncio.create_task(snapshots.frozen(Request("s", "items")))
        waiting = "SELECT FROM pg_locks WHERE relation = 'items'::regclass AND NOT granted"
        await asyncio.to_thread(eventually, lambda: connection.execute(waiting).rowcount, bool)
        hub.publish([Gap(after, "slot_lost")], 0.0)
        snapshots.heard()
    await asyncio.wait_for(asked.wait(), 20)
    too_early, _ = await asyncio.wait([reading], timeout=0.3)
    assert not too_early, "the stream has not told yet what the rows may lack"
    hub.publish([Progress(end)], 0.0)
    snapshots.heard()
    assert (await asyncio.wait_for(reading, 20)).position == end
    await snapshots.close()
