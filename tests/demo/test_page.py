"""The demo's page in a real Chromium, against the real server in its own process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from rowcast.demo import TABLES
from rowcast.testing import EmbeddedPostgres

pytestmark = [pytest.mark.browser, pytest.mark.process]

_SERVE = """
import asyncio, sys
from rowcast.capture.install import install
from rowcast.demo import REALTIME_PATH, TABLES, create_application, prepare
from rowcast.server import Rowcast
from rowcast.server.run import run

dsn, port = sys.argv[1], int(sys.argv[2])
asyncio.run(prepare(dsn))
install(dsn, TABLES)
rowcast = Rowcast(database_url=dsn, port=port)
application = create_application(dsn, rowcast)
run(rowcast, app=application, mounted_at=REALTIME_PATH, on_ready=lambda _: print("ready", flush=True))
"""
_STRANGE = """<b>"Ærø"</b> & 'ferry' \U0001f6a2 <img src=x onerror=alert(1)> {{7*7}} \u202etxt"""


class Demo:
    """The demo's server over a database of its own, with what tests do behind its back."""

    def __init__(self, dsn: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.dsn = dsn
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, self.dsn, str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", "the server did not start"

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=20)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> list[Any]:
        return [
            [row for (row,) in self.execute(f"SELECT to_jsonb(shown) FROM {table} shown ORDER BY id")]
            for table in TABLES
        ]


@pytest.fixture(scope="module")
def demo(postgres: EmbeddedPostgres) -> Iterator[Demo]:
    running = Demo(postgres.create_database("demo_page"))
    yield running
    running.stop()
    postgres.drop_database("demo_page")


class Window:
    """A window of its own on the page, with what a person would do and see in it."""

    def __init__(self, browser: Browser, demo: Demo, width: int = 1280) -> None:
        self.demo = demo
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url.split("/")[2]))
        self.page.goto(demo.address)
        self.is_live()

    def is_live(self) -> None:
        expect(self.page.locator("#state")).to_have_attribute("data-state", "live", timeout=20_000)
        for card in ("projects", "jobs", "results", "matches", "layers"):
            expect(self.page.locator(f"#{card} .count")).not_to_be_empty()

    def row(self, card: str, key: int) -> Any:
        return self.page.locator(f'#{card} li[data-key="[{key}]"]')

    def known(self) -> list[Any]:
        """All rows, as the page has them."""
        rows: list[Any] = self.page.evaluate(
            "() => ['projects', 'jobs', 'results', 'matches', 'layers'].map((id) =>"
            " [...rowcastDemo.store.rows(id).values()].sort((one, other) => one.id - other.id))"
        )
        return rows

    def shown(self) -> str:
        """All that is on the screen of the five tables, in its order."""
        return "\n".join(self.page.locator("main .row").all_inner_texts())

    def becomes_equal_to_the_database(self) -> None:
        for _ in range(100):
            if self.known() == self.demo.rows():
                return
            self.page.wait_for_timeout(50)
        assert self.known() == self.demo.rows()

    def record(self, key: int) -> None:
        """From now on, note every state that a result's row is drawn in."""
        self.row("results", key).evaluate(
            """(row) => {
                globalThis.seen = [];
                const look = () => {
                    const visible = [...row.querySelectorAll('.actions > *')].filter((one) => !one.hidden);
                    const state = [row.querySelector('.status').textContent, row.querySelector('.value').textContent,
                        visible.map((one) => one.className).join()].join('|');
                    if (seen.at(-1) !== state) seen.push(state);
                };
                look();
                new MutationObserver(look).observe(row, { subtree: true, childList: true, characterData: true, attributes: true });
            }"""
        )

    def seen(self) -> list[str]:
        """The statuses noted since, checked to be whole: buttons and status never disagree."""
        states: list[str] = self.page.evaluate("() => seen")
        for state in states:
            status, _, buttons = state.split("|")
            assert ("primary" in buttons) == (status == "pending"), states
        return [state.split("|")[0] for state in states]


@pytest.fixture
def window(browser: Browser, demo: Demo) -> Iterator[Window]:
    opened = Window(browser, demo)
    yield opened
    opened.context.close()
    demo.execute("UPDATE extraction_results SET status = 'pending', value = extracted_value")
    assert opened.complaints == []
    assert opened.asked <= {f"127.0.0.1:{demo.port}"}, "the page asks its own server only"


@pytest.fixture
def second(browser: Browser, demo: Demo) -> Iterator[Window]:
    opened = Window(browser, demo)
    yield opened
    opened.context.close()
    assert opened.complaints == []


def some_result(demo: Demo) -> int:
    ((key,),) = demo.execute("SELECT min(id) FROM extraction_results WHERE status = 'pending'")
    return int(key)


def test_it_shows_what_the_database_holds_and_nothing_is_out_of_place(window: Window, demo: Demo) -> None:
    window.becomes_equal_to_the_database()
    assert window.page.evaluate("document.documentElement.scrollWidth") == 1280
    nameless = window.page.evaluate(
        "() => [...document.querySelectorAll('button, a, input, [role=meter], [role=progressbar]')].filter((one) =>"
        " !(one.ariaLabel ?? '').trim() && !one.innerText.trim() && !one.labels?.length).map((one) => one.outerHTML)"
    )
    assert nameless == []


def test_it_fits_a_telephone(browser: Browser, demo: Demo) -> None:
    narrow = Window(browser, demo, width=390)
    narrow.becomes_equal_to_the_database()
    assert narrow.page.evaluate("document.documentElement.scrollWidth") == 390
    outside = narrow.page.evaluate(
        "() => [...document.querySelectorAll('main button:not([hidden]), main input')]"
        ".filter((one) => one.getBoundingClientRect().right > 390).map((one) => one.outerHTML)"
    )
    assert outside == []
    narrow.context.close()


def test_a_change_behind_the_pages_back_is_shown_and_moves_nothing(window: Window, demo: Demo) -> None:
    before = window.row("layers", 2).bounding_box()
    demo.execute("UPDATE data_layers SET features = 54321, version = version + 1 WHERE id = 2")
    expect(window.row("layers", 2)).to_contain_text("54,321 features")
    assert window.row("layers", 2).bounding_box() == before
    entry = window.page.locator("#lane .entry").first
    expect(entry).to_contain_text("data_layers")
    expect(entry.locator("ins").first).to_have_text("54321")
    expect(entry.locator(".latency")).to_have_text(re.compile(r"\d+ ms"))


def test_two_windows_stay_equal(window: Window, second: Window, demo: Demo) -> None:
    window.page.get_by_label("Transactions a second").fill("20")
    window.page.get_by_role("switch", name="Activity").check()
    for number in range(6):
        editor = (window, second)[number % 2]
        editor.page.locator(".result .primary:visible").first.click()
        editor.page.locator("#new-project-name").fill(f"Project of window {number % 2}")
        editor.page.locator("#new-project-name").press("Enter")
        window.page.wait_for_timeout(300)
    window.page.get_by_role("switch", name="Activity").uncheck()
    expect(window.page.locator("#figure-pending")).to_have_text("none under way")
    expect(second.page.locator("#figure-pending")).to_have_text("none under way")
    window.page.wait_for_timeout(200)
    window.becomes_equal_to_the_database()
    second.becomes_equal_to_the_database()
    window.page.mouse.move(1, 1)
    assert window.shown() == second.shown()


def test_accept_and_undo_never_flicker(window: Window, second: Window, demo: Demo) -> None:
    key = some_result(demo)
    row = window.row("results", key)
    second.record(key)
    window.record(key)
    for _ in range(3):
        row.get_by_role("button", name="Accept").click()
        expect(row.get_by_role("button", name="Undo")).to_be_focused()
        expect(second.row("results", key).locator(".status")).to_have_text("accepted")
        row.get_by_role("button", name="Undo").click()
        expect(second.row("results", key).locator(".status")).to_have_text("pending")
    expect(window.page.locator("#figure-pending")).to_have_text("none under way")
    assert window.seen() == ["pending", *["accepted", "pending"] * 3]
    assert second.seen() == window.seen()


def test_edits_faster_than_the_api_never_flicker(window: Window, demo: Demo) -> None:
    """The answers come late, after their confirmations, while others change other columns of the row."""
    key = some_result(demo)

    def late(route: Route) -> None:
        answer = route.fetch()
        window.page.wait_for_timeout(60)
        route.fulfill(response=answer)

    window.page.route("**/api/results/**", late)
    window.record(key)
    window.row("results", key).evaluate(
        "(row) => ['.primary', '[title^=Undo]', '.primary', '[title^=Undo]', '.primary']"
        ".forEach((button) => row.querySelector(button).click())"
    )
    for page in range(1, 6):
        demo.execute(f"UPDATE extraction_results SET page = {page} WHERE id = {key}")
        window.page.wait_for_timeout(50)
    expect(window.page.locator("#figure-pending")).to_have_text("none under way")
    window.becomes_equal_to_the_database()
    assert demo.execute(f"SELECT status FROM extraction_results WHERE id = {key}") == [("accepted",)]
    assert window.seen() == ["pending", "accepted"]
    window.page.unroute_all(behavior="wait")  # the last answer may still be on its late way


def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_runs_twice(window: Window, demo: Demo) -> None:
    lost: list[str] = []

    def lose(route: Route) -> None:
        lost.append(route.request.headers["rowcast-mutation"])
        if len(lost) == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    window.page.route("**/api/projects", lose)
    window.page.locator("#new-project-name").fill("Once only")
    window.page.locator("#new-project-name").press("Enter")
    expect(window.page.locator("#projects .name", has_text="Once only")).to_have_count(1)
    expect(window.page.locator("#figure-pending")).to_have_text("none under way")
    window.becomes_equal_to_the_database()
    assert demo.execute("SELECT count(*) FROM projects WHERE name = 'Once only'") == [(1,)]
    assert len(set(lost)) == 1
    window.page.unroute_all(behavior="wait")


def test_a_rejected_edit_is_taken_back_with_the_reason(window: Window, demo: Demo) -> None:
    key = some_result(demo)
    window.page.get_by_role("button", name="Drop connection").click()
    demo.execute(f"DELETE FROM extraction_results WHERE id = {key}")
    window.row("results", key).get_by_role("button", name="Accept").click()
    expect(window.page.get_by_role("alert")).to_contain_text(f"There is no result {key}")
    expect(window.row("results", key).locator(".status")).to_have_text("pending")
    window.page.get_by_role("button", name="Reconnect now").click()
    expect(window.row("results", key)).to_have_count(0)


def test_a_dropped_connection_comes_back_and_has_missed_nothing(window: Window, demo: Demo) -> None:
    window.page.get_by_role("button", name="Drop connection").click()
    expect(window.page.locator("#state")).to_have_attribute("data-state", "reconnecting")
    demo.execute("INSERT INTO projects (code, name) VALUES ('AWAY-1', 'Made meanwhile')")
    demo.execute("UPDATE data_layers SET version = version + 1")
    expect(window.page.locator("#projects")).not_to_contain_text("Made meanwhile")
    expect(window.page.locator("#projects")).to_contain_text("Made meanwhile", timeout=10_000)
    window.is_live()
    window.becomes_equal_to_the_database()
    expect(window.page.locator("#lane")).to_contain_text("going on where the stream broke off")
    expect(window.page.locator("#lane")).not_to_contain_text("read anew")
    expect(window.page.locator(".latency.missed").first).to_be_visible()


def test_a_lost_database_connection_is_shown_and_heals(window: Window, demo: Demo) -> None:
    demo.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()"
    )
    expect(window.page.locator("#state")).to_have_attribute("data-state", "degraded")
    demo.execute("UPDATE projects SET documents = documents + 1")
    window.is_live()
    window.becomes_equal_to_the_database()


def test_a_killed_server_comes_back_and_edits_made_meanwhile_are_carried_out(
    window: Window, demo: Demo
) -> None:
    key = some_result(demo)
    window.record(key)
    demo.stop(signal.SIGKILL)
    expect(window.page.locator("#state")).to_have_attribute("data-state", "reconnecting")
    window.row("results", key).get_by_role("button", name="Accept").click()
    expect(window.page.locator("#figure-pending")).to_have_text("1 under way")
    demo.start()
    window.is_live()
    expect(window.page.locator("#figure-pending")).to_have_text("none under way", timeout=20_000)
    window.becomes_equal_to_the_database()
    assert demo.execute(f"SELECT status FROM extraction_results WHERE id = {key}") == [("accepted",)]
    assert window.seen() == ["pending", "accepted"]


def test_the_activity_switch_works_and_other_windows_know(window: Window, second: Window, demo: Demo) -> None:
    seen = window.page.locator("#figure-transactions")
    window.page.get_by_label("Transactions a second").fill("20")
    window.page.get_by_role("switch", name="Activity").check()
    expect(window.page.locator("#activity-figure")).to_have_text("20/s")
    expect(seen).not_to_have_text("0")
    second.page.evaluate("dispatchEvent(new Event('focus'))")
    expect(second.page.get_by_role("switch", name="Activity")).to_be_checked()
    window.page.get_by_role("switch", name="Activity").uncheck()
    window.page.wait_for_timeout(300)
    rows = demo.rows()
    window.page.wait_for_timeout(500)
    assert demo.rows() == rows
    window.becomes_equal_to_the_database()


def test_strange_texts_are_shown_as_they_are(window: Window, second: Window, demo: Demo) -> None:
    window.page.locator("#new-project-name").fill(_STRANGE)
    window.page.locator("#new-project-name").press("Enter")
    for one in (window, second):
        expect(one.page.locator("#projects .name").first).to_have_text(_STRANGE)
        assert one.page.locator("#projects .name").first.evaluate("(name) => name.childElementCount") == 0
        expect(one.page.locator("#lane .entry").first).to_contain_text('<b>"Ærø"</b>')
        assert one.page.locator("#lane b, #lane img").count() == 0
    assert demo.execute("SELECT name FROM projects ORDER BY id DESC LIMIT 1") == [(_STRANGE,)]

    result = some_result(demo)
    row = window.row("results", result)
    row.get_by_role("button", name="Correct").click()
    row.get_by_label("Corrected value").fill("<i>38 m</i>")
    row.get_by_label("Corrected value").press("Enter")
    expect(second.row("results", result).locator(".value")).to_have_text("<i>38 m</i>")
    expect(row.locator(".status")).to_have_text("corrected")
    row.get_by_role("button", name="Undo").click()
    expect(second.row("results", result).locator(".value")).not_to_have_text("<i>38 m</i>")


def test_a_project_is_renamed_and_deleted_with_a_second_click(
    window: Window, second: Window, demo: Demo
) -> None:
    ((key,),) = demo.execute(
        "INSERT INTO projects (code, name) VALUES ('TEMP-1', 'Short lived') RETURNING id"
    )
    row = window.row("projects", key)
    row.get_by_role("button", name="Rename").click()
    window.page.get_by_label("Project name", exact=True).fill("never")
    window.page.get_by_label("Project name", exact=True).press("Escape")
    expect(row.locator(".name")).to_have_text("Short lived")
    row.get_by_role("button", name="Rename").click()
    window.page.get_by_label("Project name", exact=True).fill("Renamed")
    window.page.get_by_label("Project name", exact=True).press("Enter")
    expect(second.row("projects", key).locator(".name")).to_have_text("Renamed")

    row.get_by_role("button", name="Delete Renamed").click()
    assert demo.execute(f"SELECT count(*) FROM projects WHERE id = {key}") == [(1,)]
    row.get_by_role("button", name="Delete?").click()
    expect(second.row("projects", key)).to_have_count(0)
    expect(window.row("projects", key)).to_have_count(0)


def test_jobs_matches_and_layers_are_decided_from_the_page(
    window: Window, second: Window, demo: Demo
) -> None:
    ((job,),) = demo.execute("SELECT max(id) FROM extraction_jobs WHERE status NOT IN ('queued', 'running')")
    row = window.row("jobs", job)
    row.get_by_role("button").click()
    expect(second.row("jobs", job).locator(".status")).to_have_text("running")
    expect(second.row("jobs", job).get_by_role("progressbar")).not_to_have_attribute("aria-valuenow", "0")
    row.get_by_role("button", name="Cancel").click()
    expect(second.row("jobs", job).locator(".status")).to_have_text("cancelled")

    ((match,),) = demo.execute("SELECT max(id) FROM supplier_matches WHERE status = 'proposed'")
    window.row("matches", match).get_by_role("button", name="Confirm").click()
    expect(second.row("matches", match).locator(".status")).to_have_text("confirmed")
    window.row("matches", match).get_by_role("button", name="Undo").click()
    window.row("matches", match).get_by_role("button", name="Reject").click()
    expect(second.row("matches", match).locator(".status")).to_have_text("rejected")

    switch = window.row("layers", 1).get_by_role("switch")
    before = switch.is_checked()
    switch.click()
    expect(second.row("layers", 1).get_by_role("switch")).to_be_checked(checked=not before)


def test_a_second_window_opens_from_the_first(window: Window) -> None:
    with window.page.expect_popup() as popup:
        window.page.get_by_role("link", name="Open second window").click()
    opened: Page = popup.value
    expect(opened.locator("#state")).to_have_attribute("data-state", "live")
    opened.close()
