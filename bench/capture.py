"""(c) Capture: rows decoded and encoded a second, and transactions of many rows."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import psycopg
import uvloop

from bench.deployment import TABLE, Database, Server, connect
from bench.machine import forget_peak, memory_bytes, on_server_processor, peak_bytes, quiet
from bench.programs import LoadClient
from bench.report import Section, Target, median, number, spread, table
from rowcast.capture.wal import WalCapture
from rowcast.hub import Hub, Request, Subscriber
from rowcast.log import MemoryLog
from rowcast.model import Transaction
from rowcast.protocol.forms import FULL, PLAIN, FullForm, PlainForm
from rowcast.protocol.framing import WEBSOCKET

_ROWS: Final = 200_000
_ROWS_PER_TRANSACTION: Final = 1_000
_RUNS: Final = 3
_SUBSCRIBE: Final = f'{{"type":"subscribe","channel":"{TABLE}"}}'
_INSERT_MANY: Final = f"INSERT INTO {TABLE} (org_id) SELECT number FROM generate_series(1, %s) AS number"


class _Sink:
    def __init__(self) -> None:
        self.size_bytes = 0

    def send(self, data: bytes) -> None:
        self.size_bytes += len(data)


@dataclass(slots=True)
class _Rate:
    """Rows a second, by the clock and by the processor time that this process used."""

    wall: list[float]
    processor: list[float]


def measure(database: Database) -> Section:
    cases: list[tuple[str, PlainForm | FullForm, str]] = [
        ("INSERT, plain form", PLAIN, "INSERT"),
        ("INSERT, full form", FULL, "INSERT"),
        ("UPDATE with the old row, plain form", PLAIN, "UPDATE"),
        ("UPDATE with the old row, full form", FULL, "UPDATE"),
    ]
    rates: dict[str, _Rate] = {}
    for name, form, kind in cases:
        rate = rates[name] = _Rate([], [])
        for _ in range(_RUNS):
            quiet.wait()
            with database.fresh() as dsn, on_server_processor():
                wall, processor = uvloop.run(_rate(dsn, form, kind))
                rate.wall.append(_ROWS / wall)
                rate.processor.append(_ROWS / processor)
    transactions, targets = _transactions(database)
    slowest = min(median(rate.wall) for name, rate in rates.items() if name.startswith("INSERT"))
    figures = table(
        ("what", "rows/s by the clock", "rows/s by processor time"),
        [(name, spread(rate.wall), spread(rate.processor)) for name, rate in rates.items()],
    )
    text = f"""\
{_ROWS:,} rows of 5 columns (200 bytes of JSON) in transactions of {_ROWS_PER_TRANSACTION:,} wait in the WAL; one process
on one processor reads them by `WalCapture`, decodes, keeps them in the log, routes and encodes them for one subscriber
whose socket is a counter. By the clock PostgreSQL's decoding on another processor and everything else on the machine
count too, by processor time only the process itself. Median (least to most) of {_RUNS} runs.

{figures}

One transaction of many rows, one client in the plain form; seconds from the end of the INSERT's COMMIT. What is over
`max_transaction_bytes` (64 MiB by default) is not held in memory but answered by a resync.

{transactions}"""
    capture = Target(
        "capture, decoded and encoded on one core", "≥ 80,000 rows/s", number(slowest), slowest >= 80_000
    )
    return Section("Capture", text, [capture, *targets])


async def _rate(dsn: str, form: PlainForm | FullForm, kind: str) -> tuple[float, float]:
    """Seconds by the clock and of processor time for all rows."""
    capture = WalCapture(dsn)
    if kind == "UPDATE":
        await asyncio.to_thread(_write, dsn, _INSERT_MANY, _ROWS, 1)
    start = await capture.start()
    if kind == "INSERT":
        await asyncio.to_thread(
            _write, dsn, _INSERT_MANY, _ROWS_PER_TRANSACTION, _ROWS // _ROWS_PER_TRANSACTION
        )
    else:
        await asyncio.to_thread(_update, dsn)
    log = MemoryLog(start, max_bytes=64 << 20, max_seconds=60)
    hub = Hub(log, capture.tables)
    subscriber = Subscriber(_Sink(), form, WEBSOCKET, lambda *_: None, lambda *_: None)
    hub.subscribe(subscriber, Request(TABLE, TABLE))
    rows = 0
    began, began_processor = time.perf_counter(), time.process_time()
    async for events in capture.events():
        hub.publish(events, time.monotonic())
        log.trim(time.monotonic())
        rows += sum(len(event.changes) for event in events if isinstance(event, Transaction))
        if rows >= _ROWS:
            break
    seconds = time.perf_counter() - began, time.process_time() - began_processor
    await capture.close()
    return seconds


def _write(dsn: str, statement: str, rows: int, times: int) -> None:
    with connect(dsn) as connection:
        for _ in range(times):
            connection.execute(statement.encode(), (rows,))


def _update(dsn: str) -> None:
    with connect(dsn) as connection:
        for first in range(1, _ROWS, _ROWS_PER_TRANSACTION):
            connection.execute(
                f"UPDATE {TABLE} SET name = 'changed row' WHERE id >= %s AND id < %s".encode(),
                (first, first + _ROWS_PER_TRANSACTION),
            )


def _transactions(database: Database) -> tuple[str, list[Target]]:
    lines: list[tuple[str, ...]] = []
    with database.fresh() as dsn, Server(dsn) as server, connect(dsn) as connection, server.clients(1) as one:
        one.subscribe(_SUBSCRIBE)
        for rows in (10_000, 100_000):
            seconds, peak = [], []
            for _ in range(_RUNS):
                idle = memory_bytes(server.pid)
                forget_peak(server.pid)
                seconds.append(_deliver(one, connection, rows))
                peak.append(peak_bytes(server.pid))
            lines.append((f"{rows:,}", "delivered", spread(seconds), f"{max(peak) / 1e6:.0f} MB"))
            if rows == 10_000:
                fast = Target(
                    "transaction of 10,000 rows complete at a client",
                    "< 1 s",
                    f"{max(seconds):.2f} s",
                    max(seconds) < 1,
                )
        idle = memory_bytes(server.pid)
        forget_peak(server.pid)
        seconds_to_resync = _resync(one, connection, 1_000_000)
        peak_of_million = peak_bytes(server.pid)
        lines.append(("1,000,000", "resync", f"{seconds_to_resync:.2f}", f"{peak_of_million / 1e6:.0f} MB"))
    bounded = Target(
        "transaction of 1,000,000 rows: server's memory",
        "bounded",
        f"{idle / 1e6:.0f} → at most {peak_of_million / 1e6:.0f} MB, client told to resync",
        peak_of_million < 1 << 30,
    )
    return table(("rows", "the client gets", "seconds", "server's peak memory"), lines), [fast, bounded]


def _deliver(one: LoadClient, connection: psycopg.Connection, rows: int) -> float:
    one.expect_each(rows)
    connection.execute(_INSERT_MANY.encode(), (rows,))
    committed_us = time.time_ns() // 1000
    return (one.answer().last_us - committed_us) / 1e6


def _resync(one: LoadClient, connection: psycopg.Connection, rows: int) -> float:
    """A row of its own follows, so that there is something to wait for."""
    connection.execute(_INSERT_MANY.encode(), (rows,))
    committed_us = time.time_ns() // 1000
    one.expect_each(1)
    connection.execute(_INSERT_MANY.encode(), (1,))
    answer = one.answer()
    assert answer.resyncs == 1, answer
    return (answer.last_us - committed_us) / 1e6
