"""examples/textual_results.py, driven by Textual's pilot, against the real demo server."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.examples.conftest import Demo
from textual.pilot import Pilot

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parents[2] / "examples" / "textual_results.py"
_SECONDS = 15.0


class Screen:
    """The running application, as a person sees it."""

    def __init__(self, app: Any, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    def lines(self) -> list[str]:
        table = self.app.table
        return ["  ".join(table.get_row_at(index)) for index in range(table.row_count)]

    @property
    def connection(self) -> str:
        return str(self.app.connection.content)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(_SECONDS):
            while not what():
                await self.pilot.pause(0.01)

    async def choose(self, field: str) -> int:
        """Put the cursor on the row of a field; returns its index."""
        index = next(number for number, line in enumerate(self.lines()) if line.startswith(field))
        while self.app.table.cursor_row != index:
            await self.pilot.press("down" if self.app.table.cursor_row < index else "up")
        return index


@asynccontextmanager
async def running(demo: Demo) -> AsyncIterator[Screen]:
    """In the test's own task: Textual's context does not reach from a fixture into the test."""
    specification = importlib.util.spec_from_file_location("textual_results", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    app = example.ResultsApp(demo.address)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = Screen(app, pilot)
        await screen.until(lambda: bool(screen.lines()))
        yield screen


def pending_field(demo: Demo) -> tuple[int, str]:
    """Rename a pending result, so that it can be found on the screen."""
    [(key,)] = demo.execute("SELECT max(id) FROM extraction_results WHERE status = 'pending'")
    demo.execute("UPDATE extraction_results SET field = 'Reviewed field' WHERE id = %s", key)
    return key, "Reviewed field"


async def test_it_shows_the_rows_and_what_becomes_of_them(demo: Demo) -> None:
    async with running(demo) as screen:
        [(rows,)] = demo.execute("SELECT count(*) FROM extraction_results")
        assert len(screen.lines()) == rows
        chosen = screen.lines()[3]
        await screen.choose(chosen)
        demo.execute("DELETE FROM extraction_results WHERE id = (SELECT min(id) FROM extraction_results)")
        demo.execute(
            "INSERT INTO extraction_results (job_id, field, value, extracted_value, page, confidence)"
            " SELECT min(id), 'Pump power', '55 kW', '55 kW', 7, 0.91 FROM extraction_jobs"
        )
        await screen.until(
            lambda: any(line.startswith("Pump power  55 kW  7  91%  pending") for line in screen.lines())
        )
        assert len(screen.lines()) == rows
        assert screen.lines()[screen.app.table.cursor_row] == chosen, "the cursor stays on its row"


async def test_accept_and_undo_show_at_once_and_stay(demo: Demo) -> None:
    key, field = pending_field(demo)
    async with running(demo) as screen:
        row = await screen.choose(field)
        for button, status in (("a", "accepted"), ("u", "pending")):
            await screen.pilot.press(button)
            assert screen.lines()[row].endswith((status, f"{status}  …"))
            await screen.until(lambda: not screen.app.realtime.mutations)
            assert screen.lines()[row].endswith(status)
            assert demo.status(key) == status


async def test_a_decision_that_is_refused_is_taken_back_and_said(demo: Demo) -> None:
    _, field = pending_field(demo)
    async with running(demo) as screen:
        await screen.choose(field)
        rows = len(screen.lines())
        # Gone between two frames: the application still shows it when the key is pressed.
        demo.execute("DELETE FROM extraction_results WHERE field = %s", field)
        screen.app.action_decide("accept")
        await screen.until(lambda: len(screen.lines()) == rows - 1 and not screen.app.realtime.mutations)
        await screen.until(lambda: any("404" in note.message for note in screen.app._notifications))


async def test_a_dropped_server_is_told_and_so_is_its_return(demo: Demo) -> None:
    key, field = pending_field(demo)
    async with running(demo) as screen:
        await screen.until(lambda: screen.connection.startswith("connected"))
        row = await screen.choose(field)
        demo.drop()
        await screen.until(lambda: screen.connection.startswith("reconnecting"))
        await screen.pilot.press("a")
        assert screen.lines()[row].endswith("accepted  …"), "it works on without a server"
        demo.start()
        await screen.until(lambda: screen.connection.startswith("connected"))
        await screen.until(lambda: not screen.app.realtime.mutations)
        assert screen.lines()[row].endswith("accepted")
        assert demo.status(key) == "accepted"
