"""The vectors of spec/cache, run as spec/README.md says: one query, one table, a backend whose answers are held."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.client.cache.support import sleep

from rowcast.client.cache import (
    ChangeEvent,
    Entity,
    ManualClock,
    PollingIntervals,
    QueryClient,
    QueryFunctionContext,
    QueryObserver,
    RealtimeIntegration,
    RowPatch,
    TransactionEvent,
)

SPEC = Path(__file__).parents[3] / "spec" / "cache"
EPOCH = "5e1f0c6a9d3b2e47"
KEY = ["projects"]
Object = dict[str, Any]


class AnswerError(Exception):
    """What a fetch fails with."""


class Machine:
    """A query on a clock that stands still, and the short words of the vectors."""

    def __init__(self, setup: Object) -> None:
        self.clock = ManualClock()
        self.client = QueryClient(clock=self.clock)
        self.answers_after_seconds: float | None = setup.get("answers_after_seconds")
        self.database: list[Object] = []
        self.answers: list[asyncio.Future[tuple[list[Object], str | None]]] = []
        self.shown: list[Any] = []
        polling = setup.get("polling")
        entity = Entity(
            "projects",
            [KEY],
            patch=RowPatch() if setup["entity"] == "patch" else None,
            polling=None
            if polling is None
            else PollingIntervals(
                polling["live_seconds"], tuple(polling["quiet_seconds"]), polling["disconnected_seconds"]
            ),
        )
        self.realtime = RealtimeIntegration(self.client, [entity], between=lambda low, _: low)
        self.observer: QueryObserver[Any, Any] = QueryObserver(
            self.client, key=KEY, fn=self.fetch, stale_time=math.inf, retry=False
        )
        self.unsubscribe: Callable[[], None] = lambda: None

    async def fetch(self, context: QueryFunctionContext) -> list[Object]:
        answer: asyncio.Future[tuple[list[Object], str | None]] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        if self.answers_after_seconds is not None:
            rows = self.database
            await sleep(self.clock, self.answers_after_seconds)
            return rows
        rows, context.snapshot = await answer
        return rows

    async def perform(self, step: Object) -> None:
        await getattr(self, f"do_{step['do']}")(step)
        await self.clock.settle()

    async def do_watch(self, _: Object) -> None:
        self.unsubscribe = self.observer.subscribe(self.hear)

    def hear(self, result: Any) -> None:
        if result.data is not None and (not self.shown or result.data != self.shown[-1]):
            self.shown.append(result.data)

    async def do_unwatch(self, _: Object) -> None:
        self.unsubscribe()

    async def do_land(self, step: Object) -> None:
        self.answers[step["fetch"] - 1].set_result((step["rows"], step.get("snapshot")))

    async def do_fail(self, step: Object) -> None:
        self.answers[step["fetch"] - 1].set_exception(AnswerError())

    async def do_event(self, step: Object) -> None:
        changes = [
            ChangeEvent(
                step.get("table", "projects"), each["op"], each["key"], each.get("new"), each.get("old")
            )
            for each in step["changes"]
        ]
        position = f"{EPOCH}-{int(step['position'][1:]):016x}"
        self.realtime.apply(TransactionEvent(position, step["txid"], changes))

    async def do_storm(self, step: Object) -> None:
        """Each event writes the row of key 1 with its number, in the database and in the stream."""
        self.shown.clear()
        for number in range(1, step["events"] + 1):
            self.database = [{"id": 1, "version": number}]
            change = ChangeEvent("projects", "UPDATE", {"id": 1}, self.database[0])
            self.realtime.apply(TransactionEvent(f"{EPOCH}-{number:016x}", number, [change]))
            await self.clock.advance(step["every_seconds"])

    async def do_database(self, step: Object) -> None:
        self.database = step["rows"]

    async def do_clock(self, step: Object) -> None:
        await self.clock.advance(step["seconds"])

    async def do_refetch(self, _: Object) -> None:
        self.task = asyncio.ensure_future(self.observer.refetch())

    async def do_invalidate(self, _: Object) -> None:
        self.task = asyncio.ensure_future(self.client.invalidate_queries(KEY))

    async def do_gap(self, _: Object) -> None:
        self.realtime.gap()

    async def do_connection(self, step: Object) -> None:
        self.realtime.connection_state(step["state"])

    async def do_hide(self, _: Object) -> None:
        self.client.focus_manager.set_focused(False)

    async def do_show(self, _: Object) -> None:
        self.client.focus_manager.set_focused(True)

    def check(self, expected: Object) -> None:
        state = self.client.get_query_state(KEY)
        for name, value in expected.items():
            match name:
                case "rows":
                    data = None if state is None else state.data
                    assert in_order(data) == in_order(value)
                case "fetches":
                    assert len(self.answers) == value
                case "fetches_at_most":
                    assert len(self.answers) <= value
                case "shown_at_least":
                    assert len(self.shown) >= value
                case "fetching":
                    assert state is not None
                    assert (state.fetch_status == "fetching") is value
                case "invalidated":
                    assert state is not None
                    assert state.is_invalidated is value
                case _:
                    pytest.fail(f"unknown expectation {name}")


def in_order(rows: list[Object] | None) -> list[Object] | None:
    return None if rows is None else sorted(rows, key=lambda row: row["id"])


VECTORS = [
    pytest.param(vector, id=f"{path.stem}: {vector['name']}")
    for path in sorted(SPEC.glob("*.json"))
    for vector in json.loads(path.read_text())["vectors"]
]


@pytest.mark.parametrize("vector", VECTORS)
async def test_vector(vector: Object) -> None:
    machine = Machine(vector["setup"])
    with machine.realtime:
        async with machine.client:
            for number, step in enumerate(vector["steps"], 1):
                await machine.perform(step)
                try:
                    machine.check(step.get("expect", {}))
                except AssertionError as error:
                    error.add_note(f"step {number}, {step['do']}")
                    raise
            for answer in machine.answers:
                answer.cancel()
