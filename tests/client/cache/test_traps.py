"""What goes wrong in TanStack Query 5.108 under a stream of events, and must not here (client-caches, section 0).

Each of these has been seen to fail there; the numbers are those of that list.
"""

from __future__ import annotations

import math
from typing import Any

from tests.client.cache.support import Backend, BackendError, Recorder, sleep

from rowcast.client.cache import (
    ChangeEvent,
    Entity,
    ManualClock,
    MutationObserver,
    QueryClient,
    QueryObserver,
    RealtimeIntegration,
    RowPatch,
    TransactionEvent,
)


def ignore(_: object) -> None:
    """A listener."""


def update(number: int, **new: Any) -> TransactionEvent:
    """A transaction that changes the project 1."""
    change = ChangeEvent("projects", "UPDATE", {"id": 1}, {"id": 1, **new})
    return TransactionEvent(f"epoch-{number:08}", number, [change])


async def test_1_an_event_during_a_refetch_is_not_lost_when_the_older_answer_lands(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    """
    refetch   [ reads "old" .......... lands ]
    event             "new"
    """
    backend.value = [{"id": 1, "name": "old"}]
    with RealtimeIntegration(
        client, [Entity("projects", [["projects"]], patch=RowPatch(), polling=None)]
    ) as realtime:
        observer = QueryObserver(client, key=["projects"], fn=backend, stale_time=math.inf)
        shown = Recorder(of=lambda result: result.data and result.data[0]["name"])
        observer.subscribe(shown)
        await clock.advance(1)
        observer.refetch()
        await clock.advance(0.5)
        realtime.apply(update(1, name="new"))
        assert shown.heard[-1] == "new"
        await clock.advance(0.5)
        assert client.is_fetching() == 0
        assert "old" not in shown.heard[shown.heard.index("new") :]


async def test_2_a_storm_of_events_neither_starves_the_screen_nor_leaves_it_behind(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    """30 ms a fetch, one event every 10 ms for 600 ms: there 0 or 1 updates, or 2 versions behind for good."""
    version = 0
    backend.seconds, backend.value = 0.03, lambda _: version
    entity = Entity("projects", [["projects"]], polling=None)
    with RealtimeIntegration(client, [entity], quiet_seconds=0.0, maximum_staleness_seconds=0.2) as realtime:
        observer = QueryObserver(client, key=["projects"], fn=backend, stale_time=math.inf)
        shown = Recorder(of=lambda result: result.data)
        observer.subscribe(shown)
        await clock.advance(0.03)
        for _ in range(60):
            version += 1
            realtime.apply(update(version))
            await clock.advance(0.01)
        assert len(set(shown.heard)) >= 15
        assert len(backend.calls) <= 22
        assert backend.cancelled == 0
        await clock.advance(0.1)
        assert observer.current_result.data == 60
        assert not observer.current_result.is_stale


async def test_2_plain_invalidations_that_join_end_at_the_last_version(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    version = 0
    backend.seconds, backend.value = 0.03, lambda _: version
    observer = QueryObserver(client, key=["a"], fn=backend, stale_time=math.inf)
    observer.subscribe(ignore)
    await clock.advance(0.03)
    for _ in range(60):
        version += 1
        client.invalidate_queries(["a"], cancel_refetch=False)
        await clock.advance(0.01)
    await clock.advance(0.1)
    assert observer.current_result.data == 60
    assert backend.cancelled == 0


async def test_3_an_event_during_the_first_fetch_is_followed_by_another(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.value = "before"
    with RealtimeIntegration(client, [Entity("projects", [["projects"]], polling=None)]) as realtime:
        observer = QueryObserver(client, key=["projects"], fn=backend, stale_time=math.inf)
        observer.subscribe(ignore)
        await clock.advance(0.5)
        backend.value = "after"
        realtime.apply(update(1))
        await clock.advance(0.5)
        assert (observer.current_result.data, observer.current_result.is_stale) == ("before", True)
        await clock.advance(1.5)
        assert (observer.current_result.data, observer.current_result.is_stale) == ("after", False)
        assert len(backend.calls) == 2


async def test_3_a_plain_invalidation_during_the_first_fetch_too_and_it_can_be_waited_for(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.value = "before"
    observer = QueryObserver(client, key=["a"], fn=backend, stale_time=math.inf)
    observer.subscribe(ignore)
    await clock.advance(0.5)
    backend.value = "after"
    done = client.invalidate_queries(["a"])
    await clock.advance(0.5)
    assert (observer.current_result.data, done.done()) == ("before", False)
    await clock.advance(1)
    assert (observer.current_result.data, done.done()) == ("after", True)
    assert len(backend.calls) == 2


async def test_4_a_patch_does_not_make_an_invalidated_query_fresh(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.value = [{"id": 1, "name": "new", "status": "done"}]
    client.set_query_data(["projects"], [{"id": 1, "name": "old", "status": "open"}])
    updated_at = clock.now()
    client.invalidate_queries(["projects"])
    await clock.advance(10)
    with RealtimeIntegration(
        client, [Entity("projects", [["projects"]], patch=RowPatch(), polling=None)]
    ) as realtime:
        realtime.apply(update(1, name="new"))
        client.patch_query_data(["projects"], lambda rows: [{**row, "seen": True} for row in rows])
        state = client.get_query_state(["projects"])
        assert state is not None
        assert state.data == [{"id": 1, "name": "new", "status": "open", "seen": True}]
        assert (state.is_invalidated, state.data_updated_at) == (True, updated_at)
        observer = QueryObserver(client, key=["projects"], fn=backend, stale_time=math.inf)
        observer.subscribe(ignore)
        await clock.advance(1)
        assert observer.current_result.data == backend.value


async def test_5_writes_to_the_cache_do_not_keep_the_interval_from_polling(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.seconds, backend.value = 0.001, [{"id": 1}]
    QueryObserver(client, key=["a"], fn=backend, refetch_interval=0.05).subscribe(ignore)
    await clock.advance(0.01)
    backend.calls.clear()
    for number in range(25):
        client.set_query_data(["a"], [{"id": number}])
        await clock.advance(0.02)
    assert len(backend.calls) == 10


async def test_6_taking_back_a_mutation_undoes_nobody_elses_change(
    client: QueryClient, clock: ManualClock
) -> None:
    async def rename(_: str) -> None:
        await sleep(clock, 1)
        raise BackendError("not allowed")

    client.set_query_data(["projects"], [{"id": 1, "name": "old", "status": "open"}])
    mutation = MutationObserver(
        client,
        fn=rename,
        on_mutate=lambda name: client.overlay_query_data(
            ["projects"], lambda rows: [{**row, "name": name} for row in rows]
        ),
        on_settled=lambda _data, _error, _name, take_back: take_back(),
    )
    with RealtimeIntegration(
        client, [Entity("projects", [["projects"]], patch=RowPatch(), polling=None)]
    ) as realtime:
        mutation.mutate("mine")
        assert client.get_query_data(["projects"]) == [{"id": 1, "name": "mine", "status": "open"}]
        realtime.apply(update(1, status="done"))
        assert client.get_query_data(["projects"]) == [{"id": 1, "name": "mine", "status": "done"}]
        await clock.advance(1)
        assert client.get_query_data(["projects"]) == [{"id": 1, "name": "old", "status": "done"}]
