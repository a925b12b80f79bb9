"""examples/nicegui_results.py in a real Chromium, against the real demo server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from tests.examples.conftest import Demo, free_port

pytestmark = [pytest.mark.browser, pytest.mark.process]

EXAMPLE = Path(__file__).parents[2] / "examples" / "nicegui_results.py"
_SECONDS = 20.0

# Every text that the row's status shows from now on.
_RECORD = """
(cell) => {
  globalThis.seen = [];
  const record = () => {
    if (globalThis.seen.at(-1) !== cell.textContent) globalThis.seen.push(cell.textContent);
  };
  record();
  new MutationObserver(record).observe(cell, { childList: true, characterData: true, subtree: true });
}
"""


@pytest.fixture(scope="module")
def address(browser: Browser, demo: Demo) -> Iterator[str]:
    """The example, running; it asks for the browser first, so that nothing starts where there is none."""
    port = free_port()
    # In a test's environment NiceGUI would start in its own test mode.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    process = subprocess.Popen(
        [sys.executable, "-u", EXAMPLE, demo.address, str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    greeting = next((line for line in process.stdout if "ready" in line), None)
    if greeting is None:
        process.communicate()
        pytest.fail("the example has ended")
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.communicate(timeout=_SECONDS)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    opened = browser.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    expect(connection(opened)).to_have_text(re.compile("^connected"), timeout=_SECONDS * 1000)
    yield opened
    opened.close()
    assert complaints == []


def connection(page: Page) -> Locator:
    return page.locator(".q-badge")


def row(page: Page, text: str) -> Locator:
    return page.locator("tbody tr").filter(has_text=text)


def decide(page: Page, of: Locator, button: str) -> None:
    of.get_by_role("button", name=button).click()


def pending_result(demo: Demo, name: str) -> int:
    """Give a pending result a name by which it is found on the page."""
    [(key,)] = demo.execute("SELECT max(id) FROM extraction_results WHERE status = 'pending'")
    demo.execute("UPDATE extraction_results SET field = %s WHERE id = %s", name, key)
    return int(key)


def test_it_shows_the_rows_and_what_becomes_of_them(page: Page, demo: Demo) -> None:
    [(rows,)] = demo.execute("SELECT count(*) FROM extraction_results")
    expect(page.locator("tbody tr")).to_have_count(rows)
    demo.execute(
        "INSERT INTO extraction_results (job_id, field, value, extracted_value, page, confidence)"
        " SELECT min(id), 'Pump power', '<b>55</b> kW', '55 kW', 7, 0.91 FROM extraction_jobs"
    )
    expect(row(page, "Pump power")).to_contain_text("<b>55</b> kW")
    demo.execute("DELETE FROM extraction_results WHERE field = 'Pump power'")
    expect(page.locator("tbody tr")).to_have_count(rows)


def test_accept_and_undo_show_and_never_go_back(page: Page, demo: Demo) -> None:
    key = pending_result(demo, "Accepted and undone")
    shown = row(page, "Accepted and undone")
    shown.locator("td").nth(4).evaluate(_RECORD)
    decide(page, shown, "Accept")
    expect(shown.locator("td").nth(4)).to_have_text("accepted")
    expect(shown.locator(".q-spinner")).to_have_count(0)
    assert demo.status(key) == "accepted"
    decide(page, shown, "Undo")
    expect(shown.locator("td").nth(4)).to_have_text("pending")
    expect(shown.locator(".q-spinner")).to_have_count(0)
    assert demo.status(key) == "pending"
    assert page.evaluate("() => globalThis.seen") == ["pending", "accepted", "pending"]


def test_two_windows_show_the_same(page: Page, browser: Browser, address: str, demo: Demo) -> None:
    pending_result(demo, "Seen by both")
    other = browser.new_page()
    other.goto(address)
    decide(page, row(page, "Seen by both"), "Accept")
    expect(row(other, "Seen by both").locator("td").nth(4)).to_have_text("accepted")
    other.close()


def test_a_dropped_server_is_told_and_what_was_decided_without_it_is_kept(page: Page, demo: Demo) -> None:
    key = pending_result(demo, "Decided alone")
    shown = row(page, "Decided alone")
    expect(shown).to_be_visible()
    demo.drop()
    expect(connection(page)).to_have_text(re.compile("^reconnecting"))
    decide(page, shown, "Accept")
    expect(shown.locator("td").nth(4)).to_have_text("accepted")
    expect(shown.locator(".q-spinner")).to_have_count(1)
    demo.start()
    expect(connection(page)).to_have_text(re.compile("^connected"), timeout=_SECONDS * 1000)
    expect(shown.locator(".q-spinner")).to_have_count(0, timeout=_SECONDS * 1000)
    expect(shown.locator("td").nth(4)).to_have_text("accepted")
    assert demo.status(key) == "accepted"
