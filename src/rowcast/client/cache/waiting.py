"""Those who wait for a query's answer: that of the present fetch, and that of the one after it.

The one rule of this room: every future given out is resolved once, whatever becomes of the fetches; a fetch that takes
another's place takes those over who waited for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Generic, TypeVar

from .futures import quiet_future

T = TypeVar("T")


class Waiting(Generic[T]):
    """The futures of one query; both kinds are shared by all who wait, and never cancelled."""

    def __init__(self) -> None:
        self._present: asyncio.Future[T] | None = None
        self._next: asyncio.Future[T] | None = None

    def for_present(self) -> asyncio.Future[T]:
        """The answer of the fetch that is under way, or begins now."""
        if self._present is None or self._present.done():
            self._present = quiet_future()
        return self._present

    def for_next(self) -> asyncio.Future[T]:
        """The answer of the fetch that follows the one that is under way."""
        self._next = self._next or quiet_future()
        return self._next

    def take(self, *, next_follows: bool = False) -> list[asyncio.Future[T]]:
        """The fetch has ended: who is to be told. Those who wait for the next one stay if that follows, as its own."""
        present, following = self._present, self._next
        self._present, self._next = (following, None) if next_follows else (None, None)
        ended = (present,) if next_follows else (present, following)
        return [future for future in ended if future is not None and not future.done()]


def tell(waiting: Iterable[asyncio.Future[T]], data: T) -> None:
    for future in waiting:
        future.set_result(data)


def tell_error(waiting: Iterable[asyncio.Future[T]], error: Exception) -> None:
    for future in waiting:
        future.set_exception(error)
