"""What the stream changed that the rows of a snapshot do not show.

The one rule of this room: rows and corrections together are exactly the shape's rows at the stream's head, or
`Overtaken` says that they cannot be made so; see `rowcast.snapshot` for why that is by transaction, not by position.
"""

from __future__ import annotations

from typing import Final

from rowcast.hub import EncodedChange, Hub, Shape
from rowcast.model import MISSING, Change, Gap, Position, Row
from rowcast.snapshot import Visibility

# A snapshot is taken again when a TRUNCATE or an incomplete row overtakes it; more often than this it is hopeless.
ATTEMPTS: Final = 5


class Overtaken(Exception):  # noqa: N818 - a signal between these rooms
    """The stream brought something that corrections cannot express; read the rows again."""


class Corrections:
    """What the stream changed that the rows do not show: rows to put, keys to take away."""

    def __init__(self, shape: Shape, visibility: Visibility, start: Position, begun: Position) -> None:
        self.folded = start
        self._begun = begun  # the stream's head before the rows were read
        self.unseen_from: Position | None = None  # the stream after it has all that the rows do not show
        self._shape = shape
        self._visibility = visibility
        self._keyed: dict[bytes, bytes | None] = {}  # key → row, or None where it is gone
        self._added: list[bytes] = []  # the same for rows without a key
        self._removed: list[bytes] = []

    def __len__(self) -> int:
        return len(self._keyed) + len(self._added) + len(self._removed)

    @property
    def rows(self) -> list[bytes]:
        return [row for row in self._keyed.values() if row is not None] + self._added

    @property
    def deleted(self) -> list[bytes]:
        return [key for key, row in self._keyed.items() if row is None] + self._removed

    @property
    def removed(self) -> list[bytes]:
        """Whole rows to take away, of a table without a key."""
        return self._removed

    @property
    def keyed(self) -> dict[bytes, bytes | None]:
        """Key → row, or None where the row is gone."""
        return self._keyed

    def fold(self, hub: Hub) -> None:
        """Take in what the log holds after the last time.

        Raises:
            Overtaken: The log has dropped some of it, or a change cannot be expressed.
        """
        entries = hub.log.after(self.folded)
        if entries is None:
            raise Overtaken
        table = self._shape.table
        for entry in entries:
            if isinstance(entry, Gap):
                if (entry.tables is None or table.oid in entry.tables) and not self._has(entry):
                    raise Overtaken
            elif self._visibility.sees(entry.xid):
                self.folded = entry.position
            else:
                self.unseen_from = self.unseen_from or self.folded
                for change in entry.changes:
                    if change.table.oid == table.oid:
                        if change.table is not table:
                            raise Overtaken  # its columns have changed
                        self._apply(change, entry.position)
        self.folded = hub.head

    def _has(self, gap: Gap) -> bool:
        """Whether the rows hold what a gap has lost: it came before them, and they see its transaction."""
        return gap.position <= self._begun and self._visibility.sees(gap.xid)

    def _apply(self, change: Change, position: Position) -> None:
        if change.table is not self._shape.table and change.table != self._shape.table:
            raise Overtaken
        effect = self._shape.effect(change)
        if effect is None:
            return
        if effect in ("TRUNCATE", "UNKNOWN"):
            raise Overtaken
        piece = EncodedChange(change, self._shape.projection, position)
        if effect != "DELETE" and _incomplete(change.new, self._shape):
            raise Overtaken
        key = piece.key
        if key is None:
            if effect != "INSERT":
                self._remove(piece.old)
            if effect != "DELETE":
                self._added.append(piece.new)
            return
        if effect == "DELETE":
            self._keyed[piece.old_key or key] = None
            return
        if piece.key_changed and piece.old_key is not None:
            self._keyed[piece.old_key] = None
        self._keyed[key] = piece.new

    def _remove(self, row: bytes | None) -> None:
        if row is None:
            raise Overtaken
        if row in self._added:
            self._added.remove(row)
        else:
            self._removed.append(row)


def _incomplete(row: Row | None, shape: Shape) -> bool:
    return row is None or any(row[index] is MISSING for index in shape.projection.columns)
