"""Requirement D8: the safety net, its intervals, and how far data can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from tests.client.cache.support import Backend, BackendError, Recorder

from rowcast.client.cache import (
    ChangeEvent,
    ConnectionState,
    Entity,
    Freshness,
    ManualClock,
    PollingIntervals,
    QueryClient,
    QueryObserver,
    RealtimeIntegration,
    RowPatch,
    TransactionEvent,
)


def ignore(_: object) -> None:
    """A listener."""


def event(number: int, table: str = "projects") -> TransactionEvent:
    change = ChangeEvent(table, "UPDATE", {"id": number}, {"id": number})
    return TransactionEvent(f"e-{number:05}", number, [change])


@pytest.fixture
def realtime(client: QueryClient) -> Iterator[RealtimeIntegration]:
    entities = [Entity("projects", [["projects"]], patch=RowPatch(accepts=lambda *_: False))]
    with RealtimeIntegration(client, entities, between=lambda low, high: (low + high) / 2) as integration:
        yield integration


@pytest.fixture
async def polled(
    client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
) -> Backend:
    """The backend of a watched query that takes no time to answer; `calls` counts from 0 on."""
    backend.seconds, backend.value = 0, []
    observer: QueryObserver[Any, Any] = QueryObserver(
        client, key=["projects"], fn=backend, stale_time=math.inf
    )
    observer.subscribe(ignore)
    await clock.advance(0)
    backend.calls.clear()
    return backend


async def polls_in(clock: ManualClock, backend: Backend, seconds: float) -> list[float]:
    """When it is polled in the time to come, in seconds from now."""
    backend.calls.clear()
    start = clock.now()
    await clock.advance(seconds)
    return [round(at - start, 3) for at in backend.calls]


async def test_not_connected_it_polls_every_five_seconds(polled: Backend, clock: ManualClock) -> None:
    assert await polls_in(clock, polled, 16) == [5, 10, 15]


@pytest.mark.parametrize("state", ["connecting", "degraded", "reconnecting", "offline", "closed"])
async def test_every_state_but_connected_counts_as_not_connected(
    polled: Backend, clock: ManualClock, realtime: RealtimeIntegration, state: ConnectionState
) -> None:
    realtime.connection_state("connected")
    realtime.connection_state(state)
    assert await polls_in(clock, polled, 11) == [5, 10]


async def test_connected_but_quiet_it_polls_every_ten_to_fifteen(
    polled: Backend, clock: ManualClock, realtime: RealtimeIntegration
) -> None:
    realtime.connection_state("connected")
    assert await polls_in(clock, polled, 30) == [12.5, 25]


async def test_clients_do_not_poll_together(clock: ManualClock, client: QueryClient) -> None:
    drawn: list[tuple[float, float]] = []

    def between(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    with RealtimeIntegration(client, [Entity("projects", [["projects"]])], between=between) as realtime:
        realtime.connection_state("connected")
        await clock.advance(25)
    assert drawn == [(10, 15)] * 3


async def test_with_events_it_polls_every_half_minute_however_busy_the_stream(
    polled: Backend, clock: ManualClock, realtime: RealtimeIntegration
) -> None:
    realtime.connection_state("connected")
    start = clock.now()
    polled.calls.clear()
    for number in range(650):
        realtime.apply(event(number))
        await clock.advance(0.1)
    assert [round(at - start) for at in polled.calls] == [30, 60]


async def test_when_the_events_cease_it_polls_more_often_again(
    polled: Backend, clock: ManualClock, realtime: RealtimeIntegration
) -> None:
    realtime.connection_state("connected")
    realtime.apply(event(1))
    assert await polls_in(clock, polled, 60) == [30, 42.5, 55]


async def test_losing_the_connection_makes_the_next_poll_come_sooner(
    polled: Backend, clock: ManualClock, realtime: RealtimeIntegration
) -> None:
    realtime.connection_state("connected")
    await clock.advance(8)
    realtime.connection_state("reconnecting")
    assert await polls_in(clock, polled, 5) == [0, 5]


async def test_after_a_failed_poll_it_tries_again_after_five_seconds(
    client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
) -> None:
    backend.seconds = 0
    QueryObserver[Any, Any](client, key=["projects"], fn=backend, retry=False).subscribe(ignore)
    realtime.connection_state("connected")
    await clock.advance(12)
    backend.failures = 1
    assert await polls_in(clock, backend, 20) == [0.5, 5.5, 18]


async def test_while_nobody_looks_it_rests_and_polls_at_once_on_return_if_it_is_due(
    polled: Backend, clock: ManualClock, client: QueryClient, realtime: RealtimeIntegration
) -> None:
    client.focus_manager.set_focused(False)
    assert await polls_in(clock, polled, 60) == []
    client.focus_manager.set_focused(True)
    assert await polls_in(clock, polled, 6) == [0, 5]
    client.focus_manager.set_focused(False)
    await clock.advance(1)
    client.focus_manager.set_focused(True)
    assert await polls_in(clock, polled, 4) == [3]


async def test_offline_it_rests_too(polled: Backend, clock: ManualClock, client: QueryClient) -> None:
    client.online_manager.set_online(False)
    assert await polls_in(clock, polled, 60) == []


async def test_a_poll_joins_a_fetch_that_is_under_way_and_the_next_is_planned_from_its_end(
    client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
) -> None:
    backend.seconds = 7
    QueryObserver[Any, Any](client, key=["projects"], fn=backend).subscribe(ignore)
    assert await polls_in(clock, backend, 25) == [0, 12, 24]
    assert backend.cancelled == 0


async def test_writes_to_the_cache_do_not_put_it_off(
    polled: Backend, clock: ManualClock, client: QueryClient
) -> None:
    polled.calls.clear()
    start = clock.now()
    for number in range(110):
        client.set_query_data(["projects"], number)
        await clock.advance(0.1)
    assert [round(at - start) for at in polled.calls] == [5, 10]


async def test_only_queries_that_somebody_watches_are_polled_and_only_those_of_the_entity(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.seconds = 0
    entities = [
        Entity("fast", [["fast"]], polling=PollingIntervals(disconnected_seconds=1)),
        Entity("slow", [["slow"]], polling=PollingIntervals(disconnected_seconds=4)),
        Entity("never", [["never"]], polling=None),
    ]
    with RealtimeIntegration(client, entities):
        for key in ("fast", "slow", "never"):
            QueryObserver[Any, Any](client, key=[key], fn=backend).subscribe(ignore)
        QueryObserver[Any, Any](client, key=["fast", "off"], fn=backend, realtime=False).subscribe(ignore)
        QueryObserver[Any, Any](client, key=["fast", "static"], fn=backend, stale_time="static").subscribe(
            ignore
        )
        client.prefetch_query(key=["fast", "unwatched"], fn=backend)
        await clock.settle()
        backend.contexts.clear()
        await clock.advance(8)
    polled = [context.key[0] for context in backend.contexts if len(context.key) == 1]
    assert (polled.count("fast"), polled.count("slow"), polled.count("never")) == (8, 2, 0)
    assert all(len(context.key) == 1 for context in backend.contexts)


async def test_a_poll_that_finds_nothing_new_draws_nothing(
    client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
) -> None:
    backend.value = lambda _: [{"id": 1}]
    observer: QueryObserver[Any, Any] = QueryObserver(
        client, key=["projects"], fn=backend, notify_on_change_props=["data", "error"]
    )
    heard = Recorder()
    observer.subscribe(heard)
    await clock.advance(60)
    assert len(backend.calls) > 5
    assert len(heard.heard) == 1


class TestFreshness:
    async def test_its_level_follows_events_connection_and_invalidation(
        self, polled: Backend, client: QueryClient, clock: ManualClock, realtime: RealtimeIntegration
    ) -> None:
        levels = Recorder(of=lambda freshness: freshness.level)
        unwatch = realtime.watch_freshness(["projects"], levels)
        assert realtime.freshness(["projects"]).level == "polling"
        realtime.connection_state("connected")
        realtime.apply(event(1))
        await clock.advance(29.9)
        assert levels.heard == ["quiet", "live"]
        realtime.apply(event(2))
        await clock.advance(29.9)
        assert levels.heard == ["quiet", "live"]
        await clock.advance(0.2)
        assert levels.heard == ["quiet", "live", "quiet"]
        client.invalidate_queries(["projects"], refetch_type="none")
        client.refetch_queries(["projects"])
        await clock.advance(0)
        assert levels.heard[3:] == ["outdated", "quiet"]
        realtime.connection_state("offline")
        realtime.enabled = False
        assert levels.heard[5:] == ["polling", "off"]
        unwatch()
        unwatch()
        realtime.enabled = True
        assert levels.heard[7:] == []

    async def test_it_knows_when(
        self, polled: Backend, clock: ManualClock, realtime: RealtimeIntegration
    ) -> None:
        realtime.connection_state("connected")
        answered_at = clock.now()
        await clock.advance(3)
        realtime.apply(event(1))
        assert realtime.freshness(["projects"]) == Freshness("live", answered_at, answered_at + 3)

    async def test_what_realtime_does_not_care_for_is_off(
        self, client: QueryClient, realtime: RealtimeIntegration
    ) -> None:
        client.set_query_data(["users"], 1)
        QueryObserver[Any, Any](client, key=["projects", "report"], enabled=False, realtime=False)
        for key in (["users"], ["projects", "report"], ["unknown"]):
            assert realtime.freshness(key).level == "off"

    async def test_a_query_may_be_watched_before_it_exists(
        self, client: QueryClient, realtime: RealtimeIntegration
    ) -> None:
        levels = Recorder(of=lambda freshness: freshness.level)
        realtime.watch_freshness(["projects", 5], levels)
        client.set_query_data(["projects", 5], 1)
        client.remove_queries(["projects", 5])
        assert levels.heard == ["outdated", "polling", "off"]

    async def test_a_query_in_error_is_outdated(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        client.set_query_data(["projects"], 1)
        backend.error = BackendError("down")
        client.prefetch_query(key=["projects"], fn=backend)
        await clock.advance(1)
        assert realtime.freshness(["projects"]).level == "outdated"
