"""What capture costs the application's own commits: pgbench with and without, in turns.

The known bad is measured beside: a trigger on each row that sends the whole row by NOTIFY, as hand-made gateways do.
A commit with a NOTIFY holds a lock until it is on the disk, so it matters how long the disk takes: nothing, the
millisecond of a disk in the machine, the eight of one behind a network.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg

from bench.deployment import INSERT, TABLE, Server, commit_many
from bench.machine import OTHERS
from bench.report import Section, Target, median, number, spread, table
from rowcast.capture.install import install
from rowcast.capture.outbox import OutboxCapture
from rowcast.model import Transaction
from rowcast.testing import EmbeddedPostgres

_CLIENTS: Final = (1, 16, 64)
_ROUNDS: Final = 3
_SECONDS: Final = 2
_COMMITS: Final = 40_000
_SERVER: Final = {"shared_buffers": "256MB", "max_wal_size": "4GB"}
_NO_DISK: Final = {"fsync": "off"}
# PostgreSQL waits for so many microseconds before each sync, which this machine's disk does in no time.
_LOCAL_DISK: Final = {"fsync": "on", "commit_delay": "1000", "commit_siblings": "0"}
_NETWORK_DISK: Final = _LOCAL_DISK | {"commit_delay": "8000"}
_ROWS: Final = 10_000
_REQUEST: Final = f"""
\\set id random(1, {_ROWS})
BEGIN;
SELECT org_id, payload FROM {TABLE} WHERE id = :id;
UPDATE {TABLE} SET org_id = org_id + 1 WHERE id = :id;
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class _Load:
    """What pgbench does, and what on."""

    title: str
    script: str
    settings: dict[str, str]


_LOADS: Final = (
    _Load(
        "A request's transaction (BEGIN, SELECT a row, UPDATE it, COMMIT), and a disk that syncs in 8 ms, so that 64 clients "
        "leave the processor some time",
        _REQUEST,
        _NETWORK_DISK,
    ),
    _Load(
        "The same, and a disk that syncs in 1 ms, so that 64 clients leave them none", _REQUEST, _LOCAL_DISK
    ),
    _Load("One INSERT a transaction, and a disk that syncs in 1 ms", INSERT + ";\n", _LOCAL_DISK),
    _Load(
        "One INSERT a transaction, and no disk (fsync off): nothing but processor time counts",
        INSERT + ";\n",
        _NO_DISK,
    ),
)
_MODES: Final = ("none", "wal", "outbox", "NOTIFY a row")
_CREATE: Final = f"""
CREATE TABLE {TABLE} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id integer NOT NULL DEFAULT 7,
    sent_us bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint,
    payload text NOT NULL DEFAULT '{"x" * 110}'
)"""
_NOTIFY: Final = f"""
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('rows', json_build_object('op', TG_OP, 'table', TG_TABLE_NAME, 'new', to_json(NEW))::text);
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION tell();
"""


@contextmanager
def _prepared(postgres: EmbeddedPostgres, mode: str) -> Iterator[str]:
    """The URL of a database whose commits are captured in a mode, with whoever reads them running."""
    dsn = postgres.create_database(f"commits_{mode.split(maxsplit=1)[0].lower()}")
    with ExitStack() as stack, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_CREATE)
        connection.execute(f"INSERT INTO {TABLE} (org_id) SELECT 7 FROM generate_series(1, {_ROWS})")
        connection.execute(f"VACUUM ANALYZE {TABLE}")
        if mode == "wal":
            install(dsn, [TABLE], capture="wal")
            stack.enter_context(Server(dsn, "--capture", "wal", "--slot", "commits"))
        elif mode == "outbox":
            install(dsn, [TABLE], capture="outbox")
            stack.enter_context(Server(dsn, "--capture", "outbox"))
        elif mode == "NOTIFY a row":
            connection.execute(_NOTIFY)
            connection.execute("LISTEN rows")
        yield dsn


def _transactions_a_second(postgres: EmbeddedPostgres, dsn: str, clients: int, content: str) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(content)
        script.flush()
        done = subprocess.run(
            [
                *("taskset", "--cpu-list", ",".join(map(str, OTHERS))),
                *(postgres.binary("pgbench"), "--no-vacuum", "--file", script.name, "--time", str(_SECONDS)),
                *("--client", str(clients), "--jobs", str(min(clients, 2)), dsn),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def measure() -> Section:
    """The tables, whether the overhead at 64 clients is what was promised, and how fast the outbox is read."""
    parts: list[str] = []
    shares: dict[tuple[str, str, int], float] = {}
    for load in _LOADS:
        rates = _rates(load)
        for (mode, clients), found in rates.items():
            ratios = [rate / plain for rate, plain in zip(found, rates["none", clients], strict=True)]
            shares[load.title, mode, clients] = median(ratios)
        rows = [
            (clients, mode, spread(rates[mode, clients]), f"{shares[load.title, mode, clients]:.2f}")
            for clients in _CLIENTS
            for mode in _MODES
        ]
        parts.append(
            f"{load.title}:\n\n" + table(("clients", "capture", "transactions/s", "share of none"), rows)
        )
    read = [_outbox_rows_a_second() for _ in range(_ROUNDS)]
    text = (
        "Transactions a second of pgbench; the share is the median of the ratios to the run without capture of the same "
        "round. Slow disks are made by `commit_delay`. The database with its walsender, and pgbench, share one "
        "processor of two, and `rowcast serve` has the other: where theirs is busy, what capture costs the database is "
        "taken from the commits.\n\n" + "\n\n".join(parts)
    )
    text += f"\n\n`OutboxCapture` reads, orders and decodes {spread(read)} rows a second, of {_COMMITS:,} commits."
    targets = [
        Target(
            f"overhead of {mode} on commits at 64 clients, {what}",
            f"≤ {most} %",
            f"{number((1 - shares[load.title, mode, 64]) * 100)} %",
            met=1 - shares[load.title, mode, 64] <= most / 100,
        )
        for load, what in (
            (_LOADS[0], "a request's transaction"),
            (_LOADS[1], "the same with a busy processor"),
            (_LOADS[2], "nothing but INSERTs with a busy processor"),
        )
        for mode, most in (("wal", 5), ("outbox", 40))
    ]
    reading = median(read)
    return Section(
        "Cost of a commit",
        text,
        [
            *targets,
            Target("outbox capture, decoded", "≥ 20,000 rows/s", number(reading), met=reading >= 20_000),
        ],
    )


def _rates(load: _Load) -> dict[tuple[str, int], list[float]]:
    rates: dict[tuple[str, int], list[float]] = {
        (mode, clients): [] for mode in _MODES for clients in _CLIENTS
    }
    with EmbeddedPostgres(settings=_SERVER | load.settings) as postgres:
        for _ in range(_ROUNDS):
            for mode in _MODES:
                with _prepared(postgres, mode) as dsn:
                    for clients in _CLIENTS:
                        rates[mode, clients].append(
                            _transactions_a_second(postgres, dsn, clients, load.script)
                        )
                postgres.drop_database(f"commits_{mode.split()[0].lower()}")
    return rates


def _outbox_rows_a_second() -> float:
    """By the clock, from a backlog of commits of one row each."""
    with EmbeddedPostgres(settings=_SERVER) as postgres:
        dsn = postgres.create_database("backlog")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(_CREATE)
            install(dsn, [TABLE], capture="outbox")
            return asyncio.run(_read_backlog(dsn, connection))


async def _read_backlog(dsn: str, connection: psycopg.Connection) -> float:
    capture = OutboxCapture(dsn)
    await capture.start()
    await asyncio.to_thread(commit_many, connection, _COMMITS)
    rows = 0
    began = time.perf_counter()
    async for events in capture.events():
        rows += sum(len(event.changes) for event in events if isinstance(event, Transaction))
        if rows >= _COMMITS:
            break
    seconds = time.perf_counter() - began
    await capture.close()
    return rows / seconds
