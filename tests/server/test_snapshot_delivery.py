"""Snapshots on their way to one client, with more than one wish at a time."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from websockets.asyncio.client import connect

from rowcast.capture.install import install
from rowcast.server import Rowcast
from rowcast.settings import Settings
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
