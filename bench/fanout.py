"""(a) Fan-out: one row to many clients, one commit at a time and as many as PostgreSQL takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import psycopg

from bench.deployment import INSERT, TABLE, Database, Server, commit_many, commit_paced, connect
from bench.programs import LoadClient, Program, broadcast_server, send_floor
from bench.report import Section, Target, median, milliseconds, number, spread, table

_CLIENTS: Final = (1, 100, 1_000, 5_000)
_RUNS: Final = 3
_SUBSCRIBE: Final = f'{{"type":"subscribe","channel":"{TABLE}"}}'
# Rounds of one message to all: enough for half a second or so.
_ROUNDS: Final = {1: 500, 100: 300, 1_000: 60, 5_000: 15}
# Commits in one go. What a client is behind by then has to fit into its queue (4 MiB): beyond, the server rightly
# drops it and orders a resync.
_BURST: Final = {1: 5_000, 100: 5_000, 1_000: 5_000, 5_000: 1_000}
# One write a message takes longer: this many deliveries tell its rate as well.
_PROGRAM_BURST_DELIVERIES: Final = 300_000
_PACED_SECONDS: Final = 5
# What was promised under load, and the share of it, and of what was measured, at which latencies are taken.
_PROMISED: Final = 500_000
_PACED_SHARE: Final = 0.45


@dataclass(slots=True)
class _Rates:
    """Deliveries a second in each run."""

    single: list[float] = field(default_factory=list[float])
    burst: list[float] = field(default_factory=list[float])


@dataclass(slots=True)
class _Paced:
    clients: int
    commits_per_second: float
    p50_us: int
    p95_us: int
    p99_us: int


def measure(database: Database) -> Section:
    with database.fresh() as dsn, Server(dsn) as server, connect(dsn) as connection:
        frame_bytes = _frame_bytes(server, connection)
        floors: dict[int, _Rates] = {}
        ours: dict[int, _Rates] = {}
        theirs: dict[int, _Rates] = {}
        paced: list[_Paced] = []
        for clients in _CLIENTS:
            floors[clients], ours[clients], theirs[clients] = _Rates(), _Rates(), _Rates()
            with server.clients(clients) as watching:
                watching.subscribe(_SUBSCRIBE)
                # In turns, so that what else the machine does falls on all alike.
                for _ in range(_RUNS):
                    with send_floor(clients, frame_bytes) as program:
                        _measure_program(program, clients, floors[clients])
                    _measure_server(watching, connection, ours[clients])
                    with broadcast_server(frame_bytes) as program:
                        _measure_program(program, clients, theirs[clients])
                if clients >= 1_000:
                    for greatest in (_PROMISED, median(ours[clients].burst)):
                        paced.append(_measure_paced(watching, connection, greatest))  # noqa: PERF401
    return _section(frame_bytes, floors, ours, theirs, paced)


def _frame_bytes(server: Server, connection: psycopg.Connection) -> int:
    with server.clients(1) as one:
        one.subscribe(_SUBSCRIBE)
        one.expect_each(100)
        commit_many(connection, 100)
        return one.answer().bytes // 100


def _measure_program(program: Program, clients: int, rates: _Rates) -> None:
    with LoadClient(int(program.line()), "/", clients) as watching:
        watching.subscribe("{}")

        def send(count: int) -> None:
            program.tell(str(count))

        rates.single.append(_single(watching, lambda: send(1)))
        rates.burst.append(_burst(watching, min(5_000, _PROGRAM_BURST_DELIVERIES // clients), send))


def _measure_server(watching: LoadClient, connection: psycopg.Connection, rates: _Rates) -> None:
    rates.single.append(_single(watching, lambda: connection.execute(INSERT, prepare=True)))
    rates.burst.append(
        _burst(watching, _BURST[watching.clients], lambda count: commit_many(connection, count))
    )


def _single(watching: LoadClient, send: Callable[[], object]) -> float:
    """One message, and the next when all have it."""
    rounds = _ROUNDS[watching.clients]
    began = time.perf_counter()
    for _ in range(rounds):
        watching.expect_each(1)
        send()
        watching.answer()
    return rounds * watching.clients / (time.perf_counter() - began)


def _burst(watching: LoadClient, count: int, send: Callable[[int], object]) -> float:
    """Many messages as fast as they can be sent."""
    watching.expect_each(count)
    began_us = time.time_ns() // 1000
    send(count)
    return count * watching.clients / (watching.answer().last_us - began_us) * 1e6


def _measure_paced(watching: LoadClient, connection: psycopg.Connection, greatest: float) -> _Paced:
    clients = watching.clients
    rate = _PACED_SHARE * greatest / clients
    count = int(rate * _PACED_SECONDS)
    watching.expect_each(count)
    commit_paced(connection, count, rate)
    answer = watching.answer()
    return _Paced(clients, rate, answer.p50_us, answer.p95_us, answer.p99_us)


def _section(
    frame_bytes: int,
    floors: dict[int, _Rates],
    ours: dict[int, _Rates],
    theirs: dict[int, _Rates],
    paced: list[_Paced],
) -> Section:
    ratio = median(ours[1_000].single) / median(floors[1_000].single)
    greatest = median(ours[1_000].burst)
    at_half = paced[0]
    latencies = table(
        ("clients", "commits/s", "deliveries/s", "p50", "p95", "p99"),
        [
            (
                f"{each.clients:,}",
                number(each.commits_per_second),
                number(each.commits_per_second * each.clients),
                *(milliseconds(value) for value in (each.p50_us, each.p95_us, each.p99_us)),
            )
            for each in paced
        ],
    )

    def compared(kind: Literal["single", "burst"]) -> str:
        rows: list[tuple[str, ...]] = []
        for clients in _CLIENTS:
            floor, our, their = (getattr(rates[clients], kind) for rates in (floors, ours, theirs))
            share = f"{median(our) / median(floor):.2f}"
            rows.append((f"{clients:,}", spread(floor), spread(our), share, spread(their)))
        return table(("clients", "C floor", "Rowcast", "of the floor", "`websockets.broadcast`"), rows)

    text = f"""\
Deliveries a second, the median (least to most) of {_RUNS} runs that take turns. A row is 200 bytes of JSON, its message
in the plain form {frame_bytes} bytes. The C floor is a program that does nothing but one `send()` a message and client,
of as many bytes. `websockets.broadcast` runs on uvloop, and its messages come from memory.

Single: one commit, wait until every client has it, the next. With few clients this measures latency rather than
fan-out: ours comes by way of a commit and the WAL.

{compared("single")}

Under load: commits of one row each as fast as PostgreSQL takes them, up to {_BURST[1_000]:,} in one go; the floor and
the comparison send in a loop. What waits for a client leaves in one write, so this is far beyond one `send()` a message.

{compared("burst")}

Milliseconds from the INSERT to the client, at {_PACED_SHARE:.0%} of the load that was promised and at
{_PACED_SHARE:.0%} of what was measured:

{latencies}"""
    return Section(
        "Fan-out",
        text,
        [
            Target("single commits to 1,000 clients, of the C floor", "≥ 0.5", f"{ratio:.2f}", ratio >= 0.5),
            Target(
                "under load, 1,000 clients, deliveries/s on one core",
                f"≥ {_PROMISED:,}",
                number(greatest),
                greatest >= _PROMISED,
            ),
            Target(
                f"p99 with 1,000 clients at {_PACED_SHARE:.0%} of that load",
                "< 100 ms",
                f"{milliseconds(at_half.p99_us)} ms",
                at_half.p99_us < 100_000,
            ),
        ],
    )
