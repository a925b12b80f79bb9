"""Listeners: the one way in which anything in the cache tells the outside that something happened.

Listeners are called synchronously and in the order of their subscription. One that raises is logged and does not keep
the others, or the cache, from their work.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

E = TypeVar("E")

logger: Final = logging.getLogger("rowcast.client.cache")


def call_safely(callback: Callable[..., object], *arguments: Any) -> None:
    """Call code of the user's whose failure must stay its own."""
    try:
        callback(*arguments)
    except Exception:
        logger.exception(
            "a listener of the query cache raised; the cache goes on without it: %r",
            callback,
        )


class Subscribable(Generic[E]):
    """Something that emits events of one type to its listeners."""

    def __init__(self) -> None:
        self._listeners: dict[int, Callable[[E], object]] = {}
        self._subscription_numbers = itertools.count()

    def subscribe(self, listener: Callable[[E], object]) -> Callable[[], None]:
        """Call `listener` with every event from now on.

        Returns:
            A function that ends the subscription; calling it again does nothing.
        """
        number = next(self._subscription_numbers)
        self._listeners[number] = listener
        self._on_subscribe()

        def unsubscribe() -> None:
            if self._listeners.pop(number, None) is not None:
                self._on_unsubscribe()

        return unsubscribe

    def has_listeners(self) -> bool:
        return bool(self._listeners)

    def _emit(self, event: E) -> None:
        for number, listener in tuple(self._listeners.items()):
            if number in self._listeners:  # it may have been unsubscribed by the one before it
                call_safely(listener, event)

    def _on_subscribe(self) -> None:
        """For subclasses that start working when somebody listens."""

    def _on_unsubscribe(self) -> None:
        """For subclasses that rest when nobody does."""
