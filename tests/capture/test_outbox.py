"""The outbox capture on good days: what it tells, in which form and order, and what it costs nobody."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import Iterator

import psycopg
import pytest
import uvloop
from tests.capture.following import Follower, capture as wal_capture, changes, ids, replay, select

from rowcast.capture import install
from rowcast.capture.outbox import MAX_OUTBOX_BYTES, MAX_TRANSACTION_BYTES, OutboxCapture
from rowcast.model import Gap, Progress, Row, TablesChanged, Transaction, Value, epoch_of
from rowcast.testing import EmbeddedPostgres, EmbeddedPostgresError

_numbers = itertools.count(1)


def watch(dsn: str, tables: str) -> None:
    install.install(dsn, [tables], capture="outbox")


def capture(
    dsn: str,
    *,
    heartbeat_seconds: float = 0.2,
    max_transaction_bytes: int = MAX_TRANSACTION_BYTES,
    max_outbox_bytes: int = MAX_OUTBOX_BYTES,
    notify: bool = True,
) -> OutboxCapture:
    return OutboxCapture(
        dsn,
        heartbeat_seconds=heartbeat_seconds,
        max_transaction_bytes=max_transaction_bytes,
        max_outbox_bytes=max_outbox_bytes,
        notify=notify,
        retry_seconds=0.05,
    )


@pytest.fixture(scope="session", params=[18, 16, 15])
def each_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """One server of every version that is here, without logical replication."""
    try:
        server = EmbeddedPostgres(
            version=request.param, settings={"wal_level": "replica", "deadlock_timeout": "10ms"}
        )
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def each_dsn(each_server: EmbeddedPostgres) -> Iterator[str]:
    name = f"outbox_{os.getpid()}_{next(_numbers)}"
    yield each_server.create_database(name)
    each_server.drop_database(name)


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
        install.install(each_dsn, ["jobs"])  # `auto`: there is no logical replication here
        async with Follower(capture(each_dsn)) as follower:
            with connection.transaction():
                connection.execute(
                    "INSERT INTO jobs VALUES (1, 'naïve 😀', '2026-11-21 09:30:00+02'), (2, NULL, NULL)"
                )
                connection.execute("UPDATE jobs SET state = 'done' WHERE id = 1")
                connection.execute("INSERT INTO unwatched VALUES (1)")
            connection.execute("UPDATE jobs SET id = 3 WHERE id = 2")
            connection.execute("UPDATE jobs SET state = 'nobody' WHERE id = 7")
            connection.execute("DELETE FROM jobs WHERE id = 3")
            connection.execute("TRUNCATE jobs")
            await follower.caught_up()
            at = b"2026-11-21 07:30:00+00"
            first, key_change, deletion, truncation = follower.transactions
            assert changes([first]) == [
                ("INSERT", (b"1", "naïve 😀".encode(), at), None),
                ("INSERT", (b"2", None, None), None),
                ("UPDATE", (b"1", b"done", at), (b"1", "naïve 😀".encode(), at)),
            ]
            assert changes([key_change]) == [("UPDATE", (b"3", None, None), (b"2", None, None))]
            assert changes([deletion]) == [("DELETE", None, (b"3", None, None))]
            assert changes([truncation]) == [("TRUNCATE", None, None)]
            assert [change.index for change in first.changes] == [0, 1, 2]
            [table] = follower.capture.tables.values()
            assert all(change.table is table for one in follower.transactions for change in one.changes)
            positions = [event.position for event in follower.events]
            assert positions == sorted(positions)
            assert len({one.position for one in follower.transactions}) == 4
            assert {epoch_of(position) for position in positions} == {follower.capture.epoch}
            assert first.xid < key_change.xid < deletion.xid < truncation.xid
            assert 0 <= time.time() - first.timestamp_us / 1e6 < 60
            assert follower.gaps == []
            assert follower.tables_changed == []
            assert follower.capture.status.state == "live"
            assert 0 <= (follower.capture.status.lag_seconds or 0) < 60


TYPES = """
CREATE TYPE mood AS ENUM ('fine', 'so "so"', 'comma, and space');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN short AS text CHECK (length(value) < 9);
CREATE TABLE kinds (
    id int PRIMARY KEY, b boolean, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric, m money, t text,
    v varchar(20), c char(5), y bytea, d date, ts timestamp, tz timestamptz, ti time, iv interval, u uuid, j json,
    jb jsonb, ip inet, bits bit(3), tsv tsvector, r int4range, e mood, p pair, s short, ia int[], ta text[],
    tza timestamptz[], pa pair[], tail text
);
"""
VALUES = """
INSERT INTO kinds VALUES (1, true, -1, 9223372036854775807, 1.1, 1e300, 1.500, 1234.5, E'tab\\t"quote" \\\\ (x), ',
    '  spaced ', 'ab', '\\x00ff5c22', '0044-03-15 BC', 'infinity', '2026-03-29 02:30:00.5', '12:00:00.000001',
    '1 year -2 days 03:00:00.25', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a" :  [1,2] }', '{"b": "x\\u00e9"}',
    '10.0.0.1/8', B'101', 'fat:2 cat', '[1,5)', 'so "so"', (1, 'x "y" \\\\ z'), 'short', '[0:1]={1,NULL}',
    ARRAY['NULL', 'a b', '', NULL, E'\\\\"'], ARRAY['2026-01-01 00:00:00+01'::timestamptz, NULL],
    ARRAY[(1, 'a,b')::pair, NULL], ''),
    (2, false, 0, 0, 'nan', '-infinity', 'nan', -0.01, '', '', '', '', 'infinity', '0044-03-15 00:00:00 BC', 'infinity',
    '24:00', '-00:00:01', NULL, 'null', 'null', '::1', NULL, '', 'empty', NULL, (NULL, NULL), '', '{}', '{}', '{}',
    '{}', NULL);
INSERT INTO kinds (id) VALUES (3);
UPDATE kinds SET f8 = 0.1 + 0.2, iv = '1 month', tail = E'line\\nbreak';
UPDATE kinds SET id = id + 10 WHERE id < 3;
DELETE FROM kinds WHERE id = 11;
"""


async def test_rows_are_byte_for_byte_those_of_the_wal(connection: psycopg.Connection, dsn: str) -> None:
    connection.execute(TYPES)
    watch(dsn, "kinds")
    connection.execute("ALTER TABLE kinds REPLICA IDENTITY FULL")
    connection.execute("CREATE PUBLICATION rowcast FOR TABLE kinds")
    async with Follower(wal_capture(dsn)) as by_wal, Follower(capture(dsn)) as by_outbox:
        # Whatever the application's session prefers.
        connection.execute(
            "SET datestyle = 'SQL, DMY'; SET timezone = 'Europe/Berlin'; SET intervalstyle = 'sql_standard';"
            "SET extra_float_digits = -3; SET bytea_output = 'escape'; SET search_path = pg_temp"
        )
        connection.execute(VALUES.replace("kinds", "public.kinds").replace("::pair", "::public.pair"))
        await by_wal.caught_up()
        await by_outbox.caught_up()
    assert changes(by_outbox.transactions) == changes(by_wal.transactions)
    assert [one.xid for one in by_outbox.transactions] == [one.xid for one in by_wal.transactions]
    [of_wal], [of_outbox] = by_wal.capture.tables.values(), by_outbox.capture.tables.values()
    assert of_outbox.columns == of_wal.columns


async def test_what_a_statements_triggers_do_comes_after_what_the_statement_did(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute(
        """
        CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE, path text);
        CREATE FUNCTION set_path() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE tree SET path = coalesce((SELECT p.path FROM tree AS p WHERE p.id = NEW.parent), '') || '/' || NEW.id
            WHERE id = NEW.id AND path IS DISTINCT FROM
                coalesce((SELECT p.path FROM tree AS p WHERE p.id = NEW.parent), '') || '/' || NEW.id;
            RETURN NULL;
        END $$;
        CREATE TRIGGER "a" AFTER INSERT OR UPDATE ON tree FOR EACH ROW EXECUTE FUNCTION set_path();
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF pg_trigger_depth() = 1 THEN UPDATE tree SET path = path || '!' WHERE parent IS NULL; END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER "b" AFTER UPDATE ON tree FOR EACH STATEMENT EXECUTE FUNCTION touch();
        """
    )
    watch(dsn, "tree")
    async with Follower(capture(dsn)) as follower:
        connection.execute("INSERT INTO tree VALUES (1, NULL, NULL), (2, 1, NULL), (3, 2, NULL)")
        connection.execute("UPDATE tree SET id = id + 10")
        connection.execute("INSERT INTO tree VALUES (12, 11, 'x') ON CONFLICT (id) DO UPDATE SET path = 'y'")
        with connection.transaction():
            connection.execute("DELETE FROM tree WHERE id = 12")
            connection.execute("INSERT INTO tree VALUES (12, 11, NULL)")
        await follower.caught_up()
        rows: dict[tuple[Value, ...], Row] = {}
        replay(follower.transactions, "tree", rows)
        assert rows == select(connection, "tree")


async def test_confirmations_are_told_with_their_transaction_and_only_if_it_commits(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        with jobs.transaction():
            jobs.execute("SELECT rowcast.confirm('m-1'), rowcast.confirm('m-2 naïve')")
            jobs.execute("INSERT INTO jobs VALUES (1, 'new')")
        jobs.execute("SELECT rowcast.confirm('without rows')")
        with jobs.transaction(force_rollback=True):
            jobs.execute("SELECT rowcast.confirm('rolled back')")
        await follower.caught_up()
        assert [(one.confirms, len(one.changes)) for one in follower.transactions] == [
            (("m-1", "m-2 naïve"), 1),
            (("without rows",), 0),
        ]


async def test_what_committed_before_a_mark_is_told_when_the_stream_has_passed_it(
    jobs: psycopg.Connection, dsn: str
) -> None:
    for notify in (True, False):
        jobs.execute("TRUNCATE jobs")
        async with Follower(capture(dsn, heartbeat_seconds=60, notify=notify)) as follower:
            await follower.caught_up()
            before = len(follower.transactions)
            for number in range(5):
                jobs.execute("INSERT INTO jobs VALUES (%s, 'x')", [number])
                mark = await follower.capture.mark()
                await follower.until(lambda mark=mark: follower.position >= mark)  # type: ignore[misc]
                assert len(follower.transactions) == before + number + 1
            marks = await asyncio.gather(*[follower.capture.mark() for _ in range(50)])
            assert len(set(marks)) <= 2


@pytest.mark.parametrize("notify", [True, False])
async def test_a_commit_wakes_a_server_that_sleeps(
    jobs: psycopg.Connection, dsn: str, *, notify: bool
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=60, notify=notify)) as follower:
        for number in range(5):
            await asyncio.sleep(0.05)  # so that it falls asleep
            jobs.execute("INSERT INTO jobs VALUES (%s, 'x')", [number])
            began = time.monotonic()
            await follower.until(lambda number=number: len(follower.transactions) > number)  # type: ignore[misc]
            assert time.monotonic() - began < 5


async def test_a_sleeping_server_asks_the_database_no_more_often_than_its_heartbeat(
    jobs: psycopg.Connection, dsn: str
) -> None:
    def last_statement() -> object:
        query = "SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'rowcast'"
        return jobs.execute(query).fetchone()

    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
        await follower.caught_up()
        locks = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"
        await follower.until(lambda: jobs.execute(locks).rowcount == 2)  # the leader's, and the sleeper's
        await asyncio.sleep(0.1)  # its very last look
        before = last_statement()
        jobs.execute("CREATE TABLE other (id int)")
        await asyncio.sleep(0.7)
        assert last_statement() == before


async def test_an_idle_database_moves_its_positions(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=0.05)) as follower:
        await follower.until(lambda: len(follower.events) >= 4)
        assert {type(event) for event in follower.events} == {Progress}
        positions = [event.position for event in follower.events]
        assert positions == sorted(set(positions))


async def test_a_transaction_that_stays_open_holds_up_nobody_and_is_told_when_it_commits(
    jobs: psycopg.Connection, dsn: str
) -> None:
    with psycopg.connect(dsn) as slow, psycopg.connect(dsn) as prepared:
        slow.execute("INSERT INTO jobs VALUES (100, 'slow')")
        prepared.execute("INSERT INTO jobs VALUES (101, 'never')")
        async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
            for number in range(10):
                jobs.execute("INSERT INTO jobs VALUES (%s, 'x')", [number])
                await follower.until(lambda number=number: len(follower.transactions) > number)  # type: ignore[misc]
            slow.execute("UPDATE jobs SET state = 'after' WHERE id = 1")
            slow.commit()
            await follower.until(lambda: len(follower.transactions) == 11)
            assert changes(follower.transactions[-1:]) == [
                ("INSERT", (b"100", b"slow"), None),
                ("UPDATE", (b"1", b"after"), (b"1", b"x")),
            ]
            prepared.rollback()
            await follower.caught_up()
            assert len(follower.transactions) == 11


STATEMENTS = (
    "INSERT INTO t VALUES (%(key)s, %(text)s, %(number)s) ON CONFLICT DO NOTHING",
    "INSERT INTO t VALUES (%(key)s, %(text)s, %(number)s) ON CONFLICT (id) DO UPDATE SET a = excluded.a",
    "UPDATE t SET b = %(number)s WHERE id = %(key)s",
    "UPDATE t SET b = b + 1 WHERE id BETWEEN %(key)s AND %(key)s + 5",
    "UPDATE t SET id = %(other)s WHERE id = %(key)s AND NOT EXISTS (SELECT FROM t WHERE id = %(other)s)",
    "DELETE FROM t WHERE id = %(key)s",
    "DELETE FROM t WHERE id BETWEEN %(key)s AND %(key)s + 2",
)


def write(dsn: str, seed: int, until: float) -> None:
    """One writer: transactions of many rows, with savepoints, some of all rolled back."""
    chance = random.Random(seed)
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < until:
            try:
                with connection.transaction(force_rollback=chance.random() < 0.15):
                    for _ in range(chance.choice((1, 1, 2, 4, 8))):
                        values = {
                            "key": chance.randrange(60),
                            "other": chance.randrange(60),
                            "text": "x" * chance.choice([0, 1, 50, 9000]),
                            "number": chance.random(),
                        }
                        statement = chance.choice(STATEMENTS)
                        if chance.random() < 0.3:
                            with connection.transaction(force_rollback=chance.random() < 0.4):
                                connection.execute(statement, values)
                        else:
                            connection.execute(statement, values)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                pass


async def test_sixteen_writers_are_told_without_one_row_out_of_order(each_dsn: str) -> None:
    with psycopg.connect(each_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b numeric)")
        watch(each_dsn, "t")
        connection.execute("INSERT INTO t SELECT i, 'start', NULL FROM generate_series(1, 50) AS i")
        rows = select(connection, "t")
        async with Follower(capture(each_dsn)) as follower:
            await follower.caught_up()
            seen = len(follower.transactions)
            until = time.monotonic() + 1.5
            writers = [asyncio.to_thread(write, each_dsn, seed, until) for seed in range(16)]
            await asyncio.gather(*writers)
            await follower.caught_up()
            assert len(follower.transactions) - seen > 50
            replay(follower.transactions[seen:], "t", rows)  # every old row must be the one before
        assert rows == select(connection, "t")
        told = ids(follower.transactions)
        assert told == sorted(set(told))


async def test_a_restart_tells_everything_after_the_acknowledged_again_with_the_same_ids(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        for number in range(20):
            jobs.execute(
                "INSERT INTO jobs SELECT i, 'x' FROM generate_series(%s::int, %s) AS i",
                [number * 10, number * 10 + 3],
            )
            if number % 3:
                await follower.caught_up()
        await follower.caught_up()
        first = follower.transactions
        follower.capture.acknowledge(first[4].position)
        acknowledged = first[4].position
        await follower.until(lambda: batches(jobs)[0] > 1)
    jobs.execute("INSERT INTO jobs VALUES (1000, 'while nobody listened')")
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        again = follower.transactions
        assert follower.start <= acknowledged
    assert changes(again)[-1] == ("INSERT", (b"1000", b"while nobody listened"), None)
    unacknowledged = [one for one in again[:-1] if one.position > acknowledged]
    assert ids(unacknowledged) == ids(first[5:])
    assert [(one.xid, one.timestamp_us) for one in unacknowledged] == [
        (one.xid, one.timestamp_us) for one in first[5:]
    ]
    assert changes(unacknowledged) == changes(first[5:])


def batches(connection: psycopg.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT number FROM rowcast.outbox_batch ORDER BY 1")]


def held(connection: psycopg.Connection) -> int:
    """How many rows the outbox holds."""
    row = connection.execute("SELECT count(*) FROM rowcast.outbox").fetchone()
    assert row is not None
    return int(row[0])


async def test_what_is_acknowledged_is_purged_although_a_transaction_stays_open(
    jobs: psycopg.Connection, dsn: str
) -> None:
    with psycopg.connect(dsn) as slow:
        slow.execute("INSERT INTO jobs VALUES (-1, 'slow')")
        async with Follower(capture(dsn, heartbeat_seconds=0.05)) as follower:
            jobs.execute("INSERT INTO jobs SELECT i, 'x' FROM generate_series(1, 5000) AS i")
            await follower.until(lambda: len(changes(follower.transactions)) == 5000)
            assert held(jobs) >= 5000
            follower.capture.acknowledge(follower.position)
            await follower.until(lambda: held(jobs) == 0 and len(batches(jobs)) < 100)
            slow.commit()
            await follower.until(lambda: len(changes(follower.transactions)) == 5001)
            assert changes(follower.transactions)[-1] == ("INSERT", (b"-1", b"slow"), None)
            await follower.caught_up()
            follower.capture.acknowledge(follower.position)
            await follower.until(lambda: held(jobs) == 0)
            assert follower.gaps == []


async def test_the_outbox_gives_way_before_the_disk(
    jobs: psycopg.Connection, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=0.05, max_outbox_bytes=100_000)) as follower:
        jobs.execute("INSERT INTO jobs SELECT i, repeat('x', 100) FROM generate_series(1, 5000) AS i")
        await follower.caught_up()
        await follower.until(lambda: held(jobs) == 0)
        assert "over the bound of 100000" in caplog.text
        assert follower.gaps == []


async def test_columns_may_have_the_names_of_what_the_triggers_use(
    connection: psycopg.Connection, dsn: str
) -> None:
    """PL/pgSQL refuses a name that could be a variable or a column, and the application's statement with it."""
    names = ("number", "row_count", "tg_relid", "r", "new_rows", "old_rows", "new", "old", "content", "found")
    columns = ", ".join(f"{name} int" for name in names)
    connection.execute(f"CREATE TABLE jobs (id int PRIMARY KEY, {columns})".encode())
    watch(dsn, "jobs")
    async with Follower(capture(dsn)) as follower:
        connection.execute("INSERT INTO jobs (id, number) VALUES (1, 1)")
        connection.execute("UPDATE jobs SET number = 2")
        connection.execute("DELETE FROM jobs")
        connection.execute("TRUNCATE jobs")
        await follower.caught_up()
        assert [change.operation for each in follower.transactions for change in each.changes] == [
            "INSERT",
            "UPDATE",
            "DELETE",
            "TRUNCATE",
        ]


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
        CREATE TABLE empty ();
        CREATE TABLE keyless (note text);
        CREATE TABLE generated (id int PRIMARY KEY, double int GENERATED ALWAYS AS (id * 2) STORED, r int4range);
        """.encode()
    )
    watch(dsn, '"Weird ""1"" Schema"."a.B c""😀", wide, large, empty, keyless, generated')
    async with Follower(capture(dsn)) as follower:
        connection.execute('INSERT INTO "Weird ""1"" Schema"."a.B c""😀" VALUES (1, %s)', ["😀'\"\\"])
        connection.execute("INSERT INTO wide DEFAULT VALUES")
        connection.execute("INSERT INTO large VALUES (1, %s, 'a')", ["x" * 1_000_000])
        connection.execute("UPDATE large SET note = 'b'")
        connection.execute("INSERT INTO empty DEFAULT VALUES")
        connection.execute("INSERT INTO keyless VALUES ('same'), ('same'), (NULL), ('')")
        connection.execute("UPDATE keyless SET note = 'other' WHERE note = 'same'")
        connection.execute("DELETE FROM keyless WHERE note IS NULL")
        connection.execute("INSERT INTO generated VALUES (1, DEFAULT, '[1,2)')")
        await follower.caught_up()
        weird, wide_row, large, update, empty, *keyless, generated = follower.transactions
        assert changes([weird]) == [("INSERT", (b"1", "😀'\"\\".encode()), None)]
        assert weird.changes[0].table.channel == 'Weird "1" Schema.a.B c"😀'
        assert changes([wide_row]) == [("INSERT", tuple(b"%d" % number for number in range(1000)), None)]
        new = (b"1", b"x" * 1_000_000, b"a")
        assert changes([large]) == [("INSERT", new, None)]
        assert changes([update]) == [("UPDATE", (*new[:2], b"b"), new)]
        assert changes([empty]) == [("INSERT", (), None)]
        assert changes(keyless) == [
            ("INSERT", (b"same",), None),
            ("INSERT", (b"same",), None),
            ("INSERT", (None,), None),
            ("INSERT", (b"",), None),
            ("UPDATE", (b"other",), (b"same",)),
            ("UPDATE", (b"other",), (b"same",)),
            ("DELETE", None, (None,)),
        ]
        assert keyless[0].changes[0].table.key == ()
        assert changes([generated]) == [("INSERT", (b"1", b"[1,2)"), None)]


async def test_a_row_that_nobody_would_keep_is_a_gap_and_the_application_does_not_notice(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE large (id int PRIMARY KEY, content bytea)")
    watch(dsn, "large")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        [(oid,)] = connection.execute("SELECT 'large'::regclass::oid::bigint").fetchall()
        connection.execute("INSERT INTO large VALUES (1, convert_to(repeat('x', 60000000), 'utf8'))")
        connection.execute("INSERT INTO large VALUES (2, 'small')")
        await follower.caught_up()
        [gap] = follower.gaps
        assert (gap.reason, gap.tables) == ("transaction_too_large", frozenset({oid}))
        assert changes(follower.transactions) == [("INSERT", (b"2", b"\\x736d616c6c"), None)]
        row = connection.execute("SELECT max(octet_length(content)) FROM rowcast.outbox").fetchone()
        assert row is not None
        assert row[0] < 100


async def test_a_transaction_over_the_bound_becomes_a_gap(jobs: psycopg.Connection, dsn: str) -> None:
    [(oid,)] = jobs.execute("SELECT 'jobs'::regclass::oid::bigint").fetchall()
    async with Follower(capture(dsn, max_transaction_bytes=1_000_000, heartbeat_seconds=60)) as follower:
        with jobs.transaction():
            jobs.execute("SELECT rowcast.confirm('lost with it')")
            jobs.execute("INSERT INTO jobs SELECT i, 'x' FROM generate_series(1, 20000) AS i")
            jobs.execute("UPDATE jobs SET state = 'y'")
            jobs.execute("DELETE FROM jobs WHERE id > 10")
        jobs.execute("INSERT INTO jobs VALUES (0, 'after')")
        await follower.caught_up()
        [gap] = follower.gaps
        assert (gap.reason, gap.tables) == ("transaction_too_large", frozenset({oid}))
        assert gap.xid == follower.transactions[0].xid - 1
        assert changes(follower.transactions) == [("INSERT", (b"0", b"after"), None)]
        assert follower.transactions[0].position > gap.position


async def test_partitions_tell_their_changes_as_the_table_they_belong_to(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute(
        """
        CREATE TABLE parts (id int, kind int, note text, PRIMARY KEY (id, kind)) PARTITION BY RANGE (kind);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (kind);
        CREATE TABLE parts_1a PARTITION OF parts_1 FOR VALUES FROM (0) TO (5);
        CREATE TABLE parts_2 (gone int, note text, kind int NOT NULL, id int NOT NULL, PRIMARY KEY (id, kind));
        ALTER TABLE parts_2 DROP COLUMN gone;
        ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (10) TO (20);
        """
    )
    watch(dsn, "parts")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        connection.execute("INSERT INTO parts VALUES (1, 1, NULL), (2, 12, 'b')")
        connection.execute("INSERT INTO parts_2 (id, kind, note) VALUES (3, 13, 'direct')")
        connection.execute("UPDATE parts_1a SET note = 'c' WHERE id = 1")
        connection.execute("UPDATE parts SET kind = 14 WHERE id = 1")
        connection.execute("DELETE FROM parts_1 WHERE true")
        connection.execute("TRUNCATE parts")
        await follower.caught_up()
        assert changes(follower.transactions) == [
            ("INSERT", (b"1", b"1", None), None),
            ("INSERT", (b"2", b"12", b"b"), None),
            ("INSERT", (b"3", b"13", b"direct"), None),
            ("UPDATE", (b"1", b"1", b"c"), (b"1", b"1", None)),
            ("UPDATE", (b"1", b"14", b"c"), (b"1", b"1", b"c")),
            ("TRUNCATE", None, None),
        ]
        assert {change.table.name for one in follower.transactions for change in one.changes} == {"parts"}
        assert follower.gaps == []
        # Which rows a partition's TRUNCATE took away, nobody knows.
        connection.execute("TRUNCATE parts_2")
        await follower.caught_up()
        assert [gap.tables for gap in follower.gaps] == [frozenset(follower.capture.tables)]


async def test_partitions_that_come_and_go_get_and_lose_their_triggers(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    watch(dsn, "parts")

    def triggers(table: str) -> int:
        query = "SELECT FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname LIKE 'rowcast%%'"
        return connection.execute(query, [table]).rowcount

    async with Follower(capture(dsn, heartbeat_seconds=0.1)) as follower:
        connection.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        connection.execute("INSERT INTO parts VALUES (1)")
        await follower.until(lambda: follower.transactions)
        connection.execute("DELETE FROM parts")
        await follower.until(lambda: triggers("parts_1") == 5)
        connection.execute("INSERT INTO parts_1 VALUES (2)")
        await follower.caught_up()
        assert changes(follower.transactions)[-1] == ("INSERT", (b"2",), None)
        connection.execute("CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)")
        await follower.until(lambda: triggers("parts_2") == 5)
        await follower.caught_up()
        before = len(follower.gaps)  # it depends on which came first, the row or the triggers
        # One whose rows no trigger has seen.
        connection.execute("CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (20) TO (30)")
        connection.execute("INSERT INTO parts_3 VALUES (21)")
        await follower.until(lambda: triggers("parts_3") == 5)
        await follower.caught_up()
        assert len(follower.gaps) == before + 1
        # One that is not of the table any more: its rows are gone, and what it gets from now on is nobody's.
        connection.execute("ALTER TABLE parts DETACH PARTITION parts_3")
        connection.execute("INSERT INTO parts_3 VALUES (22)")
        await follower.until(lambda: triggers("parts_3") == 0)
        connection.execute("DROP TABLE parts_2")
        await follower.caught_up()
        assert {gap.tables for gap in follower.gaps} == {frozenset(follower.capture.tables)}
        assert len(follower.gaps) >= before + 2
        assert not [new for _, new, _ in changes(follower.transactions) if new == (b"22",)]
        assert follower.tables_changed == []


async def test_a_row_that_its_new_partition_refuses_is_deleted(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute(
        """
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON parts_2 FOR EACH ROW WHEN (NEW.id = 12) EXECUTE FUNCTION refuse();
        """
    )
    watch(dsn, "parts")
    async with Follower(capture(dsn)) as follower:
        connection.execute("INSERT INTO parts VALUES (1), (2), (3)")
        connection.execute("UPDATE parts SET id = id + 10")
        await follower.caught_up()
        rows: dict[tuple[Value, ...], Row] = {}
        replay(follower.transactions, "parts", rows)
        assert rows == select(connection, "parts") == {(b"11",): (b"11",), (b"13",): (b"13",)}


async def test_a_change_of_columns_is_told_and_no_row_is_read_with_the_wrong_ones(
    jobs: psycopg.Connection, dsn: str
) -> None:
    [(oid,)] = jobs.execute("SELECT 'jobs'::regclass::oid::bigint").fetchall()
    async with Follower(capture(dsn)) as follower:
        for number, alteration in enumerate(
            [
                "ADD note text DEFAULT 'none', ALTER state TYPE varchar(10)",
                "RENAME state TO status",
                "DROP COLUMN status",
                "RENAME TO tasks",
            ]
        ):
            # In the same session, so that the triggers' plans are the old ones, and in the same batch or not.
            name = "jobs" if number < 4 else "tasks"
            jobs.execute(f"INSERT INTO {name} (id) VALUES ({10 * number})".encode())
            if number % 2:
                await follower.caught_up()
            jobs.execute(f"ALTER TABLE {name} {alteration}".encode())
            name = "tasks" if alteration == "RENAME TO tasks" else name
            jobs.execute(f"INSERT INTO {name} (id) VALUES ({10 * number + 1})".encode())
            with jobs.transaction():
                jobs.execute(f"UPDATE {name} SET id = id + 1 WHERE id = {10 * number + 1}".encode())
            await follower.caught_up()
        jobs.execute("INSERT INTO tasks VALUES (100, 'last')")
        await follower.caught_up()
        [table] = follower.capture.tables.values()
        assert [column.name for column in table.columns] == ["id", "note"]
        assert table.channel == "tasks"
        assert changes(follower.transactions)[-1] == ("INSERT", (b"100", b"last"), None)
        columns = 2
        lost = 0
        for event in follower.events:
            if isinstance(event, TablesChanged):
                columns = len(event.tables[oid].columns)
            elif isinstance(event, Gap):
                assert event.tables == frozenset({oid})
                assert event.reason == "schema_changed"
                lost += 1
            elif isinstance(event, Transaction):
                assert all(len(each.table.columns) == columns for each in event.changes)
                assert all(
                    len(row) == columns for each in event.changes for row in (each.new, each.old) if row
                )
        assert lost <= 8
        assert len(follower.tables_changed) == 4


async def test_rows_of_two_forms_in_one_transaction_are_answered_by_a_gap_for_that_table(
    jobs: psycopg.Connection, dsn: str
) -> None:
    jobs.execute("CREATE TABLE other (id int PRIMARY KEY)")
    watch(dsn, "other")
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        await follower.caught_up()
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
        first, last = follower.gaps  # before what is left of the transaction, and behind its batch
        assert first.position == transaction.position < last.position
        assert follower.events.index(first) < follower.events.index(transaction)
        for gap in first, last:
            assert gap.reason == "schema_changed"
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


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("away", ["removed", "disabled", "renamed"])
async def test_a_table_whose_triggers_or_names_were_away_has_a_gap(
    jobs: psycopg.Connection, dsn: str, *, away: str, running: bool
) -> None:
    [(oid,)] = jobs.execute("SELECT 'jobs'::regclass::oid::bigint").fetchall()

    def come_back() -> None:
        if away == "removed":
            install.remove_tables(dsn, ["jobs"])
            jobs.execute("INSERT INTO jobs VALUES (1, 'unseen')")
            watch(dsn, "jobs")
        elif away == "disabled":
            jobs.execute("ALTER TABLE jobs DISABLE TRIGGER ALL")
            jobs.execute("INSERT INTO jobs VALUES (1, 'unseen')")
            jobs.execute("ALTER TABLE jobs ENABLE TRIGGER ALL")
        else:
            jobs.execute("ALTER TABLE jobs RENAME state TO status")
            jobs.execute("ALTER TABLE jobs RENAME status TO state")
        jobs.execute("INSERT INTO jobs VALUES (2, 'seen or not')")

    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        await follower.caught_up()
        if running:
            come_back()
            await follower.caught_up()
            assert {gap.tables for gap in follower.gaps} == {frozenset({oid})}
    if not running:
        come_back()
    # A process that tells all of it again says so as well.
    async with Follower(capture(dsn, heartbeat_seconds=60)) as follower:
        await follower.caught_up()
        assert {gap.tables for gap in follower.gaps} == {frozenset({oid})}
        gap = follower.gaps[-1].position
        jobs.execute("INSERT INTO jobs VALUES (3, 'seen')")
        await follower.caught_up()
        told = [one for one in follower.transactions if one.position > gap]
        assert changes(told) == [("INSERT", (b"3", b"seen"), None)]


async def test_what_runs_with_triggers_off_is_captured_all_the_same(
    jobs: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        with jobs.transaction():
            jobs.execute("SET LOCAL session_replication_role = replica")
            jobs.execute("INSERT INTO jobs VALUES (1, 'restored')")
        with jobs.cursor().copy("COPY jobs FROM STDIN") as copy:
            copy.write_row((2, "copied"))
        await follower.caught_up()
        assert len(changes(follower.transactions)) == 2


async def test_what_arrives_together_is_one_batch(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        follower.pause()
        for number in range(500):
            jobs.execute("INSERT INTO jobs VALUES (%s, 'x')", [number])
        follower.resume()
        await follower.caught_up()
        assert len(follower.transactions) == 500
        assert max(follower.batches) > 50


async def test_closing_ends_the_stream_for_who_waits_on_it(jobs: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        await follower.capture.close()
        await follower.ended()
        assert follower.capture.status.state == "stopped"


def test_it_runs_on_uvloop_as_well(jobs: psycopg.Connection, dsn: str) -> None:
    async def follow() -> None:
        async with Follower(capture(dsn)) as follower:
            jobs.execute("INSERT INTO jobs SELECT i, 'x' FROM generate_series(1, 3000) AS i")
            await follower.caught_up()
            jobs.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast'"
            )
            jobs.execute("DELETE FROM jobs WHERE id < 3000")
            await follower.until(lambda: len(changes(follower.transactions)) == 5999)

    uvloop.run(follow())
