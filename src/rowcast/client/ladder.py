"""Which transport to try. No I/O.

The one rule of this room: down at once where something answers and gives no link, up again only when a better
transport has been seen to work, so that the application is not made to wait for hope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from rowcast.client.state import TransportName

LADDER: Final[tuple[TransportName, ...]] = ("websocket", "sse", "polling")

# away: nobody is there, or a gateway says so: no other transport would find the server.
# unsuitable: somebody answered, and this transport is not what they speak or let through.
# broken: it could be either.
Failure: TypeAlias = Literal["away", "unsuitable", "broken"]

# A server that restarts breaks links too; what breaks three in a row is in the way of this transport.
_BROKEN_IN_A_ROW: Final = 3

# A proxy that breaks WebSockets rarely changes its mind, a laptop changes its network a few times a day.
CLIMB_SECONDS: Final = (30.0, 60.0, 120.0, 300.0)


class Ladder:
    """Where a connection stands between WebSocket and polling.

    Args:
        rungs: The transports allowed, best first.
        random: Returns a float in [0, 1).
    """

    def __init__(self, rungs: Sequence[TransportName], random: Callable[[], float]) -> None:
        self._rungs = tuple(rungs)
        self._random = random
        self._at = 0
        self._climbs = 0
        self._broken = 0

    @property
    def current(self) -> TransportName:
        """The transport to use now."""
        return self._rungs[self._at]

    @property
    def better(self) -> tuple[TransportName, ...]:
        """The transports above the current one, best first."""
        return self._rungs[: self._at]

    def failed(self, failure: Failure) -> None:
        """No link came about, or none that the server spoke on. Below the last rung is the first again."""
        self._broken = self._broken + 1 if failure == "broken" else 0
        if failure == "unsuitable" or self._broken == _BROKEN_IN_A_ROW:
            self._at = (self._at + 1) % len(self._rungs)
            self._climbs = self._broken = 0

    def worked(self) -> None:
        """The server spoke on a link of the current transport."""
        self._broken = 0

    def next_climb_delay(self) -> float:
        """Seconds until the transports above are worth a try, from half of a step to the whole."""
        step = CLIMB_SECONDS[min(self._climbs, len(CLIMB_SECONDS) - 1)]
        self._climbs += 1
        return step * (0.5 + self._random() / 2)

    def climb(self, transport: TransportName) -> None:
        """A better transport works."""
        self._at = self._rungs.index(transport)
        self._climbs = self._broken = 0
