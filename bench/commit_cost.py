"""What capture costs the application's own commits: pgbench with and without, in turns.

The known bad is measured beside: a trigger on each row that sends the whole row by NOTIFY, as hand-made gateways do.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import psycopg

from bench.deployment import INSERT, TABLE, Server
from bench.machine import OTHERS
from bench.report import Section, Target, median, number, spread, table
from rowcast.capture.install import install
from rowcast.testing import EmbeddedPostgres

_CLIENTS: Final = (1, 16, 64)
_ROUNDS: Final = 3
_SECONDS: Final = 3
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
CREATE TRIGGER tell AFTER INSERT ON {TABLE} FOR EACH ROW EXECUTE FUNCTION tell();
"""


@contextmanager
def _prepared(postgres: EmbeddedPostgres, mode: str) -> Iterator[str]:
    """The URL of a database whose commits are captured in a mode, with whoever reads them running."""
    dsn = postgres.create_database(f"commits_{mode.split(maxsplit=1)[0].lower()}")
    with ExitStack() as stack, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_CREATE)
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


def _transactions_a_second(postgres: EmbeddedPostgres, dsn: str, clients: int) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(INSERT + ";\n")
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
    """The table, and whether the overhead at 64 clients is what was promised."""
    rates: dict[tuple[str, int], list[float]] = {
        (mode, clients): [] for mode in _MODES for clients in _CLIENTS
    }
    with EmbeddedPostgres(settings={"shared_buffers": "256MB", "max_wal_size": "4GB"}) as postgres:
        for _ in range(_ROUNDS):
            for mode in _MODES:
                with _prepared(postgres, mode) as dsn:
                    for clients in _CLIENTS:
                        rates[mode, clients].append(_transactions_a_second(postgres, dsn, clients))
                postgres.drop_database(f"commits_{mode.split()[0].lower()}")
    shares = {
        (mode, clients): median(
            [rate / plain for rate, plain in zip(found, rates["none", clients], strict=True)]
        )
        for (mode, clients), found in rates.items()
    }
    rows = [
        (clients, mode, spread(rates[mode, clients]), f"{shares[mode, clients]:.2f}")
        for clients in _CLIENTS
        for mode in _MODES
    ]
    text = (
        "Transactions a second of pgbench, each one INSERT of one row, fsync off (which makes any overhead look larger "
        "than it is on a disk); the share is the median of the ratios to the run without capture of the same round. "
        "Whoever reads (`rowcast serve`, or the listener) runs on the same machine and takes its processor time from it."
        "\n\n" + table(("clients", "capture", "transactions/s", "share of none"), rows)
    )
    wal, outbox = 1 - shares["wal", 64], 1 - shares["outbox", 64]
    return Section(
        "Cost of a commit",
        text,
        [
            Target(
                "overhead of wal on commits at 64 clients", "≤ 5 %", f"{number(wal * 100)} %", met=wal <= 0.05
            ),
            Target(
                "overhead of outbox on commits at 64 clients",
                "≤ 40 %",
                f"{number(outbox * 100)} %",
                met=outbox <= 0.4,
            ),
        ],
    )
