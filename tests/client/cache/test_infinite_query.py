"""Specification 1.12: infinite queries."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.client.cache.support import Backend, BackendError, Recorder

from rowcast.client.cache import (
    InfiniteData,
    InfiniteQueryObserver,
    ManualClock,
    QueryClient,
    QueryFunctionContext,
)


def ignore(_: object) -> None:
    """A listener."""


def next_page(data: InfiniteData[Any, int]) -> int | None:
    return data.page_params[-1] + 1 if data.page_params[-1] < 9 else None


def previous_page(data: InfiniteData[Any, int]) -> int | None:
    return data.page_params[0] - 1 if data.page_params[0] > 0 else None


def page(context: QueryFunctionContext) -> str:
    return f"page {context.page_param}"


class Pages:
    """An observer of an infinite query whose pages take a second each."""

    def __init__(self, client: QueryClient, backend: Backend, **options: Any) -> None:
        backend.value = page
        self.observer = InfiniteQueryObserver(
            client,
            **{
                "key": ["list"],
                "fn": backend,
                "initial_page_param": 3,
                "get_next_page_param": next_page,
                "get_previous_page_param": previous_page,
                "retry": False,
                **options,
            },
        )
        self.observer.subscribe(ignore)

    @property
    def params(self) -> list[int]:
        data: InfiniteData[str, int] | None = self.observer.current_result.data
        assert data is not None
        assert data.pages == [f"page {param}" for param in data.page_params]
        return data.page_params


@pytest.fixture
async def pages(client: QueryClient, backend: Backend, clock: ManualClock) -> Pages:
    pages = Pages(client, backend)
    await clock.advance(1)
    return pages


async def test_the_first_page_is_fetched_with_the_initial_parameter(pages: Pages) -> None:
    assert pages.params == [3]
    result = pages.observer.current_result
    assert (result.has_next_page, result.has_previous_page, result.is_fetching_next_page) == (
        True,
        True,
        False,
    )


async def test_pages_are_added_at_both_ends(pages: Pages, clock: ManualClock) -> None:
    pages.observer.fetch_next_page()
    result = pages.observer.current_result
    assert (result.is_fetching_next_page, result.is_fetching_previous_page, result.is_refetching) == (
        True,
        False,
        False,
    )
    await clock.advance(1)
    pages.observer.fetch_previous_page()
    assert pages.observer.current_result.is_fetching_previous_page
    await clock.advance(1)
    assert pages.params == [2, 3, 4]


async def test_a_refetch_fetches_every_page_one_after_the_other(
    pages: Pages, clock: ManualClock, backend: Backend
) -> None:
    for _ in range(2):
        pages.observer.fetch_next_page()
        await clock.advance(1)
    backend.contexts.clear()
    backend.calls.clear()
    pages.observer.refetch()
    assert pages.observer.current_result.is_refetching
    await clock.advance(3)
    assert [(context.page_param, context.direction) for context in backend.contexts] == [
        (3, "forward"),
        (4, "forward"),
        (5, "forward"),
    ]
    assert backend.calls[2] - backend.calls[0] == 2
    assert pages.params == [3, 4, 5]


async def test_a_refetch_ends_where_there_is_no_further_page(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    last = 9
    pages = Pages(
        client,
        backend,
        get_next_page_param=lambda data: data.page_params[-1] + 1 if data.page_params[-1] < last else None,
    )
    for _ in range(2):
        await clock.advance(1)
        pages.observer.fetch_next_page()
    await clock.advance(1)
    last = 4
    pages.observer.refetch()
    await clock.advance(5)
    assert pages.params == [3, 4]
    assert not pages.observer.current_result.has_next_page
    backend.calls.clear()
    pages.observer.fetch_next_page()
    await clock.advance(1)
    assert backend.calls == []
    assert pages.params == [3, 4]


async def test_over_the_maximum_the_page_at_the_other_end_goes(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    pages = Pages(client, backend, max_pages=2)
    await clock.advance(1)
    for _ in range(2):
        pages.observer.fetch_next_page()
        await clock.advance(1)
    assert pages.params == [4, 5]
    pages.observer.fetch_previous_page()
    await clock.advance(1)
    assert pages.params == [3, 4]


async def test_none_may_be_the_first_parameter(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    pages = Pages(
        client,
        backend,
        initial_page_param=None,
        get_next_page_param=lambda _: "cursor",
        get_previous_page_param=None,
    )
    await clock.advance(1)
    pages.observer.fetch_next_page()
    await clock.advance(1)
    backend.contexts.clear()
    pages.observer.refetch()
    await clock.advance(2)
    assert [context.page_param for context in backend.contexts] == [None, "cursor"]


async def test_an_error_of_one_page_is_told_apart_from_that_of_a_refetch(
    pages: Pages, clock: ManualClock, backend: Backend
) -> None:
    backend.error = BackendError("down")
    pages.observer.fetch_next_page()
    await clock.advance(1)
    result = pages.observer.current_result
    assert (
        result.is_fetch_next_page_error,
        result.is_fetch_previous_page_error,
        result.is_refetch_error,
    ) == (
        True,
        False,
        False,
    )
    pages.observer.refetch()
    await clock.advance(1)
    result = pages.observer.current_result
    assert (result.is_fetch_next_page_error, result.is_refetch_error) == (False, True)
    assert pages.params == [3]


async def test_unchanged_pages_keep_their_identity(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    pages = Pages(client, backend)
    backend.value = lambda context: [context.page_param]
    await clock.advance(1)
    before = pages.observer.current_result.data
    pages.observer.refetch()
    await clock.advance(1)
    assert pages.observer.current_result.data is before


async def test_what_is_written_while_a_page_loads_is_not_lost(
    client: QueryClient, pages: Pages, clock: ManualClock
) -> None:
    pages.observer.fetch_next_page()
    await clock.advance(0.5)
    client.patch_query_data(["list"], lambda data: InfiniteData(["patched"], data.page_params))
    await clock.advance(0.5)
    assert client.get_query_data(["list"]) == InfiniteData(["patched", "page 4"], [3, 4])


async def test_pages_can_be_fetched_without_an_observer(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.value = page
    fetch = client.fetch_infinite_query(
        key=["list"], fn=backend, initial_page_param=0, get_next_page_param=next_page, pages=3
    )
    await clock.advance(3)
    assert (await fetch).page_params == [0, 1, 2]


async def test_select_and_other_options_work_as_for_any_query(
    client: QueryClient, clock: ManualClock, backend: Backend
) -> None:
    backend.value = page
    observer = InfiniteQueryObserver(
        client,
        key=["list"],
        fn=backend,
        initial_page_param=0,
        get_next_page_param=next_page,
        select=lambda data: ", ".join(data.pages),
    )
    shown = Recorder(of=lambda result: result.data)
    observer.subscribe(shown)
    await clock.advance(1)
    observer.fetch_next_page()
    await clock.advance(1)
    assert shown.heard[-1] == "page 0, page 1"
    observer.set_options(key=["other"], fn=backend, initial_page_param=7, get_next_page_param=next_page)
    await clock.advance(1)
    assert client.get_query_data(["other"]) == InfiniteData(["page 7"], [7])
    assert cast("object", observer.current_result.data) == InfiniteData(["page 7"], [7])  # without select
