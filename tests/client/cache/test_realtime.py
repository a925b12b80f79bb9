"""Requirements D9, D10 and DESIGN section 9: events and answers, in whatever order they come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from tests.client.cache.support import Backend, BackendError, Recorder, sleep

from rowcast.client.cache import (
    ChangeEvent,
    Decision,
    Entity,
    KeyFamily,
    ManualClock,
    NotModified,
    QueryClient,
    QueryFunctionContext,
    QueryObserver,
    RealtimeIntegration,
    RowPatch,
    TransactionEvent,
)
from rowcast.client.cache.journal import Journal
from rowcast.errors import ClientError


def ignore(_: object) -> None:
    """A listener."""


def row(key: int, **values: Any) -> dict[str, Any]:
    return {"id": key, **values}


def change(table: str, key: int, op: str = "UPDATE", **values: Any) -> ChangeEvent:
    return ChangeEvent(table, op, {"id": key}, None if op == "DELETE" else row(key, **values))  # type: ignore[arg-type]


def transaction(number: int, *changes: ChangeEvent, epoch: str = "e1") -> TransactionEvent:
    return TransactionEvent(f"{epoch}-{number:04}", number, changes)


def renamed(number: int, name: str, key: int = 1) -> TransactionEvent:
    return transaction(number, change("projects", key, name=name))


PATCHED = Entity("projects", [["projects"]], patch=RowPatch(), polling=None)
INVALIDATED = Entity("tasks", [["tasks"]], polling=None)


@pytest.fixture
def realtime(client: QueryClient) -> Iterator[RealtimeIntegration]:
    with RealtimeIntegration(client, [PATCHED, INVALIDATED]) as integration:
        yield integration


def watch(client: QueryClient, backend: Backend, *key: object, **options: Any) -> QueryObserver[Any, Any]:
    """An observer with a listener, of data that is fresh until something happens."""
    observer: QueryObserver[Any, Any] = QueryObserver(
        client, **{"key": key, "fn": backend, "stale_time": math.inf, "retry": False, **options}
    )
    observer.subscribe(ignore)
    return observer


def state_of(client: QueryClient, *key: object) -> Any:
    state = client.get_query_state(key)
    assert state is not None
    return state


class TestMapping:
    async def test_a_table_concerns_the_queries_of_its_families_and_only_active_ones_are_refetched(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        watch(client, backend, "tasks", {"done": False})
        watch(client, backend, "users")
        client.set_query_data(["tasks", "inactive"], 1)
        await clock.advance(1)
        backend.contexts.clear()
        realtime.apply(transaction(1, change("tasks", 1), change("unknown", 1)))
        assert state_of(client, "tasks", "inactive").is_invalidated
        await clock.advance(5)
        assert [context.key for context in backend.contexts] == [("tasks", {"done": False})]
        assert not state_of(client, "users").is_invalidated

    async def test_a_family_can_be_narrowed_by_the_change(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        def of_projects(change: ChangeEvent) -> list[list[object]]:
            return [["tasks", row["project_id"]] for row in (change.old, change.new) if row]

        families: list[KeyFamily | list[str]] = [KeyFamily(["tasks"], of_projects), ["task-counts"]]
        with RealtimeIntegration(client, [Entity("tasks", families, polling=None)]) as realtime:
            for key in (["tasks", 1], ["tasks", 2, "open"], ["tasks", 3], ["task-counts"], ["other", 1]):
                client.set_query_data(key, 0)
            moved = ChangeEvent("tasks", "UPDATE", {"id": 9}, {"project_id": 1}, {"project_id": 2})
            realtime.apply(transaction(1, moved))
            assert {tuple(query.key) for query in client.query_cache if query.state.is_invalidated} == {
                ("tasks", 1),
                ("tasks", 2, "open"),
                ("task-counts",),
            }

    async def test_a_narrowed_family_replays_what_concerns_the_query(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        family = KeyFamily(["project"], lambda change: [["project", change.key["id"]]])
        with RealtimeIntegration(
            client, [Entity("projects", [family], patch=RowPatch(), polling=None)]
        ) as realtime:
            backend.value = row(1, name="old")
            observer = watch(client, backend, "project", 1)
            await clock.advance(0.5)
            realtime.apply(renamed(1, "other", key=2))
            realtime.apply(renamed(2, "new"))
            await clock.advance(0.5)
            assert (observer.current_result.data, observer.current_result.is_stale) == (
                row(1, name="new"),
                False,
            )

    async def test_a_patch_changes_inactive_queries_too(
        self, client: QueryClient, realtime: RealtimeIntegration
    ) -> None:
        client.set_query_data(["projects"], [row(1, name="old")])
        realtime.apply(renamed(1, "new"))
        assert client.get_query_data(["projects"]) == [row(1, name="new")]
        assert not state_of(client, "projects").is_invalidated

    async def test_what_a_patch_cannot_tell_is_refetched(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value = [row(1)]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        backend.value = [row(1), row(2)]
        realtime.apply(transaction(1, change("projects", 2, "INSERT")))
        assert observer.current_result.is_stale
        await clock.advance(1)
        assert (observer.current_result.data, observer.current_result.is_stale) == ([row(1), row(2)], False)

    async def test_a_patch_that_raises_is_logged_and_the_query_refetched(
        self, client: QueryClient, clock: ManualClock, backend: Backend, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: object) -> None:
            raise BackendError("in the patch")

        with RealtimeIntegration(
            client, [Entity("projects", [["p"]], patch=broken, polling=None)]
        ) as realtime:
            watch(client, backend, "p")
            await clock.advance(1)
            realtime.apply(renamed(1, "x"))
            await clock.advance(1)
            assert len(backend.calls) == 2
            assert "the patch of the entity 'projects' raised" in caplog.text

    async def test_a_transaction_is_seen_whole_by_every_listener(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        entities = [
            Entity("projects", [["projects"]], patch=RowPatch(), polling=None),
            Entity("tasks", [["tasks"]], patch=RowPatch(), polling=None),
        ]
        with RealtimeIntegration(client, entities) as realtime:
            for key in ("projects", "tasks"):
                client.set_query_data([key], [row(1, name="old")])
            seen: set[tuple[str, str]] = set()

            def look(_: object) -> None:
                seen.add(
                    (
                        client.get_query_data(["projects"])[0]["name"],
                        client.get_query_data(["tasks"])[0]["name"],
                    )
                )

            for key in ("projects", "tasks"):
                QueryObserver[Any, Any](client, key=[key], enabled=False).subscribe(look)
            client.query_cache.subscribe(look)
            realtime.apply(transaction(1, change("projects", 1, name="new"), change("tasks", 1, name="new")))
            assert seen == {("new", "new")}

    async def test_listeners_get_each_decision(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        decisions = Recorder()
        realtime.subscribe(decisions)
        client.set_query_data(["projects"], [row(1)])
        client.set_query_data(["tasks"], 1)
        realtime.apply(transaction(1, change("projects", 1), change("tasks", 1)))
        assert decisions.heard == [
            Decision("e1-0001", ["projects"], "patched"),
            Decision("e1-0001", ["tasks"], "invalidated"),
        ]

    async def test_a_table_has_one_entity(self, client: QueryClient) -> None:
        with pytest.raises(ClientError, match="the table 'projects' has two entities"):
            RealtimeIntegration(client, [PATCHED, Entity("projects", [["other"]])])


class TestSwitches:
    """D10"""

    async def test_a_query_can_be_left_alone(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        decisions = Recorder(of=lambda decision: decision.outcome)
        realtime.subscribe(decisions)
        watch(client, backend, "tasks", realtime=False)
        await clock.advance(0.5)
        realtime.apply(transaction(1, change("tasks", 1)))
        realtime.gap()
        await clock.advance(10)
        assert len(backend.calls) == 1
        assert not state_of(client, "tasks").is_invalidated
        assert decisions.heard == ["off"]

    async def test_all_can_be_switched_off_and_everything_is_out_of_date_when_it_is_on_again(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value = [row(1, name="old")]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        realtime.enabled = False
        backend.value = [row(1, name="new")]
        realtime.apply(renamed(1, "new"))
        await clock.advance(10)
        assert observer.current_result.data == [row(1, name="old")]
        realtime.enabled = True
        realtime.enabled = True
        assert observer.current_result.is_stale
        await clock.advance(1)
        assert observer.current_result.data == [row(1, name="new")]

    async def test_closed_it_leaves_the_cache_alone(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        watch(client, backend, "projects")
        await clock.advance(1)
        backend.calls.clear()
        timers = clock.pending()
        with RealtimeIntegration(client, [Entity("projects", [["projects"]], patch=RowPatch())]) as realtime:
            client.set_query_data(["projects"], [row(1)])
            realtime.apply(renamed(1, "new"))
            realtime.connection_state("connected")
            realtime.gap(after_seconds=5)
        realtime.close()
        realtime.apply(renamed(2, "newer"))
        await clock.advance(60)
        assert backend.calls == []
        assert client.query_cache.fetch_hooks == []
        assert not client.query_cache.has_listeners()
        assert clock.pending() == timers


class TestCoalescing:
    async def test_the_first_event_is_served_at_once_and_a_burst_by_one_more_run(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.seconds = 0.05
        watch(client, backend, "tasks")
        await clock.advance(5)
        start = clock.now()
        backend.calls.clear()
        for number in range(20):
            realtime.apply(transaction(number, change("tasks", number)))
            await clock.advance(0.001)
        await clock.advance(5)
        assert [round(at - start, 3) for at in backend.calls] == [0.0, 0.119]

    async def test_under_a_lasting_storm_runs_keep_the_maximum_staleness(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.seconds = 0.05
        watch(client, backend, "tasks")
        await clock.advance(5)
        start = clock.now()
        backend.calls.clear()
        for number in range(500):
            realtime.apply(transaction(number, change("tasks", number)))
            await clock.advance(0.01)
        assert [round(at - start, 2) for at in backend.calls] == [0.0, 1.01, 2.01, 3.01, 4.01]
        assert backend.cancelled == 0

    async def test_a_run_that_somebody_else_began_serves_the_events_before_it(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        realtime.apply(transaction(1, change("tasks", 1)))
        await clock.advance(1)
        realtime.apply(transaction(2, change("tasks", 2)))
        await clock.settle()
        realtime.apply(transaction(3, change("tasks", 3)))
        observer.refetch()
        await clock.advance(10)
        assert (len(backend.calls), backend.cancelled) == (4, 1)
        assert not observer.current_result.is_stale

    async def test_an_event_during_a_fetch_that_fails_is_served_by_another(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.failures = 1
        observer = watch(client, backend, "tasks")
        await clock.advance(0.5)
        realtime.apply(transaction(1, change("tasks", 1)))
        await clock.advance(5)
        assert (len(backend.calls), observer.current_result.data) == (2, "data")

    async def test_an_event_during_a_fetch_that_is_cancelled_too(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        observer.refetch()
        await clock.advance(0.5)
        realtime.apply(transaction(1, change("tasks", 1)))
        await client.cancel_queries(["tasks"])
        await clock.advance(5)
        assert len(backend.calls) == 3
        assert not observer.current_result.is_stale

    async def test_a_query_that_loses_its_observers_is_fetched_by_the_next(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        observer = watch(client, backend, "tasks")
        await clock.advance(0.5)
        realtime.apply(transaction(1, change("tasks", 1)))
        observer.destroy()
        await clock.advance(10)
        assert len(backend.calls) == 1
        watch(client, backend, "tasks")
        await clock.advance(10)
        assert len(backend.calls) == 2

    async def test_a_removed_query_leaves_no_timer(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        watch(client, backend, "tasks")
        await clock.advance(0.95)
        realtime.apply(transaction(1, change("tasks", 1)))
        await clock.advance(0.06)
        client.remove_queries(["tasks"])
        await clock.advance(10)
        assert len(backend.calls) == 1


class TestAnswersWithoutASnapshot:
    async def test_events_since_the_fetch_began_are_replayed_over_the_first_answer(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value = [row(1, name="old"), row(2)]
        observer = watch(client, backend, "projects")
        await clock.advance(0.5)
        realtime.apply(transaction(1, change("projects", 1, name="new"), change("projects", 2, "DELETE")))
        await clock.advance(0.5)
        assert (observer.current_result.data, observer.current_result.is_stale) == (
            [row(1, name="new")],
            False,
        )
        assert len(backend.calls) == 1

    async def test_events_before_it_are_not(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        realtime.apply(renamed(1, "older"))
        backend.value = [row(1, name="newest")]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        assert observer.current_result.data == [row(1, name="newest")]

    async def test_a_restarted_fetch_counts_from_its_restart(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        observer.refetch()
        await clock.advance(0.5)
        realtime.apply(transaction(1, change("tasks", 1)))
        observer.refetch()
        await clock.advance(1)
        assert not observer.current_result.is_stale
        await clock.advance(5)
        assert len(backend.calls) == 3

    async def test_an_answer_older_than_what_the_journal_holds_does_not_undo_patches(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        realtime._journal = Journal(maximum_changes=2)
        backend.value = [row(1, name="old"), row(2, name="old"), row(3, name="old")]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        observer.refetch()
        await clock.advance(0.5)
        for key in (1, 2, 3):
            realtime.apply(renamed(key, "new", key=key))
        backend.value = [row(key, name="new") for key in (1, 2, 3)]
        names = Recorder(of=lambda result: [one["name"] for one in result.data])
        observer.subscribe(names)
        await clock.advance(0.5)
        assert state_of(client, "projects").is_invalidated  # refused, to be fetched again
        await clock.advance(2)
        assert all(heard == ["new", "new", "new"] for heard in names.heard)
        assert not observer.current_result.is_stale
        assert len(backend.calls) == 3


class TestAnswersWithASnapshot:
    async def test_only_what_the_read_has_not_seen_is_replayed(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        """The event 5 came before the fetch and is not in the read; 6 came during it and is."""
        realtime.apply(renamed(5, "five", key=1))
        backend.value, backend.snapshot = [row(1, name="old"), row(2, name="later than six")], "5:7:5"
        observer = watch(client, backend, "projects")
        await clock.advance(0.5)
        realtime.apply(renamed(6, "six", key=2))
        await clock.advance(0.5)
        assert observer.current_result.data == [row(1, name="five"), row(2, name="later than six")]
        assert not observer.current_result.is_stale

    async def test_an_event_that_the_data_has_seen_is_not_applied_again(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        """The echo of one's own mutation, after the refetch that followed it: no second refresh."""
        decisions = Recorder(of=lambda decision: decision.outcome)
        realtime.subscribe(decisions)
        backend.value, backend.snapshot = [row(1, name="newest")], "8:8:"
        for key in ("projects", "tasks"):
            watch(client, backend, key)
        await clock.advance(1)
        realtime.apply(transaction(7, change("projects", 1, name="older"), change("tasks", 1)))
        await clock.advance(10)
        assert client.get_query_data(["projects"]) == [row(1, name="newest")]
        assert decisions.heard == ["already_seen", "already_seen"]
        assert len(backend.calls) == 2

    async def test_an_event_during_the_fetch_that_the_read_has_seen_needs_no_other(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.snapshot = "8:8:"
        observer = watch(client, backend, "tasks")
        await clock.advance(0.5)
        realtime.apply(transaction(7, change("tasks", 1)))
        await clock.advance(10)
        assert len(backend.calls) == 1
        assert not observer.current_result.is_stale

    async def test_an_answer_from_a_lagging_copy_is_refused_and_asked_for_less_and_less_often(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value, backend.snapshot, backend.seconds = "new", "10:10:", 0.01
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        shown = Recorder(of=lambda result: result.data)
        observer.subscribe(shown)
        backend.value, backend.snapshot = "old", "5:5:"
        backend.calls.clear()
        observer.refetch()
        await clock.advance(10)
        assert set(shown.heard) == {"new"}
        assert observer.current_result.is_stale
        assert 10 <= len(backend.calls) <= 15  # once a second, after a few quicker ones
        backend.value, backend.snapshot = "newest", "11:11:"
        await clock.advance(2)
        assert (observer.current_result.data, observer.current_result.is_stale) == ("newest", False)
        backend.calls.clear()
        await clock.advance(60)
        assert backend.calls == []

    async def test_an_answer_that_lags_behind_the_stream_is_followed_by_others_until_it_has_caught_up(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.snapshot, backend.seconds = "5:5:", 0.01
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        realtime.apply(transaction(7, change("tasks", 1)))
        await clock.advance(3)
        assert observer.current_result.is_stale
        assert 4 <= len(backend.calls) <= 8
        backend.snapshot = "8:8:"
        await clock.advance(2)
        assert not observer.current_result.is_stale

    async def test_a_snapshot_that_is_none_is_the_querys_error(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.snapshot = "nonsense"
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        assert isinstance(observer.current_result.error, ClientError)

    async def test_pages_read_in_several_snapshots_get_everything_that_one_of_them_has_not_seen(
        self, client: QueryClient, clock: ManualClock, realtime: RealtimeIntegration
    ) -> None:
        snapshots = iter(["5:5:", "6:6:", "7:7:"])

        async def page(context: QueryFunctionContext) -> list[dict[str, Any]]:
            context.snapshot = next(snapshots)
            await sleep(clock, 1)
            return [row(context.page_param, name="read")]

        from rowcast.client.cache import InfiniteQueryObserver

        observer = InfiniteQueryObserver(
            client,
            key=["projects"],
            fn=page,
            initial_page_param=1,
            pages=2,
            get_next_page_param=lambda data: data.page_params[-1] + 1,
            stale_time=math.inf,
        )
        observer.subscribe(ignore)
        await clock.advance(1.5)
        realtime.apply(renamed(5, "five", key=1))
        await clock.advance(0.5)
        assert client.get_query_data(["projects"]).pages == [[row(1, name="five")], [row(2, name="read")]]
        observer.fetch_next_page()
        await clock.advance(0.5)
        realtime.apply(renamed(6, "six", key=1))
        await clock.advance(0.5)
        pages = client.get_query_data(["projects"]).pages
        assert pages == [[row(1, name="six")], [row(2, name="read")], [row(3, name="read")]]
        assert not observer.current_result.is_stale


class TestOrder:
    async def test_a_transaction_that_comes_again_changes_nothing(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        watch(client, backend, "tasks")
        client.set_query_data(["projects"], [row(1, name="old")])
        await clock.advance(1)
        both = transaction(5, change("projects", 1, name="five"), change("tasks", 1))
        realtime.apply(both)
        await clock.advance(5)
        client.set_query_data(["projects"], [row(1, name="by hand")])
        realtime.apply(both)
        await clock.advance(5)
        assert client.get_query_data(["projects"]) == [row(1, name="by hand")]
        assert len(backend.calls) == 2

    async def test_a_row_never_goes_back_to_an_older_position_and_a_deleted_one_stays_deleted(
        self, client: QueryClient, realtime: RealtimeIntegration
    ) -> None:
        client.set_query_data(["projects"], [row(1, name="old"), row(2, name="old")])
        realtime.apply(renamed(6, "six"))
        realtime.apply(transaction(7, change("projects", 2, "DELETE")))
        realtime.apply(transaction(5, change("projects", 1, name="five"), change("projects", 2, name="five")))
        assert client.get_query_data(["projects"]) == [row(1, name="six")]

    async def test_a_new_epoch_makes_everything_outdated_and_compares_with_nothing_before_it(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value, backend.snapshot = [row(1, name="old")], "100:100:"
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        realtime.apply(renamed(101, "last of the first epoch"))
        backend.value, backend.snapshot = [row(1, name="second epoch")], "4:4:"
        realtime.apply(transaction(3, change("projects", 9, "DELETE"), epoch="e2"))
        assert observer.current_result.is_stale
        await clock.advance(2)
        assert (observer.current_result.data, observer.current_result.is_stale) == (
            [row(1, name="second epoch")],
            False,
        )
        realtime.apply(transaction(5, change("projects", 1, name="newer"), epoch="e2"))
        assert observer.current_result.data == [row(1, name="newer")]

    async def test_nor_does_an_answer_that_was_on_its_way_from_the_epoch_before(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value, backend.snapshot = [row(1, name="first epoch")], "100:100:"
        realtime.apply(renamed(99, "first epoch"))
        observer = watch(client, backend, "projects")
        await clock.advance(0.5)
        backend.value, backend.snapshot = [row(1, name="second epoch")], "4:4:"
        realtime.apply(transaction(3, change("projects", 9, "DELETE"), epoch="e2"))
        await clock.advance(0.5)
        realtime.apply(transaction(4, change("projects", 1, name="newer"), epoch="e2"))
        await clock.advance(2)
        assert (observer.current_result.data, observer.current_result.is_stale) == (
            [row(1, name="newer")],
            False,
        )

    async def test_what_is_older_than_all_that_is_remembered_is_refetched_instead_of_guessed(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        realtime._versions._maximum_keys = 1
        backend.value = [row(1, name="newest")]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        realtime.apply(renamed(5, "five"))
        realtime.apply(transaction(6, change("projects", 2, "DELETE")))
        realtime.apply(renamed(4, "four"))
        assert observer.current_result.data == [row(1, name="five")]
        assert observer.current_result.is_stale
        await clock.advance(1)
        assert observer.current_result.data == [row(1, name="newest")]

    async def test_after_a_gap_answers_on_their_way_are_not_trusted_either(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value = "before the gap"
        tasks, projects = watch(client, backend, "tasks"), watch(client, backend, "projects")
        await clock.advance(0.5)
        backend.value = "after the gap"
        realtime.gap(["tasks", "unknown"])
        await clock.advance(0.5)
        assert (tasks.current_result.is_stale, projects.current_result.is_stale) == (True, False)
        await clock.advance(5)
        assert (tasks.current_result.data, projects.current_result.data) == (
            "after the gap",
            "before the gap",
        )
        assert len(backend.calls) == 3

    async def test_answers_that_may_not_have_seen_what_was_lost_are_followed_by_others(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        """Lost: 7. The next event is 8, and the copy that is read has seen neither."""
        backend.seconds, backend.snapshot, backend.value = 0.01, "7:7:", [row(1)]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        realtime.gap()
        realtime.apply(renamed(8, "eight", key=1))
        await clock.advance(5)
        assert observer.current_result.is_stale
        backend.snapshot, backend.value = "9:9:", [row(1, name="eight"), row(7)]
        await clock.advance(2)
        assert not state_of(client, "projects").is_invalidated
        assert client.get_query_data(["projects"]) == [row(1, name="eight"), row(7)]

    async def test_the_refetches_after_a_gap_can_be_spread(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        observer = watch(client, backend, "tasks")
        await clock.advance(1)
        realtime.gap(after_seconds=3)
        assert observer.current_result.is_stale
        await clock.advance(2.9)
        assert len(backend.calls) == 1
        await clock.advance(1.1)
        assert len(backend.calls) == 2


class TestConditionalRequests:
    """D8: change detection by ETag."""

    @staticmethod
    def server(clock: ManualClock) -> tuple[Any, list[str | None]]:
        sent: list[str | None] = []

        async def load(context: QueryFunctionContext) -> list[dict[str, Any]]:
            sent.append(context.etag)
            version = server.version
            await sleep(clock, 1)
            if context.etag == version:
                raise NotModified
            context.etag = version
            return [row(1, name=version)]

        class server:  # noqa: N801 -- a namespace
            version = "v1"
            fn = staticmethod(load)

        return server, sent

    async def test_an_unchanged_answer_is_not_sent_again_and_draws_nothing(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server, sent = self.server(clock)
        observer = QueryObserver[Any, Any](
            client, key=["projects"], fn=server.fn, notify_on_change_props=["data", "error"]
        )
        heard = Recorder(of=lambda result: result.data)
        observer.subscribe(heard)
        await clock.advance(1)
        before = observer.current_result
        observer.refetch()
        await clock.advance(1)
        assert sent == [None, "v1"]
        assert len(heard.heard) == 1
        assert observer.current_result.data is before.data
        assert observer.current_result.data_updated_at == before.data_updated_at + 1
        server.version = "v2"
        observer.refetch()
        await clock.advance(1)
        assert heard.heard[-1] == [row(1, name="v2")]

    @pytest.mark.parametrize("write", ["set", "patch"])
    async def test_after_a_write_the_whole_answer_is_asked_for(
        self, client: QueryClient, clock: ManualClock, write: str
    ) -> None:
        server, sent = self.server(clock)
        observer = watch(client, server.fn, "projects")
        await clock.advance(1)
        if write == "set":
            client.set_query_data(["projects"], [row(1, name="optimistic")])
        else:
            client.patch_query_data(["projects"], lambda _: [row(1, name="patched")])
        observer.refetch()
        await clock.advance(1)
        assert sent == [None, None]
        assert observer.current_result.data == [row(1, name="v1")]

    async def test_a_write_during_the_comparison_is_followed_by_a_whole_answer(
        self, client: QueryClient, clock: ManualClock
    ) -> None:
        server, sent = self.server(clock)
        observer = watch(client, server.fn, "projects")
        await clock.advance(1)
        observer.refetch()
        await clock.advance(0.5)
        client.set_query_data(["projects"], [row(1, name="optimistic")])
        await clock.advance(2)
        assert sent == [None, "v1", None]
        assert observer.current_result.data == [row(1, name="v1")]

    async def test_not_modified_without_data_is_an_error(self, client: QueryClient) -> None:
        async def load(_: QueryFunctionContext) -> str:
            raise NotModified

        with pytest.raises(ClientError, match="the cache holds no data"):
            await client.fetch_query(key=["a"], fn=load)


class TestOverlays:
    async def test_answers_and_events_come_in_underneath(
        self, client: QueryClient, clock: ManualClock, backend: Backend, realtime: RealtimeIntegration
    ) -> None:
        backend.value = [row(1, name="old", status="open")]
        observer = watch(client, backend, "projects")
        await clock.advance(1)
        take_back = client.overlay_query_data(
            ["projects"], lambda rows: [{**one, "name": "mine"} for one in rows]
        )
        names = Recorder(of=lambda result: result.data[0]["name"])
        observer.subscribe(names)
        realtime.apply(transaction(1, change("projects", 1, status="done")))
        backend.value = [row(1, name="mine", status="done")]
        observer.refetch()
        await clock.advance(1)
        assert observer.current_result.data == [row(1, name="mine", status="done")]
        take_back()
        take_back()
        assert set(names.heard) == {"mine"}

    async def test_each_is_taken_away_alone(self, client: QueryClient) -> None:
        client.set_query_data(["n"], 1)
        remove_first = client.overlay_query_data(["n"], lambda number: number + 10)
        remove_second = client.overlay_query_data(["n"], lambda number: number * 2)
        assert client.get_query_data(["n"]) == 22
        assert client.set_query_data(["n"], lambda base: base + 1) == 24
        remove_first()
        assert client.get_query_data(["n"]) == 4
        remove_second()
        assert client.get_query_data(["n"]) == 2

    async def test_one_can_be_there_before_the_data(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        remove = client.overlay_query_data(["a"], str.upper)
        watch(client, backend, "a")
        assert client.get_query_data(["a"]) is None
        await clock.advance(1)
        assert client.get_query_data(["a"]) == "DATA"
        client.reset_queries(["a"])
        assert client.get_query_data(["a"]) is None
        remove()
        await clock.advance(1)
        assert client.get_query_data(["a"]) == "data"

    async def test_a_cancelled_fetch_puts_back_what_is_shown(
        self, client: QueryClient, clock: ManualClock, backend: Backend
    ) -> None:
        client.set_query_data(["a"], "old")
        client.prefetch_query(key=["a"], fn=backend)
        await clock.settle()
        remove = client.overlay_query_data(["a"], str.upper)
        await client.cancel_queries(["a"])
        assert client.get_query_data(["a"]) == "OLD"
        remove()
        assert client.get_query_data(["a"]) == "old"

    async def test_one_that_raises_is_logged_and_not_shown(
        self, client: QueryClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.set_query_data(["a"], "old")
        client.overlay_query_data(["a"], lambda data: data["name"])
        assert client.get_query_data(["a"]) == "old"
        assert "an unconfirmed change cannot be applied" in caplog.text

    async def test_persisted_state_has_none_and_hydrated_state_goes_under_them(
        self, client: QueryClient
    ) -> None:
        from rowcast.client.cache import dehydrate, hydrate

        client.set_query_data(["a"], "newer", updated_at=10.0)
        client.overlay_query_data(["a"], str.upper)
        state = dehydrate(client)
        assert [query.data for query in state.queries] == ["newer"]
        client.set_query_data(["a"], "older", updated_at=5.0)
        hydrate(client, state)
        assert client.get_query_data(["a"]) == "NEWER"
