"""Changes that the server has not confirmed: shown over the data, never written into it. No I/O.

`visible = fold(changes in order, base)`. Answers and events write the base; taking one change away undoes that change
and nobody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

logger: Final = logging.getLogger("rowcast.client.cache")


class Overlays(Generic[T]):
    """The unconfirmed changes of one query.

    Attributes:
        base: The data without them; meaningful only while there are any.
    """

    def __init__(self) -> None:
        self.base: T | None = None
        self._changes: dict[object, Callable[[T], T]] = {}

    def __bool__(self) -> bool:
        return bool(self._changes)

    def add(self, token: object, change: Callable[[T], T], base: T | None) -> None:
        """Put a change over the others; `base` is the data without any."""
        self.base = base
        self._changes[token] = change

    def remove(self, token: object) -> bool:
        """Take a change away; False if it is not there any more."""
        return self._changes.pop(token, None) is not None

    def fold(self, base: T) -> T:
        """What to show where the data is `base`; a change that raises is left out."""
        self.base = base
        visible = base
        for change in self._changes.values():
            try:
                visible = change(visible)
            except Exception:
                logger.exception(
                    "an unconfirmed change cannot be applied to the data, and is not shown: %r", change
                )
        return visible
