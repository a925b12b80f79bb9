"""Specification 1.3 to 1.8: staleness, forgetting, fetching, retries, network, cancellation."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from tests.client.cache.support import Backend, BackendError, Recorder, sleep

from rowcast.client.cache import (
    SKIP,
    FetchCancelledError,
    ManualClock,
    Query,
    QueryClient,
    QueryFunctionContext,
    QueryObserver,
)
from rowcast.errors import ClientError


def ignore(_: object) -> None:
    """A listener."""


def query_of(client: QueryClient, *key: object) -> Query[Any]:
    query = client.query_cache.find(key)
    assert query is not None
    return query


class TestStaleness:
    """1.3"""

    async def test_without_data_everything_is_stale(self, client: QueryClient) -> None:
        QueryObserver(client, key=["a"], enabled=False)
        assert query_of(client, "a").is_stale_by_time(math.inf)
        assert query_of(client, "a").is_stale_by_time("static")

    async def test_data_is_stale_at_once_by_default(self, client: QueryClient) -> None:
        client.set_query_data(["a"], 1)
        assert query_of(client, "a").is_stale_by_time(0)
        assert not query_of(client, "a").is_stale_by_time(1)

    async def test_invalidation_makes_stale_what_would_be_fresh_but_not_what_is_static(
        self, client: QueryClient
    ) -> None:
        client.set_query_data(["a"], 1)
        query_of(client, "a").invalidate()
        assert query_of(client, "a").is_stale_by_time(math.inf)
        assert not query_of(client, "a").is_stale_by_time("static")

    async def test_an_observer_shows_that_time_has_passed_without_fetching(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend, stale_time=10)
        stale = Recorder(of=lambda result: result.is_stale)
        observer.subscribe(stale)
        await clock.advance(1)
        assert not observer.current_result.is_stale
        await clock.advance(9.9)
        assert not observer.current_result.is_stale
        await clock.advance(0.2)
        assert stale.heard[-1] is True
        assert len(backend.calls) == 1

    async def test_stale_time_may_be_a_function_of_the_query(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(
            client, key=["a"], fn=backend, stale_time=lambda query: 5.0 if query.state.data == "data" else 0.0
        )
        observer.subscribe(ignore)
        await clock.advance(5)
        assert not observer.current_result.is_stale
        await clock.advance(2)
        assert observer.current_result.is_stale

    async def test_without_observers_a_query_is_stale_if_it_has_no_data_or_is_invalidated(
        self, client: QueryClient
    ) -> None:
        client.set_query_data(["a"], 1)
        assert not query_of(client, "a").is_stale()
        query_of(client, "a").invalidate()
        assert query_of(client, "a").is_stale()

    @pytest.mark.parametrize("option", [True, "always"])
    async def test_static_data_ignores_mount_focus_and_reconnect(
        self, client: QueryClient, clock: ManualClock, backend: Backend, option: Any
    ) -> None:
        client.set_query_data(["a"], 1)
        QueryObserver(
            client,
            key=["a"],
            fn=backend,
            stale_time="static",
            refetch_on_mount=option,
            refetch_on_focus=option,
            refetch_on_reconnect=option,
        ).subscribe(ignore)
        for switch in (client.focus_manager.set_focused, client.online_manager.set_online):
            switch(False)
            switch(True)
        client.invalidate_queries(["a"])
        client.refetch_queries(["a"])
        await clock.advance(5)
        assert backend.calls == []


class TestGarbageCollection:
    """1.4"""

    async def test_a_query_is_forgotten_five_minutes_after_its_last_observer(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        unsubscribe = QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)
        await clock.advance(1_000)
        unsubscribe()
        await clock.advance(299)
        assert client.get_query_data(["a"]) == "data"
        await clock.advance(1)
        assert client.query_cache.find(["a"]) is None

    async def test_the_longest_time_ever_asked_for_counts(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        client.set_query_defaults(["a"], gc_time=10)
        client.set_query_data(["a"], 1)
        QueryObserver(client, key=["a"], gc_time=100, enabled=False).subscribe(ignore)()
        QueryObserver(client, key=["a"], gc_time=1, enabled=False).subscribe(ignore)()
        await clock.advance(99)
        assert client.get_query_data(["a"]) == 1
        await clock.advance(1)
        assert client.get_query_data(["a"]) is None

    async def test_zero_forgets_at_the_next_turn_and_infinity_never(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        for key, gc_time in (("now", 0), ("never", math.inf)):
            client.set_query_defaults([key], gc_time=gc_time)
            client.set_query_data([key], 1)
        assert len(client.query_cache) == 2
        await clock.advance(0)
        assert [query.key for query in client.query_cache] == [["never"]]
        await clock.advance(1e9)
        assert len(client.query_cache) == 1

    async def test_a_query_that_is_fetching_is_not_forgotten_before_it_has_ended(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.seconds = 10
        fetch = client.fetch_query(key=["a"], fn=backend, gc_time=1)
        await clock.advance(10)
        assert await fetch == "data"
        assert client.get_query_data(["a"]) == "data"
        await clock.advance(1)
        assert client.query_cache.find(["a"]) is None

    async def test_no_timer_is_left_when_the_client_closes(
        self, clock: ManualClock, backend: Backend
    ) -> None:
        async with QueryClient(clock=clock) as client:
            QueryObserver(client, key=["a"], fn=backend, refetch_interval=5, stale_time=3).subscribe(ignore)()
            client.set_query_data(["b"], 1)
            client.fetch_query(key=["c"], fn=backend)
            await clock.settle()
        assert clock.pending() == 0
        assert backend.cancelled == 2


class TestFetching:
    """1.5"""

    async def test_observers_that_come_together_share_one_fetch(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        for _ in range(3):
            QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)
        await clock.advance(1)
        assert len(backend.calls) == 1

    @pytest.mark.parametrize(
        ("option", "fresh", "stale"),
        [(True, 0, 1), ("always", 1, 1), (False, 0, 0), (lambda _: "always", 1, 1)],
    )
    async def test_refetch_on_mount(
        self, client: QueryClient, clock: ManualClock, backend: Backend, option: Any, fresh: int, stale: int
    ) -> None:
        for key, stale_time, expected in (("fresh", 60, fresh), ("stale", 0, stale)):
            client.set_query_data([key], 1)
            backend.calls.clear()
            QueryObserver(
                client, key=[key], fn=backend, stale_time=stale_time, refetch_on_mount=option
            ).subscribe(ignore)
            await clock.advance(1)
            assert len(backend.calls) == expected

    async def test_a_disabled_observer_never_fetches_until_it_is_enabled(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend, enabled=False)
        observer.subscribe(ignore)
        client.invalidate_queries(["a"])
        await clock.advance(1)
        assert backend.calls == []
        observer.set_options(key=["a"], fn=backend, enabled=True)
        await clock.advance(1)
        assert len(backend.calls) == 1

    async def test_skip_disables_an_observer(self, client: QueryClient, clock: ManualClock) -> None:
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], fn=SKIP)
        observer.subscribe(ignore)
        await clock.advance(1)
        assert observer.current_result.fetch_status == "idle"
        assert not observer.current_result.is_enabled

    async def test_a_new_key_is_fetched(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.advance(1)
        observer.set_options(key=["b"], fn=backend)
        assert observer.current_result.is_loading
        await clock.advance(1)
        assert len(backend.calls) == 2
        assert query_of(client, "a").observers == []

    async def test_focus_and_reconnect_refetch_what_is_stale_once_a_query(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        for _ in range(2):
            QueryObserver(client, key=["stale"], fn=backend).subscribe(ignore)
        QueryObserver(client, key=["fresh"], fn=backend, stale_time=100).subscribe(ignore)
        QueryObserver(client, key=["never"], fn=backend, refetch_on_focus=False).subscribe(ignore)
        await clock.advance(1)
        assert len(backend.calls) == 3
        client.focus_manager.set_focused(False)
        client.focus_manager.set_focused(True)
        await clock.advance(1)
        assert [context.key for context in backend.contexts[3:]] == [["stale"]]
        client.online_manager.set_online(False)
        client.online_manager.set_online(True)
        await clock.advance(1)
        assert [context.key for context in backend.contexts[4:]] == [["stale"], ["never"]]

    async def test_reconnecting_does_not_concern_queries_that_ignore_the_network(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        QueryObserver(client, key=["a"], fn=backend, network_mode="always").subscribe(ignore)
        await clock.advance(1)
        client.online_manager.set_online(False)
        client.online_manager.set_online(True)
        await clock.advance(1)
        assert len(backend.calls) == 1

    async def test_the_interval_refetches_while_somebody_looks(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        unsubscribe = QueryObserver(client, key=["a"], fn=backend, refetch_interval=10).subscribe(ignore)
        QueryObserver(
            client, key=["b"], fn=backend, refetch_interval=10, refetch_interval_in_background=True
        ).subscribe(ignore)
        await clock.advance(25)
        assert len(backend.calls) == 6
        client.focus_manager.set_focused(False)
        await clock.advance(10)
        assert backend.contexts[-1].key == ["b"]
        assert len(backend.calls) == 7
        unsubscribe()
        client.focus_manager.set_focused(True)
        await clock.advance(20)
        assert [context.key for context in backend.contexts[7:]] == [["b"]] * 3  # focus, and two intervals

    async def test_the_interval_may_depend_on_the_data(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.value = "running"
        QueryObserver(
            client,
            key=["job"],
            fn=backend,
            refetch_interval=lambda query: 2.0 if query.state.data == "running" else False,
        ).subscribe(ignore)
        await clock.advance(6)
        count = len(backend.calls)
        assert count == 3
        backend.value = "done"
        await clock.advance(60)
        assert len(backend.calls) == count + 1

    async def test_an_explicit_refetch_restarts_a_refetch_but_joins_a_first_fetch(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.settle()
        observer.refetch()
        await clock.advance(1)
        assert len(backend.calls) == 1
        for _ in range(10):
            client.refetch_queries(["a"])
            await clock.settle()
        await clock.advance(1)
        assert (len(backend.calls), backend.cancelled) == (11, 9)

    async def test_a_refetch_can_join(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.advance(1)
        for _ in range(10):
            observer.refetch(cancel_refetch=False)
            await clock.settle()
        await clock.advance(1)
        assert len(backend.calls) == 2

    async def test_those_who_wait_for_a_restarted_fetch_get_the_new_answer(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], "old")
        backend.value = "first"
        first = client.fetch_query(key=["a"], fn=backend)
        await clock.advance(0.5)
        backend.value = "second"
        second = query_of(client, "a").fetch(cancel_refetch=True)
        await clock.advance(1)
        assert (await first, await second) == ("second", "second")

    async def test_a_listener_may_fetch_again_while_it_hears_that_a_fetch_begins(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(lambda result: result.is_loading and observer.refetch())
        await clock.advance(1)
        assert len(backend.calls) == 1

    async def test_a_listener_may_fetch_again_while_it_hears_that_one_has_ended(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(lambda result: result.is_fetched and len(backend.calls) < 3 and observer.refetch())
        await clock.advance(10)
        assert len(backend.calls) == 3

    async def test_invalidated_before_the_function_is_called_it_is_called_once(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)
        for _ in range(10):
            client.invalidate_queries(["a"], cancel_refetch=False)
        await clock.advance(5)
        assert len(backend.calls) == 1

    async def test_invalidated_between_two_attempts_the_second_is_enough(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.failures = 1
        observer = QueryObserver(client, key=["a"], fn=backend, stale_time=math.inf)
        observer.subscribe(ignore)
        await clock.advance(1.5)
        done = client.invalidate_queries(["a"])
        await clock.advance(5)
        assert (len(backend.calls), done.done(), observer.current_result.is_stale) == (2, True, False)

    async def test_those_who_wait_for_a_further_fetch_that_nobody_wants_any_more_get_the_data_there_is(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        unsubscribe = QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)
        await clock.settle()
        client.invalidate_queries(["a"])
        further = query_of(client, "a").fetch()
        unsubscribe()
        await clock.advance(1)
        assert await further == "data"
        assert len(backend.calls) == 1
        assert query_of(client, "a").state.is_invalidated

    async def test_the_function_is_taken_from_an_observer_where_the_query_has_none(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], 1)
        QueryObserver(client, key=["a"], fn=backend, stale_time=math.inf).subscribe(ignore)
        client.set_query_data(["a"], 2)
        await asyncio.gather(client.refetch_queries(["a"]), clock.advance(1))
        assert client.get_query_data(["a"]) == "data"

    async def test_fetching_without_a_function_is_an_error_that_says_so(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        client.set_query_data(["a"], 1)
        await client.invalidate_queries(["a"], refetch_type="all")
        state = client.get_query_state(["a"])
        assert state is not None
        assert state.status == "error"
        assert 'the query ["a"] has no function' in str(state.error)

    async def test_none_is_no_answer(self, client: QueryClient, clock: ManualClock, backend: Backend) -> None:
        backend.value = None
        fetch = client.fetch_query(key=["a"], fn=backend)
        await clock.advance(1)
        with pytest.raises(ClientError, match="returned None, which means that there is no data"):
            await fetch


class TestRetry:
    """1.6"""

    async def test_an_observer_tries_four_times_after_1_2_and_4_seconds(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.seconds, backend.error = 0, BackendError("down")
        observer = QueryObserver(client, key=["a"], fn=backend)
        counts = Recorder(of=lambda result: (result.failure_count, result.status))
        observer.subscribe(counts)
        await clock.advance(60)
        start = backend.calls[0]
        assert [at - start for at in backend.calls] == [0, 1, 3, 7]
        assert (1, "pending") in counts.heard
        assert counts.heard[-1] == (4, "error")

    @pytest.mark.parametrize(
        ("retry", "attempts"), [(False, 1), (0, 1), (2, 3), (lambda count, _: count < 1, 2)]
    )
    async def test_the_number_of_attempts(
        self, client: QueryClient, clock: ManualClock, backend: Backend, retry: Any, attempts: int
    ) -> None:
        backend.error = BackendError("down")
        QueryObserver(client, key=["a"], fn=backend, retry=retry, retry_delay=0.1).subscribe(ignore)
        await clock.advance(100)
        assert len(backend.calls) == attempts

    async def test_true_tries_for_ever(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.seconds, backend.error = 0, BackendError("down")
        QueryObserver(client, key=["a"], fn=backend, retry=True, retry_delay=1).subscribe(ignore)
        await clock.advance(99.5)
        assert len(backend.calls) == 100

    async def test_the_delay_is_a_function_of_failures_and_error(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.seconds, backend.error = 0, BackendError("down")
        seen: list[tuple[int, str]] = []

        def delay(count: int, error: Exception) -> float:
            seen.append((count, str(error)))
            return 0.5

        QueryObserver(client, key=["a"], fn=backend, retry=2, retry_delay=delay).subscribe(ignore)
        await clock.advance(5)
        assert seen == [(0, "down"), (1, "down")]

    async def test_the_longest_default_delay_is_half_a_minute(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.seconds, backend.error = 0, BackendError("down")
        QueryObserver(client, key=["a"], fn=backend, retry=8).subscribe(ignore)
        await clock.advance(1_000)
        assert backend.calls[-1] - backend.calls[-2] == 30

    async def test_imperative_calls_do_not_retry_unless_told_to(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.error = BackendError("down")
        fetch = client.fetch_query(key=["a"], fn=backend)
        await clock.advance(10)
        with pytest.raises(BackendError):
            await fetch
        assert len(backend.calls) == 1
        client.set_query_defaults(["b"], retry=1)
        client.prefetch_query(key=["b"], fn=backend)
        await clock.advance(10)
        assert len(backend.calls) == 3

    async def test_between_attempts_it_waits_for_somebody_to_look(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.failures = 1
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        client.focus_manager.set_focused(False)
        await clock.advance(30)
        assert observer.current_result.is_paused
        assert len(backend.calls) == 1
        client.focus_manager.set_focused(True)
        await clock.advance(1)
        assert observer.current_result.data == "data"

    async def test_losing_the_last_observer_lets_the_attempt_end_and_makes_no_other(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.error = BackendError("down")
        unsubscribe = QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)
        await clock.advance(0.5)
        unsubscribe()
        await clock.advance(60)
        assert (backend.finished, len(backend.calls)) == (1, 1)

    async def test_a_new_observer_takes_that_back(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.failures = 1
        QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)()
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.advance(10)
        assert observer.current_result.data == "data"

    async def test_what_failed_without_data_is_not_refetched_on_mount_where_that_is_not_wanted(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.error = BackendError("down")
        client.prefetch_query(key=["a"], fn=backend)
        await clock.advance(1)
        QueryObserver(client, key=["a"], fn=backend, retry_on_mount=False).subscribe(ignore)
        await clock.advance(1)
        assert len(backend.calls) == 1
        QueryObserver(client, key=["a"], fn=backend, retry=False).subscribe(ignore)
        await clock.advance(1)
        assert len(backend.calls) == 2


class TestNetworkMode:
    """1.7"""

    async def test_online_waits_for_the_network(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.online_manager.set_online(False)
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.advance(10)
        assert (observer.current_result.fetch_status, observer.current_result.status) == ("paused", "pending")
        assert backend.calls == []
        client.online_manager.set_online(True)
        await clock.advance(1)
        assert observer.current_result.data == "data"
        assert len(backend.calls) == 1

    async def test_offline_first_tries_once_and_waits_with_the_rest(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.failures = 1
        client.online_manager.set_online(False)
        observer = QueryObserver(client, key=["a"], fn=backend, network_mode="offline_first")
        observer.subscribe(ignore)
        await clock.advance(30)
        assert len(backend.calls) == 1
        assert observer.current_result.is_paused
        client.online_manager.set_online(True)
        await clock.advance(1)
        assert observer.current_result.data == "data"

    async def test_always_ignores_the_network(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.failures = 1
        client.online_manager.set_online(False)
        observer = QueryObserver(client, key=["a"], fn=backend, network_mode="always")
        observer.subscribe(ignore)
        await clock.advance(3)
        assert observer.current_result.data == "data"

    async def test_a_paused_first_fetch_is_cancelled_with_its_last_observer(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.online_manager.set_online(False)
        QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)()
        assert query_of(client, "a").state.fetch_status == "idle"
        client.online_manager.set_online(True)
        await clock.advance(5)
        assert backend.calls == []

    async def test_a_fetch_that_waits_to_start_does_not_need_anybody_to_look(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.online_manager.set_online(False)
        client.prefetch_query(key=["a"], fn=backend)
        await clock.settle()
        client.focus_manager.set_focused(False)
        client.online_manager.set_online(True)
        await clock.advance(1)
        assert client.get_query_data(["a"]) == "data"


class TestCancellation:
    """1.8"""

    async def test_the_function_gets_client_key_and_meta(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.prefetch_query(key=["a", 1], fn=backend, meta={"from": "test"})
        await clock.advance(1)
        (context,) = backend.contexts
        assert (context.client, context.key, context.meta) == (client, ["a", 1], {"from": "test"})

    async def test_by_default_a_fetch_without_observers_goes_on_and_its_answer_is_kept(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        QueryObserver(client, key=["a"], fn=backend).subscribe(ignore)()
        await clock.advance(1)
        assert client.get_query_data(["a"]) == "data"

    async def test_a_cancellable_fetch_is_cancelled_with_its_last_observer_and_the_state_put_back(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observers = [QueryObserver(client, key=["a"], fn=backend, cancellable=True) for _ in range(2)]
        first, second = [observer.subscribe(ignore) for observer in observers]
        await clock.advance(0.5)
        first()
        await clock.settle()
        assert backend.cancelled == 0
        second()
        await clock.settle()
        assert backend.cancelled == 1
        state = query_of(client, "a").state
        assert (state.status, state.fetch_status, state.data) == ("pending", "idle", None)

    async def test_cancel_queries_puts_the_state_back_and_those_who_wait_get_the_old_data(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], "old")
        query_of(client, "a").invalidate()
        fetch = client.fetch_query(key=["a"], fn=backend)
        await clock.advance(0.5)
        await client.cancel_queries(["a"])
        assert backend.cancelled == 1
        assert await fetch == "old"
        state = query_of(client, "a").state
        assert (state.status, state.fetch_status, state.is_invalidated) == ("success", "idle", True)

    async def test_a_first_fetch_that_is_cancelled_fails_for_those_who_wait(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        fetch = client.fetch_query(key=["a"], fn=backend)
        await clock.advance(0.5)
        await client.cancel_queries(["a"])
        with pytest.raises(FetchCancelledError):
            await fetch
        assert query_of(client, "a").state.status == "pending"

    async def test_what_was_written_by_hand_during_the_fetch_survives_its_cancellation(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], "old")
        client.prefetch_query(key=["a"], fn=backend)
        await clock.advance(0.5)
        client.set_query_data(["a"], "by hand")
        assert query_of(client, "a").state.fetch_status == "fetching"
        await client.cancel_queries(["a"])
        assert client.get_query_data(["a"]) == "by hand"
        assert query_of(client, "a").state.fetch_status == "idle"

    async def test_without_revert_the_cancellation_is_the_querys_error(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.prefetch_query(key=["a"], fn=backend)
        await clock.settle()
        await client.cancel_queries(["a"], revert=False)
        assert isinstance(query_of(client, "a").state.error, FetchCancelledError)

    async def test_a_caller_that_is_cancelled_leaves_the_fetch_to_the_others(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        async def wait() -> object:
            return await client.fetch_query(key=["a"], fn=backend)

        impatient, patient = asyncio.create_task(wait()), asyncio.create_task(wait())
        await clock.advance(0.5)
        impatient.cancel()
        await clock.advance(0.5)
        assert await patient == "data"
        assert impatient.cancelled()

    async def test_a_function_that_cancels_itself_has_failed(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        async def load(_: QueryFunctionContext) -> str:
            inner = asyncio.create_task(asyncio.sleep(3600))
            inner.cancel()
            await inner
            return "never"

        with pytest.raises(FetchCancelledError, match="cancelled from within"):
            await client.fetch_query(key=["a"], fn=load)

    async def test_a_function_that_swallows_its_cancellation_is_not_heard(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        async def stubborn(_: QueryFunctionContext) -> str:
            try:
                await sleep(clock, 1)
            except asyncio.CancelledError:
                return "too late"
            return "data"

        client.set_query_data(["a"], "old")
        client.prefetch_query(key=["a"], fn=stubborn)
        await clock.settle()
        await client.cancel_queries(["a"])
        await clock.advance(5)
        assert client.get_query_data(["a"]) == "old"

    async def test_silently_cancelled_and_not_replaced_it_is_idle_again(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], "old")
        fetch = client.fetch_query(key=["a"], fn=backend)
        await clock.settle()
        await client.cancel_queries(["a"], silent=True)
        with pytest.raises(FetchCancelledError):
            await fetch
        state = query_of(client, "a").state
        assert (state.status, state.fetch_status, state.data) == ("success", "idle", "old")

    async def test_the_end_of_the_loop_puts_the_state_back(
        self, client: QueryClient, backend: Backend
    ) -> None:
        fetch = client.fetch_query(key=["a"], fn=backend)
        query = query_of(client, "a")
        await asyncio.sleep(0)
        (task,) = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        task.cancel()
        with pytest.raises(FetchCancelledError):
            await fetch
        assert query.state.fetch_status == "idle"
