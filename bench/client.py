"""The Python client's own work: a transaction into a store with a sorted view, and the query cache's index."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import tracemalloc
from collections.abc import Callable

import msgspec

from bench.report import Section, Target, median, spread, table
from rowcast.client.cache import ManualClock, QueryClient
from rowcast.client.events import SnapshotChunk, StateChanged, Subscribed, Transaction
from rowcast.client.outputs import Delta
from rowcast.client.state import ConnectionState
from rowcast.client.store import Store
from rowcast.client.view import View

_RUNS = 20
_ROWS = 100_000


def _milliseconds(run: Callable[[int], object]) -> list[float]:
    gc.collect()
    taken: list[float] = []
    for number in range(_RUNS):
        start = time.perf_counter()
        run(number)
        taken.append((time.perf_counter() - start) * 1_000)
    return taken


async def _query_cache() -> list[float]:
    client = QueryClient(clock=ManualClock())
    for project in range(100):
        for page in range(100):
            client.set_query_data(["tasks", project, {"page": page}], [page])
    return _milliseconds(lambda project: client.invalidate_queries(["tasks", project], refetch_type="none"))


def _columns(number: int, version: int) -> dict[str, object]:
    return {
        "id": number,
        "name": f"project {number} {version}",
        "org_id": number % 97,
        "created_at": version * _ROWS + number,
    }


def _position(number: int) -> str:
    return f"{'a' * 16}-{number:016x}"


def _store() -> tuple[list[float], float]:
    """Milliseconds for a transaction of 1,000 changes with its view, and memory as a share of the rows as dicts."""
    text = msgspec.json.encode([_columns(number, 0) for number in range(_ROWS)])
    tracemalloc.start()
    rows = msgspec.json.decode(text)
    plain_bytes = tracemalloc.get_traced_memory()[0]
    del rows
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    store = Store()
    store.add("p")
    names = tuple((name, "x") for name in _columns(0, 0))
    store.receive(
        [
            StateChanged(ConnectionState("connected")),
            Subscribed("p", "projects", "public", "projects", names, ("id",), _position(1), 3),
            SnapshotChunk("p", 0, msgspec.json.decode(text), [], last=True, position=_position(1)),
        ]
    )
    gc.collect()
    share = (tracemalloc.get_traced_memory()[0] - before) / plain_bytes
    tracemalloc.stop()
    view = View(store.rows("p"), "-created_at", 50)
    chance = random.Random(1)

    def transaction(number: int) -> Transaction:
        changes = [
            {"shape": 3, "op": "UPDATE", "id": "x", "key": {"id": key}, "new": _columns(key, number + 1)}
            for key in chance.sample(range(_ROWS), 1000)
        ]
        return Transaction(_position(number + 2), number, "", {"p": changes}, ())

    frames = [transaction(number) for number in range(_RUNS)]

    def apply(number: int) -> None:
        for output in store.receive([frames[number]]):
            if isinstance(output, Delta):
                view.apply(output.changes, reset=output.reset)

    return _milliseconds(apply), share


def measure() -> Section:
    """Both parts as a section of the page."""
    invalidated = asyncio.run(_query_cache())
    applied, share = _store()
    best, middle = min(invalidated), median(applied)
    return Section(
        "The Python client",
        table(
            ("work", "ms, median (least to most)"),
            [
                ("10,000 cached queries: invalidate a prefix of 100", spread(invalidated)),
                (
                    "store of 100,000 rows, view sorted and limited to 50: a transaction of 1,000 changes",
                    spread(applied),
                ),
            ],
        )
        + f"\n\nThe store holds {share:.2f} times what the rows take as plain dicts.",
        [
            Target("invalidate a prefix of 100 among 10,000", "< 1 ms", f"{best:.2f} ms", met=best < 1),
            Target(
                "a transaction of 1,000 changes with its view", "< 10 ms", f"{middle:.1f} ms", met=middle < 10
            ),
            Target(
                "memory of the store",
                "at most 1.5 times the rows as dicts",
                f"{share:.2f} times",
                met=share <= 1.5,
            ),
        ],
    )
