"""What a type checker knows, as an application would write it. mypy checks this file; running it says little."""

from __future__ import annotations

import asyncio
from typing import assert_type

from rowcast.client.cache import (
    InfiniteData,
    InfiniteQueryObserver,
    InfiniteQueryResult,
    ManualClock,
    MutationObserver,
    QueryClient,
    QueryFunctionContext,
    QueryObserver,
    QueryOptions,
    QueryResult,
)


async def load(_: QueryFunctionContext) -> list[int]:
    return [1, 2]


async def save(text: str) -> int:
    return len(text)


async def test_types_follow_the_functions(client: QueryClient, clock: ManualClock) -> None:
    fetch = client.fetch_query(key=["numbers"], fn=load)
    assert_type(fetch, asyncio.Future[list[int]])
    assert await fetch == [1, 2]

    observer = QueryObserver(client, key=["numbers"], fn=load, stale_time=5)
    assert_type(observer, QueryObserver[list[int], list[int]])
    assert_type(observer.current_result.data, list[int] | None)

    selected = QueryObserver(client, key=["numbers"], fn=load, select=len)
    assert_type(selected.current_result, QueryResult[int])
    assert selected.current_result.data == 2

    shared: QueryOptions[list[int]] = {"key": ["numbers"], "fn": load, "gc_time": 5}
    assert_type(client.ensure_query_data(**shared), asyncio.Future[list[int]])
    assert_type(QueryObserver(client, **shared), QueryObserver[list[int], list[int]])

    mutation = MutationObserver(client, fn=save, on_success=lambda length, text, _: text * length)
    assert_type(mutation, MutationObserver[str, int])
    answer = mutation.mutate("four")
    assert_type(answer, asyncio.Future[int])
    assert await answer == 4

    pages = InfiniteQueryObserver(
        client,
        key=["pages"],
        fn=load,
        initial_page_param=0,
        get_next_page_param=lambda data: data.page_params[-1] + len(data.pages[-1]),
    )
    assert_type(pages.current_result, InfiniteQueryResult[InfiniteData[list[int], int]])
    assert_type(client.set_query_data(["n"], 5), int)
