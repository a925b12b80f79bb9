"""(a) Fan-out: one row to many clients, one commit at a time and as many as PostgreSQL takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import psycopg

from bench.deployment import INSERT, TABLE, Database, Server, commit_many, commit_paced, connect
from bench.machine import processor_seconds, quiet
from bench.programs import Answer, LoadClient, Program, broadcast_server, send_floor
from bench.report import Latencies, Section, Target, median, milliseconds, number, spread, table

_Send: TypeAlias = Callable[[int], None]

_CLIENTS: Final = (1, 100, 1_000, 5_000)
_RUNS: Final = {1: 3, 100: 3, 1_000: 5, 5_000: 3}
_SUBSCRIBE: Final = f'{{"type":"subscribe","channel":"{TABLE}"}}'
# Rounds of one message to all: enough for a second or so.
_ROUNDS: Final = {1: 1_000, 100: 500, 1_000: 150, 5_000: 30}
# Commits in one go. What a client is behind by then has to fit into its queue (4 MiB): beyond, the server rightly
# drops it and orders a resync.
_BURST: Final = {1: 5_000, 100: 5_000, 1_000: 5_000, 5_000: 1_000}
# One write a message takes longer: this many deliveries tell its rate as well.
_PROGRAM_BURST_DELIVERIES: Final = 300_000
_PACED_SECONDS: Final = 3
_PACED_RUNS: Final = 3
# What was promised under load, and the share of it, and of what was measured, at which latencies are taken.
_PROMISED: Final = 500_000
_PACED_SHARE: Final = 0.45


@dataclass(slots=True)
class _Rates:
    """Deliveries a second in each run, and the sender's processor time for one, in microseconds."""

    single: list[float] = field(default_factory=list[float])
    burst: list[float] = field(default_factory=list[float])
    single_us: list[float] = field(default_factory=list[float])
    burst_us: list[float] = field(default_factory=list[float])

    def measure(
        self, sender: Program, watching: LoadClient, count: int, send_one: _Send, send_many: _Send
    ) -> None:
        """One run of each kind; `count` messages in the second."""
        rounds = _ROUNDS[watching.clients]
        began_us, used = time.time_ns() // 1000, processor_seconds(sender.pid)
        for _ in range(rounds):
            watching.expect_each(1)
            send_one(1)
            last_us = watching.answer().last_us
        deliveries = rounds * watching.clients
        self.single.append(deliveries / (last_us - began_us) * 1e6)
        self.single_us.append((processor_seconds(sender.pid) - used) / deliveries * 1e6)

        watching.expect_each(count)
        began_us, used = time.time_ns() // 1000, processor_seconds(sender.pid)
        send_many(count)
        last_us = watching.answer().last_us
        deliveries = count * watching.clients
        self.burst.append(deliveries / (last_us - began_us) * 1e6)
        self.burst_us.append((processor_seconds(sender.pid) - used) / deliveries * 1e6)


@dataclass(slots=True)
class _Paced:
    clients: int
    commits_per_second: float
    latencies: Latencies


def measure(database: Database) -> Section:
    with database.fresh() as dsn, Server(dsn) as server, connect(dsn) as connection:

        def commit_one(_: int) -> None:
            connection.execute(INSERT, prepare=True)

        def commit(count: int) -> None:
            commit_many(connection, count)

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
                for _ in range(_RUNS[clients]):
                    quiet.wait()
                    with send_floor(clients, frame_bytes) as program:
                        _measure_program(program, clients, floors[clients])
                    ours[clients].measure(server, watching, _BURST[clients], commit_one, commit)
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

        rates.measure(program, watching, min(5_000, _PROGRAM_BURST_DELIVERIES // clients), send, send)


def _measure_paced(watching: LoadClient, connection: psycopg.Connection, greatest: float) -> _Paced:
    clients = watching.clients
    rate = _PACED_SHARE * greatest / clients
    count = int(rate * _PACED_SECONDS)
    answers: list[Answer] = []
    for _ in range(_PACED_RUNS):
        quiet.wait()
        watching.expect_each(count)
        commit_paced(connection, count, rate)
        answers.append(watching.answer())
    return _Paced(clients, rate, Latencies.of(answers))


def _section(
    frame_bytes: int,
    floors: dict[int, _Rates],
    ours: dict[int, _Rates],
    theirs: dict[int, _Rates],
    paced: list[_Paced],
) -> Section:
    ratio = _ratio(ours[1_000].single, floors[1_000].single)
    ratio_of_time = _ratio(floors[1_000].single_us, ours[1_000].single_us)
    greatest = median(ours[1_000].burst)
    at_half = paced[0].latencies
    latencies = table(
        ("clients", "commits/s", "deliveries/s", "p50", "p95", "p99"),
        [
            (
                f"{each.clients:,}",
                number(each.commits_per_second),
                number(each.commits_per_second * each.clients),
                *each.latencies.cells,
            )
            for each in paced
        ],
    )

    def compared(kind: Literal["single", "burst"]) -> str:
        rows: list[tuple[str, ...]] = []
        for clients in _CLIENTS:
            rates = (floors[clients], ours[clients], theirs[clients])
            floor, our, their = (getattr(each, kind) for each in rates)
            used = [f"{median(getattr(each, f'{kind}_us')):.2f}" for each in rates]
            share = f"{_ratio(our, floor):.2f}"
            rows.append((f"{clients:,}", spread(floor), spread(our), share, spread(their), " / ".join(used)))
        head = (
            "clients",
            "C floor",
            "Rowcast",
            "of the floor",
            "`websockets.broadcast`",
            "processor time, µs",
        )
        return table(head, rows)

    text = f"""\
Deliveries a second, the median (least to most) of {_RUNS[1]} to {_RUNS[1_000]} runs that take turns. A row is 200 bytes of JSON, its message
in the plain form {frame_bytes} bytes. The C floor is a program that does nothing but one `send()` a message and client,
of as many bytes. `websockets.broadcast` runs on uvloop, and its messages come from memory. Beside the rates stands the
processor time that the three senders used for one delivery, in the same order: what else the machine does hardly
changes it.

Single: one commit, wait until every client has it, the next. With few clients this measures latency rather than
fan-out: ours comes by way of a commit and the WAL.

{compared("single")}

Under load: commits of one row each as fast as PostgreSQL takes them, up to {_BURST[1_000]:,} in one go; the floor and
the comparison send in a loop. What waits for a client leaves in one write, so this is far beyond one `send()` a message.

{compared("burst")}

Milliseconds from the INSERT to the client, at {_PACED_SHARE:.0%} of the load that was promised and at
{_PACED_SHARE:.0%} of what was measured, medians of {_PACED_RUNS} runs:

{latencies}"""
    return Section(
        "Fan-out",
        text,
        [
            Target(
                "single commits to 1,000 clients, of the C floor",
                "≥ 0.5",
                f"{ratio:.2f} ({ratio_of_time:.2f} by processor time)",
                ratio >= 0.5,
            ),
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


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of runs that followed each other."""
    return median([our / their for our, their in zip(ours, theirs, strict=True)])
