"""Which transactions a read has seen: PostgreSQL's `pg_current_snapshot()`, as its text. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from rowcast.errors import ClientError

# Each query holds the snapshots of its last answer; parsing them again for every event would cost more than the event.
_REMEMBERED_SNAPSHOTS: Final = 4_096


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`xmin:xmax:xip_list`, with 64-bit transaction ids.

    Attributes:
        xmin: All transactions below it had ended.
        xmax: No transaction from it on had.
        in_progress: Those between that had not.
    """

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    def sees(self, txid: int) -> bool:
        """Whether a read in this snapshot has seen what that transaction committed."""
        return txid < self.xmin or (txid < self.xmax and txid not in self.in_progress)

    def covers(self, other: Snapshot) -> bool:
        """Whether this snapshot sees everything that `other` sees: it is the same moment, or a later one."""
        if any(map(other.sees, self.in_progress)):
            return False
        # What began after this snapshot must have been in progress for the other, every single one of it.
        later = max(other.xmax - self.xmax, 0)
        return later == sum(txid >= self.xmax for txid in other.in_progress)


@lru_cache(_REMEMBERED_SNAPSHOTS)
def parse_snapshot(text: str) -> Snapshot:
    """Read the text of a snapshot.

    Raises:
        ClientError: It is not one.
    """
    try:
        xmin, xmax, in_progress = text.split(":")
        return Snapshot(int(xmin), int(xmax), frozenset(map(int, filter(None, in_progress.split(",")))))
    except ValueError:
        raise ClientError(
            f"{text!r} is not the text of pg_current_snapshot(), such as 731:735:731,733: "
            "pass the header Rowcast-Snapshot on as it came"
        ) from None
