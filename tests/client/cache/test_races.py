"""Every interleaving of commits, events, reads and answers, in small: nothing goes back, and the end is the database.

commit       T becomes visible to reads
deliver      its event reaches the client: in any order with `commit` where reads carry their snapshot
start        the client begins a fetch; another one is joined
read         the server takes its snapshot for it
land         the answer arrives
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from rowcast.client.cache import (
    ChangeEvent,
    Entity,
    ManualClock,
    QueryClient,
    QueryFunctionContext,
    QueryObserver,
    RealtimeIntegration,
    RowPatch,
    TransactionEvent,
)

FIRST_TXID = 10
START = {1: 0, 2: 0}
# What each transaction does: rows with their versions, None for a deletion. The first and third meet in a row.
TRANSACTIONS: list[dict[int, int | None]] = [{1: 1, 3: 1}, {2: None}, {1: 3, 3: None, 4: 3}]


def interleavings(*sequences: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """All ways to merge the sequences, each in its own order."""
    alive = [sequence for sequence in sequences if sequence]
    if not alive:
        yield ()
    for index, sequence in enumerate(alive):
        rest = [*alive[:index], sequence[1:], *alive[index + 1 :]]
        for tail in interleavings(*rest):
            yield (sequence[0], *tail)


def event(number: int) -> TransactionEvent:
    changes = [
        ChangeEvent(
            "rows",
            "DELETE" if version is None else "INSERT" if version == 1 or key == 4 else "UPDATE",
            {"id": key},
            None if version is None else {"id": key, "version": version},
        )
        for key, version in TRANSACTIONS[number - 1].items()
    ]
    return TransactionEvent(f"e-{number:04}", FIRST_TXID + number, changes)


@dataclass
class Database:
    """What reads see."""

    visible: set[int] = field(default_factory=set)

    def rows(self) -> list[dict[str, int]]:
        rows: dict[int, int | None] = dict(START)
        for number in sorted(self.visible):
            rows |= TRANSACTIONS[number - 1]
        return [
            {"id": key, "version": version} for key, version in sorted(rows.items()) if version is not None
        ]

    def snapshot(self) -> str:
        pending = [FIRST_TXID + n for n in range(1, len(TRANSACTIONS) + 1) if n not in self.visible]
        ended = max((FIRST_TXID + n for n in self.visible), default=FIRST_TXID) + 1
        xmin = min([*pending, ended])
        return f"{xmin}:{ended}:{','.join(str(txid) for txid in pending if txid < ended)}"


class Run:
    """One client through one interleaving."""

    def __init__(self, entity: Entity, *, with_snapshot: bool) -> None:
        self.clock = ManualClock()
        self.database = Database()
        self.with_snapshot = with_snapshot
        self.open = False
        self.delivered: set[int] = set()
        # Whether an answer has been ahead of the stream: without its snapshot nobody can tell that later events are old.
        self.stream_behind = False
        self.read_gates: list[asyncio.Future[None]] = []
        self.land_gates: list[asyncio.Future[None]] = []
        self.shown: list[Any] = []
        self.client = QueryClient(clock=self.clock)
        self.realtime = RealtimeIntegration(self.client, [entity])
        self.observer: QueryObserver[Any, Any] = QueryObserver(
            self.client, key=["rows"], fn=self.load, stale_time=math.inf, enabled=True
        )

    async def load(self, context: QueryFunctionContext) -> list[dict[str, int]]:
        await self.gate(self.read_gates)
        rows = self.database.rows()
        seen = set(self.database.visible)
        if self.with_snapshot:
            context.snapshot = self.database.snapshot()
        await self.gate(self.land_gates)
        self.stream_behind = self.stream_behind or not seen <= self.delivered
        return rows

    async def gate(self, gates: list[asyncio.Future[None]]) -> None:
        if not self.open:
            gates.append(asyncio.get_running_loop().create_future())
            await gates[-1]

    async def step(self, action: str) -> None:
        kind, _, number = action.partition(" ")
        match kind:
            case "commit":
                self.database.visible.add(int(number))
            case "deliver":
                self.delivered.add(int(number))
                self.realtime.apply(event(int(number)))
            case "start" if self.observer.has_listeners():
                self.observer.refetch(cancel_refetch=False)
            case "start":
                self.observer.subscribe(lambda result: self.shown.append(result.data))
            case "read":
                self.release(self.read_gates)
            case _:
                self.release(self.land_gates)
        await self.rest()

    @staticmethod
    def release(gates: list[asyncio.Future[None]]) -> None:
        for gate in gates:
            if not gate.done():
                gate.set_result(None)
        gates.clear()

    @staticmethod
    async def rest() -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def finish(self) -> None:
        """Let everything that is on its way arrive."""
        self.open = True
        for gates in (self.read_gates, self.land_gates):
            self.release(gates)
            await self.rest()
        await self.clock.advance(3)


def goes_back(shown: list[Any]) -> bool:
    """Whether a row was ever shown older than before, or again after its deletion."""
    versions: dict[int, float] = {}
    for rows in shown:
        if rows is None:
            continue
        present = {row["id"]: row["version"] for row in rows}
        for key in {*versions, *present}:
            before, now = versions.get(key, -1), present.get(key)
            if now is None:
                deleted = next(
                    (n for n, rows in enumerate(TRANSACTIONS, 1) if rows.get(key, 0) is None), None
                )
                if key in versions and deleted is None:
                    return True
                versions[key] = versions.get(key, -1) if deleted is None else max(before, deleted)
            elif now < before:
                return True
            else:
                versions[key] = now
    return False


PATCH = Entity(
    "rows", [["rows"]], polling=None, patch=RowPatch(accepts=lambda *_: True, order=lambda row: row["id"])
)
INVALIDATE = Entity("rows", [["rows"]], polling=None)
FETCH = ("start", "read", "land")


def in_any_order(*numbers: int) -> tuple[list[str], list[str]]:
    return [f"commit {n}" for n in numbers], [f"deliver {n}" for n in numbers]


def commits_before_events(sequence: tuple[str, ...]) -> bool:
    """An event comes after its transaction has become visible, as without a lagging copy or synchronous standby."""
    return all(
        sequence.index(f"commit {n}") < sequence.index(f"deliver {n}")
        for n in (1, 2, 3)
        if f"deliver {n}" in sequence
    )


async def explore(
    entity: Entity,
    sequences: Iterator[tuple[str, ...]],
    *,
    with_snapshot: bool,
    possible: Callable[[tuple[str, ...]], bool] = lambda _: True,
) -> int:
    """Run all; returns how many there were."""
    count = 0
    for sequence in sequences:
        if not possible(sequence):
            continue
        count += 1
        run = Run(entity, with_snapshot=with_snapshot)
        for action in sequence:
            await run.step(action)
        await run.finish()
        assert run.observer.current_result.data == run.database.rows(), sequence
        assert not run.observer.current_result.is_stale, sequence
        assert run.client.is_fetching() == 0, sequence
        if with_snapshot or entity is INVALIDATE or not run.stream_behind:
            assert not goes_back(run.shown), (sequence, run.shown)
        run.realtime.close()
        await run.client.close()
    return count


@pytest.mark.parametrize("entity", [PATCH, INVALIDATE], ids=["patch", "invalidate"])
async def test_without_a_snapshot_events_after_their_commits(entity: Entity) -> None:
    commits, events = in_any_order(1, 2, 3)
    sequences = interleavings(tuple(commits), tuple(events), FETCH)
    assert await explore(entity, sequences, with_snapshot=False, possible=commits_before_events) == 420


@pytest.mark.parametrize("entity", [PATCH, INVALIDATE], ids=["patch", "invalidate"])
async def test_without_a_snapshot_through_two_fetches(entity: Entity) -> None:
    commits, events = in_any_order(1, 3)
    sequences = interleavings(tuple(commits), tuple(events), FETCH * 2)
    assert await explore(entity, sequences, with_snapshot=False, possible=commits_before_events) == 420


@pytest.mark.parametrize("entity", [PATCH, INVALIDATE], ids=["patch", "invalidate"])
async def test_with_a_snapshot_events_and_visibility_in_any_order(entity: Entity) -> None:
    """T2 may become visible before T1, and events may come before or after either."""
    commits, events = in_any_order(1, 2)
    for order in (commits, commits[::-1]):
        sequences = interleavings(tuple(order), tuple(events), FETCH)
        assert await explore(entity, sequences, with_snapshot=True) == 210


@pytest.mark.parametrize("entity", [PATCH, INVALIDATE], ids=["patch", "invalidate"])
async def test_with_a_snapshot_through_two_fetches(entity: Entity) -> None:
    commits, events = in_any_order(1, 3)
    sequences = interleavings(tuple(commits), tuple(events), FETCH * 2)
    assert await explore(entity, sequences, with_snapshot=True) == 1260
