"""`make handoffs`: snapshots under writers, ours and those of naive hand-offs, each compared with an oracle.

A stage for each capture, with commits that wait for a standby which answers late and without. There, 32 writers write
while snapshots are taken through the server, over each way of getting rows, most of them of a filter that nobody has
asked for before. Where the stream is the WAL, a process reads the same rows next to each for the naive hand-offs (see
`naive`). At pauses, the oracle says what the rows were.

The one rule of this room: ours and theirs are compared with the same oracle, which does not use Rowcast, and each
at one position: ours at its own, theirs at an LSN that the stream has to pass before all that the rows show is told.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from tests.faults.naive import NAIVE, Reading, Visible
from tests.faults.oracle import JSONRow, Key, Oracle, Shape, canonical, difference
from tests.faults.order import LogOrder, OutboxOrder
from tests.faults.schema import Table, random_filter, random_schema
from tests.faults.stage import MARKER, Capture, Setting, Stage, Writers
from websockets.asyncio.client import connect

OURS: Final = "Rowcast"
LOOK_BACK: Final = "the rows, and all that they do not show"  # the rule, applied by hand: it checks the judge
WRITERS: Final = 32
_SHAPES: Final = 24
_TAKERS: Final = 6  # more would only wait for each other on two cores
_SNAPSHOTS_A_STEP: Final = 250
_SECONDS: Final = 60.0
# No commit is hidden for longer than it takes this many others.
_LOOK_BACK_COMMITS: Final = 2_000
_LINE_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Wish:
    """A shape, and how a client asks for it."""

    table: Table
    shape: Shape
    wire: dict[str, Any]

    def renewed(self, number: int) -> Wish:
        """The same rows by a filter that is another one for the server, so that it has to read them."""
        term = 1_000_000 + number  # `org` is never so large, and never NULL
        if "where" in self.wire:
            wire = {**self.wire, "where": f"({self.wire['where']}) AND org <> {term}"}
        else:
            wire = {"filter": "&".join([*self.wire.values(), f"org=neq.{term}"])}
        return Wish(self.table, self.shape, wire)


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that a client got."""

    wish: Wish
    way: str
    position: str
    rows: list[JSONRow]


@dataclass(slots=True)
class Tally:
    """How many snapshots were compared, and how many were wrong, by hand-off."""

    taken: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    queries: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    failures: list[str] = field(default_factory=list)

    def count(self, name: str, *, right: bool) -> None:
        self.taken[name] += 1
        self.wrong[name] += not right


class RefusedError(Exception):
    """The server says that it cannot tell the rows now."""


def _check(message: dict[str, Any]) -> None:
    if message.get("code") == "snapshot_failed":
        raise RefusedError(message.get("message") or message["error"])
    assert message.get("type") != "error", message
    assert "error" not in message, message


# The ways of getting a snapshot.


async def _full(url: str, wish: Wish) -> tuple[str, list[JSONRow]]:
    rows: dict[Key, JSONRow] = {}
    async with connect(f"{url.replace('http', 'ws')}/ws", max_size=None, max_queue=None) as client:
        await client.send('{"type":"hello","version":1}')
        await client.send(json.dumps({**_subscribe(wish), "id": "s"}))
        async for text in client:
            message = json.loads(text)
            _check(message)
            assert message["type"] != "resync", message
            if message["type"] == "snapshot":
                if message["chunk"] == 0:
                    rows.clear()
                for key in message.get("deleted", ()):
                    rows.pop(_key(wish, key), None)
                rows.update((_key(wish, row), row) for row in message["rows"])
                if message.get("last"):
                    return message["position"], list(rows.values())
    raise AssertionError("the connection ended before the snapshot")


async def _plain(url: str, wish: Wish) -> tuple[str, list[JSONRow]]:
    rows: dict[Key, JSONRow] = {}
    async with connect(f"{url.replace('http', 'ws')}/ws", max_size=None, max_queue=None) as client:
        await client.send(json.dumps(_subscribe(wish)))
        async for text in client:
            message = json.loads(text)
            _check(message)
            match message.get("op", message.get("type")):
                case "snapshot":
                    return message["position"], list(rows.values())
                case "resync":
                    if message["reason"] != "snapshot_overtaken":  # then they come again
                        raise RefusedError(message["reason"])
                    rows.clear()
                case "TRUNCATE":
                    rows.clear()
                case "SNAPSHOT" | "INSERT":
                    rows[_key(wish, message["key"])] = message["new"]
                case "UPDATE":
                    before = rows.pop(_key(wish, message.get("old", message["key"])), {})
                    rows[_key(wish, message["key"])] = {**before, **message["new"]}
                case "DELETE":
                    rows.pop(_key(wish, message["key"]), None)
                case "subscribed" | "status" | "heartbeat":
                    pass
                case _:
                    raise AssertionError(message)
    raise AssertionError("the connection ended before the snapshot")


async def _http(url: str, wish: Wish) -> tuple[str, list[JSONRow]]:
    parameters = {name: json.dumps(value) if name == "params" else value for name, value in wish.wire.items()}
    async with httpx.AsyncClient(timeout=_SECONDS) as client:
        answer = await client.get(f"{url}/v1/rows/{wish.table.name}", params=parameters)
    document = answer.json()
    _check(document)
    return document["position"], document["rows"]


_WAYS: Final = {"full": _full, "plain": _plain, "http": _http}


def _suits(table: Table) -> bool:
    """Not where a row has no key by which a hand-off could replace it, nor where the stream leaves large values out
    of rows: there, rows are read again until they need none. The campaign has such tables.
    """
    return bool(table.key) and (table.full or table.large is None)


def _subscribe(wish: Wish) -> dict[str, Any]:
    return {"type": "subscribe", "channel": wish.table.name, "snapshot": True, **wish.wire}


def _key(wish: Wish, row: JSONRow) -> Key:
    return tuple(row[name] for name in wish.table.key)


class Crowd(Writers):
    program = "tests.faults.crowd"


class Naive:
    """The process that reads for the naive hand-offs."""

    async def start(self, dsn: str) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.naive", dsn),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        self._lock = asyncio.Lock()
        assert await self._line() == b"ready\n"

    async def read(self, shape: Shape) -> Reading:
        assert self._process.stdin is not None
        async with self._lock:
            wish = {"table": shape.table, "sql": shape.sql}
            self._process.stdin.write(json.dumps(wish).encode() + b"\n")
            return Reading(**json.loads(await self._line()))

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(_SECONDS):
            line = await self._process.stdout.readline()
        assert line, "the naive reader has ended"
        return line


class Judge:
    """Says what the rows of a shape were, and whether a hand-off has made that of what it had."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def check(self, taken: Taken) -> str:
        """What is wrong with a snapshot; empty if nothing is."""
        shape = taken.wish.shape
        ours = {_key(taken.wish, row): row for row in taken.rows}
        expected = self._rows_at(shape, self._oracle.number_at(taken.position))
        if ours == expected and len(ours) == len(taken.rows):
            return ""
        found, wanted = (Counter(map(canonical, rows)) for rows in (taken.rows, expected.values()))
        return f"{taken.way} {shape.table} {taken.wish.wire} at {taken.position}: {difference(found, wanted)}"

    def naive(self, reading: Reading) -> dict[str, bool]:
        """Which hand-offs make of a reading what the rows were at its end."""
        oracle, shape = self._oracle, Shape(reading.table, reading.sql, None)
        visible = Visible(reading.snapshot)
        count = self._number_at(reading.end)
        first = self._number_at(min(reading.heard_before, reading.lsn_before))
        recent = range(max(0, first - _LOOK_BACK_COMMITS), count)
        expected = self._rows_at(shape, count)
        rows = [json.loads(text) for text in reading.rows]

        def is_right(applies: Callable[[int, int], bool]) -> bool:
            made = {oracle.key_of(shape.table, row): row for row in rows}
            for number in recent:
                commit = oracle.commits[number]
                if applies(commit.place[1] // 2, commit.xid):
                    self._apply(shape, made, number)
            return made == expected

        verdicts = {name: is_right(partial(applies, reading, visible)) for name, applies in NAIVE.items()}
        verdicts[LOOK_BACK] = is_right(lambda _, xid: not visible(xid))
        return verdicts

    def _number_at(self, lsn: int) -> int:
        return self._oracle.number_at(f"{'':0>16}-{lsn:016x}")

    def _rows_at(self, shape: Shape, count: int) -> dict[Key, JSONRow]:
        return {self._oracle.key_of(shape.table, row): row for row in self._oracle.rows_at(shape, count)}

    def _apply(self, shape: Shape, rows: dict[Key, JSONRow], number: int) -> None:
        for row_id in self._oracle.touched_between(shape.table, number, number + 1):
            key = self._oracle.json_key(shape.table, row_id)
            row = self._oracle.row_at(shape, row_id, number + 1)
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row


class Handoffs:
    """One stage, on which snapshots are taken and compared. Use it with `async with`.

    Args:
        standby: Whether commits wait for a synchronous standby that answers late.
    """

    def __init__(
        self, capture: Capture, seed: str, *, standby: bool, writers: int = WRITERS, version: int = 18
    ) -> None:
        schema_seed = next(
            name
            for name in (f"{seed}-schema-{number}" for number in itertools.count())
            if all(map(_suits, random_schema(random.Random(name))))
        )
        self.tally = Tally()
        self._seed = seed
        self._chance = random.Random(seed)
        # A window that has to let go all the time, and clients that show no sign of life.
        serve = {"replay-window-bytes": "8MB", "heartbeat-seconds": "60"}
        self._setting = Setting(capture, version, schema_seed, writers, serve, standby)
        self._stack = AsyncExitStack()
        self._naive = Naive() if capture == "wal" else None
        self._taken: list[Taken] = []
        self._readings: list[Reading] = []
        self._marked = 0
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _begin(self) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rowcast-handoffs-")))
        folder.chmod(0o777)  # PostgreSQL runs as another user where we are root  # noqa: ASYNC240 - of no duration
        stage = self.stage = Stage(self._setting, folder)
        await self._stack.enter_async_context(stage)
        # The proxies, in this process, would hold the stream up.
        stage.setting.serve.update({"dsn": stage.dsn, "database-url-direct": stage.dsn})
        order = LogOrder() if self._setting.capture == "wal" else OutboxOrder()
        self._oracle = await asyncio.to_thread(Oracle, stage.dsn, [*stage.tables, MARKER], order)
        self._stack.callback(self._oracle.close)
        self._judge = Judge(self._oracle)
        await stage.execute("INSERT INTO marker VALUES (1, 0)")
        stage.start_server()
        await stage.server_ready()
        if self._naive is not None:
            await self._naive.start(stage.dsn)
            self._stack.push_async_callback(self._naive.close)
        self.url = f"http://127.0.0.1:{stage.server_port}"
        self._wishes = [self._wish() for _ in range(_SHAPES)]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _wish(self) -> Wish:
        table = self._chance.choice(self.stage.tables)
        condition = random_filter(self._chance, table)
        return Wish(table, Shape(table.name, condition.sql, None), condition.wire)

    async def run(self, count: int) -> Tally:
        """Take so many snapshots under the writers, and compare each."""
        stage = self.stage
        writers = stage.writers = Crowd(
            stage.dsn, self._setting.schema_seed, self._seed, self._setting.writers
        )
        if stage.standby is not None:
            stage.standby.late()
        while count > 0:
            step = min(count, _SNAPSHOTS_A_STEP)
            count -= step
            await asyncio.to_thread(writers.go)
            turns = iter(range(step))
            async with asyncio.TaskGroup() as group:
                for _ in range(_TAKERS):
                    group.create_task(self._take_some(turns))
            await stage.calm()
            self.tally.commits = await asyncio.to_thread(writers.pause)
            await stage.execute(
                "SELECT pg_logical_emit_message(true, 'flush', '')"
            )  # flushes what did not wait for the disk
            await self.compare()
            if stage.standby is not None:
                stage.standby.late()
        self.tally.queries = await self._queries()
        return self.tally

    async def _take_some(self, turns: Iterable[int]) -> None:
        for _ in turns:
            number = next(self._numbers)
            wish = self._chance.choice(self._wishes)
            if self._chance.random() < 0.8:
                wish = wish.renewed(number)
            await self.take(wish, ("full", "plain", "full", "http")[number % 4])

    async def take(self, wish: Wish, way: str) -> None:
        """Take one snapshot, and read the same for the naive hand-offs."""
        async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(self._take(wish, way))
            group.create_task(self._read(wish))

    async def _take(self, wish: Wish, way: str) -> None:
        while True:
            try:
                position, rows = await _WAYS[way](self.url, wish)
            except RefusedError as error:
                self.tally.refused[str(error)] += 1
            else:
                self._taken.append(Taken(wish, way, position, rows))
                return

    async def _read(self, wish: Wish) -> None:
        if self._naive is not None:
            self._readings.append(await self._naive.read(wish.shape))

    async def _settle(self) -> None:
        """Wait until all that has been written is in the stream."""
        self._marked += 1
        await self.stage.execute("UPDATE marker SET n = %s", self._marked)
        wish = Wish(MARKER, Shape(MARKER.name, "", None), {})
        async with asyncio.timeout(_SECONDS):
            while (await _http(self.url, wish))[1] != [{"id": 1, "n": self._marked}]:
                pass

    async def compare(self) -> None:
        """Compare what was taken, while nobody writes."""
        await self._settle()
        await asyncio.to_thread(self._compare)

    def _compare(self) -> None:
        oracle, tally = self._oracle, self.tally
        taken, self._taken = self._taken, []
        readings, self._readings = self._readings, []
        oracle.read()
        oracle.evaluate(each.wish.shape for each in taken)
        oracle.verify()
        for each in taken:
            problem = self._judge.check(each)
            tally.count(f"{OURS}, {self._setting.capture}", right=not problem)
            if problem:
                tally.failures.append(problem)
        for reading in readings:
            for name, right in self._judge.naive(reading).items():
                tally.count(name, right=right)

    async def _queries(self) -> int:
        """How many snapshots the server has read from the database."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.url}/metrics")).text
        found = re.search(r"^rowcast_snapshots_total (\S+)$", text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))


async def _run(capture: Capture, seed: str, count: int, *, standby: bool, version: int) -> Tally:
    async with Handoffs(capture, seed, standby=standby, version=version) as handoffs:
        return await handoffs.run(count)


def table_of(tallies: dict[tuple[Capture, bool], Tally]) -> str:
    """The result: a line for each hand-off, how many were wrong of how many, without and with a late standby."""
    together = {late: Tally() for late in (False, True)}
    for (_, late), tally in tallies.items():
        together[late].taken += tally.taken
        together[late].wrong += tally.wrong
    lines = ["| hand-off | wrong, no standby | wrong, late standby |", "|---|---|---|"]
    for name in sorted(together[False].taken, key=lambda name: not name.startswith(OURS)):
        cells = [
            f"{tally.wrong[name]:,} of {tally.taken[name]:,} ({tally.wrong[name] / tally.taken[name]:.1%})"
            for tally in together.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    count = int(os.environ.get("HANDOFFS_SNAPSHOTS", "2000"))
    seed = os.environ.get("HANDOFFS_SEED", f"{time.time_ns() // 1000 % 10**9}")
    version = int(os.environ.get("HANDOFFS_POSTGRES", "18"))
    tallies: dict[tuple[Capture, bool], Tally] = {}
    captures: tuple[Capture, ...] = ("wal", "outbox")
    for capture, standby in itertools.product(captures, (False, True)):
        began = time.monotonic()
        tally = asyncio.run(_run(capture, seed, count, standby=standby, version=version))
        tallies[capture, standby] = tally
        print(
            f"PostgreSQL {version}, {capture}, {'late standby' if standby else 'no standby'}, seed {seed}: {count} snapshots, {tally.queries} of"
            f" them read anew, {tally.refused.total()} refused, {tally.commits} transactions by {WRITERS} writers, {time.monotonic() - began:.0f} s",
            *(f"refused {times}: {reason}" for reason, times in tally.refused.items()),
            sep="\n",
            flush=True,
        )
    print(table_of(tallies))
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    print(*failures[:20], sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
