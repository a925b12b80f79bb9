"""Watches an infinite query: its pages so far, and the way to the next and the previous one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, cast, overload

from .infinite import next_page_param, previous_page_param
from .options import InfiniteData, InfiniteQueryOptions
from .query_observer import QueryObserver, QueryResult

if TYPE_CHECKING:
    from .query_client import QueryClient

P = TypeVar("P")
K = TypeVar("K")
D = TypeVar("D")
P2 = TypeVar("P2")
K2 = TypeVar("K2")


class InfiniteQueryResult(QueryResult[D], Generic[D], frozen=True, kw_only=True, eq=False):
    """What an observer of an infinite query shows at one moment.

    Attributes:
        has_next_page: Whether there is a page after those shown, as far as `get_next_page_param` knows.
        has_previous_page: The same for the page before them.
        is_fetching_next_page: Whether the page after them is being fetched; `is_fetch_next_page_error` that it failed.
        is_fetching_previous_page: The same for the page before them, and `is_fetch_previous_page_error`.
        fetch_next_page: The observer's method; `fetch_previous_page` too.
    """

    has_next_page: bool
    has_previous_page: bool
    is_fetching_next_page: bool
    is_fetching_previous_page: bool
    is_fetch_next_page_error: bool
    is_fetch_previous_page_error: bool
    fetch_next_page: Callable[..., asyncio.Future[Any]]
    fetch_previous_page: Callable[..., asyncio.Future[Any]]

    @property
    def is_refetching(self) -> bool:
        """All pages are being fetched again."""
        one_page = self.is_fetching_next_page or self.is_fetching_previous_page
        return self.is_fetching and not self.is_pending and not one_page

    @property
    def is_refetch_error(self) -> bool:
        """Fetching all pages again failed."""
        one_page = self.is_fetch_next_page_error or self.is_fetch_previous_page_error
        return self.is_error and self.data is not None and not one_page


class InfiniteQueryObserver(QueryObserver[InfiniteData[P, K], D], Generic[P, K, D]):
    """Watches an infinite query while it has listeners; otherwise as `QueryObserver`."""

    @overload
    def __init__(
        self: InfiniteQueryObserver[P2, K2, InfiniteData[P2, K2]],
        client: QueryClient,
        *,
        select: None = None,
        **options: Unpack[InfiniteQueryOptions[P2, K2]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        client: QueryClient,
        *,
        select: Callable[[InfiniteData[P, K]], D],
        **options: Unpack[InfiniteQueryOptions[P, K]],
    ) -> None: ...
    def __init__(
        self,
        client: QueryClient,
        *,
        select: Callable[[Any], Any] | None = None,
        **options: Unpack[InfiniteQueryOptions[Any, Any]],
    ) -> None:
        self._fetch_next_page = self.fetch_next_page
        self._fetch_previous_page = self.fetch_previous_page
        super().__init__(client, select=cast("Any", select), **cast("Any", {**options, "infinite": True}))

    def set_options(  # type: ignore[override]  # an infinite query's options are others
        self,
        *,
        select: Callable[[InfiniteData[P, K]], D] | None = None,
        **options: Unpack[InfiniteQueryOptions[P, K]],
    ) -> None:
        """As `QueryObserver.set_options`."""
        self._select = select
        self._set_options({**cast("Mapping[str, Any]", options), "infinite": True})

    @property
    def current_result(self) -> InfiniteQueryResult[D]:
        """What to show now."""
        return cast("InfiniteQueryResult[D]", self._current)

    def fetch_next_page(
        self, *, cancel_refetch: bool = True, throw_on_error: bool = False
    ) -> asyncio.Future[InfiniteQueryResult[D]]:
        """Fetch the page after those there are.

        Args:
            cancel_refetch: Cancel a fetch that is under way; otherwise join it, whatever it fetches.
            throw_on_error: Let the future fail if the fetch does.

        Returns:
            The result afterwards. Cancelling it leaves the fetch alone.
        """
        return self._fetch_result(
            cancel_refetch=cancel_refetch, throw_on_error=throw_on_error, direction="forward"
        )

    def fetch_previous_page(
        self, *, cancel_refetch: bool = True, throw_on_error: bool = False
    ) -> asyncio.Future[InfiniteQueryResult[D]]:
        """Fetch the page before those there are; otherwise as `fetch_next_page`."""
        return self._fetch_result(
            cancel_refetch=cancel_refetch, throw_on_error=throw_on_error, direction="backward"
        )

    def _result(self, **fields: Any) -> QueryResult[D]:
        state = self.query.state
        forward, backward = state.fetch_direction == "forward", state.fetch_direction == "backward"
        is_fetching, is_error = fields["fetch_status"] == "fetching", fields["status"] == "error"
        return InfiniteQueryResult(
            **fields,
            has_next_page=next_page_param(self.options, state.data) is not None,
            has_previous_page=previous_page_param(self.options, state.data) is not None,
            is_fetching_next_page=is_fetching and forward,
            is_fetching_previous_page=is_fetching and backward,
            is_fetch_next_page_error=is_error and forward,
            is_fetch_previous_page_error=is_error and backward,
            fetch_next_page=self._fetch_next_page,
            fetch_previous_page=self._fetch_previous_page,
        )
