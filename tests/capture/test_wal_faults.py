"""The WAL capture on bad days: everything may break at any time, and nothing is lost in silence or told twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.capture.following import (
    Follower,
    capture,
    changes,
    confirmed,
    eventually,
    ids,
    replay,
    select,
    watch,
    write_at_random,
)

from rowcast.capture.connection import connect
from rowcast.capture.slot import end_walsender
from rowcast.capture.wal import WalCapture
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import Row, Value, epoch_of, number_of
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.proxy import FaultProxy

# The server gives up a client that is silent for so long: dead connections are found within a test's patience.
WAL_SENDER_TIMEOUT_SECONDS = 2.0


@pytest.fixture
def jobs(connection: psycopg.Connection, dsn: str) -> psycopg.Connection:
    """A connection to a database with a watched table `jobs`."""
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY, state text)")
    watch(dsn, "jobs")
    return connection


@pytest.fixture(scope="module")
def fragile() -> Iterator[EmbeddedPostgres]:
    """A server that these tests may stop and kill."""
    settings = {
        "wal_sender_timeout": f"{WAL_SENDER_TIMEOUT_SECONDS}s",
        "max_slot_wal_keep_size": "1MB",
        "max_wal_size": "64MB",
    }
    with EmbeddedPostgres(settings=settings) as server:
        yield server


@contextmanager
def database(server: EmbeddedPostgres, name: str) -> Iterator[str]:
    """A database with the table t (id, a, b) watched."""
    dsn = server.create_database(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    watch(dsn, "t")
    yield dsn
    server.drop_database(name)


def slot_value(connection: psycopg.Connection, column: str) -> object:
    """A column of this database's slot, None where there is no slot."""
    row = connection.execute(
        f"SELECT {column} FROM pg_replication_slots WHERE database = current_database()".encode()
    ).fetchone()
    return row and row[0]


def take_slot_away(connection: psycopg.Connection) -> str:
    """End the walsender and wait until its slot is free. Blocks the loop, so the capture cannot come back."""
    name = slot_value(connection, "slot_name")
    while pid := slot_value(connection, "active_pid"):
        connection.execute("SELECT pg_terminate_backend(%s, 1000)", [pid])
    return str(name)


def assert_state_and_order(follower: Follower[WalCapture], connection: psycopg.Connection) -> None:
    told = ids(follower.transactions)
    assert told == sorted(set(told))
    rows: dict[tuple[Value, ...], Row] = {}
    replay(follower.transactions, "t", rows)
    assert rows == select(connection, "t")


async def test_a_terminated_walsender_costs_nothing(connection: psycopg.Connection, dsn: str) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    watch(dsn, "t")
    async with Follower(capture(dsn)) as follower:
        writing = asyncio.create_task(write_at_random(dsn, "t", writers=3, seconds=2))
        for count in range(1, 5):
            await follower.until(lambda: follower.capture.status.state == "live")
            seen = len(follower.transactions)
            await follower.until(lambda seen=seen: len(follower.transactions) > seen)  # type: ignore[misc]
            take_slot_away(connection)
            await follower.until(lambda count=count: follower.capture.status.reconnects >= count)  # type: ignore[misc]
        await writing
        await follower.until(lambda: follower.capture.status.state == "live")
        await follower.caught_up()
        assert follower.gaps == []
        assert follower.tables_changed == []
        [table] = follower.capture.tables.values()
        assert all(change.table is table for one in follower.transactions for change in one.changes)
        assert_state_and_order(follower, connection)


async def test_a_server_that_is_killed_and_restarted_costs_nothing(fragile: EmbeddedPostgres) -> None:
    with database(fragile, "killed") as dsn:
        async with Follower(capture(dsn)) as follower:
            writing = asyncio.create_task(write_at_random(dsn, "t", writers=3, seconds=3))
            for count in (1, 2):
                seen = len(follower.transactions)
                await follower.until(lambda seen=seen: len(follower.transactions) > seen + 20)  # type: ignore[misc]
                await asyncio.to_thread(fragile.kill)
                await follower.until(lambda: follower.capture.status.state == "degraded")
                with pytest.raises(CaptureError, match="connection to PostgreSQL"):
                    await follower.capture.mark()
                await asyncio.to_thread(fragile.start)
                await follower.until(lambda: follower.capture.status.state == "live")
                assert follower.capture.status.reconnects >= count
            await writing
            await follower.caught_up()
            assert follower.gaps == []
            with psycopg.connect(dsn) as connection:
                assert_state_and_order(follower, connection)


async def test_a_server_that_shuts_down_is_not_held_up_by_what_was_not_acknowledged(
    fragile: EmbeddedPostgres,
) -> None:
    with database(fragile, "shutdown") as dsn:
        async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("INSERT INTO t VALUES (1, 'a', 1)")
            await follower.caught_up()
            began = time.monotonic()
            await asyncio.to_thread(fragile.stop)
            assert time.monotonic() - began < 10
            await asyncio.to_thread(fragile.start)
            await follower.until(lambda: follower.capture.status.state == "live")
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("INSERT INTO t VALUES (2, 'b', 2)")
            await follower.caught_up()
            assert [new for _, new, _ in changes(follower.transactions)] == [
                (b"1", b"a", b"1"),
                (b"2", b"b", b"2"),
            ]


async def test_a_dropped_slot_is_made_anew_and_answered_by_a_gap(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        jobs.execute("INSERT INTO jobs VALUES (1, 'told')")
        await follower.caught_up()
        epoch = follower.capture.epoch
        jobs.execute("SELECT pg_drop_replication_slot(%s)", [take_slot_away(jobs)])
        jobs.execute("INSERT INTO jobs VALUES (2, 'lost')")
        await follower.until(lambda: follower.gaps)
        jobs.execute("INSERT INTO jobs VALUES (3, 'told')")
        await follower.caught_up()
        [gap] = follower.gaps
        assert (gap.reason, gap.tables) == ("slot_lost", None)
        assert epoch_of(gap.position) == follower.capture.epoch != epoch
        assert [new for _, new, _ in changes(follower.transactions)] == [(b"1", b"told"), (b"3", b"told")]
        assert epoch_of(follower.transactions[-1].position) == follower.capture.epoch


async def test_a_slot_that_somebody_else_moved_is_answered_by_a_gap(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        jobs.execute("INSERT INTO jobs VALUES (1, 'told')")
        await follower.caught_up()
        name = take_slot_away(jobs)
        jobs.execute("INSERT INTO jobs VALUES (2, 'lost')")
        jobs.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [name])
        moved_to = confirmed(jobs)
        await follower.until(lambda: follower.gaps)
        jobs.execute("INSERT INTO jobs VALUES (3, 'told')")
        await follower.caught_up()
        [gap] = follower.gaps
        assert (gap.reason, number_of(gap.position)) == ("slot_lost", moved_to)
        assert epoch_of(gap.position) == epoch_of(follower.start)
        assert [new for _, new, _ in changes(follower.transactions)] == [(b"1", b"told"), (b"3", b"told")]


async def test_a_database_that_was_put_back_to_an_earlier_state_is_answered_by_a_gap(tmp_path: Path) -> None:
    with EmbeddedPostgres() as server, database(server, "restored") as dsn:
        async with Follower(capture(dsn)) as follower:
            await follower.caught_up()
            await asyncio.to_thread(server.stop)
            copy = shutil.copytree(server.data_directory, tmp_path / "copy")
            await asyncio.to_thread(server.start)
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("INSERT INTO t VALUES (1, 'undone', 1)")
                await follower.until(lambda: follower.transactions)
                epoch, undone = follower.capture.epoch, follower.transactions[0].position
            await asyncio.to_thread(server.stop)
            restore(copy, server.data_directory)
            await asyncio.to_thread(server.start)
            await follower.until(lambda: follower.gaps)
            follower.capture.acknowledge(undone)
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("INSERT INTO t VALUES (2, 'told', 2)")
            await follower.caught_up()
            assert follower.capture.epoch != epoch
            assert [gap.reason for gap in follower.gaps] == ["slot_lost"]
            assert changes(follower.transactions)[1:] == [("INSERT", (b"2", b"told", b"2"), None)]


def restore(copy: Path, data_directory: Path) -> None:
    """Put a cluster's files back, for the user who owns them."""
    owner = data_directory.stat()
    shutil.rmtree(data_directory)
    shutil.copytree(copy, data_directory)
    for path in (data_directory, *data_directory.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


async def test_transaction_ids_go_on_counting_after_four_billion() -> None:
    with EmbeddedPostgres() as server:
        begin_epoch(server, 3)
        with database(server, "old") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
            async with Follower(capture(dsn)) as follower:
                rows = connection.execute(
                    "INSERT INTO t VALUES (1, 'x', 1) RETURNING pg_current_xact_id()::text::bigint"
                )
                [(xid,)] = rows.fetchall()
                await follower.caught_up()
                assert follower.transactions[0].xid == xid > 3 * 2**32


def begin_epoch(server: EmbeddedPostgres, epoch: int) -> None:
    server.stop()
    owner = server.data_directory.stat()
    command = f"{server.binary('pg_resetwal')} --epoch={epoch} {server.data_directory}"
    subprocess.run(command.split(), check=True, capture_output=True, user=owner.st_uid, group=owner.st_gid)
    server.start()


async def test_a_slot_that_the_server_invalidated_is_answered_by_a_gap(fragile: EmbeddedPostgres) -> None:
    with database(fragile, "invalidated") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        async with Follower(capture(dsn)) as follower:
            epoch = follower.capture.epoch
            invalidate(connection)
            await follower.until(lambda: follower.gaps)
            connection.execute("INSERT INTO t VALUES (1, 'told', 1)")
            await follower.caught_up()
            assert [gap.reason for gap in follower.gaps] == ["slot_lost"]
            assert follower.capture.epoch != epoch
            assert changes(follower.transactions) == [("INSERT", (b"1", b"told", b"1"), None)]
            epoch = follower.capture.epoch
        invalidate(connection)
        async with Follower(capture(dsn)) as follower:
            await follower.caught_up()
            assert follower.gaps == []
            assert follower.capture.epoch != epoch


def invalidate(connection: psycopg.Connection) -> None:
    take_slot_away(connection)
    for _ in range(4):
        connection.execute("SELECT pg_logical_emit_message(false, 'filler', 'x'), pg_switch_wal()")
    connection.execute("CHECKPOINT")
    assert slot_value(connection, "wal_status") == "lost"


async def test_a_second_server_stands_by_and_takes_over(jobs: psycopg.Connection, dsn: str) -> None:
    second = capture(dsn)
    async with Follower(capture(dsn)) as first:
        starting = asyncio.create_task(second.start())
        jobs.execute("INSERT INTO jobs VALUES (1, 'told by the first')")
        await first.caught_up()
        first.capture.acknowledge(first.position)
        jobs.execute("INSERT INTO jobs VALUES (2, 'told by both')")
        await first.caught_up()
        await first.until(lambda: second.status.state == "standby")
        assert "another server streams from slot" in second.status.reason
        assert not starting.done()
        acknowledged = first.transactions[0].position
        await first.until(lambda: confirmed(jobs) >= number_of(acknowledged))
    assert epoch_of(await starting) == first.capture.epoch
    async with Follower(second) as follower:
        await follower.caught_up()
        assert [new for _, new, _ in changes(follower.transactions)] == [(b"2", b"told by both")]
        assert ids(follower.transactions) == ids(first.transactions)[1:]
        assert follower.gaps == []


async def test_a_connection_that_died_without_a_word_is_noticed(fragile: EmbeddedPostgres) -> None:
    with database(fragile, "halfopen") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        async with (
            FaultProxy(fragile.port) as proxy,
            Follower(
                capture(dsn.replace(str(fragile.port), str(proxy.port)), heartbeat_seconds=60)
            ) as follower,
        ):
            connection.execute("INSERT INTO t VALUES (1, 'before', 1)")
            await follower.caught_up()
            proxy.half_open()
            proxy.refuse()
            connection.execute("INSERT INTO t VALUES (2, 'swallowed', 2)")
            await follower.until(lambda: follower.capture.status.state == "degraded")
            proxy.resume()
            await follower.until(lambda: follower.capture.status.state == "live")
            await follower.caught_up()
            assert [new for _, new, _ in changes(follower.transactions)] == [
                (b"1", b"before", b"1"),
                (b"2", b"swallowed", b"2"),
            ]


async def test_a_question_whose_answer_never_comes_is_noticed_although_the_link_stays_open(
    jobs: psycopg.Connection, dsn: str, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowcast.capture.connection.SILENCE_SECONDS", 0.5)
    async with (
        FaultProxy(postgres.port) as proxy,
        Follower(capture(dsn.replace(str(postgres.port), str(proxy.port)))) as follower,
    ):
        await follower.caught_up()
        proxy.half_open()
        proxy.resume()  # for new links
        with pytest.raises(CaptureError, match="was lost"):
            await follower.capture.mark()
        jobs.execute("INSERT INTO jobs VALUES (1, 'after')")
        await follower.until(lambda: follower.transactions)
        assert (follower.capture.status.state, follower.gaps) == ("live", [])


async def test_a_link_that_breaks_off_in_the_middle_of_a_row_costs_nothing(
    postgres: EmbeddedPostgres, connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    watch(dsn, "t")
    async with (
        FaultProxy(postgres.port) as proxy,
        Follower(capture(dsn.replace(str(postgres.port), str(proxy.port)))) as follower,
    ):
        connection.execute("INSERT INTO t SELECT i, 'start', NULL FROM generate_series(1, 50) AS i")
        for count, after_bytes in enumerate([1, 100, 5_000, 50_000]):
            await follower.caught_up()
            proxy.drop_after(after_bytes)
            connection.execute("UPDATE t SET a = repeat('x', 2000), b = %s", [count])
            await follower.until(lambda count=count: follower.capture.status.reconnects > count)  # type: ignore[misc]
            proxy.resume()
            await follower.until(lambda: follower.capture.status.state == "live")
        await follower.caught_up()
        assert_state_and_order(follower, connection)
        assert len(follower.transactions) == 5


async def test_a_consumer_that_does_not_take_holds_back_postgresql_and_keeps_the_connection(
    fragile: EmbeddedPostgres,
) -> None:
    with database(fragile, "slow") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        async with Follower(capture(dsn)) as follower:
            await follower.caught_up()
            follower.pause()
            tracemalloc.start()
            for number in range(40):
                connection.execute("INSERT INTO t VALUES (%s, repeat('x', 1000000), 1)", [number])
            await follower.until(
                lambda: (
                    connection.execute(
                        "SELECT now() - reply_time < interval '0.5s' AND now() - backend_start > %s * interval '1s'"
                        " FROM pg_stat_replication WHERE pid = (SELECT active_pid FROM pg_replication_slots"
                        " WHERE database = current_database())",
                        [WAL_SENDER_TIMEOUT_SECONDS * 1.5],
                    ).fetchone()
                    == (True,)
                )
            )
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(follower.transactions) < 5
            assert peak < 10_000_000
            follower.resume()
            await follower.caught_up()
            assert len(follower.transactions) == 40
            assert follower.capture.status.reconnects == 0


async def test_only_the_walsender_that_is_named_is_ended(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        name, pid = str(slot_value(jobs, "slot_name")), slot_value(jobs, "active_pid")
        assert isinstance(pid, int)
        control = await connect(dsn)
        await end_walsender(control, name, jobs.info.backend_pid)
        await end_walsender(control, "another", pid)
        await follower.caught_up()
        assert follower.capture.status.reconnects == 0
        await end_walsender(control, name, pid)
        await control.close()
        await follower.until(lambda: follower.capture.status.reconnects == 1)


async def test_a_mark_whose_connection_breaks_says_so_and_the_next_one_works(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        ended = jobs.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        assert ended.fetchall() == [(True,)]
        with pytest.raises(CaptureError):  # whichever notices first, the question or the stream
            await follower.capture.mark()
        await follower.until(lambda: follower.capture.status.reconnects == 1)
        await follower.until(lambda: follower.capture.status.state == "live")
        await follower.caught_up()


async def test_a_database_that_is_taken_down_while_it_streams_ends_the_stream(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        jobs.execute("DROP PUBLICATION rowcast")
        take_slot_away(jobs)
        with pytest.raises(NotInstalledError, match="has no publication rowcast: run: rowcast setup"):
            await follower.ended()
        assert follower.capture.status.state == "stopped"


async def test_a_server_that_is_not_there_yet_is_waited_for(
    postgres: EmbeddedPostgres, jobs: psycopg.Connection, dsn: str
) -> None:
    async with FaultProxy(postgres.port) as proxy:
        proxy.refuse()
        waiting = capture(dsn.replace(str(postgres.port), str(proxy.port)))
        starting = asyncio.create_task(waiting.start())
        await eventually(lambda: "refused" in waiting.status.reason)
        assert waiting.status.state == "starting"
        proxy.resume()
        await starting
        assert waiting.status.state == "live"
        await waiting.close()


async def test_closing_ends_a_capture_that_waits(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as holder:
        waiting = capture(dsn)
        starting = asyncio.create_task(waiting.start())
        await holder.until(lambda: waiting.status.state == "standby")
        await waiting.close()
        with pytest.raises(CaptureError, match="was closed"):
            await starting
        assert waiting.status.state == "stopped"
        await holder.caught_up()
