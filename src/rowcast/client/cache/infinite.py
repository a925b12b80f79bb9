"""Infinite queries: a list of pages behind one key, fetched one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .options import InfiniteData, QueryFunction, QueryFunctionContext, ResolvedQueryOptions
from .query_state import FetchDirection

P = TypeVar("P")
K = TypeVar("K")


async def fetch_pages(
    function: QueryFunction[P],
    options: ResolvedQueryOptions[Any],
    current_data: Callable[[], InfiniteData[P, K] | None],
    direction: FetchDirection | None,
    new_context: Callable[[], QueryFunctionContext],
) -> InfiniteData[P, K]:
    """Fetch one more page, or all pages that there are, from the first one on.

    Args:
        function: Loads one page.
        options: The query's.
        current_data: The query's data. A further page is added to what it is when the page has come: what was
            written to the others in the meantime stays.
        direction: The page after or before those there are; None for all of them again.
        new_context: Makes the context for one page.

    Returns:
        The pages with their parameters. A refetch ends early where a page says that it is the last.

    Raises:
        Exception: What the query's function raised for any of the pages.
    """

    async def load(param: Any, towards: FetchDirection) -> P:
        context = new_context()
        context.page_param, context.direction = param, towards
        return await function(context)

    data = current_data()
    if direction is not None and data is not None and data.pages:
        param = (next_page_param if direction == "forward" else previous_page_param)(options, data)
        if param is None:
            return data
        page = await load(param, direction)
        return _with_page(current_data() or data, page, param, direction, options.max_pages)

    page_count = options.pages or (len(data.pages) if data is not None else 0)
    param = data.page_params[0] if data is not None and data.page_params else options.initial_page_param
    result: InfiniteData[P, K] = InfiniteData([], [])
    while True:
        result = _with_page(result, await load(param, "forward"), param, "forward", options.max_pages)
        if len(result.pages) >= page_count:
            return result
        param = next_page_param(options, result)
        if param is None:
            return result


def next_page_param(options: ResolvedQueryOptions[Any], data: InfiniteData[Any, Any] | None) -> Any:
    """The parameter of the page after those in `data`; None if there is none."""
    if data is None or not data.pages or options.get_next_page_param is None:
        return None
    return options.get_next_page_param(data)


def previous_page_param(options: ResolvedQueryOptions[Any], data: InfiniteData[Any, Any] | None) -> Any:
    """The parameter of the page before those in `data`; None if there is none."""
    if data is None or not data.pages or options.get_previous_page_param is None:
        return None
    return options.get_previous_page_param(data)


def _with_page(
    data: InfiniteData[P, K], page: P, param: K, direction: FetchDirection, max_pages: int
) -> InfiniteData[P, K]:
    """`data` with one more page; over `max_pages`, the page at the other end goes."""
    if direction == "forward":
        pages, params = [*data.pages, page], [*data.page_params, param]
        return (
            InfiniteData(pages[-max_pages:], params[-max_pages:])
            if max_pages
            else InfiniteData(pages, params)
        )
    pages, params = [page, *data.pages], [param, *data.page_params]
    return InfiniteData(pages[:max_pages], params[:max_pages]) if max_pages else InfiniteData(pages, params)
