"""A table for Textual that shows live rows: `pip install 'rowcast[textual]'`.

    table = LiveTable({"Project": lambda row: row["name"]}, key=lambda row: row["id"])
    ...
    await table.follow(realtime.live("projects", order_by="name"))

The one rule of this room: what is on the screen is changed only where it differs, and the cursor stays on its row
wherever that goes, so that nobody accepts another row than the one they chose.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from textual.coordinate import Coordinate
from textual.widgets import DataTable

from rowcast.client.live import LiveRows

T = TypeVar("T")


class LiveTable(DataTable[str], Generic[T]):
    """A DataTable of live rows, for the event loop that Textual and the client share.

    Args:
        columns: Heading → what a row shows there.
        key: What a row is known by.
        options: As for `DataTable`.
    """

    def __init__(
        self, columns: Mapping[str, Callable[[T], str]], *, key: Callable[[T], Hashable], **options: Any
    ) -> None:
        super().__init__(cursor_type="row", **options)
        self._headings = list(columns)
        self._cells = list(columns.values())
        self._key = key
        self._rows: list[T] = []
        self._texts: list[list[str]] = []

    def on_mount(self) -> None:
        self.add_columns(*self._headings)

    @property
    def chosen(self) -> T | None:
        """The row under the cursor; None while there are no rows."""
        return self._rows[self.cursor_row] if 0 <= self.cursor_row < len(self._rows) else None

    async def follow(self, live: LiveRows[T]) -> None:
        """Show live rows until they are closed or this is cancelled.

        Raises:
            ClientError: As `LiveRows.changes()`.
        """
        async for _ in live.changes():
            self.show(live.rows)

    def show(self, rows: Sequence[T]) -> None:
        """Show these rows, in their order."""
        chosen = self.chosen
        before = self.cursor_row
        for index, row in enumerate(rows):
            texts = [cell(row) for cell in self._cells]
            if index == len(self._texts):
                self.add_row(*texts)
                self._texts.append(texts)
                continue
            for column, text in enumerate(texts):
                if text != self._texts[index][column]:
                    self.update_cell_at(Coordinate(index, column), text, update_width=True)
            self._texts[index] = texts
        for index in range(len(self._texts) - 1, len(rows) - 1, -1):
            self.remove_row(self.ordered_rows[index].key)
            del self._texts[index]
        self._rows = list(rows)
        if chosen is not None:
            wanted = self._key(chosen)
            now = next((index for index, row in enumerate(rows) if self._key(row) == wanted), before)
            if now != before:
                self.move_cursor(row=now)
