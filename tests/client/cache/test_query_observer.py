"""Specification 1.2, 1.10: what an observer shows, and when its listeners hear of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.client.cache.support import Backend, BackendError, Recorder

from rowcast.client.cache import (
    ManualClock,
    QueriesObserver,
    QueryClient,
    QueryFunctionContext,
    QueryObserver,
    QueryResult,
)
from rowcast.errors import ClientError


def ignore(_: object) -> None:
    """A listener."""


def flags(result: QueryResult[Any]) -> set[str]:
    names = [name for name in dir(result) if name.startswith("is_")]
    return {name for name in names if getattr(result, name) is True}


class TestResult:
    """1.2"""

    async def test_the_flags_through_the_life_of_a_query(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend, retry=False)
        assert flags(observer.current_result) == {"is_pending", "is_stale", "is_enabled"}
        observer.subscribe(ignore)
        assert flags(observer.current_result) == {
            "is_pending",
            "is_fetching",
            "is_loading",
            "is_stale",
            "is_enabled",
        }
        await clock.advance(1)
        settled = {"is_success", "is_fetched", "is_fetched_after_mount", "is_stale", "is_enabled"}
        assert flags(observer.current_result) == settled
        backend.error = BackendError("down")
        observer.refetch()
        assert flags(observer.current_result) == settled | {"is_fetching", "is_refetching"}
        await clock.advance(1)
        assert flags(observer.current_result) == settled - {"is_success"} | {"is_error", "is_refetch_error"}
        assert observer.current_result.data == "data"

    async def test_an_error_without_data_is_a_loading_error(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.error = BackendError("down")
        observer = QueryObserver(client, key=["a"], fn=backend, retry=False)
        observer.subscribe(ignore)
        await clock.advance(1)
        assert {"is_error", "is_loading_error"} <= flags(observer.current_result)
        assert observer.current_result.failure_reason is backend.error

    async def test_a_disabled_observer_does_not_call_its_data_stale(self, client: QueryClient) -> None:
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        assert not observer.current_result.is_stale
        assert not observer.current_result.is_enabled

    async def test_enabled_must_be_a_boolean_or_a_function(self, client: QueryClient) -> None:
        with pytest.raises(ClientError, match="the option `enabled` is 'yes'"):
            QueryObserver(client, key=["a"], enabled="yes")  # type: ignore[call-overload]

    async def test_an_unknown_option_is_refused_with_those_there_are(self, client: QueryClient) -> None:
        with pytest.raises(ClientError, match=r"there is no option 'stale_tme'; there are: .*stale_time"):
            QueryObserver(client, key=["a"], stale_tme=1)  # type: ignore[call-overload]

    async def test_refetch_returns_the_result_and_raises_only_if_asked(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend, retry=False)
        first = observer.refetch()
        await clock.advance(1)
        assert (await first).data == "data"
        backend.error = BackendError("down")
        second, third = observer.refetch(), observer.refetch(throw_on_error=True)
        await clock.advance(1)
        assert (await second).is_error
        with pytest.raises(BackendError):
            await third

    async def test_it_fetches_the_query_that_took_the_place_of_a_removed_one(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.advance(1)
        client.remove_queries(["a"])
        assert observer.current_result.data == "data"  # removed in silence
        observer.refetch()
        await clock.advance(1)
        assert client.get_query_data(["a"]) == "data"
        assert len(backend.calls) == 2


class TestInitialAndPlaceholderData:
    async def test_initial_data_is_cached_and_aged(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(
            client,
            key=["a"],
            fn=backend,
            initial_data="initial",
            initial_data_updated_at=clock.now() - 20,
            stale_time=30,
        )
        observer.subscribe(ignore)
        state = client.get_query_state(["a"])
        assert state is not None
        assert (state.data, state.data_update_count, state.status) == ("initial", 0, "success")
        await clock.advance(10.1)
        assert observer.current_result.is_stale
        assert backend.calls == []

    async def test_initial_data_may_be_a_function_and_may_come_later(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        first: QueryObserver[str, str] = QueryObserver(client, key=["a"], enabled=False)
        assert first.current_result.data is None
        second: QueryObserver[str, str] = QueryObserver(
            client, key=["a"], enabled=False, initial_data=lambda: "later"
        )
        assert second.current_result.data == "later"
        assert client.get_query_data(["a"]) == "later"

    async def test_placeholder_data_shows_success_and_is_never_cached(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend, placeholder_data="placeholder")
        shown = Recorder(of=lambda result: (result.data, result.status, result.is_placeholder_data))
        observer.subscribe(shown)
        assert (observer.current_result.data, observer.current_result.is_placeholder_data) == (
            "placeholder",
            True,
        )
        assert client.get_query_data(["a"]) is None
        await clock.advance(1)
        assert shown.heard == [("placeholder", "success", True), ("data", "success", False)]

    async def test_a_placeholder_function_sees_the_last_query_that_had_data(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        async def load(context: QueryFunctionContext) -> str:
            return f"page {context.key[1]}"

        seen: list[tuple[str | None, object]] = []

        def placeholder(data: str | None, query: Any) -> str | None:
            seen.append((data, query and query.key))
            return data

        observer = QueryObserver(client, key=["page", 1], fn=load, placeholder_data=placeholder)
        observer.subscribe(ignore)
        await clock.settle()
        observer.set_options(key=["page", 2], fn=load, placeholder_data=placeholder)
        assert (observer.current_result.data, observer.current_result.is_placeholder_data) == ("page 1", True)
        assert seen == [(None, None), ("page 1", ["page", 1])]
        await clock.settle()
        assert observer.current_result.data == "page 2"

    async def test_previous_data_is_kept_until_there_is_new(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        observer = QueryObserver(client, key=["a"], fn=backend, keep_previous_data=True, select=str.upper)
        observer.subscribe(ignore)
        assert observer.current_result.is_pending
        await clock.advance(1)
        backend.value = "other"
        observer.set_options(key=["b"], fn=backend, keep_previous_data=True, select=str.upper)
        assert (observer.current_result.data, observer.current_result.is_placeholder_data) == ("DATA", True)
        await clock.advance(1)
        assert (observer.current_result.data, observer.current_result.is_placeholder_data) == ("OTHER", False)


class TestSelect:
    async def test_it_runs_only_when_data_or_function_change(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        runs: list[list[int]] = []

        def double(data: list[int]) -> list[int]:
            runs.append(data)
            return [2 * item for item in data]

        backend.value = [1, 2]
        observer = QueryObserver(client, key=["a"], fn=backend, select=double)
        observer.subscribe(ignore)
        await clock.advance(1)
        shown = observer.current_result.data
        backend.value = [1, 2]
        observer.refetch()
        await clock.advance(1)
        assert (shown, len(runs)) == ([2, 4], 1)
        assert client.get_query_data(["a"]) == [1, 2]
        observer.set_options(key=["a"], fn=backend, select=lambda data: [2 * item for item in data])
        assert observer.current_result.data is shown  # structurally shared

    async def test_its_error_is_the_results_and_the_last_selection_stays(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        client.set_query_data(["a"], {"name": "Ann"})
        observer: QueryObserver[dict[str, str], str] = QueryObserver(
            client, key=["a"], enabled=False, select=lambda data: data["name"]
        )
        observer.subscribe(ignore)
        client.set_query_data(["a"], {})
        result = observer.current_result
        assert (result.status, result.data) == ("error", "Ann")
        assert isinstance(result.error, KeyError)
        state = client.get_query_state(["a"])
        assert state is not None
        assert state.status == "success"
        client.set_query_data(["a"], {"name": "Bob"})
        assert (observer.current_result.data, observer.current_result.error) == ("Bob", None)


class TestSharingAndNotifications:
    async def test_equal_answers_keep_the_data_object(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.value = lambda _: [{"id": 1}]
        observer = QueryObserver(client, key=["a"], fn=backend)
        observer.subscribe(ignore)
        await clock.advance(1)
        before = observer.current_result.data
        observer.refetch()
        await clock.advance(1)
        assert observer.current_result.data is before

    async def test_structural_sharing_can_be_switched_off_or_replaced(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.value = lambda _: [1]
        client.set_query_data(["off"], [1])
        held = client.get_query_data(["off"])
        client.prefetch_query(key=["off"], fn=backend, structural_sharing=False)
        client.prefetch_query(
            key=["own"], fn=backend, structural_sharing=lambda old, new: [*(old or []), *new, "shared"]
        )
        await clock.advance(1)
        assert client.get_query_data(["off"]) is not held
        assert client.get_query_data(["own"]) == [1, "shared"]

    async def test_listeners_hear_each_change_at_once(self, client: QueryClient) -> None:
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        data = Recorder(of=lambda result: result.data)
        observer.subscribe(data)
        for number in range(5):
            client.set_query_data(["a"], number)
        assert data.heard == [0, 1, 2, 3, 4]

    async def test_batched_calls_come_together_by_the_scheduler(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        notify = client.notify_manager
        heard = Recorder()
        drawn = notify.batch_calls(heard)
        with notify.batch():
            with notify.batch():
                drawn(1)
            drawn(2)
            assert heard.heard == []
        assert heard.heard == []
        await clock.advance(0)
        assert heard.heard == [1, 2]
        runs: list[Any] = []
        notify.set_scheduler(runs.append)
        drawn(3)
        assert heard.heard == [1, 2]
        (run,) = runs
        run()
        assert heard.heard == [1, 2, 3]

    async def test_a_batched_listener_of_an_observer_is_called_by_the_scheduler(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        heard = Recorder(of=lambda result: result.data)
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        observer.subscribe(client.notify_manager.batch_calls(heard))
        client.set_query_data(["a"], 1)
        assert heard.heard == []
        await clock.advance(0)
        assert heard.heard == [1]

    async def test_of_an_atomic_block_in_another_nothing_is_heard_before_the_outer_one_ends(
        self, client: QueryClient
    ) -> None:
        heard = Recorder(of=lambda result: result.data)
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        observer.subscribe(heard)
        with client.notify_manager.atomic():
            with client.notify_manager.atomic():
                client.set_query_data(["a"], 1)
            client.set_query_data(["a"], 2)
            assert heard.heard == []
            assert client.get_query_data(["a"]) == 2
        assert heard.heard == [2]

    async def test_listeners_may_want_to_hear_of_some_fields_only(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.value = lambda _: [1]
        observer = QueryObserver(client, key=["a"], fn=backend, notify_on_change_props=["data", "error"])
        heard = Recorder(of=lambda result: result.data)
        observer.subscribe(heard)
        await clock.advance(1)
        observer.refetch()
        await clock.advance(1)
        assert heard.heard == [[1]]

    async def test_a_listener_that_raises_is_logged_and_stops_nobody(
        self, client: QueryClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(_: object) -> None:
            raise BackendError("in the listener")

        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        heard = Recorder(of=lambda result: result.data)
        observer.subscribe(broken)
        observer.subscribe(heard)
        client.set_query_data(["a"], 1)
        assert heard.heard == [1]
        assert "a listener of the query cache raised" in caplog.text

    async def test_a_listener_may_unsubscribe_another_while_it_is_told(self, client: QueryClient) -> None:
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        heard = Recorder()
        unsubscribe: list[Any] = []
        observer.subscribe(lambda _: unsubscribe[0]())
        unsubscribe.append(observer.subscribe(heard))
        client.set_query_data(["a"], 1)
        unsubscribe[0]()
        assert heard.heard == []

    async def test_the_cache_tells_what_happens_to_its_queries(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        events = Recorder(of=lambda event: event.type)
        client.query_cache.subscribe(events)
        observer = QueryObserver(client, key=["a"], fn=backend)
        unsubscribe = observer.subscribe(ignore)
        await clock.advance(1)
        observer.set_options(key=["a"], fn=backend, stale_time=5)
        unsubscribe()
        client.remove_queries(["a"])
        assert [event for event in events.heard if event != "observer_results_updated"] == [
            "added",
            "observer_added",
            "updated",
            "updated",
            "observer_options_updated",
            "observer_removed",
            "removed",
        ]
        assert "observer_results_updated" in events.heard

    async def test_results_can_be_iterated_and_only_the_last_of_a_burst_is_seen(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        observer: QueryObserver[int, int] = QueryObserver(client, key=["a"], enabled=False)
        seen: list[int | None] = []

        async def watch() -> None:
            async for result in observer.results():
                seen.append(result.data)  # noqa: PERF401 -- it never ends

        task = asyncio.create_task(watch())
        await clock.settle()
        client.set_query_data(["a"], 1)
        client.set_query_data(["a"], 2)
        await clock.settle()
        client.set_query_data(["a"], 3)
        await clock.settle()
        task.cancel()
        await asyncio.wait([task])
        assert seen == [None, 2, 3]
        assert not observer.has_listeners()


class TestQueriesObserver:
    async def test_it_shows_several_queries_as_one_list(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        backend.value = lambda context: context.key[0]
        observer = QueriesObserver(client, [{"key": ["a"], "fn": backend}, {"key": ["b"], "fn": backend}])
        heard = Recorder(of=lambda results: [result.data for result in results])
        unsubscribe = observer.subscribe(heard)
        await clock.advance(1)
        assert heard.heard[-1] == ["a", "b"]
        kept = observer.observers[1]
        observer.set_queries([{"key": ["b"], "fn": backend, "stale_time": 60}, {"key": ["c"], "fn": backend}])
        assert heard.heard[-1] == ["b", None]
        assert observer.observers[0] is kept
        await clock.advance(1)
        assert heard.heard[-1] == ["b", "c"]
        assert client.query_cache.find_all(["a"])[0].observers == []
        unsubscribe()
        assert all(query.observers == [] for query in client.query_cache)
