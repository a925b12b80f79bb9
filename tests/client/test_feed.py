"""A query cache that is fed over the client's connection, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from tests.client.scripted import until

import rowcast
from rowcast.client.cache import Entity, KeyFamily, QueryClient, QueryObserver, RealtimeIntegration, RowPatch
from rowcast.server import Addresses
from rowcast.testing.proxy import FaultProxy


class Api:
    """The application's own API, which counts what it is asked."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.asked: dict[str, int] = {"names": 0, "jobs": 0}

    async def names(self, context: Any) -> list[dict[str, Any]]:
        self.asked["names"] += 1
        rows = self._connection.execute("SELECT id, name FROM projects ORDER BY id").fetchall()
        return [{"id": key, "name": name} for key, name in rows]

    async def jobs(self, context: Any) -> int:
        self.asked["jobs"] += 1
        [[count]] = self._connection.execute(
            "SELECT count(*) FROM jobs WHERE project = %s", [context.key[1]]
        ).fetchall()
        return int(count)


@pytest.fixture
def api(connection: psycopg.Connection) -> Api:
    return Api(connection)


@pytest.fixture
async def cache() -> AsyncIterator[QueryClient]:
    async with QueryClient() as client:
        yield client


@pytest.fixture
def realtime(cache: QueryClient) -> RealtimeIntegration:
    """Projects are patched; the counts of jobs are fetched again, those of the projects concerned only."""
    return RealtimeIntegration(
        cache,
        [
            Entity("projects", [["names"]], patch=RowPatch(accepts=lambda row, key: True), polling=None),
            Entity(
                "jobs",
                [
                    KeyFamily(
                        ["jobs"],
                        lambda change: [["jobs", row["project"]] for row in (change.old, change.new) if row],
                    )
                ],
                polling=None,
            ),
        ],
        quiet_seconds=0.01,
    )


def names_in(observer: QueryObserver[Any, Any]) -> list[str]:
    return [row["name"] for row in observer.current_result.data or []]


async def test_rows_are_patched_and_counts_are_fetched_where_a_row_came_or_left(
    addresses: Addresses,
    api: Api,
    cache: QueryClient,
    realtime: RealtimeIntegration,
    connection: psycopg.Connection,
) -> None:
    shown: dict[tuple[Any, ...], QueryObserver[Any, Any]] = {
        key: QueryObserver(cache, key=key, fn=fn, stale_time=3600)
        for key, fn in (
            (("names",), api.names),
            (("jobs", 1), api.jobs),
            (("jobs", 2), api.jobs),
            (("jobs", 3), api.jobs),
        )
    }
    for observer in shown.values():
        observer.subscribe(lambda result: None)
    async with rowcast.connect(addresses.http, cache=realtime) as rc, rc.live("projects") as projects:
        # Each once at first, and once more when the stream has begun.
        await until(lambda: api.asked == {"names": 2, "jobs": 6} and not cache.is_fetching())
        connection.execute("INSERT INTO projects VALUES (1, 'Harbour', 5)")
        await until(lambda: names_in(shown[("names",)]) == ["Harbour"])
        assert [row["name"] for row in projects] == ["Harbour"], "the same connection, the same step"
        assert api.asked["names"] == 2, "patched, not asked"

        connection.execute("INSERT INTO jobs VALUES (1, 1)")
        await until(lambda: shown[("jobs", 1)].current_result.data == 1)
        connection.execute("UPDATE jobs SET project = 2")
        await until(lambda: shown[("jobs", 2)].current_result.data == 1)
        await until(lambda: shown[("jobs", 1)].current_result.data == 0)
        assert api.asked["jobs"] == 9, "nobody asked for project 3"
        assert realtime.freshness(["names"]).level == "live"


async def test_what_was_fetched_before_the_stream_began_is_fetched_again(
    addresses: Addresses,
    api: Api,
    cache: QueryClient,
    realtime: RealtimeIntegration,
    connection: psycopg.Connection,
) -> None:
    observer = QueryObserver(cache, key=["names"], fn=api.names, stale_time=3600)
    observer.subscribe(lambda result: None)
    await until(lambda: observer.current_result.data == [])
    connection.execute("INSERT INTO projects VALUES (1, 'Harbour', 5)")
    async with rowcast.connect(addresses.http, cache=realtime):
        await until(lambda: names_in(observer) == ["Harbour"])


async def test_what_happens_while_the_connection_is_lost_arrives_with_the_next_one(
    proxy: FaultProxy,
    api: Api,
    cache: QueryClient,
    realtime: RealtimeIntegration,
    connection: psycopg.Connection,
) -> None:
    observer = QueryObserver(cache, key=["names"], fn=api.names, stale_time=3600)
    observer.subscribe(lambda result: None)
    async with rowcast.connect(f"http://127.0.0.1:{proxy.port}", cache=realtime) as rc:
        await until(lambda: api.asked["names"] == 2 and not cache.is_fetching())
        proxy.refuse()
        proxy.cut()
        await until(lambda: realtime.freshness(["names"]).level == "polling")
        connection.execute("INSERT INTO projects VALUES (1, 'Harbour', 5)")
        proxy.start()
        rc.reconnect()
        await until(lambda: names_in(observer) == ["Harbour"])
        assert api.asked["names"] == 2, "the stream went on where it was: nothing had to be asked"
