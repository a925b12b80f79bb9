"""The synchronous front: the same client from threads and scripts."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psycopg
import pytest
from tests.client.scripted import ScriptedServer

from rowcast.client.live import Change
from rowcast.client.mutations import RejectedError
from rowcast.client.rows import Row
from rowcast.client.sync import SyncClient, connect
from rowcast.errors import ClientError
from rowcast.server import Addresses, Rowcast
from rowcast.testing.server import running


@dataclass
class Project:
    id: int
    name: str | None


@pytest.fixture
def server(rowcast: Rowcast) -> Iterator[Addresses]:
    """A real server in a thread of its own."""
    started: queue.Queue[tuple[Addresses, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        stop = asyncio.Event()
        async with running(rowcast) as addresses:
            started.put((addresses, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    addresses, loop, stop = started.get(timeout=20)
    yield addresses
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@pytest.fixture
def client(server: Addresses) -> Iterator[SyncClient]:
    with connect(server.http) as connected:
        yield connected


def test_rows_in_a_script(client: SyncClient, connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5), (2, 'Boreas', 6)")
    with client.live("projects", order_by="-name", type=Project) as projects:
        assert projects.rows == [Project(2, "Boreas"), Project(1, "Atlas")]
        assert projects.get(1) == Project(1, "Atlas")
        assert (len(projects), projects[0].id, [each.id for each in projects]) == (2, 2, [2, 1])
        assert projects.state == "live"
        assert projects.position
        assert client.state.status == "connected"


def test_changes_are_iterated_until_nothing_comes(client: SyncClient, connection: psycopg.Connection) -> None:
    with client.live("projects") as projects:
        rows: list[Row] = []
        for number, change in enumerate(projects.changes(timeout_seconds=1)):
            change.apply_to(rows)
            if number < 3:
                connection.execute("INSERT INTO projects VALUES (%s)", (number,))
        assert [row["id"] for row in rows] == [0, 1, 2]


def test_closing_the_rows_ends_the_iteration_of_another_thread(client: SyncClient) -> None:
    projects = client.live("projects").ready(10)
    seen: list[Change[Row]] = []
    began = threading.Event()

    def follow() -> None:
        for change in projects.changes():
            seen.append(change)
            began.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert began.wait(5)
    projects.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(seen) == 1


def test_many_threads_share_one_client(client: SyncClient, connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO projects SELECT i, 'p', i FROM generate_series(1, 50) AS i")

    def read(number: int) -> int:
        with client.live("projects", filter=f"org=lte.{number % 3 + 1}") as projects:
            return len(projects)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(24))) == [1, 2, 3] * 8


def test_callbacks_can_be_brought_to_the_callers_own_thread(
    client: SyncClient, connection: psycopg.Connection
) -> None:
    """As a toolkit does: a queue that its own thread works off."""
    inbox: queue.Queue[object] = queue.Queue()
    told: list[tuple[str, int]] = []
    with client.live("projects") as projects:
        stop = projects.on_insert(
            lambda row: told.append((threading.current_thread().name, row["id"])), via=inbox.put
        )
        connection.execute("INSERT INTO projects VALUES (1)")
        deliver = inbox.get(timeout=5)
        assert told == []
        assert callable(deliver)
        deliver()
        assert told == [(threading.current_thread().name, 1)]
        stop()
        for register in (projects.on_change, projects.on_update, projects.on_delete, projects.on_state):
            register(lambda _: None)()


def test_a_callback_that_would_wait_for_its_own_thread_is_told_so(
    client: SyncClient, connection: psycopg.Connection
) -> None:
    errors: queue.Queue[Exception] = queue.Queue()
    with client.live("projects") as projects:

        def callback(_: Change[Row]) -> None:
            try:
                len(projects)
            except ClientError as error:
                errors.put(error)

        projects.on_change(callback)
        connection.execute("INSERT INTO projects VALUES (1)")
        assert "a callback may not wait for the client" in str(errors.get(timeout=5))


def test_mutations_with_blocking_senders(
    client: SyncClient, connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("INSERT INTO projects VALUES (1, 'old', 5)")

    def rename(mutation: str) -> int:
        with psycopg.connect(dsn) as mine:
            mine.execute("UPDATE projects SET name = 'new' WHERE id = 1")
            mine.execute("SELECT rowcast.confirm(%s)", (mutation,))
        return 42

    def refuse(mutation: str) -> None:
        raise RejectedError("no")

    with client.live("projects") as projects:
        mutation = projects.mutate(projects.updating(1, name="new"), send=rename)
        assert projects[0]["name"] == "new"
        assert mutation.result(10) == 42
        assert mutation.state == "confirmed"
        assert client.mutations == projects.pending(1) == []
        refused = client.mutate([projects.deleting(1)], send=refuse)
        with pytest.raises(RejectedError):
            refused.result(10)
        assert len(projects) == 1
        refused.retry()
        with pytest.raises(RejectedError):
            refused.result(10)
        inserted = projects.mutate(projects.inserting({"name": "x"}, key="made up"), send=refuse)
        with pytest.raises(RejectedError):
            inserted.result(10)


def test_time_outs_errors_and_states(server: Addresses) -> None:
    with pytest.raises(ClientError, match="is no server's address"):
        connect("ftp://host")
    states: queue.Queue[str] = queue.Queue()
    with connect("http://127.0.0.1:1") as away:
        away.on_state(lambda state: states.put(state.status))
        away.on_error(print)()
        with pytest.raises(TimeoutError):
            away.live("projects").ready(0.05)
        away.reconnect()
        away.set_online(online=False)
        while states.get(timeout=5) != "offline":
            pass
    with connect(server.http) as client:
        with pytest.raises(ClientError, match="there is no channel"):
            client.live("project").ready(10)
        projects = client.live("projects").ready(10)
        projects.refresh()
    client.close()
    with pytest.raises(ClientError, match="the client is closed"):
        _ = client.state


async def test_nothing_of_it_disturbs_an_event_loop_beside_it(scripted: ScriptedServer) -> None:
    """A script's own loop goes on while another thread waits for rows."""
    await scripted.commit(("INSERT", "projects", {"id": 1}))

    def read() -> list[Row]:
        with connect(scripted.url) as client, client.live("projects") as projects:
            return projects.rows

    assert [row["id"] for row in await asyncio.to_thread(read)] == [1]
