"""Specification 1.12: dehydrate, hydrate, and the cache over a restart."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from tests.client.cache.support import Backend, BackendError, sleep

from rowcast.client.cache import (
    CachePersistence,
    DehydratedState,
    FileStorage,
    InfiniteData,
    ManualClock,
    MutationObserver,
    QueryClient,
    QueryObserver,
    dehydrate,
    hydrate,
)


class MemoryStorage:
    """Keeps a cache for the length of a test, and counts."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.saves = 0
        self.error: Exception | None = None

    async def load(self) -> bytes | None:
        return self.content

    async def save(self, content: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.saves += 1
        self.content = content

    async def remove(self) -> None:
        self.content = None


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_successful_queries_are_kept_with_their_age(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.error = BackendError("down")
    client.prefetch_query(key=["failed"], fn=backend)
    await clock.advance(1)
    client.set_query_data(["a", {"b": 1}], [1, 2], updated_at=50.0)
    client.invalidate_queries(["a"])
    state = dehydrate(client)
    async with QueryClient(clock=clock) as other:
        hydrate(other, state)
        (query,) = other.query_cache
        assert other.query_cache.find(["a", {"b": 1}]) is query
        assert (query.state.data, query.state.data_updated_at, query.state.status) == (
            [1, 2],
            50.0,
            "success",
        )
        assert query.state.is_invalidated


@pytest.mark.parametrize(("written_at", "shown"), [(10.0, "kept"), (100.0, "here")])
async def test_only_newer_data_is_taken_over(
    client: QueryClient, clock: ManualClock, written_at: float, shown: str
) -> None:
    client.set_query_data(["a"], "kept", updated_at=50.0)
    state = dehydrate(client)
    async with QueryClient(clock=clock) as other:
        other.set_query_data(["a"], "here", updated_at=written_at)
        hydrate(other, state)
        assert other.get_query_data(["a"]) == shown


async def test_a_fetch_that_is_under_way_goes_on_over_hydrated_data(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    client.set_query_data(["a"], "kept", updated_at=50.0)
    state = dehydrate(client)
    async with QueryClient(clock=clock) as other:
        observer = QueryObserver(other, key=["a"], fn=backend)
        observer.subscribe(lambda _: None)
        hydrate(other, state)
        assert (observer.current_result.data, observer.current_result.is_fetching) == ("kept", True)
        await clock.advance(1)
        assert observer.current_result.data == "data"


async def test_which_queries_are_kept_and_how_their_data_is_written_can_be_said(client: QueryClient) -> None:
    client.set_query_data(["day"], dt.date(2026, 1, 2))
    client.set_query_data(["secret"], "x")
    state = dehydrate(
        client,
        should_dehydrate_query=lambda query: query.key != ["secret"],
        serialize_data=lambda day: day.isoformat(),
    )
    assert [query.data for query in state.queries] == ["2026-01-02"]
    client.clear()
    hydrate(client, state, deserialize_data=dt.date.fromisoformat)
    assert client.get_queries_data() == [(["day"], dt.date(2026, 1, 2))]


async def test_paused_mutations_come_back_and_run_with_the_functions_of_their_keys(
    client: QueryClient, clock: ManualClock
) -> None:
    saved: list[Any] = []

    async def save(variables: Any) -> None:
        await sleep(clock, 1)
        saved.append(variables)

    client.online_manager.set_online(False)
    for number in (1, 2):
        MutationObserver(client, key=["save"], fn=save, scope="s", on_mutate=lambda _: "context").mutate(
            number
        )
    MutationObserver(client, fn=save).mutate("without a key")
    await clock.settle()
    state = dehydrate(client)
    assert [(one.variables, one.context, one.scope) for one in state.mutations] == [
        (1, "context", "s"),
        (2, "context", "s"),
    ]
    optimism: list[Any] = []
    async with QueryClient(clock=clock) as other:
        other.set_mutation_defaults(["save"], fn=save, on_mutate=optimism.append)
        hydrate(other, state)
        done = other.resume_paused_mutations()
        await clock.advance(2)
        await done
    assert saved == [1, 2]
    assert optimism == []  # it was done in the earlier life


async def test_a_cache_outlives_its_process(tmp_path: Path, clock: ManualClock) -> None:
    storage = FileStorage(tmp_path / "cache.json")
    async with QueryClient(clock=clock) as client, CachePersistence(client, storage):
        client.set_query_data(["a"], {"b": [1]})
    async with QueryClient(clock=clock) as client, CachePersistence(client, storage):
        assert client.get_query_data(["a"]) == {"b": [1]}
    assert names_in(tmp_path) == ["cache.json"]


async def test_pages_are_pages_again_after_a_restart(clock: ManualClock, backend: Backend) -> None:
    storage = MemoryStorage()
    async with QueryClient(clock=clock) as client, CachePersistence(client, storage):
        client.fetch_infinite_query(key=["list"], fn=backend, initial_page_param=0)
        await clock.advance(1)
    async with QueryClient(clock=clock) as client, CachePersistence(client, storage):
        assert client.get_query_data(["list"]) == InfiniteData(["data"], [0])
        assert isinstance(client.get_query_data(["list"]), InfiniteData)


@pytest.mark.parametrize(
    ("seconds", "buster", "restored"), [(10.0, "v1", True), (101.0, "v1", False), (1.0, "v2", False)]
)
async def test_what_is_too_old_or_of_another_form_is_thrown_away(
    clock: ManualClock,
    seconds: float,
    buster: str,
    restored: bool,  # noqa: FBT001
) -> None:
    storage = MemoryStorage()
    async with QueryClient(clock=clock) as client, CachePersistence(client, storage, buster="v1"):
        client.set_query_data(["a"], 1)
    await clock.advance(seconds)
    async with QueryClient(clock=clock) as client:
        persistence = CachePersistence(client, storage, buster=buster, maximum_age_seconds=100)
        await persistence.restore()
        assert (client.get_query_data(["a"]) == 1) is restored
        assert (storage.content is not None) is restored


async def test_what_cannot_be_read_is_thrown_away(
    client: QueryClient, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    storage.content = b"{broken"
    await CachePersistence(client, storage).restore()
    assert await storage.load() is None
    assert "cannot be read" in caplog.text


async def test_it_saves_at_most_once_a_second(client: QueryClient, clock: ManualClock) -> None:
    storage = MemoryStorage()
    async with CachePersistence(client, storage):
        for number in range(30):
            client.set_query_data(["a"], number)
            await clock.advance(0.1)
        assert storage.saves == 3


async def test_a_save_that_fails_is_logged_and_tried_again(
    client: QueryClient, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    storage = MemoryStorage()
    async with CachePersistence(client, storage):
        storage.error = OSError("disk full")
        client.set_query_data(["a"], 1)
        await clock.advance(1)
        assert "could not be saved" in caplog.text
        storage.error = None
        client.set_query_data(["a"], 2)
        await clock.advance(1)
        assert storage.saves == 1


async def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "cache.json")
    await storage.save(b"first")
    with pytest.raises(TypeError):
        await storage.save("not bytes")  # type: ignore[arg-type]
    assert await storage.load() == b"first"
    assert names_in(tmp_path) == ["cache.json"]
    await storage.remove()
    assert await storage.load() is None


def test_an_empty_state_is_plain_data() -> None:
    assert DehydratedState() == DehydratedState(queries=[], mutations=[])
