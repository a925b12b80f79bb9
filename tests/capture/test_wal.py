"""The WAL capture on good days: what it tells, in which form, and what it keeps bounded."""

from __future__ import annotations

import asyncio
import itertools
import os
import tracemalloc
from collections.abc import Iterator

import psycopg
import pytest
import uvloop
from tests.capture.following import (
    Follower,
    capture,
    changes,
    confirmed,
    ids,
    replay,
    select,
    watch,
    write_at_random,
)

from rowcast.capture import install
from rowcast.capture.wal import WalCapture
from rowcast.model import MISSING, Progress, Row, TablesChanged, epoch_of, make_position, number_of
from rowcast.testing import EmbeddedPostgres, EmbeddedPostgresError

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=[18, 16, 15])
def each_postgres(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """One server of every version that is here."""
    try:
        server = EmbeddedPostgres(version=request.param)
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def each_dsn(each_postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"wal_{os.getpid()}_{next(_numbers)}"
    yield each_postgres.create_database(name)
    each_postgres.drop_database(name)


@pytest.fixture
def jobs(connection: psycopg.Connection, dsn: str) -> psycopg.Connection:
    """A connection to a database with a watched table `jobs`."""
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY, state text)")
    watch(dsn, "jobs")
    return connection


async def test_every_kind_of_change_is_told_with_its_rows(each_dsn: str) -> None:
    with psycopg.connect(each_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE jobs (id int PRIMARY KEY, state text, at timestamptz)")
        connection.execute("CREATE TABLE unwatched (id int)")
        watch(each_dsn, "jobs")
        async with Follower(capture(each_dsn)) as follower:
            with connection.transaction():
                connection.execute(
                    "INSERT INTO jobs VALUES (1, 'naïve 😀', '2026-11-21 09:30:00+02'), (2, NULL, NULL)"
                )
                connection.execute("UPDATE jobs SET state = 'done' WHERE id = 1")
                connection.execute("INSERT INTO unwatched VALUES (1)")
            connection.execute("DELETE FROM jobs WHERE id = 2")
            connection.execute("INSERT INTO unwatched VALUES (2)")
            connection.execute("TRUNCATE jobs")
            await follower.caught_up()
            xid = connection.execute(
                "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
            ).fetchone()

            first, second, third = follower.transactions
            at = b"2026-11-21 07:30:00+00"
            assert changes([first]) == [
                ("INSERT", (b"1", "naïve 😀".encode(), at), None),
                ("INSERT", (b"2", None, None), None),
                ("UPDATE", (b"1", b"done", at), (b"1", "naïve 😀".encode(), at)),
            ]
            assert changes([second]) == [("DELETE", None, (b"2", None, None))]
            assert changes([third]) == [("TRUNCATE", None, None)]
            assert [change.index for change in first.changes] == [0, 1, 2]
            [table] = follower.capture.tables.values()
            assert all(change.table is table for one in follower.transactions for change in one.changes)
            positions = [event.position for event in follower.events]
            assert positions == sorted(set(positions))
            assert positions[0] > follower.start
            assert {epoch_of(position) for position in positions} == {follower.capture.epoch}
            assert xid is not None
            assert first.xid < second.xid < third.xid < xid[0]
            assert 0 <= third.timestamp_us - first.timestamp_us < 60_000_000
            assert follower.capture.status.state == "live"
            assert 0 <= (follower.capture.status.lag_seconds or 0) < 60


async def test_confirmations_are_told_with_their_transaction_and_only_if_it_commits(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        with jobs.transaction():
            jobs.execute("SELECT rowcast.confirm('m-1'), rowcast.confirm('m-2')")
            jobs.execute("INSERT INTO jobs VALUES (1, 'new')")
        jobs.execute("SELECT rowcast.confirm('without rows')")
        with jobs.transaction(force_rollback=True):
            jobs.execute("SELECT rowcast.confirm('rolled back')")
        jobs.execute("SELECT pg_logical_emit_message(false, 'rowcast', 'confirm not in a transaction')")
        jobs.execute("SELECT pg_logical_emit_message(true, 'somebody', 'confirm of another')")
        jobs.execute("SELECT pg_logical_emit_message(true, 'rowcast', 'of a later version')")
        await follower.caught_up()
        assert [(one.confirms, len(one.changes)) for one in follower.transactions] == [
            (("m-1", "m-2"), 1),
            (("without rows",), 0),
        ]


async def test_what_committed_before_a_mark_is_told_when_the_stream_has_passed_it(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        for number in range(5):
            jobs.execute("INSERT INTO jobs VALUES (%s, 'x')", [number])
            mark = await follower.capture.mark()
            await follower.until(lambda mark=mark: follower.position >= mark)  # type: ignore[misc]
            assert len(follower.transactions) == number + 1
        marks = await asyncio.gather(*[follower.capture.mark() for _ in range(50)])
        assert len(set(marks)) <= 2
        end = await follower.capture.end_position()
        assert number_of(end) >= number_of(max(marks))


async def test_an_idle_database_moves_its_positions_and_its_slot(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        await follower.until(lambda: len(follower.events) >= 3)
        assert {type(event) for event in follower.events} == {Progress}
        reached = follower.position
        follower.capture.acknowledge(reached)
        await follower.until(lambda: confirmed(jobs) >= number_of(reached))


async def test_a_new_process_tells_again_exactly_what_was_not_acknowledged(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        for number in range(6):
            jobs.execute("INSERT INTO jobs VALUES (%s, 'x'), (%s, 'y')", [number, number + 100])
        await follower.caught_up()
        first = follower.transactions
        follower.capture.acknowledge(first[2].position)
        await follower.until(lambda: confirmed(jobs) == number_of(first[2].position))
    jobs.execute("INSERT INTO jobs VALUES (1000, 'while nobody listened')")
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        again = follower.transactions
        assert follower.start == first[2].position
    assert changes(again)[-1] == ("INSERT", (b"1000", b"while nobody listened"), None)
    assert ids(again[:-1]) == ids(first[3:])
    assert [(one.xid, one.timestamp_us) for one in again[:-1]] == [
        (one.xid, one.timestamp_us) for one in first[3:]
    ]
    assert changes(again[:-1]) == changes(first[3:])


async def test_acknowledging_ahead_of_the_stream_or_for_another_epoch_loses_nothing(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        follower.capture.acknowledge(make_position("0" * 16, 2**63))
        jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
        await follower.caught_up()
        told = follower.position
        follower.capture.acknowledge(make_position(follower.capture.epoch, 2**63))
        follower.capture.acknowledge(follower.start)
        await follower.until(lambda: confirmed(jobs) >= number_of(told))
        jobs.execute("INSERT INTO jobs VALUES (2, 'y')")
        await follower.caught_up()
        assert len(follower.transactions) == 2


async def test_a_change_of_columns_is_told_before_the_rows_that_have_them(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
        jobs.execute("ALTER TABLE jobs ADD note text DEFAULT 'none', ALTER state TYPE varchar(10)")
        jobs.execute("INSERT INTO jobs VALUES (2, 'y')")
        jobs.execute("ALTER TABLE jobs DROP COLUMN state")
        jobs.execute("ALTER TABLE jobs RENAME TO tasks")
        jobs.execute("UPDATE tasks SET note = 'z' WHERE id = 1")
        jobs.execute("ANALYZE tasks")
        jobs.execute("DELETE FROM tasks WHERE id = 1")
        await follower.caught_up()
        told = [
            [(column.name, column.type_name) for column in table.columns]
            for event in follower.tables_changed
            for table in event.tables.values()
        ]
        assert told == [
            [("id", "integer"), ("state", "character varying(10)"), ("note", "text")],
            [("id", "integer"), ("note", "text")],
        ]
        seen: Row = ()
        current = len(next(iter(follower.tables_changed[0].tables.values())).columns) - 1
        for event in follower.events:
            if isinstance(event, TablesChanged):
                current = len(next(iter(event.tables.values())).columns)
            elif not isinstance(event, Progress):
                [change] = event.changes  # type: ignore[union-attr]
                seen = change.new or change.old or ()
                assert len(seen) == len(change.table.columns) == current
        assert seen == (b"1", b"z")
        [table] = follower.capture.tables.values()
        assert table.channel == "tasks"


async def test_columns_that_came_while_nobody_streamed_are_told_also_behind_rows_without_them(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
    jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
    jobs.execute("ALTER TABLE jobs ADD note text")
    async with Follower(capture(dsn, heartbeat_seconds=0.1)) as follower:
        await follower.until(lambda: follower.transactions)
        [change] = follower.transactions[0].changes
        assert len(change.table.columns) == 2
        [oid] = follower.capture.tables
        await follower.until(lambda: len(follower.capture.tables[oid].columns) == 3)
        assert [len(event.tables[oid].columns) for event in follower.tables_changed][-1] == 3


async def test_rows_of_two_forms_in_one_transaction_are_answered_by_a_gap_for_that_table(
    jobs: psycopg.Connection, dsn: str
) -> None:
    jobs.execute("CREATE TABLE other (id int PRIMARY KEY)")
    watch(dsn, "other")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        with jobs.transaction():
            jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
            jobs.execute("INSERT INTO other VALUES (1)")
            jobs.execute("ALTER TABLE jobs ADD note text")
            jobs.execute("INSERT INTO jobs VALUES (2, 'y')")
            jobs.execute("INSERT INTO other VALUES (2)")
        await follower.caught_up()
        [transaction] = follower.transactions
        assert [(change.table.name, change.index) for change in transaction.changes] == [
            ("other", 1),
            ("other", 3),
        ]
        [gap] = follower.gaps
        assert (gap.position, gap.reason) == (transaction.position, "schema_changed")
        assert follower.events.index(gap) < follower.events.index(transaction)
        assert [follower.capture.tables[oid].name for oid in gap.tables or ()] == ["jobs"]


async def test_a_table_that_setup_adds_or_removes_is_told_within_the_stream(
    jobs: psycopg.Connection, dsn: str
) -> None:
    jobs.execute("CREATE TABLE other (id int PRIMARY KEY)")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        jobs.execute("INSERT INTO other VALUES (1)")
        watch(dsn, "other")
        jobs.execute("INSERT INTO other VALUES (2)")
        install.remove_tables(dsn, ["jobs"])
        jobs.execute("INSERT INTO jobs VALUES (1, 'unseen')")
        jobs.execute("INSERT INTO other VALUES (3)")
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"2",), None), ("INSERT", (b"3",), None)]
        names = [sorted(table.name for table in event.tables.values()) for event in follower.tables_changed]
        assert names[-1] == ["other"]
        assert follower.capture.tables == follower.tables_changed[-1].tables
        assert follower.gaps == []


async def test_a_publication_that_was_changed_by_hand_is_noticed(jobs: psycopg.Connection, dsn: str) -> None:
    jobs.execute("CREATE TABLE other (id int PRIMARY KEY)")
    async with Follower(capture(dsn)) as follower:
        jobs.execute("ALTER PUBLICATION rowcast ADD TABLE other")
        await follower.until(lambda: len(follower.capture.tables) == 2)
        jobs.execute("ALTER TABLE jobs ADD note text")
        await follower.until(
            lambda: {len(table.columns) for table in follower.capture.tables.values()} == {1, 3}
        )
        jobs.execute("ALTER PUBLICATION rowcast DROP TABLE other")
        await follower.until(lambda: len(follower.capture.tables) == 1)


async def test_a_table_that_was_added_by_hand_is_told_from_its_first_change_on(
    jobs: psycopg.Connection, dsn: str
) -> None:
    jobs.execute("CREATE TABLE other (id int PRIMARY KEY)")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        jobs.execute("ALTER PUBLICATION rowcast ADD TABLE other")
        jobs.execute("INSERT INTO other VALUES (1)")
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"1",), None)]
        [changed] = follower.tables_changed
        assert follower.events.index(changed) < follower.events.index(follower.transactions[0])
        assert {table.name for table in changed.tables.values()} == {"jobs", "other"}


async def test_what_a_table_told_before_it_was_dropped_is_left_out_by_a_new_process(
    jobs: psycopg.Connection, dsn: str
) -> None:
    jobs.execute("CREATE TABLE other (id int PRIMARY KEY)")
    watch(dsn, "other")
    async with Follower(capture(dsn)) as follower:
        with jobs.transaction():
            jobs.execute("INSERT INTO other VALUES (1)")
            jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
        await follower.caught_up()
        first = ids(follower.transactions)
        assert len(first) == 2
    jobs.execute("DROP TABLE other")
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"1", b"x"), None)]
        assert ids(follower.transactions) == first[1:]


async def test_a_publication_for_all_tables_does_not_show_our_own(jobs: psycopg.Connection, dsn: str) -> None:
    jobs.execute('CREATE PUBLICATION "All, really" FOR ALL TABLES')
    follower = Follower(WalCapture(dsn, slot=jobs.info.dbname, publication="All, really"))
    async with follower:
        jobs.execute("INSERT INTO rowcast.incarnation VALUES ('another', 'x')")
        jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"1", b"x"), None)]
        assert [table.name for table in follower.capture.tables.values()] == ["jobs"]


async def test_a_table_that_was_away_from_the_publication_has_a_gap(
    jobs: psycopg.Connection, dsn: str
) -> None:
    [(oid,)] = jobs.execute("SELECT 'jobs'::regclass::oid::bigint").fetchall()
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        install.remove_tables(dsn, ["jobs"])
        jobs.execute("INSERT INTO jobs VALUES (1, 'unseen')")
        watch(dsn, "jobs")
        jobs.execute("INSERT INTO jobs VALUES (2, 'seen')")
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"2", b"seen"), None)]
        assert {(gap.reason, gap.tables) for gap in follower.gaps} == {("capture_gap", frozenset({oid}))}
        assert max(gap.position for gap in follower.gaps) < follower.transactions[0].position
    # A new process that tells all of it again says so as well.
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"2", b"seen"), None)]
        assert [gap.tables for gap in follower.gaps] == [frozenset({oid})]


async def test_names_of_all_kinds_large_rows_and_wide_tables_pass(
    connection: psycopg.Connection, dsn: str
) -> None:
    wide = ", ".join(f"c{number} int DEFAULT {number}" for number in range(1000))
    connection.execute(
        f"""
        CREATE SCHEMA "Weird ""1"" Schema";
        CREATE TABLE "Weird ""1"" Schema"."a.B c""😀" ("Key " int PRIMARY KEY, "select" text);
        CREATE TABLE wide ({wide}, PRIMARY KEY (c0));
        CREATE TABLE large (id int PRIMARY KEY, content text, note text);
        ALTER TABLE large ALTER content SET STORAGE EXTERNAL;
        """.encode()
    )
    watch(dsn, '"Weird ""1"" Schema"."a.B c""😀", wide, large')
    async with Follower(capture(dsn)) as follower:
        connection.execute('INSERT INTO "Weird ""1"" Schema"."a.B c""😀" VALUES (1, %s)', ["😀'\"\\"])
        connection.execute("INSERT INTO wide DEFAULT VALUES")
        for number, size in enumerate([100_000, 20_000_000]):
            connection.execute("INSERT INTO large VALUES (%s, %s, 'a')", [number, "x" * size])
        connection.execute("UPDATE large SET note = 'b'")
        await follower.caught_up()
        weird, wide_row, small, big, updates = follower.transactions
        assert changes([weird]) == [("INSERT", (b"1", "😀'\"\\".encode()), None)]
        assert weird.changes[0].table.channel == 'Weird "1" Schema.a.B c"😀'
        assert changes([wide_row]) == [("INSERT", tuple(b"%d" % number for number in range(1000)), None)]
        assert changes([small, big]) == [
            ("INSERT", (b"0", b"x" * 100_000, b"a"), None),
            ("INSERT", (b"1", b"x" * 20_000_000, b"a"), None),
        ]
        assert changes([updates]) == [
            ("UPDATE", (*new[:2], b"b"), new) for _, new, _ in changes([small, big]) if new is not None
        ]
        assert updates.size_bytes > 20_000_000


async def test_without_full_identity_what_postgresql_does_not_send_is_missing(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE large (id int PRIMARY KEY, content text, note text)")
    connection.execute("ALTER TABLE large ALTER content SET STORAGE EXTERNAL")
    watch(dsn, "large", replica_identity_full=False)
    async with Follower(capture(dsn)) as follower:
        connection.execute("INSERT INTO large VALUES (1, %s, 'a')", ["x" * 10_000])
        connection.execute("UPDATE large SET note = 'b'")
        connection.execute("UPDATE large SET id = 2")
        connection.execute("DELETE FROM large")
        await follower.caught_up()
        assert changes(follower.transactions[1:]) == [
            ("UPDATE", (b"1", MISSING, b"b"), None),
            ("UPDATE", (b"2", MISSING, b"b"), (b"1", MISSING, MISSING)),
            ("DELETE", None, (b"2", MISSING, MISSING)),
        ]


async def test_partitions_tell_their_changes_as_the_table_they_belong_to(
    connection: psycopg.Connection, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute(
        """
        CREATE TABLE parts (id int, kind int, note text, PRIMARY KEY (id, kind)) PARTITION BY RANGE (kind);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        """
    )
    watch(dsn, "parts")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        connection.execute("INSERT INTO parts VALUES (1, 1, NULL), (2, 2, 'b')")
        connection.execute("UPDATE parts SET note = 'c' WHERE id = 1")
        await follower.caught_up()
        assert changes(follower.transactions)[-1] == ("UPDATE", (b"1", b"1", b"c"), (b"1", b"1", None))
        assert {change.table.name for one in follower.transactions for change in one.changes} == {"parts"}
        # A partition that was made later has not been told to log full old rows.
        connection.execute("CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)")
        connection.execute("INSERT INTO parts VALUES (3, 13, 'd')")
        connection.execute("DELETE FROM parts WHERE id = 3")
        await follower.caught_up()
        assert changes(follower.transactions)[-1] == ("DELETE", None, (b"3", b"13", MISSING))
        assert "table parts the partitions parts_2 do not log" in caplog.text
        assert follower.tables_changed == []


async def test_a_transaction_over_the_bound_becomes_a_gap_and_its_rows_are_not_held(
    jobs: psycopg.Connection, dsn: str
) -> None:
    [(oid,)] = jobs.execute("SELECT 'jobs'::regclass::oid::bigint").fetchall()
    async with Follower(capture(dsn, max_transaction_bytes=1_000_000, heartbeat_seconds=60)) as follower:
        tracemalloc.start()
        with jobs.transaction():
            jobs.execute("SELECT rowcast.confirm('lost with it')")
            jobs.execute("INSERT INTO jobs SELECT i, 'x' FROM generate_series(1, 100000) AS i")
            jobs.execute("DELETE FROM jobs WHERE id > 10")
            jobs.execute("SELECT rowcast.confirm('lost too')")
        jobs.execute("INSERT INTO jobs VALUES (0, 'after')")
        await follower.caught_up()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        [gap] = follower.gaps
        assert (gap.reason, gap.tables) == ("transaction_too_large", frozenset({oid}))
        assert changes(follower.transactions) == [("INSERT", (b"0", b"after"), None)]
        assert follower.transactions[0].position > gap.position
        assert peak < 6_000_000


async def test_a_transaction_below_the_bound_is_one_event_however_many_rows_it_has(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        jobs.execute("INSERT INTO jobs SELECT i, 'x' FROM generate_series(1, 20000) AS i")
        await follower.caught_up()
        [transaction] = follower.transactions
        assert [change.index for change in transaction.changes] == list(range(20_000))
        assert {change.new for change in transaction.changes} == {(b"%d" % i, b"x") for i in range(1, 20_001)}


async def test_what_arrives_together_is_one_batch(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        for number in range(500):
            jobs.execute("INSERT INTO jobs VALUES (%s, 'x')", [number])
        await follower.caught_up()
        assert len(follower.transactions) == 500
        assert max(follower.batches) > 50


async def test_the_slot_gives_way_before_the_disk(
    jobs: psycopg.Connection, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=0.05, max_slot_wal_bytes=100_000)) as follower:
        before = confirmed(jobs)
        jobs.execute("INSERT INTO jobs SELECT i, repeat('x', 100) FROM generate_series(1, 5000) AS i")
        await follower.caught_up()
        reached = number_of(follower.transactions[-1].position)
        await follower.until(lambda: confirmed(jobs) >= reached)
        assert before < reached
        assert "retains" in caplog.text


async def test_closing_ends_the_stream_for_who_waits_on_it(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        await follower.capture.close()
        await follower.ended()
        assert follower.capture.status.state == "stopped"


def test_it_runs_on_uvloop_as_well(jobs: psycopg.Connection, dsn: str) -> None:
    async def follow() -> None:
        async with Follower(capture(dsn)) as follower:
            jobs.execute("INSERT INTO jobs SELECT i, 'x' FROM generate_series(1, 3000) AS i")
            await follower.caught_up()
            jobs.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
            jobs.execute("DELETE FROM jobs WHERE id < 3000")
            await follower.until(lambda: len(changes(follower.transactions)) == 5999)

    uvloop.run(follow())


async def test_the_replayed_stream_of_random_writers_is_what_select_gives(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
    watch(dsn, "t")
    connection.execute("INSERT INTO t SELECT i, 'start', NULL FROM generate_series(1, 50) AS i")
    rows = select(connection, "t")
    async with Follower(capture(dsn)) as follower:
        await write_at_random(dsn, "t", writers=4, seconds=1.5)
        await follower.caught_up()
        assert len(follower.transactions) > 50
        replay(follower.transactions, "t", rows)
    assert rows == select(connection, "t")
