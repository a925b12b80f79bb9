"""Event streams and polling against servers that answer whatever they like."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.client.scripted import until

from rowcast.client.events import JSONObject
from rowcast.client.transports import Endpoints, Link, LinkEndedError, open_link
from rowcast.client.transports.polling import PollingLink
from rowcast.client.transports.query import query_of
from rowcast.client.transports.sse import EventStreamLink
from rowcast.errors import ClientError

WELCOME = {"type": "welcome", "epoch": "5e1f0c6a9d3b2e47", "position": "p", "heartbeat_seconds": 15.0}
CHANNELS = {
    "channels": [
        {
            "channel": "projects", "schema": "public", "table": "projects", "key": ["id"],
            "columns": [{"name": "id", "type": "bigint"}, {"name": "name", "type": "text"}, {"name": "org", "type": "int"}],
        }
    ]
}  # fmt: skip


class HttpServer:
    """Answers each path with what is scripted for it, in turn; the last answer stays. Bytes go out as they are."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[bytes]]] = defaultdict(list)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self.port = 0

    def answer(self, path: str, *pieces: bytes, status: int = 200, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} Scripted\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
        self.answers[path].append([head, *pieces])

    def answer_json(self, path: str, value: object, *, status: int = 200) -> None:
        self.answer(path, json.dumps(value).encode(), status=status)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = request.split("\r\n")
            path, _, query = first.split(" ")[1].partition("?")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            self.requests.append((query, headers))
            scripted = self.answers[path]
            for piece in scripted.pop(0) if len(scripted) > 1 else scripted[0]:
                if piece == b"hang":
                    await reader.read()
                writer.write(piece)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield made


@asynccontextmanager
async def linked(
    kind: Callable[[Endpoints, str | None], Link],
    port: int,
    *subscriptions: JSONObject,
    token: str | None = None,
) -> AsyncIterator[Link]:
    link = kind(Endpoints.of(f"http://127.0.0.1:{port}", {"X-Tenant": "5"}), token)
    try:
        await link.send({"type": "hello", "version": 1, "subscriptions": list(subscriptions)})
        yield link
    finally:
        await link.close(politely=True)


async def receive(link: Link) -> tuple[dict[str, Any], str | None]:
    return await asyncio.wait_for(link.receive(), 5)


async def ending(link: Link) -> LinkEndedError:
    """What ends the link; frames before it are skipped."""
    with pytest.raises(LinkEndedError) as ended:
        while True:
            await receive(link)
    return ended.value


def data(*frames: object) -> bytes:
    return b"".join(b"data: " + json.dumps(frame, ensure_ascii=False).encode() + b"\n\n" for frame in frames)


PROJECTS: JSONObject = {"id": "1", "channel": "projects", "snapshot": True}


def test_a_subscription_as_a_query() -> None:
    entry = {"where": "org = $1", "params": [5], "columns": ["id", "näme"]}
    assert query_of(entry, since=None, form="full") == (
        "form=full&where=org+%3D+%241&params=%5B5%5D&columns=id%2Cn%C3%A4me"
    )


class TestEventStreams:
    async def test_frames_come_under_the_subscriptions_own_id(self, server: HttpServer) -> None:
        subscribed = {"type": "subscribed", "id": "projects", "position": "p"}
        server.answer("/sse", data(WELCOME, subscribed), b"hang", kind="text/event-stream; charset=utf-8")
        async with linked(
            EventStreamLink, server.port, PROJECTS, {**PROJECTS, "id": "2"}, token="secret"
        ) as link:
            received = [await receive(link) for _ in range(3)]
            assert sorted(
                (frame["type"], frame.get("id"), lane) for frame, lane in received if "id" in frame
            ) == [
                ("subscribed", "1", "1"),
                ("subscribed", "2", "2"),
            ]
            assert sum(frame["type"] == "welcome" for frame, _ in received) == 1
            query, headers = server.requests[0]
            assert query == "channel=projects&form=full&snapshot=true"
            assert (headers["authorization"], headers["x-tenant"]) == ("Bearer secret", "5")
            assert "secret" not in query
            await link.send({"type": "heartbeat", "id": 1})
            await link.send({"type": "unsubscribe", "id": "1"})
            await link.send({"type": "unsubscribe", "id": "nobody"})
            await until(lambda: server.connections == 1)
            await link.send({"type": "subscribe", "id": "3", "channel": "projects", "since": "p9"})
            frame, lane = await receive(link)
            assert (frame["id"], lane) == ("3", "3")
            assert server.requests[-1][0] == "channel=projects&form=full&since=p9"
        await until(lambda: server.connections == 0)

    async def test_events_may_be_cut_anywhere_and_hold_any_text(self, server: HttpServer) -> None:
        frame = {"type": "transaction", "text": "line\u2028separator \x85 \x0b tab\t emoji 🦜"}
        whole = b": a comment\nevent: x\nid: 5\n" + data(frame, frame)
        pieces = [whole[start : start + 3] for start in range(0, len(whole), 3)]
        server.answer("/sse", *pieces, b"hang", kind="text/event-stream")
        async with linked(EventStreamLink, server.port, PROJECTS) as link:
            assert [await receive(link) for _ in range(2)] == [(frame, "1"), (frame, "1")]

    async def test_one_stream_that_ends_ends_the_link(self, server: HttpServer) -> None:
        server.answer("/sse", data(WELCOME), kind="text/event-stream")
        server.answer("/sse", data(WELCOME), b"hang", kind="text/event-stream")
        async with linked(EventStreamLink, server.port, PROJECTS, {**PROJECTS, "id": "2"}) as link:
            assert (await ending(link)).reason == "the event stream ended"

    @pytest.mark.parametrize(
        ("status", "kind", "failure", "code"),
        [
            (404, "text/plain", "unsuitable", None),
            (401, "text/plain", "away", 4501),
            (503, "text/plain", "away", None),
            (200, "text/html", "unsuitable", None),
        ],
    )
    async def test_what_is_no_event_stream_says_what_it_is(
        self, server: HttpServer, status: int, kind: str, failure: str, code: int | None
    ) -> None:
        server.answer("/sse", b"<html>", status=status, kind=kind)
        async with linked(EventStreamLink, server.port, PROJECTS) as link:
            ended = await ending(link)
        assert (ended.failure, ended.code) == (failure, code)

    async def test_a_query_that_the_server_does_not_understand_refuses_the_subscription(
        self, server: HttpServer
    ) -> None:
        server.answer_json("/sse", {"error": "no such column"}, status=400)
        async with linked(EventStreamLink, server.port, PROJECTS) as link:
            frame, _ = await receive(link)
        assert (frame["type"], frame["id"], frame["code"]) == ("error", "1", "invalid_frame")
        assert "no such column" in frame["message"]

    async def test_garbage_ends_the_link(self, server: HttpServer) -> None:
        server.answer("/sse", b"data: {half\n\n", b"hang", kind="text/event-stream")
        async with linked(EventStreamLink, server.port, PROJECTS) as link:
            assert (await ending(link)).failure == "broken"

    async def test_a_server_that_is_away(self) -> None:
        async with linked(EventStreamLink, 1, PROJECTS) as link:
            assert (await ending(link)).failure == "away"
        async with linked(EventStreamLink, 1) as link:
            assert (await ending(link)).failure == "away"

    async def test_without_subscriptions_it_looks_whether_the_server_is_there(
        self, server: HttpServer
    ) -> None:
        server.answer_json("/healthz", {"status": "ok"})
        server.answer("/healthz", b"", status=500)
        async with linked(EventStreamLink, server.port) as link:
            assert (await receive(link))[0]["type"] == "welcome"
        async with linked(EventStreamLink, server.port) as link:
            assert (await ending(link)).failure == "unsuitable"


class TestPolling:
    async def test_answers_are_snapshots_and_not_modified_is_a_heartbeat(self, server: HttpServer) -> None:
        server.answer_json("/v1/channels", CHANNELS)
        server.answer_json("/v1/rows/projects", {"position": "p1", "rows": [{"id": 1}]})
        server.answer("/v1/rows/projects", status=304)
        server.answer("/v1/rows/projects", b"hang")
        entry = {**PROJECTS, "filter": "org=eq.5", "columns": ["name"]}
        async with linked(PollingLink, server.port, entry, token="secret") as link:
            frames = [(await receive(link))[0] for _ in range(4)]
            assert [frame["type"] for frame in frames] == ["welcome", "subscribed", "snapshot", "heartbeat"]
            assert frames[1]["columns"] == CHANNELS["channels"][0]["columns"][:2]
            assert (frames[1]["position"], frames[2]["rows"], frames[2]["last"]) == ("p1", [{"id": 1}], True)
            (_, first), (second, conditional) = server.requests[1:3]
            assert "if-none-match" not in first
            assert conditional["if-none-match"] == '"p1"'
            assert conditional["authorization"] == "Bearer secret"
            assert second == "wait=20&filter=org%3Deq.5&columns=name"

    async def test_a_resumed_subscription_asks_only_for_what_is_new(self, server: HttpServer) -> None:
        server.answer_json("/v1/channels", CHANNELS)
        server.answer("/v1/rows/projects", b"hang")
        async with linked(
            PollingLink, server.port, {"id": "1", "channel": "projects", "since": "p7"}
        ) as link:
            await receive(link)
            await until(lambda: len(server.requests) == 2)
            assert server.requests[1][1]["if-none-match"] == '"p7"'
            await link.send({"type": "heartbeat", "id": 1})
            await link.send({"type": "unsubscribe", "id": "1"})
            await link.send({"type": "unsubscribe", "id": "1"})
            await until(lambda: server.connections == 0)

    async def test_a_refused_subscription_is_an_error_frame(self, server: HttpServer) -> None:
        server.answer_json("/v1/channels", CHANNELS)
        server.answer_json(
            "/v1/rows/project", {"code": "unknown_channel", "error": "no such channel"}, status=404
        )
        async with linked(PollingLink, server.port, {"id": "1", "channel": "project"}) as link:
            await receive(link)
            assert (await receive(link))[0] == {
                "type": "error", "id": "1", "code": "unknown_channel", "message": "no such channel",
            }  # fmt: skip

    @pytest.mark.parametrize(
        ("body", "status", "failure"),
        [(b"nginx", 404, "unsuitable"), (b"", 502, "away"), (b"{}", 200, "broken"), (b"[", 200, "broken")],
    )
    async def test_answers_that_are_not_the_servers(
        self, server: HttpServer, body: bytes, status: int, failure: str
    ) -> None:
        server.answer_json("/v1/channels", CHANNELS)
        server.answer("/v1/rows/projects", body, status=status)
        async with linked(PollingLink, server.port, PROJECTS) as link:
            assert (await ending(link)).failure == failure

    @pytest.mark.parametrize(
        ("body", "status", "failure", "code"),
        [(b"<html>", 200, "unsuitable", None), (b"{}", 200, "unsuitable", None), (b"", 401, "away", 4501)],
    )
    async def test_a_list_of_channels_that_is_none(
        self, server: HttpServer, body: bytes, status: int, failure: str, code: int | None
    ) -> None:
        server.answer("/v1/channels", body, status=status)
        async with linked(PollingLink, server.port, PROJECTS) as link:
            ended = await ending(link)
        assert (ended.failure, ended.code) == (failure, code)

    async def test_a_server_that_is_away_or_breaks_off(self, server: HttpServer) -> None:
        async with linked(PollingLink, 1, PROJECTS) as link:
            assert (await ending(link)).failure == "away"
        server.answers["/v1/channels"] = [[b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"]]
        async with linked(PollingLink, server.port, PROJECTS) as link:
            assert (await ending(link)).failure == "broken"


class TestWebSockets:
    async def test_what_answers_no_handshake(self, server: HttpServer) -> None:
        server.answers["/ws"] = [[b"SSH-2.0-OpenSSH\r\n\r\n"]]
        with pytest.raises(LinkEndedError) as ended:
            await open_link(
                "websocket", Endpoints.of(f"ws://127.0.0.1:{server.port}"), None, max_frame_bytes=1000
            )
        assert ended.value.failure == "broken"

    async def test_a_library_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "rowcast.client.transports.sse", None)
        with pytest.raises(ClientError, match=r'pip install "rowcast\[client\]"'):
            await open_link("sse", Endpoints.of("ws://host"), None, max_frame_bytes=1000)
