"""Extraction results in a browser: live rows, Accept and Undo without waiting, and how the connection is doing.

pip install 'rowcast[demo,nicegui]'
rowcast demo                                               # the server, its API and sample data
python examples/nicegui_results.py http://127.0.0.1:8000   # then open http://127.0.0.1:8080
"""

from __future__ import annotations

import sys
import time
from typing import Any

import httpx
from nicegui import ui
from nicegui.events import GenericEventArguments

import rowcast
from rowcast.client import MUTATION_HEADER, ConnectionState, LiveRows, MutationHandle, Row

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
PORT = int(sys.argv[2]) if len(sys.argv) > 2 else 8080

COLUMNS = [
    {"name": name, "field": name, "label": name.capitalize(), "align": "left"}
    for name in ("field", "value", "page", "confidence", "status", "decision")
]
BUTTONS = """
<q-td :props="props">
  <q-btn v-if="props.row.status == 'pending'" label="Accept" dense @click="$parent.$emit('accept', props.row)" />
  <q-btn v-else label="Undo" flat dense @click="$parent.$emit('undo', props.row)" />
  <q-spinner v-if="props.row.waiting" class="q-ml-sm" />
</q-td>
"""


class ResultsPage:
    """One browser window: a client of its own, so that nobody sees what another has not saved yet."""

    def __init__(self) -> None:
        self.realtime = rowcast.connect(f"{ADDRESS}/realtime")
        self.api = httpx.AsyncClient(base_url=f"{ADDRESS}/api")
        self.browser = ui.context.client
        self.browser.on_delete(self.close)

        with ui.row().classes("items-center w-full"):
            ui.label("Extraction results").classes("text-h5")
            self.connection = ui.badge("connecting", color="warning").mark("connection")
        self.table = ui.table(rows=[], columns=COLUMNS, row_key="id").classes("w-full")
        self.table.add_slot("body-cell-decision", BUTTONS)
        self.table.on("accept", self.decide)
        self.table.on("undo", self.decide)

        self.realtime.start()
        self.realtime.on_state(self.show_connection, via=self.browser.safe_invoke)
        self.results: LiveRows[Row] = self.realtime.live("extraction_results", order_by="id")
        self.results.on_change(lambda _: self.show(), via=self.browser.safe_invoke)

    async def close(self) -> None:
        await self.realtime.close()
        await self.api.aclose()

    def show(self) -> None:
        self.table.rows = [
            {
                **row,
                "confidence": f"{row['confidence']:.0%}",
                "waiting": bool(self.results.pending(row["id"])),
            }
            for row in self.results
        ]

    def show_connection(self, state: ConnectionState) -> None:
        self.connection.set_text(state.describe(time.monotonic()))
        self.connection.props(f"color={'positive' if state.status == 'connected' else 'warning'}")

    def decide(self, event: GenericEventArguments) -> None:
        """Show the decision at once; it stays until the database's own stream tells it, or the API refuses it."""
        row: dict[str, Any] = event.args
        key, accepting = row["id"], row["status"] == "pending"

        async def send(mutation: str) -> None:
            answer = await self.api.post(
                f"/results/{key}/{'accept' if accepting else 'undo'}", headers={MUTATION_HEADER: mutation}
            )
            answer.raise_for_status()

        new = {"status": "accepted"} if accepting else {"status": "pending", "value": row["extracted_value"]}
        handle = self.results.mutate(self.results.updating(key, **new), send=send)
        handle.on_state(lambda _: self.browser.safe_invoke(lambda: self.show_decision(handle)))

    def show_decision(self, handle: MutationHandle[None]) -> None:
        self.show()  # the mark beside the button comes and goes
        if handle.error is not None:
            ui.notify(f"Not possible: {handle.error}", type="negative")


@ui.page("/")
async def results() -> None:
    ResultsPage()


if __name__ in {"__main__", "__mp_main__"}:
    ui.run(host="127.0.0.1", port=PORT, title="Extraction results", reload=False, show=False)
