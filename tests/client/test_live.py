"""Live rows over a real server, and over a scripted one where the moment matters."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypedDict

import msgspec
import psycopg
import pydantic
import pytest
from tests.client.scripted import ScriptedServer, position, until

from rowcast.client.client import connect
from rowcast.client.handlers import Handlers
from rowcast.client.live import Change, LiveRows
from rowcast.client.rows import Row
from rowcast.errors import ClientError
from rowcast.server import Addresses
from rowcast.testing.proxy import FaultProxy


class Project(TypedDict):
    id: int
    name: str | None


class ProjectStruct(msgspec.Struct):
    id: int
    name: str


@dataclass
class ProjectData:
    id: int
    name: str
    org: int = 0


class ProjectModel(pydantic.BaseModel):
    id: int
    name: str


class Follower:
    """A list that is kept by applying changes only."""

    def __init__(self, live: LiveRows[Any]) -> None:
        self.rows: list[Any] = []
        self.changes: list[Change[Any]] = []
        self._task = asyncio.create_task(self._follow(live))

    async def _follow(self, live: LiveRows[Any]) -> None:
        async for change in live.changes():
            change.apply_to(self.rows)
            self.changes.append(change)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class TestRows:
    async def test_rows_now_and_on_every_change(
        self, addresses: Addresses, connection: psycopg.Connection
    ) -> None:
        connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5), (2, 'Boreas', 6)")
        async with connect(addresses.http) as rc:
            projects = await rc.live("projects", filter="org=eq.5", order_by="name").ready()
            assert projects.rows == [{"id": 1, "name": "Atlas", "org": 5}]
            connection.execute("INSERT INTO projects VALUES (3, 'Aaron', 5), (4, 'other', 6)")
            await until(lambda: len(projects) == 2)
            assert [row["name"] for row in projects] == ["Aaron", "Atlas"]
            connection.execute("UPDATE projects SET org = 6 WHERE id = 1")
            await until(lambda: [row["id"] for row in projects.rows] == [3])
            assert projects[0] == projects.get(3) == projects.get({"id": 3})
            assert projects.get(1) is None
            assert projects.state == "live"

    async def test_the_first_of_many_in_an_order(
        self, addresses: Addresses, connection: psycopg.Connection
    ) -> None:
        connection.execute("INSERT INTO projects SELECT i, 'p', i % 7 FROM generate_series(1, 100) AS i")
        async with connect(addresses.http) as rc, rc.live("projects", order_by="-org,id", limit=3) as top:
            assert [row["id"] for row in top] == [6, 13, 20]
            connection.execute("UPDATE projects SET org = 9 WHERE id = 50")
            await until(lambda: [row["id"] for row in top] == [50, 6, 13])
            assert top.get(99) is not None, "rows beyond the limit are known all the same"

    @pytest.mark.parametrize("kind", [ProjectStruct, ProjectData, ProjectModel])
    async def test_rows_are_of_the_type_that_was_asked_for(
        self, addresses: Addresses, connection: psycopg.Connection, kind: type[Any]
    ) -> None:
        connection.execute("INSERT INTO projects VALUES (1, 'Atlas', 5), (2, 'Boreas', 6)")
        async with connect(addresses.http) as rc, rc.live("projects", type=kind) as projects:
            first, second = projects.rows
            assert isinstance(first, kind)
            assert (first.id, first.name) == (1, "Atlas")
            connection.execute("UPDATE projects SET name = 'Atlas 2' WHERE id = 1")
            await until(lambda: projects[0].name == "Atlas 2")
            assert projects[1] is second, "a row that has not changed is the same object"

    async def test_types_are_checked_statically_and_at_run_time(self, scripted: ScriptedServer) -> None:
        await scripted.commit(("INSERT", "projects", {"id": 1, "name": None}))
        async with connect(scripted.url) as rc:
            projects: LiveRows[Project] = rc.live("projects", type=Project)
            await projects.ready()
            name: str | None = projects[0]["name"]
            assert name is None
            with pytest.raises(
                ClientError, match=r"does not fit the type ProjectStruct: Expected `str`, got `null`"
            ):
                _ = (await rc.live("projects", type=ProjectStruct).ready()).rows

    async def test_dates_and_decimals_become_what_the_type_says(
        self, dsn: str, connection: psycopg.Connection, addresses: Addresses
    ) -> None:
        class Job(msgspec.Struct):
            id: Decimal
            project: int

        connection.execute("INSERT INTO jobs VALUES (1, 2)")
        async with connect(addresses.http) as rc, rc.live("jobs", type=Job) as jobs:
            assert jobs[0].id == Decimal(1)
            assert isinstance(jobs[0].id, Decimal)

    async def test_an_unknown_channel_is_an_error_where_it_is_waited_for(self, addresses: Addresses) -> None:
        async with connect(addresses.http) as rc:
            projects = rc.live("project")
            with pytest.raises(ClientError, match=r"there is no channel \"project\"; known: jobs, projects"):
                await projects.ready()
            assert projects.state == "ended"
            with pytest.raises(ClientError, match="no channel"):
                await rc.live("project").ready()

    async def test_what_was_known_stays_usable_without_a_server(self, scripted: ScriptedServer) -> None:
        await scripted.commit(("INSERT", "projects", {"id": 1}))
        async with connect(scripted.url) as rc, rc.live("projects") as projects:
            states: list[str] = []
            projects.on_state(states.append)
            await scripted.stop()
            await until(lambda: projects.state == "stale")
            assert [row["id"] for row in projects] == [1]
            late = rc.live("projects")
            await late.ready()
            assert late.rows == projects.rows
            await scripted.start()
            await until(lambda: projects.state == "live")
            assert states == ["stale", "live"]

    async def test_a_refresh_reads_the_rows_anew_without_a_gap(self, scripted: ScriptedServer) -> None:
        await scripted.commit(("INSERT", "projects", {"id": 1}))
        async with connect(scripted.url) as rc, rc.live("projects") as projects:
            scripted.rows["projects"][2] = {"id": 2, "name": None}  # something that the stream has not told
            projects.refresh()
            assert [row["id"] for row in projects] == [1]
            await until(lambda: len(projects) == 2)

    async def test_arguments_that_exclude_each_other(self, scripted: ScriptedServer) -> None:
        async with connect(scripted.url) as rc:
            with pytest.raises(ClientError, match="exclude each other"):
                rc.live("projects", filter="a=eq.1", where="a = 1")
            with pytest.raises(ClientError, match="keep the list by themselves"):
                rc.live("projects", handlers=Handlers(), limit=5)
        with pytest.raises(ClientError, match="the client is closed"):
            rc.live("projects")

    async def test_waiting_ends_when_the_client_is_closed_or_refused(self, scripted: ScriptedServer) -> None:
        scripted.snapshot_gate.clear()
        async with connect(scripted.url) as rc:
            waiting = asyncio.create_task(rc.live("projects").ready())
            await until(lambda: bool(scripted.clients))
        scripted.snapshot_gate.set()
        with pytest.raises(ClientError, match="closed by the application"):
            await waiting
        scripted.tokens = {"good"}
        async with connect(scripted.url, token="bad") as rc:
            with pytest.raises(ClientError, match="does not accept the credentials"):
                await rc.live("projects").ready()


class TestChanges:
    async def test_applying_the_changes_gives_the_rows(
        self, addresses: Addresses, connection: psycopg.Connection
    ) -> None:
        """Random edits; three lists in different orders, followed by changes only."""
        source = random.Random(11)
        connection.execute("INSERT INTO projects SELECT i, 'p' || i, i % 5 FROM generate_series(1, 40) AS i")
        async with connect(addresses.http) as rc:
            lists = [
                await rc.live("projects", **options).ready()
                for options in (
                    {"order_by": "-org,name"},
                    {"order_by": "name", "limit": 7},
                    {"handlers": Handlers()},
                )
            ]
            followers = [Follower(live) for live in lists]
            for number in range(60):
                key, org = source.randrange(60), source.randrange(5)
                connection.execute(
                    source.choice((
                        f"INSERT INTO projects VALUES ({key}, 'n{number}', {org}) ON CONFLICT (id) DO UPDATE SET org = {org}",
                        f"UPDATE projects SET org = {org} WHERE id % 3 = {number % 3}",
                        f"DELETE FROM projects WHERE id = {key}",
                    ))
                )  # fmt: skip
            connection.execute("INSERT INTO projects VALUES (1000, 'last', 0)")
            await until(lambda: all(live.get(1000) is not None for live in lists))
            await until(lambda: all(f.rows == live.rows for f, live in zip(followers, lists, strict=True)))
            expected = connection.execute(
                'SELECT id FROM projects ORDER BY org DESC, name COLLATE "C"'
            ).fetchall()
            assert [row["id"] for row in lists[0].rows] == [key for (key,) in expected]
            for follower in followers:
                assert follower.changes[0].restart
                assert not any(change.restart for change in follower.changes[1:])
                await follower.stop()

    async def test_a_consumer_that_does_not_keep_up_starts_again(self, scripted: ScriptedServer) -> None:
        async with (
            connect(scripted.url) as rc,
            rc.live("projects") as projects,
            aclosing(projects.changes()) as changes,
        ):
            rows: list[Row] = []
            (await anext(changes)).apply_to(rows)
            for number in range(1_500):
                await scripted.commit(("INSERT", "projects", {"id": number}))
            await until(lambda: len(projects) == 1_500)
            change = await anext(changes)
            assert change.restart
            change.apply_to(rows)
            assert rows == projects.rows

    async def test_one_commit_over_two_channels_is_seen_at_once(self, scripted: ScriptedServer) -> None:
        """Whoever is called for one of them finds the other one changed already."""
        async with connect(scripted.url) as rc, rc.live("projects") as projects, rc.live("jobs") as jobs:
            seen: list[tuple[int, int]] = []
            projects.on_change(lambda _: seen.append((len(projects), len(jobs))))
            jobs.on_change(lambda _: seen.append((len(projects), len(jobs))))
            await scripted.commit(("INSERT", "jobs", {"id": 1}), ("INSERT", "projects", {"id": 1}))
            await until(lambda: len(seen) == 2)
            assert seen == [(1, 1), (1, 1)]

    async def test_callbacks_by_kind_of_change(self, scripted: ScriptedServer) -> None:
        told: list[tuple[str, object]] = []
        async with connect(scripted.url) as rc, rc.live("projects", order_by="name") as projects:
            projects.on_insert(lambda row: told.append(("insert", row["id"])))
            stop = projects.on_update(lambda row: told.append(("update", row["name"])))
            projects.on_delete(lambda row: told.append(("delete", row["id"])))
            await scripted.commit(
                ("INSERT", "projects", {"id": 1, "name": "b"}), ("INSERT", "projects", {"id": 2, "name": "c"})
            )
            await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "bb"}))
            await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "d"}))
            await until(lambda: ("update", "d") in told)
            stop()
            stop()
            await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "e"}))
            await scripted.commit(("DELETE", "projects", {"id": 1}))
            await until(lambda: len(projects) == 1)
        assert told == [("insert", 1), ("insert", 2), ("update", "bb"), ("update", "d"), ("delete", 1)]

    async def test_a_callback_that_fails_harms_nobody_else(
        self, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[Change[Row]] = []

        def fail(change: Change[Row]) -> None:
            raise RuntimeError("a bug of the application's")

        async with connect(scripted.url) as rc, rc.live("projects") as projects:
            projects.on_change(fail)
            projects.on_change(told.append)
            await scripted.commit(("INSERT", "projects", {"id": 1}))
            await until(lambda: len(told) == 1)
            assert rc.state.status == "connected"
        assert "a bug of the application's" in caplog.text

    async def test_callbacks_can_be_handed_to_another_thread_or_loop(self, scripted: ScriptedServer) -> None:
        handed: list[Any] = []
        told: list[Change[Row]] = []
        async with connect(scripted.url) as rc, rc.live("projects") as projects:
            projects.on_change(told.append, via=handed.append)
            await scripted.commit(("INSERT", "projects", {"id": 1}))
            await until(lambda: len(handed) == 1)
            assert told == []
            handed[0]()
            assert len(told) == 1

    async def test_a_way_to_another_thread_that_is_closed_harms_nobody(
        self, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        def closed(callback: object) -> None:
            raise RuntimeError("the window is closed")

        async with connect(scripted.url) as rc, rc.live("projects") as projects:
            projects.on_change(print, via=closed)
            await scripted.commit(("INSERT", "projects", {"id": 1}))
            await until(lambda: len(projects) == 1)
        assert "the window is closed" in caplog.text

    async def test_a_row_that_does_not_fit_the_type_is_an_error_where_changes_are_read(
        self, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with connect(scripted.url) as rc, rc.live("projects", type=ProjectStruct) as projects:
            async with aclosing(projects.changes()) as changes:
                await anext(changes)
                await scripted.commit(("INSERT", "projects", {"id": 1, "name": None}))
                with pytest.raises(ClientError, match="does not fit the type ProjectStruct"):
                    await anext(changes)
            assert rc.state.status == "connected"
        assert "a change cannot be told" in caplog.text

    async def test_changes_end_when_the_rows_are_closed(self, scripted: ScriptedServer) -> None:
        async with connect(scripted.url) as rc:
            projects = await rc.live("projects").ready()
            follower = Follower(projects)
            await until(lambda: len(follower.changes) == 1)
            projects.close()
            await until(follower._task.done)

    async def test_a_resync_is_one_change_with_the_differences(self, scripted: ScriptedServer) -> None:
        await scripted.commit(("INSERT", "projects", {"id": 1}), ("INSERT", "projects", {"id": 2}))
        async with connect(scripted.url) as rc, rc.live("projects") as projects:
            told: list[Change[Row]] = []
            projects.on_change(told.append)
            del scripted.rows["projects"][1]
            scripted.rows["projects"][3] = {"id": 3, "name": None}
            (client,) = scripted.clients
            await client.send({
                "type": "resync", "id": "1", "shape": 1, "channel": "projects", "reason": "slow_client",
                "after_ms": 1, "position": position(scripted.head),
            })  # fmt: skip
            await until(lambda: projects.state == "stale")
            await until(lambda: len(told) == 1)
            assert told[0].reset
            assert [(index, row["id"]) for index, row in told[0].removed] == [(0, 1)]
            assert [(index, row["id"]) for index, row in told[0].inserted] == [(1, 3)]
            assert projects.state == "live"


class TestHandlers:
    async def test_the_application_keeps_its_own_order(self, scripted: ScriptedServer) -> None:
        """Newest first, and what changes jumps to the top."""
        handlers = Handlers(
            insert=lambda rows, row: [row, *rows],
            update=lambda rows, old, new: [new, *(each for each in rows if each is not old)],
        )
        await scripted.commit(*(("INSERT", "projects", {"id": number, "name": "x"}) for number in (1, 2, 3)))
        async with connect(scripted.url) as rc, rc.live("projects", handlers=handlers) as projects:
            follower = Follower(projects)
            assert [row["id"] for row in projects] == [3, 2, 1]
            await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "y"}))
            await scripted.commit(("INSERT", "projects", {"id": 4}), ("DELETE", "projects", {"id": 2}))
            await until(lambda: [row["id"] for row in projects] == [4, 1, 3])
            await until(lambda: follower.rows == projects.rows)
            await follower.stop()

    async def test_moves_are_told_as_moves(self, scripted: ScriptedServer) -> None:
        def shuffle(rows: Sequence[Row], old: Row, new: Row) -> Sequence[Row]:
            return [new if each is old else each for each in rows][::-1]

        await scripted.commit(*(("INSERT", "projects", {"id": number}) for number in (1, 2, 3)))
        async with (
            connect(scripted.url) as rc,
            rc.live("projects", handlers=Handlers(update=shuffle)) as projects,
        ):
            follower = Follower(projects)
            await scripted.commit(("UPDATE", "projects", {"id": 1, "name": "y"}))
            await until(lambda: len(follower.changes) == 2)
            assert follower.rows == projects.rows
            assert [row["id"] for row in projects] == [3, 2, 1]
            assert [moved[:2] for moved in follower.changes[1].moved] == [(2, 0), (1, 1)]
            await follower.stop()

    async def test_a_handler_that_fails_ends_its_own_list_only(
        self, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(rows: Sequence[Row], row: Row) -> Sequence[Row]:
            raise RuntimeError("a bug of the application's")

        async with connect(scripted.url) as rc:
            broken = await rc.live("projects", handlers=Handlers(insert=fail)).ready()
            sound = await rc.live("projects").ready()
            async with aclosing(broken.changes()) as changes:
                await anext(changes)
                await scripted.commit(("INSERT", "projects", {"id": 1}))
                with pytest.raises(ClientError, match="a handler failed"):
                    await anext(changes)
            assert len(sound) == 1
        assert "a handler failed" in caplog.text


class TestSharing:
    async def test_equal_subscriptions_are_one_and_the_last_user_ends_it(
        self, scripted: ScriptedServer
    ) -> None:
        await scripted.commit(("INSERT", "projects", {"id": 1}))
        async with connect(scripted.url, linger_seconds=0) as rc:
            first = await rc.live("projects", filter="a=eq.1", order_by="id").ready()
            second = await rc.live("projects", filter="a=eq.1", order_by="-id", limit=5).ready()
            other = await rc.live("projects", filter="a=eq.2").ready()
            (client,) = scripted.clients
            asked = [frame for frame in client.received if frame["type"] == "subscribe"]
            hello = client.received[0]["subscriptions"]
            assert len(asked) + len(hello) == 2
            first.close()
            first.close()
            await scripted.commit(("INSERT", "projects", {"id": 2}))
            await until(lambda: [row["id"] for row in second] == [2, 1])
            assert len(client.watching) == 2
            second.close()
            await until(lambda: len(client.watching) == 1)
            other.close()
            await until(lambda: not client.watching)

    async def test_a_subscription_lingers_for_who_comes_right_after(self, scripted: ScriptedServer) -> None:
        async with connect(scripted.url, linger_seconds=0.1) as rc:
            (await rc.live("projects").ready()).close()
            again = rc.live("projects")
            await again.ready()
            (client,) = scripted.clients
            again.close()
            await until(lambda: not client.watching)
            kinds = [frame["type"] for frame in client.received if frame["type"] != "heartbeat"]
            assert kinds.count("subscribe") + len(client.received[0]["subscriptions"]) == 1


async def test_rows_equal_the_query_while_everything_breaks(
    proxy: FaultProxy, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random writers over a link that is cut, stalled and half-opened; in the end the rows are the query's."""
    monkeypatch.setattr("rowcast.client.backoff.STEPS_SECONDS", (0.05,))
    source = random.Random(5)

    def write() -> None:
        for number in range(300):
            with connection.transaction():
                for _ in range(source.randint(1, 4)):
                    key, org = source.randrange(30), source.randrange(4)
                    connection.execute(
                        "INSERT INTO projects VALUES (%s, %s, %s)"
                        " ON CONFLICT (id) DO UPDATE SET org = excluded.org, name = excluded.name",
                        (key, f"n{number}", org),
                    )
                if number % 5 == 0:
                    connection.execute("DELETE FROM projects WHERE id = %s", (source.randrange(30),))
                # In every commit the two tables hold the same number.
                connection.execute("DELETE FROM jobs")
                connection.execute("INSERT INTO jobs VALUES (1, %s)", (number,))
                connection.execute(
                    "INSERT INTO projects VALUES (1000, %s, 1) ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                    (str(number),),
                )

    async def break_links() -> None:
        for fault in itertools.islice(itertools.cycle((proxy.cut, proxy.stall, proxy.half_open)), 6):
            await asyncio.sleep(0.1)
            fault()
            await asyncio.sleep(0.05)
            proxy.resume()
            if fault == proxy.half_open:
                proxy.cut()

    torn: list[Mapping[str, object]] = []
    async with connect(f"http://127.0.0.1:{proxy.port}") as rc:
        projects = await rc.live("projects", filter="org=eq.1", order_by="id").ready()
        jobs = await rc.live("jobs").ready()

        def compare(_: object) -> None:
            marker = projects.get(1000)
            job = jobs.get(1)
            if marker is not None and job is not None and marker["name"] != str(job["project"]):
                torn.append({"marker": marker, "job": job})

        projects.on_change(compare)
        jobs.on_change(compare)
        await asyncio.gather(asyncio.to_thread(write), break_links())
        await until(lambda: (projects.get(1000) or {}).get("name") == "299", 20)
        expected = connection.execute("SELECT id, name FROM projects WHERE org = 1 ORDER BY id").fetchall()
        assert [(row["id"], row["name"]) for row in projects.rows] == expected
        assert jobs.rows == [{"id": 1, "project": 299}]
    assert torn == [], "a commit was seen in halves"
