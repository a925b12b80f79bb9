"""What turns the database's commits into transactions. One contract, several sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rowcast.model import Event, Position, Table


@dataclass(slots=True)
class CaptureStatus:
    """How a capture is doing; read by metrics, /readyz and the `status` frame.

    Attributes:
        state: `starting`, `standby` (another server holds the slot), `live`, `degraded` (reconnecting), `stopped`.
        reason: A sentence for people, empty while live.
        reconnects: How often the connection to PostgreSQL was made again.
        lag_bytes: Between the database's WAL end and what was delivered; None where unknown.
        lag_seconds: Age of the last delivered transaction's commit when it was delivered; None before one.
        choice: Why it is this capture, where `auto` has chosen it; else empty.
    """

    state: str = "starting"
    reason: str = ""
    reconnects: int = 0
    lag_bytes: int | None = None
    lag_seconds: float | None = None
    choice: str = ""


class Capture(Protocol):
    """A source of transactions.

    `events()` may be iterated once. It reconnects by itself, for ever, and raises only for faults that no
    reconnect can mend (a missing installation, a lost right); a stretch it cannot deliver becomes a `Gap`.
    Batches hold what arrived together, in commit order, so that writes can be coalesced downstream.
    """

    name: str  # "wal", "outbox" or "notify"
    status: CaptureStatus

    async def start(self) -> Position:
        """Check the installation, connect, and say after which position the stream will tell everything.

        Raises:
            CaptureError: PostgreSQL cannot be captured from; the text says how to mend it.
        """
        ...

    @property
    def tables(self) -> Mapping[int, Table]:
        """The captured tables by OID, as of the last event delivered."""
        ...

    def events(self) -> AsyncIterator[Sequence[Event]]:
        """The stream. Cancelling the iteration closes the capture's connections."""
        ...

    def acknowledge(self, position: Position) -> None:
        """Everything up to `position` need not be told again after a restart."""
        ...

    async def mark(self) -> Position:
        """Make sure that the stream passes the database's present end soon, and return that end.

        When the stream has delivered an event at or after the returned position, every transaction that
        committed before the call has been delivered.
        """
        ...

    async def close(self) -> None: ...
