"""Specification 1.11: mutations, their callbacks in order, scopes, pauses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.client.cache.support import BackendError, Recorder, sleep

from rowcast.client.cache import (
    FetchCancelledError,
    ManualClock,
    MutationCache,
    MutationObserver,
    MutationState,
    QueryClient,
)
from rowcast.client.cache.mutation_state import (
    AttemptFailed,
    Continue,
    Failure,
    Pause,
    SetContext,
    Submit,
    Success,
    reduce,
)
from rowcast.errors import ClientError


def ignore(_: object) -> None:
    """A listener."""


class Server:
    """The other side of a mutation."""

    def __init__(self, clock: ManualClock, log: list[str] | None = None) -> None:
        self.clock, self.log = clock, [] if log is None else log
        self.error: Exception | None = None
        self.failures = 0
        self.calls = 0

    async def save(self, variables: str) -> str:
        self.calls += 1
        self.log.append(f"start {variables}")
        await sleep(self.clock, 1)
        if self.failures:
            self.failures -= 1
            raise BackendError("try again")
        if self.error is not None:
            raise self.error
        self.log.append(f"end {variables}")
        return f"saved {variables}"


def test_the_reducer_follows_the_life_of_a_mutation() -> None:
    error = ValueError("no")
    state: MutationState[str, str] = MutationState()
    assert state.is_idle
    state = reduce(state, Submit("x", paused=True, at=5.0))
    assert (state.is_pending, state.is_paused, state.variables, state.submitted_at) == (True, True, "x", 5.0)
    state = reduce(state, SetContext("context"))
    state = reduce(state, Continue())
    state = reduce(state, AttemptFailed(1, error))
    assert (state.context, state.is_paused, state.failure_count, state.failure_reason) == (
        "context",
        False,
        1,
        error,
    )
    assert reduce(state, Pause()).is_paused
    failed = reduce(state, Failure(error))
    assert (failed.is_error, failed.error, failed.failure_count, failed.context) == (
        True,
        error,
        2,
        "context",
    )
    done = reduce(state, Success("y"))
    assert (done.is_success, done.data, done.failure_count, done.error) == (True, "y", 0, None)


def observed(
    client: QueryClient, log: list[str], server: Server, **options: Any
) -> MutationObserver[str, str]:
    """An observer that logs all of its callbacks."""

    def note(name: str) -> Any:
        def callback(*arguments: object) -> str:
            log.append(f"{name}{arguments}")
            return name

        return callback

    names = ("on_mutate", "on_success", "on_error", "on_settled")
    return MutationObserver(client, **{"fn": server.save, **{name: note(name) for name in names}, **options})


def cache_with_log(log: list[str]) -> MutationCache:
    def note(name: str) -> Any:
        async def callback(*arguments: Any) -> None:
            log.append(f"cache.{name} of {arguments[-1].number}")

        return callback

    return MutationCache(
        **{name: note(name) for name in ("on_mutate", "on_success", "on_error", "on_settled")}
    )


class TestCallbacks:
    async def test_their_order_on_success(self, clock: ManualClock) -> None:
        log: list[str] = []
        async with QueryClient(clock=clock, mutation_cache=cache_with_log(log)) as client:
            observer = observed(client, log, Server(clock, log))
            observer.subscribe(lambda state: log.append(f"state {state.status}"))
            answer = observer.mutate(
                "x",
                on_success=lambda *_: log.append("call.on_success"),
                on_settled=lambda *_: log.append("call.on_settled"),
            )
            await clock.advance(1)
            assert await answer == "saved x"
        assert log == [
            "state pending",
            "cache.on_mutate of 1",
            "on_mutate('x',)",
            "state pending",  # with the context
            "start x",
            "end x",
            "cache.on_success of 1",
            "on_success('saved x', 'x', 'on_mutate')",
            "cache.on_settled of 1",
            "on_settled('saved x', None, 'x', 'on_mutate')",
            "call.on_success",
            "call.on_settled",
            "state success",
        ]

    async def test_their_order_on_failure(self, clock: ManualClock) -> None:
        log: list[str] = []
        async with QueryClient(clock=clock, mutation_cache=cache_with_log(log)) as client:
            server = Server(clock)
            server.error = BackendError("no")
            observer = observed(client, log, server)
            observer.subscribe(ignore)
            answer = observer.mutate(
                "x",
                on_error=lambda *_: log.append("call.on_error"),
                on_settled=lambda *_: log.append("call.on_settled"),
            )
            await clock.advance(1)
            with pytest.raises(BackendError):
                await answer
        assert log == [
            "cache.on_mutate of 1",
            "on_mutate('x',)",
            "cache.on_error of 1",
            "on_error(BackendError('no'), 'x', 'on_mutate')",
            "cache.on_settled of 1",
            "on_settled(None, BackendError('no'), 'x', 'on_mutate')",
            "call.on_error",
            "call.on_settled",
        ]

    async def test_a_plain_on_mutate_has_run_when_mutate_returns(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        client.set_query_data(["a"], "old")
        observer = MutationObserver(
            client,
            fn=Server(clock).save,
            on_mutate=lambda variables: client.set_query_data(["a"], variables),
        )
        observer.mutate("optimistic")
        assert client.get_query_data(["a"]) == "optimistic"
        assert observer.current_result.context == "optimistic"

    async def test_an_awaited_on_mutate_comes_before_the_function(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)

        async def prepare(variables: str) -> str:
            await sleep(clock, 5)
            server.log.append("prepared")
            return "context"

        observer = MutationObserver(client, fn=server.save, on_mutate=prepare)
        observer.mutate("x")
        await clock.advance(6)
        assert server.log == ["prepared", "start x", "end x"]
        assert observer.current_result.context == "context"

    async def test_it_is_pending_until_on_settled_has_returned(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        observer = MutationObserver(client, fn=Server(clock).save, on_settled=lambda *_: sleep(clock, 3))
        observer.mutate("x")
        await clock.advance(3.9)
        assert observer.current_result.is_pending
        await clock.advance(0.1)
        assert observer.current_result.is_success

    async def test_what_on_success_raises_takes_the_way_of_an_error(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        settled = Recorder()
        observer = MutationObserver(
            client,
            fn=Server(clock).save,
            on_success=lambda *_: 1 / 0,
            on_settled=lambda *arguments: settled(arguments[:2]),
        )
        answer = observer.mutate("x")
        await clock.advance(1)
        with pytest.raises(ZeroDivisionError):
            await answer
        assert [type(error) for _, error in settled.heard] == [ZeroDivisionError]

    async def test_what_on_settled_raises_makes_it_run_twice(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        runs: list[object] = []

        def settled(data: object, *_: object) -> None:
            runs.append(data)
            if data is not None:
                raise BackendError("in on_settled")

        observer = MutationObserver(client, fn=Server(clock).save, on_settled=settled)
        observer.mutate("x")
        await clock.advance(1)
        assert runs == ["saved x", None]
        assert observer.current_result.is_error

    async def test_what_callbacks_raise_after_an_error_is_logged_and_the_error_kept(
        self, client: QueryClient, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = Server(clock)
        server.error = BackendError("the first")
        observer = MutationObserver(
            client, fn=server.save, on_error=lambda *_: 1 / 0, on_settled=lambda *_: 1 / 0
        )
        answer = observer.mutate("x")
        await clock.advance(1)
        with pytest.raises(BackendError, match="the first"):
            await answer
        assert caplog.text.count("a callback of a failed mutation raised") == 2

    async def test_what_on_mutate_raises_keeps_the_function_from_running(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)
        observer = MutationObserver(client, fn=server.save, on_mutate=lambda _: 1 / 0)
        answer = observer.mutate("x")
        with pytest.raises(ZeroDivisionError):
            await answer
        assert server.calls == 0
        assert observer.current_result.is_error

    async def test_callbacks_of_a_call_fire_for_the_last_call_only_and_while_somebody_listens(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        log: list[str] = []
        always: list[str] = []
        observer = MutationObserver(
            client, fn=Server(clock).save, on_success=lambda data, *_: always.append(data)
        )
        unsubscribe = observer.subscribe(ignore)
        for name in ("first", "second"):
            observer.mutate(name, on_success=lambda data, *_: log.append(data))
        await clock.advance(1)
        assert log == ["saved second"]
        observer.mutate("third", on_success=lambda data, *_: log.append(data))
        unsubscribe()
        await clock.advance(1)
        assert log == ["saved second"]
        assert always == ["saved first", "saved second", "saved third"]


class TestRunning:
    async def test_it_is_tried_once_by_default(self, client: QueryClient, clock: ManualClock) -> None:
        server = Server(clock)
        server.failures = 1
        observer = MutationObserver(client, fn=server.save)
        observer.mutate("x")
        await clock.advance(60)
        assert (server.calls, observer.current_result.status) == (1, "error")

    async def test_it_is_retried_if_asked_for(self, client: QueryClient, clock: ManualClock) -> None:
        server = Server(clock)
        server.failures = 2
        observer = MutationObserver(client, fn=server.save, retry=2)
        states = Recorder(of=lambda state: state.failure_count)
        observer.subscribe(states)
        answer = observer.mutate("x")
        await clock.advance(60)
        assert await answer == "saved x"
        assert states.heard == [0, 1, 2, 0]

    async def test_without_a_function_it_says_what_is_missing(self, client: QueryClient) -> None:
        observer: MutationObserver[str, str] = MutationObserver(client, key=["m"])
        with pytest.raises(ClientError, match=r"the mutation \['m'\] has no function"):
            await observer.mutate("x")

    async def test_mutations_run_side_by_side(self, client: QueryClient, clock: ManualClock) -> None:
        server = Server(clock)
        for name in "ab":
            MutationObserver(client, fn=server.save).mutate(name)
        assert client.is_mutating() == 2
        await clock.advance(1)
        assert server.log == ["start a", "start b", "end a", "end b"]
        assert client.is_mutating() == 0

    async def test_those_of_a_scope_run_one_after_the_other_but_are_optimistic_at_once(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)
        observers = [
            MutationObserver(
                client,
                fn=server.save,
                scope="s",
                on_mutate=lambda variables: server.log.append(f"om {variables}"),
            )
            for _ in range(3)
        ]
        for number, observer in enumerate(observers, start=1):
            observer.mutate(str(number))
        assert server.log == ["om 1", "om 2", "om 3"]
        await clock.advance(0.5)
        assert [observer.current_result.is_paused for observer in observers] == [False, True, True]
        await clock.advance(3)
        assert server.log[3:] == ["start 1", "end 1", "start 2", "end 2", "start 3", "end 3"]

    async def test_awaited_preparations_of_a_scope_also_come_before_the_first_function(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)

        async def prepare(variables: str) -> None:
            server.log.append(f"om {variables}")

        for name in "12":
            MutationObserver(client, fn=server.save, scope="s", on_mutate=prepare).mutate(name)
        await clock.advance(5)
        assert server.log == ["om 1", "om 2", "start 1", "end 1", "start 2", "end 2"]

    async def test_a_failure_lets_the_next_of_the_scope_run(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)
        server.failures = 1
        for name in "12":
            MutationObserver(client, fn=server.save, scope="s").mutate(name)
        await clock.advance(5)
        assert server.log == ["start 1", "start 2", "end 2"]

    async def test_offline_it_waits_and_the_order_is_kept(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)
        client.online_manager.set_online(False)
        observers = [MutationObserver(client, fn=server.save, scope="s") for _ in range(2)]
        answers = [observer.mutate(str(number)) for number, observer in enumerate(observers)]
        await clock.advance(5)
        assert [observer.current_result.is_paused for observer in observers] == [True, True]
        client.online_manager.set_online(True)
        await clock.advance(5)
        assert await asyncio.gather(*answers) == ["saved 0", "saved 1"]
        assert server.log == ["start 0", "end 0", "start 1", "end 1"]

    async def test_it_runs_on_if_the_network_came_back_during_on_mutate(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        client.online_manager.set_online(False)
        observer = MutationObserver(client, fn=Server(clock).save, on_mutate=lambda _: sleep(clock, 1))
        observer.mutate("x")
        await clock.advance(0.5)
        client.online_manager.set_online(True)
        await clock.advance(0.5)
        assert (observer.current_result.is_paused, observer.current_result.status) == (False, "pending")
        await clock.advance(1)
        assert observer.current_result.is_success

    async def test_a_caller_that_is_cancelled_leaves_the_mutation_alone(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        observer = MutationObserver(client, fn=Server(clock).save)
        observer.mutate("x").cancel()
        await clock.advance(1)
        assert observer.current_result.is_success

    async def test_a_client_that_closes_drops_what_runs(self, clock: ManualClock) -> None:
        async with QueryClient(clock=clock) as client:
            answer = MutationObserver(client, fn=Server(clock).save).mutate("x")
            await clock.settle()
        with pytest.raises(FetchCancelledError, match="dropped with its cache"):
            await answer
        assert clock.pending() == 0


class TestObserving:
    async def test_it_is_forgotten_some_time_after_its_observer(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        observer = MutationObserver(client, fn=Server(clock).save, gc_time=10)
        unsubscribe = observer.subscribe(ignore)
        observer.mutate("x")
        await clock.advance(60)
        assert len(client.mutation_cache) == 1
        unsubscribe()
        await clock.advance(10)
        assert len(client.mutation_cache) == 0

    async def test_a_pending_one_is_never_forgotten(self, client: QueryClient, clock: ManualClock) -> None:
        client.online_manager.set_online(False)
        MutationObserver(client, fn=Server(clock).save, gc_time=1).mutate("x")
        client.mutation_cache.find_all()[0].remove_observer  # noqa: B018
        await clock.advance(60)
        assert len(client.mutation_cache) == 1

    async def test_reset_forgets_the_call_and_lets_it_run(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)
        observer = MutationObserver(client, fn=server.save)
        states = Recorder(of=lambda state: state.status)
        observer.subscribe(states)
        observer.mutate("x")
        await clock.settle()
        observer.reset()
        await clock.advance(1)
        assert states.heard[-1] == "idle"
        assert server.log == ["start x", "end x"]

    async def test_another_key_resets_and_other_options_reach_a_pending_call(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        log: list[str] = []
        server = Server(clock)
        observer = MutationObserver(client, key=["m"], fn=server.save)
        observer.mutate("x")
        await clock.settle()
        observer.set_options(key=["m"], fn=server.save, on_success=lambda *_: log.append("new"))
        await clock.advance(1)
        assert log == ["new"]
        observer.set_options(key=["other"], fn=server.save)
        assert observer.current_result.is_idle

    async def test_mutations_are_found_by_key_status_and_predicate(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server = Server(clock)
        for key in (["m"], ["m", 1], ["n"]):
            MutationObserver(client, key=key, fn=server.save).mutate(key[0])  # type: ignore[arg-type]
        MutationObserver(client, fn=server.save).mutate("no key")
        cache = client.mutation_cache
        assert [one.options.key for one in cache.find_all(["m"])] == [["m"], ["m", 1]]
        assert [one.options.key for one in cache.find_all(["m"], exact=True)] == [["m"]]
        assert len(cache.find_all(status="pending")) == 4
        assert len(cache.find_all(predicate=lambda one: one.state.variables == "n")) == 1
        assert client.is_mutating(["m"]) == 2

    async def test_the_cache_tells_what_happens(self, client: QueryClient, clock: ManualClock) -> None:
        events = Recorder(of=lambda event: event.type)
        client.mutation_cache.subscribe(events)
        observer = MutationObserver(client, fn=Server(clock).save)
        unsubscribe = observer.subscribe(ignore)
        observer.mutate("x")
        await clock.advance(1)
        unsubscribe()
        client.mutation_cache.clear()
        assert events.heard == [
            "added",
            "observer_added",
            "updated",
            "updated",
            "observer_removed",
            "removed",
        ]
