"""The outbox capture on bad days, and what it never does to the application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from tests.capture.following import Follower, changes, eventually, ids, replay, select, write_at_random
from tests.capture.test_outbox import batches, capture, held, watch

from rowcast.capture import install
from rowcast.capture.outbox import OutboxCapture
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import Row, TablesChanged, Value, epoch_of, make_position, number_of
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.proxy import FaultProxy


@pytest.fixture(scope="module")
def fragile() -> Iterator[EmbeddedPostgres]:
    """A server to kill, without logical replication."""
    with EmbeddedPostgres(settings={"wal_level": "replica", "max_prepared_transactions": "5"}) as server:
        yield server


@contextmanager
def database(server: EmbeddedPostgres, name: str) -> Iterator[str]:
    dsn = server.create_database(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    watch(dsn, "t")
    yield dsn
    server.drop_database(name)


@pytest.fixture
def t(connection: psycopg.Connection, dsn: str) -> psycopg.Connection:
    """A connection to a database with a watched table `t`."""
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    watch(dsn, "t")
    return connection


def silenced(connection: psycopg.Connection) -> bool:
    """Whether the outbox has reached its limit, so that triggers write no more."""
    row = connection.execute("SELECT pg_sequence_last_value('rowcast.outbox_overflow') % 2 = 1").fetchone()
    return row == (True,)


def assert_state_and_order(follower: Follower[OutboxCapture], connection: psycopg.Connection) -> None:
    told = ids(follower.transactions)
    assert told == sorted(set(told))
    rows: dict[tuple[Value, ...], Row] = {}
    replay(follower.transactions, "t", rows)
    assert rows == select(connection, "t")


async def test_a_terminated_connection_costs_nothing(t: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        writing = asyncio.create_task(write_at_random(dsn, "t", writers=3, seconds=1.5))
        for count in range(1, 6):
            await follower.until(lambda: follower.capture.status.state == "live")
            seen = len(follower.transactions)
            await follower.until(lambda seen=seen: len(follower.transactions) > seen)  # type: ignore[misc]
            t.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast'"
            )
            await follower.until(lambda count=count: follower.capture.status.reconnects >= count)  # type: ignore[misc]
        await writing
        await follower.until(lambda: follower.capture.status.state == "live")
        await follower.caught_up()
        assert follower.gaps == []
        assert follower.tables_changed == []
        assert_state_and_order(follower, t)


async def test_a_server_that_is_killed_and_restarted_costs_nothing(fragile: EmbeddedPostgres) -> None:
    with database(fragile, "killed") as dsn:
        async with Follower(capture(dsn)) as follower:
            writing = asyncio.create_task(write_at_random(dsn, "t", writers=3, seconds=2.5))
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


async def test_whatever_moment_a_process_ends_at_its_successor_tells_the_same_and_the_rest(
    t: psycopg.Connection, dsn: str
) -> None:
    told: dict[str, object] = {}
    rows: dict[tuple[Value, ...], Row] = {}
    acknowledged = ""
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
    writing = asyncio.create_task(write_at_random(dsn, "t", writers=3, seconds=2))
    for _ in range(8):
        async with Follower(capture(dsn, heartbeat_seconds=0.05)) as follower:
            assert follower.start >= acknowledged
            await follower.until(lambda: len(follower.transactions) > 30)
            for one in follower.transactions:
                for change in one.changes:
                    content = (one.xid, change.operation, change.new, change.old)
                    assert told.setdefault(f"{one.position}-{change.index}", content) == content
            amid = follower.transactions[10].position
            number = number_of(amid) >> 24
            until = make_position(follower.capture.epoch, number << 24)
            replay([one for one in follower.transactions if acknowledged <= one.position < until], "t", rows)
            acknowledged = until
            follower.capture.acknowledge(amid)
            await follower.until(lambda number=number: batches(t)[0] == number - 1)  # type: ignore[misc]
    await writing
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        assert follower.gaps == []
        replay(follower.transactions, "t", rows)
        assert rows == select(t, "t")


async def test_a_connection_that_breaks_off_amid_a_batch_goes_on_amid_it(
    postgres: EmbeddedPostgres, t: psycopg.Connection, dsn: str
) -> None:
    async with FaultProxy(postgres.port) as proxy:
        async with Follower(capture(dsn.replace(str(postgres.port), str(proxy.port)))) as follower:
            await follower.caught_up()
            follower.pause()
            for number in range(300):
                t.execute("INSERT INTO t VALUES (%s, repeat('x', 5000))", [number])
            proxy.drop_after(600_000)
            follower.resume()
            await follower.until(lambda: follower.capture.status.reconnects)
            assert 0 < len(follower.transactions) < 300
            proxy.resume()
            await follower.until(lambda: len(follower.transactions) == 300)
            assert follower.gaps == []
            assert_state_and_order(follower, t)


async def test_a_second_server_stands_by_and_takes_over(t: psycopg.Connection, dsn: str) -> None:
    first = Follower(capture(dsn))
    await first.__aenter__()
    second = capture(dsn)
    starting = asyncio.create_task(second.start())
    await eventually(lambda: second.status.state == "standby")
    assert second.status.reason == "another server reads the outbox"
    t.execute("INSERT INTO t VALUES (1)")
    await first.until(lambda: first.transactions)
    await first.__aexit__(None, None, None)
    t.execute("INSERT INTO t VALUES (2)")
    await starting
    async with Follower(second) as follower:
        await follower.caught_up()
        assert ids(follower.transactions)[0] == ids(first.transactions)[0]
        assert len(follower.transactions) == 2


async def test_a_successor_that_purged_behind_us_is_a_gap(t: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as first:
        t.execute("INSERT INTO t VALUES (1)")
        await first.caught_up()
        first.pause()
        t.execute("INSERT INTO t VALUES (2)")
        await asyncio.sleep(0)
        # The database notices that the first is gone before the first does.
        other = capture(dsn)
        starting = asyncio.create_task(other.start())
        await eventually(lambda: other.status.state == "standby")
        t.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s",
            [int.from_bytes(b"rowlead") & 0xFFFFFFFF],
        )
        await starting
        async with Follower(other) as second:
            t.execute("INSERT INTO t VALUES (3)")
            await second.caught_up()
            second.capture.acknowledge(second.position)
            oldest = batches(t)[0]
            await second.until(lambda: batches(t)[0] > oldest + 2)
        first.resume()
        await first.until(lambda: first.gaps)
        [gap] = first.gaps
        assert (gap.reason, gap.tables) == ("capture_gap", None)
        t.execute("INSERT INTO t VALUES (4)")
        await first.caught_up()
        assert changes(first.transactions)[-1][1] == (b"4", None, None)


async def test_rows_that_somebody_has_removed_are_a_gap(t: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        t.execute("INSERT INTO t VALUES (1), (2)")
        await follower.caught_up()
    t.execute("DELETE FROM rowcast.outbox WHERE content LIKE '(2%'")
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        assert [(gap.reason, gap.tables) for gap in follower.gaps] == [("capture_gap", None)]


async def test_another_database_or_timeline_is_another_epoch(t: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        t.execute("INSERT INTO t VALUES (1)")
        await follower.caught_up()
        epoch = follower.capture.epoch
        t.execute("UPDATE rowcast.outbox_state SET origin = 'where the backup was made'")
        t.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast'")
        await follower.until(lambda: follower.gaps)
        assert follower.gaps[0].tables is None
        assert epoch_of(follower.gaps[0].position) == follower.capture.epoch != epoch
        t.execute("INSERT INTO t VALUES (2)")
        await follower.caught_up()
        assert changes(follower.transactions)[-1][1] == (b"2", None, None)
        follower.capture.acknowledge(make_position(epoch, 2**60))
        follower.capture.acknowledge(follower.position)
        await follower.until(lambda: held(t) == 0)


async def test_files_older_than_what_was_told_begin_another_epoch(t: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        for number in range(5):
            t.execute("INSERT INTO t VALUES (%s)", [number])
            await follower.caught_up()
        epoch = follower.capture.epoch
        t.execute("DELETE FROM rowcast.outbox_batch WHERE number > 3")
        t.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast'")
        await follower.until(lambda: follower.gaps)
        assert epoch_of(follower.gaps[0].position) != epoch


async def test_an_outbox_that_nobody_reads_stops_growing_and_the_application_goes_on(
    t: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn, max_outbox_bytes=300_000, heartbeat_seconds=0.05)) as follower:
        await follower.caught_up()
    fill = "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(%s::int, %s) AS i"
    for number in range(20):
        t.execute(fill, [number * 500, number * 500 + 499])
    stopped_at = held(t)
    assert 500 <= stopped_at < 5000
    with psycopg.connect(dsn) as open_transaction:
        open_transaction.execute("UPDATE t SET a = 'skipped' WHERE id = 1")
        successor = capture(dsn, max_outbox_bytes=300_000, heartbeat_seconds=0.05)
        starting = asyncio.create_task(successor.start())
        await eventually(lambda: "begins anew" in successor.status.reason)
        await eventually(lambda: not silenced(t))
        t.execute("SELECT rowcast.outbox_check_size()")
        assert not silenced(t), "what it held counts no more"
        t.execute("UPDATE t SET a = 'written again' WHERE id = 2")
        assert not starting.done()
        open_transaction.commit()
    await starting
    async with Follower(successor) as after:
        assert epoch_of(after.start) != epoch_of(follower.start)
        t.execute("DELETE FROM t WHERE id IN (1, 2)")
        await after.caught_up()
        assert [old and old[1] for _, _, old in changes(after.transactions)] == [b"skipped", b"written again"]
        await after.until(lambda: held(t) < 100)


async def test_reaching_the_limit_while_a_server_reads_is_a_gap(t: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn, max_outbox_bytes=300_000)) as follower:
        await follower.caught_up()
        follower.pause()
        fill = "INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(%s::int, %s) AS i"
        for number in range(20):
            t.execute(fill, [number * 500, number * 500 + 499])
        follower.resume()
        await follower.until(lambda: follower.gaps)
        assert follower.gaps[0].tables is None
        await follower.until(lambda: follower.capture.status.state == "live")
        t.execute("INSERT INTO t VALUES (-1)")
        await follower.caught_up()
        assert changes(follower.transactions)[-1][1] == (b"-1", None, None)


async def test_a_mark_that_finds_the_limit_reached_says_so_and_the_next_one_works(
    t: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        t.execute("UPDATE rowcast.outbox_state SET limit_bytes = -1")
        t.execute("SELECT rowcast.outbox_check_size()")
        with pytest.raises(CaptureError):
            await asyncio.wait_for(follower.capture.mark(), 20)
        await follower.until(lambda: follower.gaps)
        await follower.until(lambda: follower.capture.status.state == "live")
        await follower.caught_up()


async def test_transactions_can_be_prepared_although_the_server_is_to_be_woken(
    fragile: EmbeddedPostgres,
) -> None:
    with database(fragile, "prepared") as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
            await follower.caught_up()
            began = time.monotonic()
            connection.execute("BEGIN")
            connection.execute("INSERT INTO t VALUES (1)")
            connection.execute("PREPARE TRANSACTION 'one'")
            connection.execute("INSERT INTO t VALUES (2)")
            await follower.until(lambda: len(follower.transactions) == 1)
            connection.execute("COMMIT PREPARED 'one'")
            await follower.until(lambda: len(follower.transactions) == 2)
            assert time.monotonic() - began < 20


TRIGGER = """
CREATE TEMP TABLE mine ();
CREATE TRIGGER t AFTER TRUNCATE ON mine EXECUTE FUNCTION rowcast.outbox_truncate();
"""


async def test_the_applications_role_needs_no_right_and_the_servers_role_few(
    postgres: EmbeddedPostgres, connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("DROP ROLE IF EXISTS application, server_role")
    connection.execute("CREATE ROLE application LOGIN; CREATE ROLE server_role LOGIN")
    connection.execute("CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO application, server_role")
    connection.execute("CREATE TABLE app.parts (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE app.parts_1 PARTITION OF app.parts FOR VALUES FROM (0) TO (10)")
    connection.execute("GRANT ALL ON app.parts TO application; GRANT SELECT ON app.parts TO server_role")
    try:
        with pytest.raises(NotInstalledError, match="rowcast setup --capture outbox"):
            await capture(dsn).start()
        watch(dsn, "app.parts")
        as_server, as_application = (
            dsn.replace("postgres@", f"{role}@") for role in ("server_role", "application")
        )
        with pytest.raises(CaptureError, match="the role lacks a right: permission denied"):
            await capture(as_server).start()
        done = install.install(dsn, ["app.parts"], capture="outbox", role="server_role")
        assert "granted to role server_role what the server needs" in done
        async with Follower(capture(as_server, heartbeat_seconds=0.1)) as follower:
            with psycopg.connect(as_application, autocommit=True) as application:
                # Whatever stands in the way of names.
                application.execute("CREATE TEMP TABLE outbox (); CREATE TEMP TABLE new_rows ()")
                application.execute("SET search_path = pg_temp, app")
                application.execute("INSERT INTO parts VALUES (1, 'x'), (2, 'y')")
                application.execute("UPDATE parts SET note = 'z' WHERE id = 1")
                application.execute("DELETE FROM parts WHERE id = 2")
                application.execute("TRUNCATE parts")
                application.execute("SELECT rowcast.confirm('m')")
                for forbidden in (
                    "TABLE rowcast.outbox",
                    "DELETE FROM rowcast.outbox",
                    "SELECT rowcast.outbox_cover('app.parts')",
                    "SELECT rowcast.confirm_wal('x')",
                    TRIGGER,
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        application.execute(forbidden.encode())
            connection.execute("CREATE TABLE app.parts_2 PARTITION OF app.parts FOR VALUES FROM (10) TO (20)")
            await follower.caught_up()
            assert len(changes(follower.transactions)) == 5
            assert follower.transactions[-1].confirms == ("m",)
            query = "SELECT FROM pg_trigger WHERE tgrelid = 'app.parts_2'::regclass"
            await follower.until(lambda: connection.execute(query).rowcount == 5)
            await follower.caught_up()
            follower.capture.acknowledge(follower.position)
            await follower.until(lambda: held(connection) == 0)
            connection.execute("REVOKE ALL ON rowcast.outbox FROM server_role")
            with pytest.raises(CaptureError, match="the role lacks a right"):
                await follower.ended()
    finally:
        connection.execute("DROP OWNED BY application, server_role; DROP ROLE application, server_role")


async def test_taking_the_outbox_down_under_a_server_ends_it_with_a_sentence(
    t: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=0.1)) as follower:
        install.uninstall(dsn)
        with pytest.raises(NotInstalledError, match="not in the database any more"):
            await follower.ended()


async def test_a_dropped_table_is_not_captured_any_more(t: psycopg.Connection, dsn: str) -> None:
    t.execute("CREATE TABLE other (id int PRIMARY KEY)")
    watch(dsn, "other")
    async with Follower(capture(dsn, heartbeat_seconds=0.05)) as follower:
        t.execute("DROP TABLE t")
        await follower.until(lambda: len(follower.capture.tables) == 1)
        t.execute("CREATE TABLE t (id int PRIMARY KEY)")
        t.execute("INSERT INTO t VALUES (1)")
        watch(dsn, "t")
        t.execute("INSERT INTO other VALUES (1)")
        t.execute("INSERT INTO t VALUES (2)")
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"1",), None), ("INSERT", (b"2",), None)]
        assert isinstance(follower.tables_changed[-1], TablesChanged)
        assert sorted(table.name for table in follower.capture.tables.values()) == ["other", "t"]
