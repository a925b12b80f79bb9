"""Large caches do what small ones do; how fast is measured by `make bench`."""

from __future__ import annotations

import math

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


async def fill(client: QueryClient) -> None:
    for project in range(100):
        for page in range(100):
            client.set_query_data(["tasks", project, {"page": page}], [page])


async def test_of_ten_thousand_entries_exactly_those_under_a_prefix_are_invalidated(
    clock: ManualClock,
) -> None:
    async with QueryClient(clock=clock) as client:
        await fill(client)
        for project in range(50):
            client.invalidate_queries(["tasks", project])
        assert len(client.query_cache.find_all(stale=True)) == 5_000


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
        for project in range(20):
            client.invalidate_queries(["tasks", project], refetch_type="none")
        assert len(heard) == 2_000


async def test_a_transaction_of_a_thousand_changes_is_patched_into_a_list_of_ten_thousand_rows(
    clock: ManualClock,
) -> None:
    async with QueryClient(clock=clock) as client:
        client.set_query_data(["rows"], [{"id": key, "value": 0} for key in range(10_000)])
        entity = Entity("rows", [["rows"]], patch=RowPatch(), polling=None)
        with RealtimeIntegration(client, [entity]) as realtime:
            for number in range(10):
                changes = [
                    ChangeEvent("rows", "UPDATE", {"id": key}, {"id": key, "value": number})
                    for key in range(1_000)
                ]
                realtime.apply(TransactionEvent(f"e-{number:04}", number, changes))
        assert client.get_query_data(["rows"])[999] == {"id": 999, "value": 9}
