"""(b) Latency: from a row's INSERT to a hundred clients, beside a raw reader of the WAL."""

from __future__ import annotations

import sys
from typing import Final

import msgspec

from bench.deployment import TABLE, Database, Server, commit_paced, connect
from bench.machine import quiet
from bench.programs import Answer, Program
from bench.report import Latencies, Section, Target, milliseconds, table

_CLIENTS: Final = 100
_RATES: Final = (100, 500)
_SECONDS: Final = 3
_RUNS: Final = 3


class Raw(msgspec.Struct):
    """What the raw reader saw."""

    rows: int
    p50_us: int
    p95_us: int
    p99_us: int


def measure(database: Database) -> Section:
    rows: list[tuple[object, ...]] = []
    targets: list[Target] = []
    with (
        database.fresh() as dsn,
        Server(dsn) as server,
        server.clients(_CLIENTS) as watching,
        Program(sys.executable, "-m", "bench.wal_reader", dsn, "rowcast") as reader,
        connect(dsn) as connection,
    ):
        reader.line()
        watching.subscribe(f'{{"type":"subscribe","channel":"{TABLE}"}}')
        for rate in _RATES:
            answers: list[Answer] = []
            readings: list[Raw] = []
            for _ in range(_RUNS):
                count = rate * _SECONDS
                quiet.wait()
                watching.expect_each(count)
                commit_paced(connection, count, rate)
                answers.append(watching.answer())
                reader.tell("report")
                readings.append(msgspec.json.decode(reader.line(), type=Raw))
                assert readings[-1].rows == count
            ours, raw = Latencies.of(answers), Latencies.of(readings)
            rows += [(rate, "raw WAL reader", *raw.cells), (rate, "Rowcast client", *ours.cells)]
            beyond = ours.p50_us - raw.p50_us
            targets.append(
                Target(
                    f"p50 beyond the raw WAL reader's, {rate} commits/s, {_CLIENTS} clients",
                    "≤ 1 ms",
                    f"{milliseconds(beyond)} ms",
                    beyond <= 1000,
                )
            )
    text = f"""\
Milliseconds from `clock_timestamp()` in the INSERT to the reader, {_CLIENTS} WebSocket clients in the plain form. The raw
reader is a process with a slot of its own that notes when a row arrives and does nothing else. Medians of
{_RUNS} runs.

{table(("commits/s", "who", "p50", "p95", "p99"), rows)}"""
    return Section("Latency", text, targets)
