"""The connection over real sockets: coming back, credentials, and the ladder of transports."""

from __future__ import annotations

import asyncio
import http
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
import uvicorn
from tests.client.scripted import ScriptedServer, until

from rowcast.client.connection import Connection
from rowcast.client.events import (
    Event,
    Interest,
    Refused,
    SnapshotChunk,
    StateChanged,
    Subscribed,
    Transaction,
)
from rowcast.client.ladder import Ladder
from rowcast.client.state import TransportName
from rowcast.client.transports import Endpoints
from rowcast.errors import ClientError
from rowcast.server import Addresses, Rowcast
from rowcast.testing.proxy import FaultProxy


class Log:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[Sequence[Event]] = []

    def __call__(self, events: Sequence[Event]) -> None:
        self.steps.append(events)

    @property
    def events(self) -> list[Event]:
        return [event for step in self.steps for event in step]

    @property
    def statuses(self) -> list[str]:
        return [event.state.status for event in self.events if isinstance(event, StateChanged)]

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.events)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder of delays, a hundred times as fast."""
    monkeypatch.setattr("rowcast.client.backoff.STEPS_SECONDS", (0.01, 0.02, 0.04, 0.08, 0.16, 0.3))


def connected(connection: Connection) -> Callable[[], bool]:
    return lambda: connection.state.status == "connected"


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        [
            "http://host:8000/realtime",
            "ws://host:8000/realtime",
            "ws://host:8000/realtime/ws",
            "host:8000/realtime/",
        ],
    )
    def test_any_form_of_an_address_will_do(self, url: str) -> None:
        endpoints = Endpoints.of(url)
        assert (endpoints.websocket, endpoints.http) == (
            "ws://host:8000/realtime/ws",
            "http://host:8000/realtime",
        )

    def test_encryption_and_query_are_kept(self) -> None:
        assert Endpoints.of("https://host?tenant=5").websocket == "wss://host/ws?tenant=5"
        assert Endpoints.of("wss://host/ws").http == "https://host"

    @pytest.mark.parametrize("url", ["ftp://host", "http://", "postgresql://host/db"])
    def test_what_is_no_address_is_an_error(self, url: str) -> None:
        with pytest.raises(ClientError, match="is no server's address: write http://"):
            Endpoints.of(url)


async def test_fifty_subscriptions_come_back_with_one_frame(scripted: ScriptedServer) -> None:
    scripted.rows = {f"t{number}": {} for number in range(50)}
    log = Log()
    async with (
        FaultProxy(scripted.port) as proxy,
        Connection(f"ws://127.0.0.1:{proxy.port}", sink=log) as connection,
    ):
        for number in range(50):
            connection.subscribe(f"s{number}", Interest(f"t{number}"))
        await until(lambda: log.count(Subscribed) == 50 and log.count(SnapshotChunk) == 100)
        proxy.cut()
        for number in range(50):
            await scripted.commit(("INSERT", f"t{number}", {"id": number}))
        await until(lambda: log.count(Transaction) == 50)
        assert [frame["type"] for frame in scripted.clients[1].received if frame["type"] != "heartbeat"] == [
            "hello"
        ]
        assert len(scripted.clients[1].received[0]["subscriptions"]) == 50


async def test_the_server_restarts_and_everything_goes_on(scripted: ScriptedServer) -> None:
    log = Log()
    async with Connection(scripted.url, sink=log) as connection:
        connection.subscribe("p", Interest("projects"))
        await until(lambda: log.count(SnapshotChunk) == 2)
        await scripted.stop()
        await until(lambda: connection.state.status == "reconnecting")
        assert connection.state.reason.startswith("the server is shutting down")
        await scripted.commit(("INSERT", "projects", {"id": 1}))
        await asyncio.sleep(0.05)  # some attempts meet nobody
        await scripted.start()
        await until(lambda: log.count(Transaction) == 1)
        assert connection.state.status == "connected"
        assert connection.state.transport == "websocket"


async def test_a_wish_is_fulfilled_at_once_when_the_server_is_back(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowcast.client.backoff.STEPS_SECONDS", (600.0,))
    monkeypatch.setattr("rowcast.client.session.WISH_SPACING_SECONDS", 0.0)
    async with Connection(scripted.url, sink=Log(), random=lambda: 0.5) as connection:
        await until(connected(connection))
        await scripted.stop()
        await until(lambda: connection.state.next_attempt_at is not None)
        await scripted.start()
        connection.reconnect("the network is back")
        await until(connected(connection))


async def test_without_a_network_nothing_is_tried(scripted: ScriptedServer) -> None:
    log = Log()
    async with Connection(scripted.url, sink=log) as connection:
        await until(connected(connection))
        connection.set_online(online=False)
        await until(lambda: not scripted.open)
        await asyncio.sleep(0.1)
        assert len(scripted.clients) == 1
        connection.set_online(online=True)
        await until(lambda: len(scripted.clients) == 2 and connection.state.status == "connected")
        assert connection.state.transport == "websocket"
    assert log.statuses[-1] == "closed"
    assert "offline" in log.statuses


async def test_round_trip_and_lag_can_be_read(scripted: ScriptedServer) -> None:
    async with Connection(scripted.url, sink=Log()) as connection:
        await until(lambda: connection.state.round_trip_seconds is not None)
        assert 0 < (connection.state.round_trip_seconds or 0) < 1
        assert connection.state.lag_seconds == 0


async def test_a_subscription_can_come_and_go_at_any_time(scripted: ScriptedServer) -> None:
    log = Log()
    async with Connection(scripted.url, sink=log) as connection:
        connection.subscribe("a", Interest("projects"))
        connection.unsubscribe("a")
        await until(connected(connection))
        connection.subscribe("b", Interest("jobs"))
        await until(lambda: log.count(SnapshotChunk) == 2)
        connection.unsubscribe("b")
        await until(lambda: not scripted.clients[0].watching)
        await scripted.commit(("INSERT", "jobs", {"id": 1}))
    assert log.count(Transaction) == 0


async def test_closing_leaves_no_task_and_no_timer(scripted: ScriptedServer) -> None:
    connection = Connection(scripted.url, sink=Log())
    connection.start()
    connection.subscribe("p", Interest("projects"))
    await until(connected(connection))
    await connection.close()
    await connection.close()
    await until(lambda: not scripted.open)
    assert [task for task in asyncio.all_tasks() if "Connection._" in repr(task)] == []


async def test_a_sink_that_fails_ends_the_connection_and_says_so(scripted: ScriptedServer) -> None:
    def sink(events: Sequence[Event]) -> None:
        if any(isinstance(event, Subscribed) for event in events):
            raise RuntimeError("a bug of the application's")

    connection = Connection(scripted.url, sink=sink)
    connection.subscribe("p", Interest("projects"))
    connection.start()
    await until(lambda: connection.state.status == "closed")
    assert "a bug of the application's" in connection.state.reason
    with pytest.raises(RuntimeError, match="a bug of the application's"):
        await connection.close()


class TestCredentials:
    async def test_a_fixed_token_is_sent_and_a_bad_one_is_final(self, scripted: ScriptedServer) -> None:
        scripted.tokens = {"good"}
        async with Connection(scripted.url, sink=Log(), token="good") as connection:
            await until(connected(connection))
        async with Connection(scripted.url, sink=Log(), token="bad") as connection:
            await until(lambda: connection.state.status == "closed")
            assert "does not accept the credentials" in connection.state.reason

    async def test_a_provider_is_asked_before_every_attempt(self, scripted: ScriptedServer) -> None:
        scripted.tokens = {"token 3"}
        asked = 0

        async def provide() -> str:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0)
            if asked == 1:
                raise OSError("the login server is away")
            return f"token {asked}"

        async with Connection(scripted.url, sink=Log(), token=provide) as connection:
            await until(connected(connection))
        assert asked == 3

    async def test_an_expiring_token_is_renewed_on_the_open_connection(
        self, scripted: ScriptedServer
    ) -> None:
        tokens = iter(("first", "second"))
        async with Connection(scripted.url, sink=Log(), token=lambda: next(tokens)) as connection:
            await until(connected(connection))
            (client,) = scripted.clients
            await client.send({"type": "token_expiring", "expires_in": 60})
            await until(lambda: {"type": "token", "token": "second"} in client.received)
            assert len(scripted.clients) == 1
            assert connection.state.status == "connected"

    async def test_a_token_that_expired_in_mid_stream_heals_by_itself(self, scripted: ScriptedServer) -> None:
        """The server closes; the client gets another token, comes back, and misses nothing."""
        valid = "first"
        scripted.tokens = {"first"}
        log = Log()
        async with Connection(scripted.url, sink=log, token=lambda: valid) as connection:
            connection.subscribe("p", Interest("projects"))
            await until(lambda: log.count(SnapshotChunk) == 2)
            valid, scripted.tokens = "second", {"second"}
            await scripted.clients[0].socket.close(4501, "token_expired")
            await scripted.commit(("INSERT", "projects", {"id": 1}))
            await until(lambda: log.count(Transaction) == 1)
        assert "closed" not in log.statuses[:-1]


class TestLadder:
    def test_what_is_refused_descends_at_once_and_what_is_away_does_not(self) -> None:
        ladder = Ladder(("websocket", "sse", "polling"), lambda: 0.0)
        for _ in range(10):
            ladder.failed("away")
        assert ladder.current == "websocket"
        ladder.failed("unsuitable")
        assert (ladder.current, ladder.better) == ("sse", ("websocket",))

    def test_what_breaks_three_times_in_a_row_descends_and_below_the_last_is_the_first(self) -> None:
        ladder = Ladder(("websocket", "sse"), lambda: 0.0)
        reached = []
        for _ in range(6):
            ladder.failed("broken")
            reached.append(ladder.current)
        assert reached == ["websocket", "websocket", "sse", "sse", "sse", "websocket"]
        ladder.failed("broken")
        ladder.failed("broken")
        ladder.worked()
        ladder.failed("broken")
        assert ladder.current == "websocket"

    def test_climbing_is_tried_ever_more_seldom_with_jitter(self) -> None:
        ladder = Ladder(("websocket", "sse"), lambda: 1.0)
        ladder.failed("unsuitable")
        assert [ladder.next_climb_delay() for _ in range(5)] == [30, 60, 120, 300, 300]
        ladder.climb("websocket")
        assert (ladder.current, ladder.better) == ("websocket", ())

    async def test_a_websocket_that_swallows_everything_is_given_up_after_the_welcome_time(
        self, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rowcast.client.session.WELCOME_SECONDS", 0.05)
        scripted.silent = True
        log = Log()
        async with Connection(scripted.url, sink=log, transports=("websocket", "sse")):
            await until(lambda: any("no welcome" in reason for reason in reasons(log)))
            await until(
                lambda: any("answered" in reason or "event stream" in reason for reason in reasons(log))
            )

    async def test_a_server_that_answers_without_a_websocket_is_tried_otherwise(
        self, scripted: ScriptedServer
    ) -> None:
        scripted.http_status = http.HTTPStatus.NOT_FOUND
        log = Log()
        async with Connection(scripted.url, sink=log, transports=("websocket", "sse")):
            await until(lambda: "the server answered 404" in reasons(log))

    async def test_a_gateway_whose_server_restarts_is_no_reason_to_descend(
        self, scripted: ScriptedServer
    ) -> None:
        scripted.http_status = http.HTTPStatus.BAD_GATEWAY
        log = Log()
        async with Connection(scripted.url, sink=log) as connection:
            await until(lambda: reasons(log).count("the server answered 502") > 4)
            scripted.http_status = None
            await until(connected(connection))
            assert connection.state.transport == "websocket"

    async def test_a_refusal_of_the_credentials_with_http_is_final_without_others(
        self, scripted: ScriptedServer
    ) -> None:
        scripted.http_status = http.HTTPStatus.FORBIDDEN
        async with Connection(scripted.url, sink=Log()) as connection:
            await until(lambda: connection.state.status == "closed")
            assert connection.state.reason == (
                "the server does not accept the credentials: the server answered 403, "
                "as it does too where nothing of Rowcast's is at this path"
            )

    async def test_an_outage_is_warned_of_once(
        self, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        scripted.http_status = http.HTTPStatus.BAD_GATEWAY
        log = Log()
        async with Connection(scripted.url, sink=log) as connection:
            await until(lambda: reasons(log).count("the server answered 502") > 4)
            scripted.http_status = None
            await until(connected(connection))
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warned == ["no link over websocket: the server answered 502"]


def reasons(log: Log) -> list[str]:
    return [event.state.reason for event in log.events if isinstance(event, StateChanged)]


@asynccontextmanager
async def without_websockets(rowcast: Rowcast) -> AsyncIterator[int]:
    """A second way to a running server, through which no WebSocket comes; yields its port."""
    config = uvicorn.Config(rowcast, ws="none", lifespan="off", log_config=None, port=0)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("transports", [("websocket", "sse", "polling"), ("websocket", "polling")])
async def test_the_application_does_not_notice_the_way_down_and_up(
    rowcast: Rowcast,
    addresses: Addresses,
    connection: psycopg.Connection,
    transports: Sequence[TransportName],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows arrive over a fallback while there is no WebSocket, then over the WebSocket, without a gap or a status."""
    monkeypatch.setattr("rowcast.client.ladder.CLIMB_SECONDS", (0.2,))
    connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5), (2, 'Boreas', 6)")
    keys: set[int] = set()

    def sink(events: Sequence[Event]) -> None:
        log(events)
        for event in events:
            if isinstance(event, SnapshotChunk):
                if event.chunk == 0:
                    keys.clear()
                keys.update(row["id"] for row in event.rows)
            elif isinstance(event, Transaction):
                for change in event.changes.get("p", ()):
                    assert change["op"] == "INSERT"
                    assert change["key"]["id"] not in keys
                    keys.add(change["key"]["id"])

    log = Log()
    async with without_websockets(rowcast) as port, FaultProxy(port) as front:
        url = f"http://127.0.0.1:{front.port}"
        async with Connection(url, sink=sink, transports=transports) as client:
            client.subscribe("p", Interest("projects", filter="org=eq.5"))
            await until(lambda: keys == {1})
            assert client.state.transport == transports[1]
            connection.execute("INSERT INTO projects VALUES (3, 'Cirrus', 5), (4, 'other', 6)")
            await until(lambda: keys == {1, 3})
            front.target_port = int(addresses.http.rsplit(":", 1)[1].strip("/"))
            await until(lambda: client.state.transport == "websocket")
            connection.execute("INSERT INTO projects VALUES (5, 'Dune', 5)")
            await until(lambda: keys == {1, 3, 5})
    assert log.statuses.count("connected") == 1, "nothing was said about the climb"


@pytest.mark.parametrize("transport", ["sse", "polling"])
async def test_an_unknown_channel_is_refused_over_every_transport(
    addresses: Addresses, transport: TransportName
) -> None:
    log = Log()
    async with Connection(addresses.http, sink=log, transports=[transport]) as client:
        client.subscribe("p", Interest("project"))
        await until(lambda: log.count(Refused) == 1)
    (refused,) = (event for event in log.events if isinstance(event, Refused))
    assert refused.code == "unknown_channel"
    assert "known: jobs, projects" in refused.message
