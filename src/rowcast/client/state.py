"""How the connection is doing, as one record for people, indicators and logs. No I/O.

The one rule of this room: it only tells. What to do about it is decided in `session`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

# connecting: the first attempt is under way.
# connected: welcomed, and the server hears the database.
# degraded: welcomed, but the server does not hear the database: nothing is lost, it comes later.
# reconnecting: the link was lost; the next attempt runs or waits for `next_attempt_at`.
# offline: nothing is tried: no network, or the limit of attempts is reached. A wish to reconnect starts again.
# closed: for good: by the application, or because the server refuses this client.
Status: TypeAlias = Literal["connecting", "connected", "degraded", "reconnecting", "offline", "closed"]
TransportName: TypeAlias = Literal["websocket", "sse", "polling"]


class ConnectionState(msgspec.Struct, frozen=True):
    """The state at one moment. Times are seconds on the connection's clock, time.monotonic by default.

    Attributes:
        reason: A sentence for people; empty while connected.
        since: When `status` became what it is.
        attempt: Failed attempts in a row.
        next_attempt_at: When the next attempt starts; None when none is planned.
        transport: What carries the frames now; None while there is no link.
        round_trip_seconds: As the last heartbeat measured it; None where none did.
        position: Up to where this client has been told everything; None before the first word.
        server_position: The furthest position that the server has named.
        lag_seconds: How long the client has been behind `server_position`; 0.0 when level.
    """

    status: Status
    reason: str = ""
    since: float = 0.0
    attempt: int = 0
    next_attempt_at: float | None = None
    transport: TransportName | None = None
    round_trip_seconds: float | None = None
    position: str | None = None
    server_position: str | None = None
    lag_seconds: float = 0.0

    def describe(self, now: float) -> str:
        """One line for a status indicator, such as `reconnecting: refused, next attempt in 4 s`."""
        parts = [self.reason] if self.reason else []
        if self.next_attempt_at is not None:
            parts.append(f"next attempt in {max(0.0, self.next_attempt_at - now):.0f} s")
        if self.transport not in {None, "websocket"}:
            parts.append(f"over {self.transport}")
        if self.round_trip_seconds is not None and self.transport is not None:
            parts.append(f"{self.round_trip_seconds * 1000:.0f} ms")
        if self.lag_seconds >= 1.0:
            parts.append(f"{self.lag_seconds:.0f} s behind")
        return f"{self.status}: {', '.join(parts)}" if parts else self.status
