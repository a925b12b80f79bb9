"""docs/tutorial.md and the README, done as a reader does them: files, commands, processes, a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, expect
from tests.demo.conftest import browser  # noqa: F401 - a fixture
from tests.examples.conftest import free_port

pytestmark = [pytest.mark.browser, pytest.mark.process]

ROOT = Path(__file__).parents[1]
_SECONDS = 20.0


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


class Reader:
    """Somebody who follows a page: in an own directory, with an own database and an own port.

    Attributes:
        place: The directory.
    """

    def __init__(self, page: Path, place: Path, dsn: str) -> None:
        self.page = page
        self.place = place
        self.dsn = dsn
        self.port = free_port()
        place.mkdir()

    def mine(self, text: str) -> str:
        """What the page says, with the reader's own database and port."""
        return text.replace("postgresql://localhost/shop", self.dsn).replace(":8000", f":{self.port}")

    def write(self, name: str, text: str) -> None:
        (self.place / name).write_text(self.mine(text), encoding="utf-8")

    def query(self, statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statements.encode())

    def command(self, text: str) -> None:
        """Run one of the page's `rowcast` commands, which must be there."""
        [line] = [
            line for block in blocks(self.page, "sh") for line in block.splitlines() if line.startswith(text)
        ]
        words = self.mine(line.partition("#")[0]).split()
        subprocess.run(
            [sys.executable, "-c", "from rowcast.cli import main; main()", *words[1:]],
            cwd=self.place,
            check=True,
            timeout=_SECONDS,
        )

    @contextmanager
    def running(self, *command: str) -> Iterator[Iterator[str]]:
        """A process of the reader's; gives the lines that it prints."""
        process = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield (line.rstrip("\n") for line in process.stdout)
        finally:
            process.terminate()
            process.communicate(timeout=_SECONDS)

    @contextmanager
    def serving(self, application: str) -> Iterator[None]:
        with self.running("-m", "uvicorn", application, "--port", str(self.port)) as lines:
            said = []
            for line in lines:
                said.append(line)
                if "Uvicorn running" in line:
                    break
            else:
                pytest.fail("the server did not start:\n" + "\n".join(said))
            yield


@pytest.fixture
def reader(dsn: str, tmp_path: Path, request: pytest.FixtureRequest) -> Reader:
    return Reader(ROOT / request.param, tmp_path / "reader", dsn)


def after(lines: Iterator[str], wanted: str) -> str:
    """The first line that is the one wanted; fails with what was printed instead."""
    said = []
    for line in lines:
        said.append(line)
        if line == wanted:
            return line
    pytest.fail(f"{wanted!r} was not printed, but:\n" + "\n".join(said))


@pytest.mark.parametrize("reader", ["docs/tutorial.md"], indirect=True)
def test_the_tutorial(reader: Reader, browser: Browser) -> None:  # noqa: F811 - the fixture
    create, update = blocks(reader.page, "sql")
    reader.query(create)
    reader.command("rowcast setup")
    for block in blocks(reader.page, "python"):
        name = block.splitlines()[0].removeprefix("# ")
        reader.write(name, block)
    [html] = blocks(reader.page, "html")
    reader.write("page.html", html)
    with ExitStack() as ends:
        ends.enter_context(reader.serving("shop:app"))
        watched = ends.enter_context(reader.running("watch.py"))
        open_projects = ends.enter_context(reader.running("open_projects.py"))
        page = browser.new_page()
        ends.callback(page.close)
        page.goto(f"http://127.0.0.1:{reader.port}/")
        expect(page.locator("li")).to_have_text(["Harbour", "Bridge", "Tunnel"])
        assert next(watched) == "Bridge, Harbour, Tunnel"
        assert [next(open_projects) for _ in range(3)] == ["open: Tunnel", "open: Bridge", "open: Harbour"]

        reader.query(update)
        assert next(watched) == "Airport, Bridge, Harbour"
        expect(page.locator("li")).to_have_text(["Harbour", "Bridge", "Airport"])

        with reader.running("rename.py", "2", "Viaduct") as renaming:
            assert next(renaming) == "Viaduct is shown; pending"
            assert next(renaming) == "Viaduct is in the database; confirmed"
        assert next(watched) == "Airport, Harbour, Viaduct"
        expect(page.locator("li")).to_have_text(["Harbour", "Viaduct", "Airport"])

        reader.query("UPDATE projects SET done = true WHERE id = 1")
        assert after(open_projects, "closed: Harbour")
        with reader.running("script.py") as script:
            assert list(script) == ["Airport", "Harbour", "Viaduct"]
        reader.query("DELETE FROM projects WHERE id = 3")
        expect(page.locator("li")).to_have_text(["Harbour", "Viaduct"])


@pytest.mark.parametrize("reader", ["README.md"], indirect=True)
def test_the_readmes_client_and_its_mounted_server(reader: Reader) -> None:
    reader.query("CREATE TABLE projects (id bigint PRIMARY KEY, name text)")
    reader.query("CREATE TABLE jobs (id bigint PRIMARY KEY)")
    reader.query("INSERT INTO projects VALUES (1, 'Harbour')")
    reader.command("rowcast setup")
    _, client, mount = blocks(reader.page, "python")  # the first is run by test_docs
    assert len([line for line in client.splitlines() if line.strip()]) <= 15
    reader.write("client.py", client.replace("/ws", "/realtime/ws"))
    reader.write("mounted.py", mount)
    with reader.serving("mounted:app"), reader.running("client.py") as printed:
        assert next(printed) == "SNAPSHOT {'id': 1} {'id': 1, 'name': 'Harbour'}"
        reader.query("UPDATE projects SET name = 'Airport'")
        assert next(printed) == "UPDATE {'id': 1} {'id': 1, 'name': 'Airport'}"
        reader.query("DELETE FROM projects")
        assert next(printed) == "DELETE {'id': 1} None"
