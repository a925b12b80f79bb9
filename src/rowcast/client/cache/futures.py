"""Futures that may be ignored, and that one caller cannot cancel for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, TypeVar

from .clock import running_loop

T = TypeVar("T")


def quiet_future() -> asyncio.Future[Any]:
    """A future whose error is not logged if nobody asks for it: it is in the state of the query as well."""
    return hush(running_loop().create_future())


def hush(future: asyncio.Future[T]) -> asyncio.Future[T]:
    future.add_done_callback(_look_at_error)
    return future


def share(future: asyncio.Future[T]) -> asyncio.Future[T]:
    """A future of the caller's own with the same outcome; cancelling it leaves the shared one alone."""
    return hush(asyncio.shield(future))


def resolved(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = running_loop().create_future()
    future.set_result(value)
    return future


def all_settled(
    futures: Iterable[asyncio.Future[Any]], *, throw_on_error: bool = False
) -> asyncio.Future[None]:
    """A future that is done when all of them are.

    Args:
        futures: The futures; those of others too, as they are never cancelled.
        throw_on_error: Fail with the first error among them; otherwise errors are left where they are.
    """
    waiting = set(futures)
    if not waiting:
        return resolved(None)
    result = quiet_future()

    def settled(future: asyncio.Future[Any]) -> None:
        waiting.discard(future)
        if result.done():
            return
        error = None if future.cancelled() else future.exception()
        if error is not None and throw_on_error:
            result.set_exception(error)
        elif not waiting:
            result.set_result(None)

    for future in tuple(waiting):
        future.add_done_callback(settled)
    return result


def _look_at_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
