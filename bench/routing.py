"""(f) Routing: what a change costs where few or very many filtered shapes watch its table."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

from bench.machine import SERVER, memory_bytes
from bench.report import Section, Target, number, table
from rowcast.filters import bind, parse_postgrest
from rowcast.hub.shape import Projection, Routes, Shape
from rowcast.model import Change, Column, Table
from rowcast.values import TypeCatalog

_COUNTS: Final = (1, 100_000, 1_000_000)
_CHANGES: Final = 20_000
_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one change, in the best of several runs; and of one shape."""

    hit_us: float
    miss_us: float
    add_us: float
    bytes_each: float


def measure() -> Section:
    costs = {count: _alone(_measure, count) for count in _COUNTS}
    rows = [
        (
            f"{count:,}",
            f"{cost.hit_us:.2f}",
            f"{cost.miss_us:.2f}",
            f"{cost.add_us:.1f}",
            number(cost.bytes_each) if count > 1 else "",
        )
        for count, cost in costs.items()
    ]
    head = (
        "shapes",
        "change that concerns one, µs",
        "that concerns none, µs",
        "to add one, µs",
        "bytes each",
    )
    text = f"""\
Shapes with `org_id=eq.N`, each with another N, on one table. A change is an UPDATE whose old and new row are looked up; it
concerns one shape, or none. The memory is that of the filter, the shape and its place in the index, without clients.

{table(head, rows)}"""
    few, many = costs[1].hit_us, costs[100_000].hit_us
    total = costs[1_000_000].bytes_each * 1e6
    return Section(
        "Routing",
        text,
        [
            Target(
                "a change with 100,000 filters, of its cost with one",
                "≤ 2",
                f"{many / few:.2f}",
                many <= 2 * few,
            ),
            Target("memory of 1,000,000 filters", "≤ 2 GB", f"{total / 1e9:.2f} GB", total <= 2e9),
        ],
    )


def _alone(function: Callable[[int], Cost], count: int) -> Cost:
    """In a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, count).result()


def _measure(count: int) -> Cost:
    os.sched_setaffinity(0, SERVER)
    encoder = TypeCatalog().encoder
    columns = [("id", 20, "bigint"), ("org_id", 23, "integer"), ("name", 25, "text")]
    watched = Table(
        1,
        "public",
        "measured",
        tuple(Column(name, oid, -1, type_name, encoder(oid)) for name, oid, type_name in columns),
        (0,),
        "full",
    )
    projection = Projection(watched, None)
    routes = Routes()
    before = memory_bytes(os.getpid())
    began = time.perf_counter()
    for number_of_shape in range(count):
        bound = bind(parse_postgrest(f"org_id=eq.{number_of_shape}"), watched)
        routes.add(Shape(watched, None, projection, bound))
    add_us = (time.perf_counter() - began) / count * 1e6
    bytes_each = (memory_bytes(os.getpid()) - before) / count
    return Cost(
        hit_us=_cost(routes, watched, [number_of_change % count for number_of_change in range(_CHANGES)]),
        miss_us=_cost(routes, watched, [count + number_of_change for number_of_change in range(_CHANGES)]),
        add_us=add_us,
        bytes_each=bytes_each,
    )


def _cost(routes: Routes, watched: Table, organisations: list[int]) -> float:
    changes = [
        Change(watched, "UPDATE", (b"1", b"%d" % each, b"new"), (b"1", b"%d" % each, b"old"), 0)
        for each in organisations
    ]
    best = float("inf")
    for _ in range(_RUNS):
        began = time.process_time()
        for change in changes:
            for _shape in routes.effects(change):
                pass
        best = min(best, time.process_time() - began)
    return best / len(changes) * 1e6
