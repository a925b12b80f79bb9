"""Extraction results in a terminal: live rows, Accept and Undo without waiting, and how the connection is doing.

pip install 'rowcast[demo,textual]'
rowcast demo                                               # the server, its API and sample data
python examples/textual_results.py http://127.0.0.1:8000   # as many of these as you like
"""

from __future__ import annotations

import sys
import time
from typing import Any, ClassVar

import httpx
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.widgets import Footer, Header, Static

import rowcast
from rowcast.client import MUTATION_HEADER, ConnectionState, LiveRows, MutationHandle, Row
from rowcast.client.adapters.textual import LiveTable


class ResultsApp(App[None]):
    TITLE = "Extraction results"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("a", "decide('accept')", "Accept"),
        ("u", "decide('undo')", "Undo"),
        ("q", "quit", "Quit"),
    ]
    CSS = """
    LiveTable { height: 1fr; }
    #connection { padding: 0 1; background: $warning; color: $text; }
    #connection.connected { background: $success; }
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.realtime = rowcast.connect(f"{address}/realtime")
        self.api = httpx.AsyncClient(base_url=f"{address}/api")
        self.results: LiveRows[Row]
        self.table: LiveTable[Row] = LiveTable(
            {
                "Field": lambda row: row["field"],
                "Value": lambda row: row["value"],
                "Page": lambda row: str(row["page"]),
                "Confidence": lambda row: f"{row['confidence']:.0%}",
                "Status": lambda row: row["status"] + ("  …" if self.results.pending(row["id"]) else ""),
            },
            key=lambda row: row["id"],
        )
        self.connection = Static("connecting", id="connection")

    def compose(self) -> ComposeResult:
        yield Header()
        yield self.table
        yield self.connection
        yield Footer()

    def on_mount(self) -> None:
        self.follow()

    @work
    async def follow(self) -> None:
        """The life of everything that is connected; Textual cancels it when the application ends."""
        async with self.api, self.realtime:
            self.realtime.on_state(self.show_connection)
            self.results = self.realtime.live("extraction_results", order_by="id")
            await self.table.follow(self.results)

    def show_connection(self, state: ConnectionState) -> None:
        self.connection.update(state.describe(time.monotonic()))
        self.connection.set_class(state.status == "connected", "connected")

    def action_decide(self, decision: str) -> None:
        """Show the decision at once; it stays until the database's own stream tells it, or the API refuses it."""
        row = self.table.chosen
        if row is None:
            return

        async def send(mutation: str) -> None:
            answer = await self.api.post(
                f"/results/{row['id']}/{decision}", headers={MUTATION_HEADER: mutation}
            )
            answer.raise_for_status()

        new: dict[str, Any] = {"status": "accepted"} if decision == "accept" else {"status": "pending"}
        if decision == "undo":
            new["value"] = row["extracted_value"]
        handle = self.results.mutate(self.results.updating(row["id"], **new), send=send)
        handle.on_state(lambda _: self.show_decision(handle))

    def show_decision(self, handle: MutationHandle[None]) -> None:
        self.table.show(self.results.rows)  # the mark beside the status comes and goes
        if handle.error is not None:
            self.notify(str(handle.error), title="Not possible", severity="error")


if __name__ == "__main__":
    ResultsApp(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000").run()
