"""Specification 1.9 and 1.12 (managers): the client's methods, filters and defaults."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest
from tests.client.cache.support import Backend, BackendError, Recorder

from rowcast.client.cache import (
    FocusManager,
    ManualClock,
    QueryCache,
    QueryClient,
    QueryObserver,
    hash_key,
)
from rowcast.errors import ClientError


def ignore(_: object) -> None:
    """A listener."""


def watch(client: QueryClient, backend: Backend, *key: object, **options: Any) -> QueryObserver[Any, Any]:
    """An observer with a listener."""
    observer: QueryObserver[Any, Any] = QueryObserver(client, key=key, fn=backend, **options)
    observer.subscribe(ignore)
    return observer


class TestFilters:
    async def test_queries_are_found_by_prefix_or_exactly(self, client: QueryClient) -> None:
        for key in (["a"], ["a", 1], ["a", {"b": 1}], ["b"]):
            client.set_query_data(key, 0)
        cache = client.query_cache
        assert [query.key for query in cache.find_all(["a"])] == [["a"], ["a", 1], ["a", {"b": 1}]]
        assert [query.key for query in cache.find_all(["a"], exact=True)] == [["a"]]
        assert cache.find(["a", 2]) is None
        assert len(cache.find_all()) == 4

    async def test_and_by_what_they_are(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        watch(client, backend, "active", stale_time=math.inf)
        watch(client, backend, "disabled", enabled=False)
        client.set_query_data(["inactive"], 1)
        await clock.advance(1)
        client.invalidate_queries(["inactive"])
        client.prefetch_query(key=["fetching"], fn=backend)

        def found(**filters: Any) -> list[object]:
            return [query.key[0] for query in client.query_cache.find_all(**filters)]

        assert found(type="active") == ["active"]
        assert found(type="inactive") == ["disabled", "inactive", "fetching"]
        assert found(stale=True) == ["inactive", "fetching"]
        assert found(fetch_status="fetching") == ["fetching"]
        assert found(predicate=lambda query: query.state.data == 1) == ["inactive"]
        assert (client.is_fetching(), client.is_fetching(["active"])) == (1, 0)


class TestReadingAndWriting:
    async def test_data_is_read_and_written_by_key(self, client: QueryClient, clock: ManualClock) -> None:
        assert client.get_query_data(["a"]) is None
        assert client.set_query_data(["a"], 1) == 1
        assert client.set_query_data(["a"], lambda old: (old or 0) + 1) == 2
        assert client.get_query_data(["a"]) == 2
        state = client.get_query_state(["a"])
        assert state is not None
        assert (state.data_update_count, state.data_updated_at, state.status) == (2, clock.now(), "success")

    async def test_an_updater_that_returns_none_changes_nothing_and_makes_no_entry(
        self, client: QueryClient
    ) -> None:
        assert client.set_query_data(["a"], lambda _: None) is None
        assert len(client.query_cache) == 0

    async def test_an_older_time_still_wins(self, client: QueryClient, clock: ManualClock) -> None:
        client.set_query_data(["a"], "new")
        client.set_query_data(["a"], "old", updated_at=5.0)
        assert client.get_query_data(["a"]) == "old"

    async def test_writing_the_whole_data_makes_it_fresh(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.error = BackendError("down")
        client.set_query_data(["a"], 1)
        client.prefetch_query(key=["a"], fn=backend)
        await clock.advance(1)
        client.set_query_data(["a"], 2)
        state = client.get_query_state(["a"])
        assert state is not None
        assert (state.is_invalidated, state.error, state.status) == (False, None, "success")

    async def test_several_queries_are_written_only_where_they_exist(self, client: QueryClient) -> None:
        client.set_query_data(["a", 1], 1)
        client.set_query_data(["a", 2], 2)
        assert client.set_queries_data(["a"], lambda old: old * 10) == [(["a", 1], 10), (["a", 2], 20)]
        assert client.set_queries_data(["b"], 5) == []
        assert client.get_queries_data(["a"]) == [(["a", 1], 10), (["a", 2], 20)]

    async def test_removing_forgets(self, client: QueryClient) -> None:
        client.set_query_data(["a", 1], 1)
        client.set_query_data(["b"], 1)
        client.remove_queries(["a"])
        assert [query.key for query in client.query_cache] == [["b"]]
        client.clear()
        assert len(client.query_cache) == 0

    async def test_a_removed_query_cannot_take_its_successor_with_it(self, client: QueryClient) -> None:
        client.set_query_data(["a"], 1)
        (old,) = client.query_cache
        client.remove_queries(["a"])
        client.set_query_data(["a"], 2)
        client.query_cache.remove(old)
        assert client.get_query_data(["a"]) == 2


class TestFetching:
    async def test_fetch_query_takes_fresh_data_from_the_cache(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], "cached")
        assert await client.fetch_query(key=["a"], fn=backend, stale_time=10) == "cached"
        fetch = client.fetch_query(key=["a"], fn=backend)
        await clock.advance(1)
        assert await fetch == "data"

    async def test_prefetching_never_fails(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.error = BackendError("down")
        prefetch = client.prefetch_query(key=["a"], fn=backend)
        await clock.advance(1)
        await prefetch

    async def test_ensure_takes_any_data_and_may_revalidate(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        first = client.ensure_query_data(key=["a"], fn=backend)
        await clock.advance(1)
        assert await first == "data"
        backend.value = "newer"
        assert await client.ensure_query_data(key=["a"], fn=backend) == "data"
        await clock.advance(5)
        assert len(backend.calls) == 1
        assert await client.ensure_query_data(key=["a"], fn=backend, revalidate_if_stale=True) == "data"
        await clock.advance(1)
        assert client.get_query_data(["a"]) == "newer"


class TestInvalidating:
    async def test_all_matches_are_marked_and_active_ones_refetched(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        watch(client, backend, "p", 1, stale_time=math.inf)
        watch(client, backend, "p", 2, enabled=False)
        client.set_query_data(["p", 3], "inactive")
        client.set_query_data(["q"], "other")
        await clock.advance(1)
        client.set_query_data(["p", 2], "disabled")
        backend.contexts.clear()
        done = client.invalidate_queries(["p"])
        marked = {query.key[-1]: query.state.is_invalidated for query in client.query_cache}
        assert marked == {1: True, 2: True, 3: True, "q": False}
        await clock.advance(1)
        await done
        assert [context.key for context in backend.contexts] == [("p", 1)]

    @pytest.mark.parametrize(
        ("arguments", "fetched"),
        [
            ({"refetch_type": "none"}, []),
            ({"refetch_type": "all"}, [1, 2]),
            ({"refetch_type": "inactive"}, [2]),
            ({"type": "inactive"}, [2]),
            ({"predicate": lambda query: query.key[1] == 2}, []),
        ],
    )
    async def test_which_are_refetched_can_be_said(
        self,
        client: QueryClient,
        clock: ManualClock,
        backend: Backend,
        arguments: dict[str, Any],
        fetched: list[int],
    ) -> None:
        watch(client, backend, "p", 1)
        client.prefetch_query(key=["p", 2], fn=backend)
        await clock.advance(1)
        backend.contexts.clear()
        client.invalidate_queries(["p"], **arguments)
        await clock.advance(1)
        assert [context.key[1] for context in backend.contexts] == fetched

    async def test_errors_are_swallowed_unless_asked_for(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        watch(client, backend, "a", retry=False)
        await clock.advance(1)
        backend.error = BackendError("down")
        swallowed = client.invalidate_queries(["a"])
        thrown = client.invalidate_queries(["a"], throw_on_error=True)
        await clock.advance(1)
        await swallowed
        with pytest.raises(BackendError):
            await thrown

    async def test_what_waits_for_the_network_is_not_waited_for(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        watch(client, backend, "a")
        await clock.advance(1)
        client.online_manager.set_online(False)
        await client.invalidate_queries(["a"])
        assert client.query_cache.find_all(fetch_status="paused")

    async def test_resetting_goes_back_to_the_initial_state_and_refetches_what_is_watched(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        watched = watch(client, backend, "a", initial_data="initial", stale_time=10)
        client.set_query_data(["b"], 1)
        client.set_query_data(["a"], "by hand")
        done = client.reset_queries()
        assert (watched.current_result.data, client.get_query_data(["b"])) == ("initial", None)
        await clock.advance(1)
        await done
        assert watched.current_result.data == "data"

    async def test_those_who_wait_for_a_fetch_that_is_reset_get_the_next_answer(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = watch(client, backend, "a")
        waiting = observer.refetch()
        await clock.advance(0.5)
        backend.value = "after the reset"
        client.reset_queries(["a"])
        await clock.advance(1)
        assert (await waiting).data == "after the reset"


class TestDefaults:
    async def test_the_call_comes_before_the_key_before_the_client(
        self, clock: ManualClock, backend: Backend
    ) -> None:
        async with QueryClient(clock=clock, default_query_options={"stale_time": 1, "gc_time": 1}) as client:
            client.set_query_defaults(["p"], stale_time=2, meta={"by": "p"})
            client.set_query_defaults(["p", 1], stale_time=3)
            options = client.resolve_query_options({"key": ["p", 1, "x"]})
            assert (options.stale_time, options.gc_time, options.meta) == (3, 1, {"by": "p"})
            assert client.resolve_query_options({"key": ["p", 1], "stale_time": 4}).stale_time == 4
            assert client.resolve_query_options({"key": ["q"]}).stale_time == 1
            assert client.query_defaults(["p", 2]) == {"stale_time": 2, "meta": {"by": "p"}}

    async def test_later_defaults_win_over_earlier_ones_for_a_longer_prefix(
        self, client: QueryClient
    ) -> None:
        client.set_query_defaults(["p", 1], stale_time=3)
        client.set_query_defaults(["p"], stale_time=2)
        assert client.query_defaults(["p", 1]) == {"stale_time": 2}

    async def test_a_function_may_be_a_default(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_defaults(["p"], fn=backend)
        client.prefetch_query(key=["p", 1])
        client.set_mutation_defaults(["m"], retry=5)
        await clock.advance(1)
        assert client.get_query_data(["p", 1]) == "data"
        assert client.mutation_defaults(["m", 1]) == {"retry": 5}


class TestCacheCallbacks:
    async def test_they_are_called_once_a_fetch_and_not_for_what_is_written_by_hand(
        self, clock: ManualClock, backend: Backend
    ) -> None:
        log: list[tuple[Any, ...]] = []
        cache = QueryCache(
            on_success=lambda data, query: log.append(("success", data, query.hash)),
            on_error=lambda error, query: log.append(("error", str(error), query.hash)),
            on_settled=lambda data, error, query: log.append(("settled", data, error and str(error))),
        )
        async with QueryClient(clock=clock, query_cache=cache) as client:
            client.set_query_data(["a"], 1)
            watch(client, backend, "a")
            watch(client, backend, "a")
            await clock.advance(1)
            backend.error = BackendError("down")
            client.prefetch_query(key=["a"], fn=backend)
            await clock.advance(1)
        key = hash_key(["a"])
        assert log == [
            ("success", "data", key),
            ("settled", "data", None),
            ("error", "down", key),
            ("settled", "data", "down"),
        ]


class TestManagers:
    """1.12"""

    async def test_a_source_of_focus_is_attached_while_somebody_listens(self) -> None:
        log: list[str] = []
        handlers: list[Any] = []

        def attach(name: str) -> Any:
            def setup(handle: Any) -> Any:
                log.append(f"attach {name}")
                handlers.append(handle)
                return lambda: log.append(f"detach {name}")

            return setup

        manager, heard = FocusManager(), Recorder()
        manager.set_event_listener(attach("first"))
        unsubscribe = manager.subscribe(heard)
        handlers[0](False)
        handlers[0](False)
        manager.set_event_listener(attach("second"))
        unsubscribe()
        assert log == ["attach first", "detach first", "attach second", "detach second"]
        assert heard.heard == [False]
        assert not manager.is_focused()

    async def test_clients_do_not_share_managers(self, clock: ManualClock) -> None:
        one, other = QueryClient(clock=clock), QueryClient(clock=clock)
        one.online_manager.set_online(False)
        assert other.online_manager.is_online()

    async def test_mounts_are_counted(self, client: QueryClient) -> None:
        client.mount()
        client.unmount()
        assert client.focus_manager.has_listeners()
        client.unmount()
        assert not client.focus_manager.has_listeners()
        client.mount()

    async def test_paused_mutations_end_before_queries_are_refetched(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        from rowcast.client.cache import MutationObserver

        log: list[str] = []

        async def save(_: str) -> str:
            log.append("mutation begins")
            return "saved"

        def answer(_: object) -> str:
            log.append("query begins")
            return "data"

        backend.value = answer
        watch(client, backend, "a")
        await clock.advance(1)
        log.clear()
        client.online_manager.set_online(False)
        mutation = MutationObserver(client, fn=save, on_settled=lambda *_: log.append("mutation ends"))
        mutation.mutate("x")
        await clock.settle()
        assert log == []
        client.online_manager.set_online(True)
        await clock.settle()
        assert log == ["mutation begins", "mutation ends", "query begins"]


async def test_without_a_running_loop_the_cache_says_what_it_needs() -> None:
    def outside() -> None:
        with pytest.raises(ClientError, match="needs a running event loop"):
            QueryClient().set_query_data(["a"], 1)

    await asyncio.to_thread(outside)


async def test_the_system_clock_is_the_default() -> None:
    async def load(_: object) -> str:
        return "data"

    async with QueryClient() as client:
        assert await client.fetch_query(key=["a"], fn=load) == "data"
        state = client.get_query_state(["a"])
        assert state is not None
        assert abs(state.data_updated_at - time.time()) < 60
