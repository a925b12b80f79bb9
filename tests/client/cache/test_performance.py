"""What the cache must reach: 10,000 entries, and a prefix of 100 invalidated in under a millisecond."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import pytest

from rowcast.client.cache import (
    ChangeEvent,
    Entity,
    ManualClock,
    QueryClient,
    QueryObserver,
    RealtimeIntegration,
    RowPatch,
    TransactionEvent,
)

pytestmark = pytest.mark.skipif(
    sys.gettrace() is not None, reason="a tracer takes several times the time measured"
)


def best_milliseconds(run: Callable[[int], object], times: int) -> float:
    """The shortest of several runs: what the work takes when nothing else disturbs it."""

    def once(number: int) -> float:
        start = time.perf_counter()
        run(number)
        return (time.perf_counter() - start) * 1_000

    return min(once(number) for number in range(times))


async def fill(client: QueryClient) -> None:
    for project in range(100):
        for page in range(100):
            client.set_query_data(["tasks", project, {"page": page}], [page])


async def test_of_ten_thousand_entries_a_prefix_of_a_hundred_is_invalidated_in_a_millisecond(
    clock: ManualClock,
) -> None:
    async with QueryClient(clock=clock) as client:
        await fill(client)
        took = best_milliseconds(lambda project: client.invalidate_queries(["tasks", project]), 50)
        assert len(client.query_cache.find_all(stale=True)) == 5_000
        assert took < 1, took


async def test_the_same_for_entries_that_somebody_watches(clock: ManualClock) -> None:
    async with QueryClient(clock=clock) as client:
        await fill(client)
        heard: list[object] = []
        for query in client.query_cache.find_all(predicate=lambda query: query.key[1] in range(20)):
            observer: QueryObserver[object, object] = QueryObserver(
                client, key=query.key, stale_time=math.inf
            )
            observer.subscribe(heard.append)
        heard.clear()
        took = best_milliseconds(
            lambda project: client.invalidate_queries(["tasks", project], refetch_type="none"), 20
        )
        assert len(heard) == 2_000
        assert took < 2, took  # every observer works out and delivers its result


async def test_a_transaction_of_a_thousand_changes_is_patched_into_a_list_of_ten_thousand_rows(
    clock: ManualClock,
) -> None:
    async with QueryClient(clock=clock) as client:
        client.set_query_data(["rows"], [{"id": key, "value": 0} for key in range(10_000)])
        entity = Entity("rows", [["rows"]], patch=RowPatch(), polling=None)
        with RealtimeIntegration(client, [entity]) as realtime:

            def apply(number: int) -> None:
                changes = [
                    ChangeEvent("rows", "UPDATE", {"id": key}, {"id": key, "value": number})
                    for key in range(1_000)
                ]
                realtime.apply(TransactionEvent(f"e-{number:04}", number, changes))

            took = best_milliseconds(apply, 10)
        assert client.get_query_data(["rows"])[999] == {"id": 999, "value": 9}
        assert took < 50, took
