"""The HTTP side: events, rows, health, metrics, and mounting in other applications."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect

from rowcast.capture.install import install
from rowcast.errors import ConfigurationError, NotInstalledError
from rowcast.server import Addresses, Rowcast
from rowcast.settings import Settings
from rowcast.testing.server import running


@pytest.fixture
async def addresses(dsn: str, connection: psycopg.Connection) -> AsyncIterator[Addresses]:
    connection.execute("CREATE TABLE projects (id bigint PRIMARY KEY, name text)")
    connection.execute("CREATE TABLE jobs (id bigint PRIMARY KEY)")
    connection.execute("INSERT INTO projects SELECT n, 'p' || n FROM generate_series(1, 2500) n")
    install(dsn, ["projects", "jobs"])
    async with running(Rowcast(Settings(database_url=dsn, port=0, heartbeat_seconds=1.0))) as found:
        yield found


@pytest.fixture
async def http(addresses: Addresses) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=addresses.http, timeout=20) as client:
        yield client


class Events:
    """Reads a `text/event-stream`."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, str]:
        """The next event's fields, heartbeats left out."""
        while True:
            fields: dict[str, str] = {}
            while line := await asyncio.wait_for(anext(self._lines), 10):
                name, _, value = line.partition(": ")
                fields[name] = value
            if fields and fields.get("event") != "heartbeat":
                return fields


async def test_curl_and_event_source_get_the_plain_form(
    http: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    async with http.stream("GET", "/sse?channel=projects&channel=jobs") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = Events(response)
        assert [(await events.next())["event"] for _ in range(2)] == ["subscribed", "subscribed"]
        with connection.transaction():
            connection.execute("UPDATE projects SET name = 'Atlas' WHERE id = 1")
            connection.execute("INSERT INTO jobs VALUES (1)")
        first, second = await events.next(), await events.next()
        assert "id" not in first, "half a transaction cannot be resumed from"
        assert json.loads(first["data"])["new"]["name"] == "Atlas"
        position = second["id"]
        assert json.loads(second["data"])["position"] == position
    connection.execute("INSERT INTO jobs VALUES (2)")
    connection.execute("DELETE FROM projects WHERE id = 1")
    url = "/sse?channel=projects&channel=jobs"
    async with http.stream("GET", url, headers={"Last-Event-ID": position}) as response:
        events = Events(response)
        assert [(await events.next())["event"] for _ in range(2)] == ["subscribed", "subscribed"]
        changes = [json.loads((await events.next())["data"]) for _ in range(2)]
    assert [(each["table"], each["op"]) for each in changes] == [("jobs", "INSERT"), ("projects", "DELETE")]


async def test_an_event_stream_can_begin_with_the_rows_and_speak_the_full_form(
    http: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    async with http.stream("GET", "/sse?channel=projects&filter=id=lt.3&snapshot=true&form=full") as response:
        events = Events(response)
        heard = [json.loads((await events.next())["data"]) for _ in range(4)]
    assert [each["type"] for each in heard] == ["welcome", "subscribed", "snapshot", "snapshot"]
    assert [row["id"] for row in heard[2]["rows"]] == [1, 2]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "name what to watch"),
        ("channel=projects&colour=red", "unknown parameter colour"),
        ("channel=projects&channel=jobs&filter=id=eq.1", "filter belongs to one channel"),
        ("channel=projects&since=never", "16 hex digits"),
        ("channel=projects&form=grand", "form is plain or full, not grand"),
        ("channel=projects&snapshot=yes", "snapshot is true or false, not yes"),
        ("channel=projects&only_changed=x", "only_changed is true or false, not x"),
        ("channel=projects&snapshot=true&since=x", "snapshot and since exclude each other"),
        ("channel=projects&where=id=$1&params=5", "params is a JSON list"),
        ("channel=projects&mutations=ab", "8 to 64 letters"),
        ("channel=projects&columns=id&columns=name", "columns is there 2 times"),
    ],
)
async def test_a_bad_query_is_answered_by_a_sentence(http: httpx.AsyncClient, query: str, words: str) -> None:
    response = await http.get(f"/sse?{query}")
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert "rowcast_connections 0.0" in (await http.get("/metrics")).text


async def test_rows_whole_as_lines_and_in_pages_are_the_same(http: httpx.AsyncClient) -> None:
    whole = (await http.get("/v1/rows/projects")).json()
    assert len(whole["rows"]) == 2500
    lines = await http.get("/v1/rows/projects", headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line) for line in lines.text.splitlines()] == whole["rows"]
    assert lines.headers["etag"] == f'"{lines.headers["rowcast-position"]}"'
    pages: list[dict[str, Any]] = []
    cursor: str | None = None
    used: str | None = None
    while True:
        page = (
            await http.get(
                "/v1/rows/projects", params={"limit": 1000, **({"cursor": cursor} if cursor else {})}
            )
        ).json()
        pages.append(page)
        used, cursor = cursor, page.get("next")
        if cursor is None:
            break
    assert [len(page["rows"]) for page in pages] == [1000, 1000, 500]
    assert [row for page in pages for row in page["rows"]] == whole["rows"]
    assert (await http.get("/v1/rows/projects", params={"limit": 1000, "cursor": used})).status_code == 410


async def test_rows_are_not_sent_again_while_nothing_has_changed(
    http: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    first = await http.get("/v1/rows/projects?filter=id=lt.10&columns=name")
    etag = first.headers["etag"]
    connection.execute("UPDATE projects SET name = 'other' WHERE id = 100")
    url = "/v1/rows/projects?filter=id=lt.10&columns=name"
    assert (await http.get(url, headers={"If-None-Match": etag})).status_code == 304
    assert (await http.get(url + "&wait=0.2", headers={"If-None-Match": etag})).status_code == 304
    waiting = asyncio.create_task(http.get(url + "&wait=20", headers={"If-None-Match": etag}))
    await asyncio.sleep(0)
    connection.execute("UPDATE projects SET name = 'new' WHERE id = 5")
    second = await waiting
    assert second.status_code == 200
    assert {"id": 5, "name": "new"} in second.json()["rows"]
    assert second.json()["position"] > first.json()["position"]


async def test_the_position_of_rows_continues_in_the_stream(
    http: httpx.AsyncClient, addresses: Addresses, connection: psycopg.Connection
) -> None:
    position = (await http.get("/v1/rows/jobs")).json()["position"]
    connection.execute("INSERT INTO jobs VALUES (9)")
    async with connect(addresses.websocket) as client:
        await client.send(json.dumps({"type": "subscribe", "channel": "jobs", "since": position}))
        assert json.loads(await client.recv())["type"] == "subscribed"
        assert json.loads(await client.recv())["new"] == {"id": 9}


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/rows/nothing", 404, "known: jobs, projects"),
        ("/v1/rows/projects?filter=id=eq.abc", 400, "abc"),
        ("/v1/rows/projects?limit=many", 400, "limit"),
        ("/v1/rows/projects?limit=0", 400, "leave it out for all rows"),
        ("/v1/rows/projects?wait=-1", 400, "write wait=20"),
        ("/v1/rows/projects?only_changed=true", 400, "unknown parameter only_changed"),
        ("/v1/rows/projects?colour=red", 400, "colour"),
        ("/v1/rows/projects?where=id=$1&params=[", 400, "params"),
        ("/v1/rows/projects?cursor=abc.1", 410, "expired"),
    ],
)
async def test_a_bad_request_for_rows_is_answered_by_a_sentence(
    http: httpx.AsyncClient, path: str, status: int, words: str
) -> None:
    response = await http.get(path)
    assert response.status_code == status
    assert words in response.json()["error"]


async def test_health_channels_and_metrics(http: httpx.AsyncClient, addresses: Addresses) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json()["status"] == "live"
    listed = (await http.get("/v1/channels")).json()["channels"]
    assert [each["channel"] for each in listed] == ["jobs", "projects"]
    assert listed[1]["columns"] == [{"name": "id", "type": "bigint"}, {"name": "name", "type": "text"}]
    async with connect(addresses.websocket) as client:
        await client.send('{"type":"subscribe","channel":"nothing"}')
        await client.recv()
        await client.send('{"type":"subscribe","channel":"jobs"}')
        await client.recv()
        text = (await http.get("/metrics")).text
    assert "rowcast_connections 1.0" in text
    assert "rowcast_subscriptions 1.0" in text
    assert 'rowcast_errors_total{code="unknown_channel"} 1.0' in text
    assert "rowcast_live 1.0" in text


async def test_pages_of_other_origins_are_refused_and_allowed_ones_get_cors(
    dsn: str, addresses: Addresses
) -> None:
    app = Rowcast(Settings(database_url=dsn, port=0, slot="other", frontend_url=("https://app.example",)))
    async with running(app) as other, httpx.AsyncClient(base_url=other.http) as client:
        for path in ("/sse?channel=jobs", "/v1/rows/jobs"):
            assert (await client.get(path, headers={"Origin": "https://evil.example"})).status_code == 403
        allowed = await client.get("/v1/rows/jobs", headers={"Origin": "https://app.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"


async def test_a_server_that_is_full_says_so(dsn: str, addresses: Addresses) -> None:
    app = Rowcast(Settings(database_url=dsn, port=0, slot="other", max_connections=1))
    async with running(app) as other, httpx.AsyncClient(base_url=other.http) as client:
        async with connect(other.websocket) as only:
            await only.send('{"type":"subscribe","channel":"jobs"}')
            await only.recv()
            assert (await client.get("/sse?channel=jobs")).status_code == 503


async def hear_one(url: str, connection: psycopg.Connection) -> dict[str, Any]:
    async with connect(url) as client:
        await client.send('{"type":"subscribe","channel":"jobs"}')
        assert json.loads(await client.recv())["type"] == "subscribed"
        connection.execute("INSERT INTO jobs SELECT coalesce(max(id), 0) + 1 FROM jobs")
        message: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 10))
        return message


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
async def test_it_mounts_in_three_lines(
    dsn: str, addresses: Addresses, connection: psycopg.Connection, framework: type[FastAPI | Starlette]
) -> None:
    rowcast = Rowcast(database_url=dsn, slot="mounted", port=0)
    app = framework(lifespan=rowcast.lifespan)
    app.mount("/realtime", rowcast)
    async with running(rowcast, app=app, mounted_at="/realtime") as mounted:
        assert (await hear_one(mounted.websocket, connection))["op"] == "INSERT"


async def test_a_lifespan_of_the_application_is_kept(dsn: str, addresses: Addresses) -> None:
    from contextlib import asynccontextmanager

    seen: list[str] = []

    @asynccontextmanager
    async def mine(app: Any) -> AsyncIterator[dict[str, str]]:
        seen.append("begun")
        yield {"name": "state"}
        seen.append("ended")

    rowcast = Rowcast(database_url=dsn, slot="mounted", port=0)
    app = FastAPI(lifespan=rowcast.wrap(mine))
    app.mount("/realtime", rowcast)
    async with running(rowcast, app=app, mounted_at="/realtime"):
        assert seen == ["begun"]
    assert seen == ["begun", "ended"]


async def test_a_mount_without_the_lifespan_says_what_to_write(dsn: str) -> None:
    app = Starlette(routes=[Mount("/realtime", Rowcast(database_url=dsn))])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/realtime/healthz")
    assert response.status_code == 503
    assert "lifespan=rowcast.lifespan" in response.text


async def test_under_another_asgi_server_the_plain_websocket_is_used(
    dsn: str, addresses: Addresses, connection: psycopg.Connection
) -> None:
    import uvicorn

    rowcast = Rowcast(database_url=dsn, slot="mounted")
    app = FastAPI(lifespan=rowcast.lifespan)
    app.mount("/realtime", rowcast)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=3))
    server.capture_signals = lambda: __import__("contextlib").nullcontext()  # type: ignore[method-assign]
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"ws://127.0.0.1:{port}/realtime/ws"
    await rowcast.service.live.wait()
    assert (await hear_one(url, connection))["op"] == "INSERT"
    async with connect(url) as client:
        await client.send(b"\0")
        assert json.loads(await client.recv())["code"] == "binary_frame"
    async with connect(url) as client:
        await client.send("x" * 300_000)
        with pytest.raises(Exception, match="1009"):
            await client.recv()
    with pytest.raises(Exception, match="403"):
        await connect(url, origin="https://evil.example")  # type: ignore[arg-type]
    server.should_exit = True
    await serving


async def test_a_database_that_was_not_set_up_says_which_command_does_it(dsn: str) -> None:
    with pytest.raises(NotInstalledError, match="rowcast setup --dsn"):
        async with running(Rowcast(Settings(database_url=dsn, port=0))):
            pass


async def test_a_table_that_is_not_captured_is_named(dsn: str, addresses: Addresses) -> None:
    with pytest.raises(NotInstalledError, match="invoices"):
        async with running(
            Rowcast(Settings(database_url=dsn, port=0, slot="other", tables=("jobs", "invoices")))
        ):
            pass


async def test_a_port_that_is_taken_is_named(dsn: str, addresses: Addresses) -> None:
    port = int(addresses.http.rsplit(":", 1)[1].rstrip("/"))
    with pytest.raises(ConfigurationError, match=str(port)):
        async with running(Rowcast(Settings(database_url=dsn, port=port))):
            pass


async def test_a_table_set_up_while_running_is_a_channel_at_once(
    dsn: str, addresses: Addresses, http: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    async with connect(addresses.websocket) as client:
        connection.execute("CREATE TABLE late (id bigint PRIMARY KEY)")
        await asyncio.to_thread(install, dsn, ["late"])
        async with asyncio.timeout(10):
            while '"late"' not in (await http.get("/v1/channels")).text:
                pass
        await client.send('{"type":"subscribe","channel":"late"}')
        assert json.loads(await client.recv())["type"] == "subscribed"
        connection.execute("INSERT INTO late VALUES (1)")
        assert json.loads(await client.recv())["new"] == {"id": 1}
