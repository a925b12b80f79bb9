"""(g) Snapshots, a crowd that comes back, and many clients that each watch their own rows."""

from __future__ import annotations

import time
from typing import Final

import psycopg

from bench.deployment import TABLE, Database, Server, commit_paced, connect
from bench.machine import quiet
from bench.programs import Answer, LoadClient
from bench.report import Latencies, Section, Target, milliseconds, number, spread, table

_ROWS: Final = 100_000
_RUNS: Final = 5
_CROWD: Final = 5_000
_CROWD_ROWS: Final = 100
_ORGANISATIONS: Final = 1_000
_COMMITS_PER_SECOND: Final = 1_000
_SECONDS: Final = 3
_FILL: Final = f"INSERT INTO {TABLE} (org_id) SELECT number FROM generate_series(1, %s) AS number"
_HELLO: Final = '{"type":"hello","version":1}'


def measure(database: Database) -> Section:
    rows: list[tuple[str, ...]] = []
    targets: list[Target] = []
    for form in ("full", "plain"):
        first, complete = _measure_snapshot(database, form)
        rows.append((f"{form} form", spread(first), spread(complete)))
        if form == "full":
            targets += [
                Target(
                    f"snapshot of {_ROWS:,} rows, complete",
                    "< 1.5 s",
                    f"{max(complete) / 1000:.2f} s",
                    max(complete) < 1500,
                ),
                Target("the same, first rows", "< 50 ms", f"{max(first):.1f} ms", max(first) < 50),
            ]
    crowd_seconds, queries = _measure_crowd(database)
    filtered = _measure_filtered(database)
    targets += [
        Target(
            f"queries for {_CROWD:,} clients that come back at once", "1 a shape", str(queries), queries == 1
        ),
        Target(
            f"{_ORGANISATIONS:,} filters, {_COMMITS_PER_SECOND:,} commits/s: p99",
            "< 50 ms",
            f"{milliseconds(filtered.p99_us)} ms",
            filtered.p99_us < 50_000,
        ),
    ]
    text = f"""\
One client asks a server for {_ROWS:,} rows of 200 bytes that it has not read before; milliseconds from the request,
median (least to most) of {_RUNS}.

{table(("snapshot", "first rows", "complete"), rows)}

{_CROWD:,} clients come back at once and ask for a snapshot of {_CROWD_ROWS} rows each: all of them have it
{crowd_seconds:.2f} s after they asked, and the database was asked {queries} time(s).

{_ORGANISATIONS:,} clients, each with another `org_id=eq.N`; {_COMMITS_PER_SECOND:,} commits/s of one row that concerns one
of them; milliseconds from the INSERT to the client, medians of {_RUNS} runs:

{table(("commits/s", "p50", "p95", "p99"), [(number(_COMMITS_PER_SECOND), *filtered.cells)])}"""
    return Section("Snapshots and filters", text, targets)


def _ask(client: LoadClient, message: str) -> Answer:
    """Ask for snapshots and wait until all have come."""
    client.ask(f"say {message}")
    client.expect_snapshots()
    return client.answer()


def _measure_snapshot(database: Database, form: str) -> tuple[list[float], list[float]]:
    """Milliseconds until the first row and until the end, in several runs."""
    first: list[float] = []
    complete: list[float] = []
    with database.fresh() as dsn, connect(dsn) as connection:
        _fill(connection, _ROWS)
        with Server(dsn) as server:
            for run in range(_RUNS):
                # Another filter is another shape: the server has not read it before.
                wish = f'"channel":"{TABLE}","filter":"id=gt.-{run + 1}","snapshot":true'
                with server.clients(1) as one:
                    one.ask("open 5000")
                    if form == "full":
                        one.ask(f"say {_HELLO}")
                        wish += ',"id":"one"'
                    answer = _ask(one, f'{{"type":"subscribe",{wish}}}')
                assert answer.rows == _ROWS, answer
                first.append((answer.first_us - answer.said_us) / 1000)
                complete.append((answer.last_us - answer.said_us) / 1000)
    return first, complete


def _measure_crowd(database: Database) -> tuple[float, int]:
    """Seconds until all have their rows, and how often the table was read."""
    with database.fresh() as dsn, connect(dsn) as connection:
        _fill(connection, _CROWD_ROWS)
        with Server(dsn) as server:
            before = _scans(connection)
            with server.clients(_CROWD) as crowd:
                crowd.ask("open 15000")
                answer = _ask(crowd, f'{{"type":"subscribe","channel":"{TABLE}","snapshot":true}}')
            assert answer.rows == _CROWD * _CROWD_ROWS, answer
            time.sleep(1.5)  # PostgreSQL's statistics are published a second later
            return (answer.last_us - answer.said_us) / 1e6, _scans(connection) - before


def _measure_filtered(database: Database) -> Latencies:
    with (
        database.fresh() as dsn,
        Server(dsn) as server,
        server.clients(_ORGANISATIONS) as clients,
        connect(dsn) as connection,
    ):
        clients.subscribe(f'{{"type":"subscribe","channel":"{TABLE}","filter":"org_id=eq.%d"}}')
        statement = f"INSERT INTO {TABLE} (org_id) VALUES (%s)"
        answers: list[Answer] = []
        for _ in range(_RUNS):
            quiet.wait()
            count = _COMMITS_PER_SECOND * _SECONDS
            clients.expect_total(count)
            commit_paced(connection, count, _COMMITS_PER_SECOND, statement, _ORGANISATIONS)
            answers.append(clients.answer())
        return Latencies.of(answers)


def _fill(connection: psycopg.Connection, rows: int) -> None:
    connection.execute(_FILL.encode(), (rows,))
    connection.execute(f"VACUUM ANALYZE {TABLE}".encode())


def _scans(connection: psycopg.Connection) -> int:
    query = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = %s"
    return int(connection.execute(query, (TABLE,)).fetchall()[0][0])
