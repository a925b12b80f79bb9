"""When to try again. No I/O.

The one rule of this room: delays follow a fixed ladder, and each is drawn from the whole of its step ("full
jitter"), so that a thousand clients that lost their server together do not come back together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Doubling from one second; from 30 s on, trying more seldom saves a server nothing and costs a user patience.
STEPS_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class Backoff:
    """Counts attempts and says how long to wait before the next.

    Args:
        random: Returns a float in [0, 1): `random.random`, or a fixed number in tests.
        limit: After this many attempts in a row there is no next one; None for no limit.
    """

    def __init__(self, random: Callable[[], float], *, limit: int | None = None) -> None:
        self._random = random
        self._limit = limit
        self.attempt = 0

    @property
    def exhausted(self) -> bool:
        """Whether the limit of attempts is reached."""
        return self._limit is not None and self.attempt >= self._limit

    def next_delay(self) -> float | None:
        """Count one more failed attempt and return the seconds to wait now, or None at the limit."""
        if self.exhausted:
            return None
        step = STEPS_SECONDS[min(self.attempt, len(STEPS_SECONDS) - 1)]
        self.attempt += 1
        return self._random() * step

    def reset(self) -> None:
        """Forget the failures: an attempt succeeded, or somebody asked for one now."""
        self.attempt = 0
