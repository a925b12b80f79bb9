"""Real processes: serve, demo, tail and mirror, started, killed, restarted and stopped as people and init systems do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.cli.processes import Process, environment, eventually, run

from rowcast.capture.install import install

pytestmark = pytest.mark.process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def shop(dsn: str, connection: psycopg.Connection) -> str:
    """A database with two watched tables."""
    connection.execute(
        "CREATE TABLE projects (id bigint PRIMARY KEY, name text, org_id int NOT NULL DEFAULT 1, big numeric);"
        "CREATE TABLE jobs (id int PRIMARY KEY DEFERRABLE INITIALLY IMMEDIATE, done boolean, tags text[])"
    )
    install(dsn, ["projects", "jobs"])
    return dsn


@pytest.fixture
def server(shop: str) -> Iterator[str]:
    """The address of a running `rowcast serve`."""
    with Process("serve", "--dsn", shop, "--port", 0) as process:
        yield process.until_ready()["websocket"]
        assert process.end(signal.SIGTERM) == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that PostgreSQL may enter too, where it has to run as another user."""
    with tempfile.TemporaryDirectory(prefix="rowcast-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def subscribed(message: dict[str, Any]) -> bool:
    return message.get("type") == "subscribed"


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_it_prints_its_addresses_and_ready_and_stops_when_told(self, shop: str, number: int) -> None:
        with Process(
            "serve", "--port", 0, DATABASE_URL=shop.replace("postgres@", "postgres:secret@")
        ) as process:
            addresses = process.until_ready()
            assert addresses["database"] == shop.replace("postgres@", "postgres:***@")
            assert addresses["channels"] == "jobs, projects"
            assert addresses["websocket"].startswith("ws://127.0.0.1:")
            with urllib.request.urlopen(addresses["events"].replace("/sse", "/readyz")) as answer:
                assert answer.status == 200
            assert process.end(number) == 0
            assert "secret" not in process.error_text()

    def test_a_signal_at_any_moment_of_the_start_ends_it(self, shop: str) -> None:
        # Before its handlers are there, Python's own end it; from then on, it ends in good order.
        wanted = {0, -signal.SIGTERM}
        for delay in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
            with Process("serve", "--dsn", shop, "--port", 0) as process:
                assert not process.ended_within(delay)
                assert process.end(signal.SIGTERM) in wanted

    def test_a_database_that_was_not_set_up_is_told_the_command(self, dsn: str) -> None:
        ended = run("serve", "--dsn", dsn, "--port", 0)
        assert ended.returncode == 3
        assert "rowcast setup" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_a_port_that_is_taken_is_named(self, shop: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ended = run("serve", "--dsn", shop, "--port", port)
        assert ended.returncode == 2
        assert f"127.0.0.1:{port}" in ended.stderr


class TestDemo:
    def test_two_demos_live_beside_each_other_and_leave_nothing_behind(self, open_folder: Path) -> None:
        # `open_folder` is the only place for temporary files, so that what is left there was left by them.
        with (
            Process("demo", "--no-open", TMPDIR=str(open_folder)) as first,
            Process("demo", "--no-open", TMPDIR=str(open_folder)) as second,
        ):
            both = first.until_ready(), second.until_ready()
            assert both[0].keys() == {"database", "page", "websocket"}
            assert both[0]["page"] != both[1]["page"]
            for addresses in both:
                with urllib.request.urlopen(addresses["page"]) as page:
                    assert b"<html" in page.read()
            with psycopg.connect(both[0]["database"]) as connection:
                assert connection.execute("SELECT count(*) > 0 FROM projects").fetchone() == (True,)
            assert first.end(signal.SIGTERM) == 0
            assert second.end(signal.SIGINT) == 0
        for addresses in both:
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(addresses["database"])
        assert not list(open_folder.glob("rowcast-pg-*"))

    def test_data_is_kept_where_it_was_asked_for(self, open_folder: Path) -> None:
        data = open_folder / "data"
        for wanted in ("first", "again"):
            with Process("demo", "--no-open", "--port", 0, "--data", data) as demo:
                database = demo.until_ready()["database"]
                with psycopg.connect(database, autocommit=True) as connection:
                    if wanted == "first":
                        connection.execute(
                            "UPDATE projects SET name = 'Kept' WHERE id = (SELECT min(id) FROM projects)"
                        )
                    names = connection.execute("SELECT name FROM projects ORDER BY id LIMIT 1").fetchone()
                    assert names == ("Kept",)
                assert demo.end(signal.SIGTERM) == 0

    def test_a_port_that_was_asked_for_and_is_taken_is_an_error_that_names_it(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ended = run("demo", "--no-open", "--port", port)
        assert ended.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
        assert "leave it out to take the next free one" in ended.stderr

    def test_a_signal_during_the_start_ends_it_as_well(self, open_folder: Path) -> None:
        with Process("demo", "--no-open", "--port", 0, TMPDIR=str(open_folder)) as demo:
            eventually(lambda: list(open_folder.glob("rowcast-pg-*/data.log")), bool)
            assert demo.end(signal.SIGTERM) == 0
        assert not list(open_folder.glob("rowcast-pg-*"))


class TestTail:
    def test_it_prints_each_change_and_ends_with_0(self, server: str, connection: psycopg.Connection) -> None:
        connection.execute(
            "INSERT INTO projects VALUES (1, 'a', 1, 12345678901234567890.125), (2, 'b', 2, 0)"
        )
        with Process("tail", server, "projects", "--json", "--snapshot", "--filter", "org_id=eq.1") as tail:
            row = tail.change()
            assert (row["op"], row["key"], row["new"]["name"]) == ("SNAPSHOT", {"id": 1}, "a")
            tail.message(lambda message: message.get("type") == "snapshot")
            connection.execute(
                "UPDATE projects SET org_id = 1 WHERE id = 2; DELETE FROM projects WHERE id = 1"
            )
            moved_in, deleted = tail.change(), tail.change()
            assert (moved_in["op"], moved_in["table"], moved_in["schema"]) == ("INSERT", "projects", "public")
            assert (deleted["op"], deleted["key"]) == ("DELETE", {"id": 1})
            assert {"id", "position", "txid", "timestamp"} <= deleted.keys()
            assert tail.end(signal.SIGINT) == 0

    def test_over_a_killed_server_it_sees_every_change_once_and_in_order(
        self, shop: str, connection: psycopg.Connection
    ) -> None:
        port = free_port()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Process("serve", "--dsn", shop, "--port", port))
            server.until_ready()
            tail = stack.enter_context(Process("tail", f"http://127.0.0.1:{port}", "projects", "--json"))
            tail.message(subscribed)
            for number in range(1, 31):
                connection.execute("INSERT INTO projects (id) VALUES (%s)", (number,))
                if number == 10:
                    assert tail.change()["key"] == {"id": 1}
                    server.end(signal.SIGKILL)
                if number == 20:
                    server = stack.enter_context(Process("serve", "--dsn", shop, "--port", port))
                    server.until_ready()
            changes = [tail.change() for _ in range(29)]
            assert [change["key"]["id"] for change in changes] == list(range(2, 31))
            assert len({change["id"] for change in changes}) == 29
            assert tail.end(signal.SIGTERM) == 0
            assert server.end(signal.SIGTERM) == 0

    def test_from_a_position_it_tells_what_came_after(
        self, server: str, connection: psycopg.Connection
    ) -> None:
        with Process("tail", server, "projects", "--json") as tail:
            tail.message(subscribed)
            connection.execute("INSERT INTO projects (id) VALUES (1)")
            position = tail.change()["position"]
        connection.execute("INSERT INTO projects (id) VALUES (2)")
        with Process("tail", server, "projects", "--json", "--from", position) as tail:
            assert tail.change()["key"] == {"id": 2}

    def test_for_people_it_prints_one_line_a_change(
        self, server: str, connection: psycopg.Connection
    ) -> None:
        with Process("tail", server.replace("ws:", "http:").removesuffix("/ws"), "projects") as tail:
            assert tail.line() == "connected"
            assert tail.line() == "watching projects"
            connection.execute("INSERT INTO projects (id, name) VALUES (7, 'Atlas')")
            assert (
                tail.line().partition(" ")[2] == 'INSERT   projects id=7  name: "Atlas"  org_id: 1  big: null'
            )

    def test_when_nobody_reads_any_more_it_ends_with_0(self, server: str) -> None:
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [Path(sys.executable).with_name("rowcast"), "tail", server, "projects", "--json"],
            stdout=writing,
            env=environment(),
        )
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert json.loads(pipe.readline())["type"] == "status"
        try:
            assert process.wait(10) == 0
        finally:
            process.kill()

    def test_a_reader_that_does_not_read_does_not_keep_it_from_stopping(
        self, server: str, connection: psycopg.Connection
    ) -> None:
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [Path(sys.executable).with_name("rowcast"), "tail", server, "projects", "--json"],
            stdout=writing,
            env=environment(),
        )
        os.close(writing)
        try:
            with os.fdopen(reading, "rb") as pipe:
                while json.loads(pipe.readline())["type"] != "subscribed":
                    pass
                connection.execute(
                    "INSERT INTO projects SELECT n, repeat('x', 100) FROM generate_series(1, 20000) AS n"
                )
                assert b"INSERT" in pipe.readline()
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0
        finally:
            process.kill()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("nope",), "known: jobs, projects"),
            (("projects", "--filter", "nope=eq.1"), "nope"),
        ],
    )
    def test_what_the_server_refuses_is_an_error(
        self, server: str, arguments: tuple[str, ...], said: str
    ) -> None:
        ended = run("tail", server, *arguments)
        assert ended.returncode == 1
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_a_position_that_is_none_is_an_error(self) -> None:
        assert "a position has 16 hex digits" in run("tail", "http://x", "projects", "--from", "nope").stderr

    def test_an_address_that_is_none_is_an_error(self) -> None:
        assert "is no server's address" in run("tail", "nowhere://x", "projects").stderr


def rows_of(file: Path, table: str = "projects") -> list[Any]:
    with closing(sqlite3.connect(file, timeout=10)) as database:
        return database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


class TestMirror:
    def test_killed_again_and_again_under_load_it_never_shows_half_a_commit_and_ends_equal(
        self, shop: str, server: str, connection: psycopg.Connection, tmp_path: Path
    ) -> None:
        file = tmp_path / "mirror.sqlite"
        connection.execute("INSERT INTO projects SELECT n, 'p', n % 3, 100 FROM generate_series(1, 50) AS n")
        stop = threading.Event()

        def transfer() -> None:
            """Each commit keeps the sum of the column `big`."""
            with psycopg.connect(shop) as writer:
                number = 0
                while not stop.is_set():
                    number += 1
                    giver, taker = number % 50 + 1, (number * 7) % 50 + 1
                    writer.execute("UPDATE projects SET big = big - 0.1 WHERE id = %s", (giver,))
                    writer.execute("UPDATE projects SET big = big + 0.1 WHERE id = %s", (taker,))
                    writer.commit()

        writing = threading.Thread(target=transfer)
        writing.start()
        try:
            for _ in range(4):
                with Process("mirror", server, "projects", "--to", file) as mirror:
                    assert mirror.line() == "ready"
                    for _ in range(20):
                        rows = rows_of(file)
                        assert len(rows) == 50
                        assert round(sum(big for *_, big in rows), 6) == 5000
                    mirror.end(signal.SIGKILL)
                assert round(sum(big for *_, big in rows_of(file)), 6) == 5000
        finally:
            stop.set()
            writing.join()
        with Process("mirror", server, "projects", "--to", file) as mirror:
            expected = [
                (number, name, org, float(big))
                for number, name, org, big in connection.execute(
                    "SELECT * FROM projects ORDER BY id"
                ).fetchall()
            ]
            eventually(lambda: rows_of(file), lambda rows: rows == expected)
            assert mirror.end(signal.SIGTERM) == 0

    def test_a_table_whose_keys_move_over_each_other_stays_equal(
        self, server: str, connection: psycopg.Connection, tmp_path: Path
    ) -> None:
        file = tmp_path / "mirror.sqlite"
        connection.execute(
            "INSERT INTO jobs SELECT n, n % 2 = 0, ARRAY[n::text] FROM generate_series(1, 5) AS n"
        )
        with Process("mirror", server, "jobs", "--to", file) as mirror:
            assert mirror.line() == "ready"
            assert rows_of(file, "jobs")[0] == (1, 0, '["1"]')
            connection.execute("BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE jobs SET id = id + 1; COMMIT")
            wanted = [(n + 1, int(n % 2 == 0), f'["{n}"]') for n in range(1, 6)]
            eventually(lambda: rows_of(file, "jobs"), lambda rows: rows == wanted)
            assert mirror.end(signal.SIGINT) == 0

    def test_new_columns_and_a_missed_stretch_bring_a_new_snapshot(
        self, shop: str, connection: psycopg.Connection, tmp_path: Path
    ) -> None:
        file = tmp_path / "mirror.sqlite"
        connection.execute("INSERT INTO projects (id, name) VALUES (1, 'a')")
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        with (
            Process("serve", "--dsn", shop, "--port", port) as server,
            Process("mirror", address, "projects", "--filter", "org_id=eq.1", "--to", file) as mirror,
        ):
            server.until_ready()
            assert mirror.line() == "ready"
            connection.execute("ALTER TABLE projects ADD COLUMN size int; UPDATE projects SET size = 5")
            eventually(lambda: rows_of(file), lambda rows: rows == [(1, "a", 1, None, 5)])
            assert server.end(signal.SIGTERM) == 0
            # Without its slot the next server knows nothing of the time between.
            eventually(
                lambda: connection.execute("SELECT FROM pg_replication_slots WHERE active").fetchall(),
                lambda rows: not rows,
            )
            connection.execute("SELECT pg_drop_replication_slot('rowcast')")
            connection.execute(
                "INSERT INTO projects (id, name) VALUES (2, 'b'); DELETE FROM projects WHERE id = 1"
            )
            with Process("serve", "--dsn", shop, "--port", port) as next_server:
                next_server.until_ready()
                eventually(lambda: rows_of(file), lambda rows: rows == [(2, "b", 1, None, None)])
                assert mirror.end(signal.SIGTERM) == 0
                assert next_server.end(signal.SIGTERM) == 0

    def test_a_table_that_was_made_anew_meanwhile_is_taken_anew(
        self, shop: str, server: str, connection: psycopg.Connection, tmp_path: Path
    ) -> None:
        file = tmp_path / "mirror.sqlite"
        connection.execute("INSERT INTO projects (id, name) VALUES (1, 'a')")
        with Process("mirror", server, "projects", "--to", file) as mirror:
            assert mirror.line() == "ready"
            assert mirror.end(signal.SIGTERM) == 0
        connection.execute(
            "DROP TABLE projects;"
            "CREATE TABLE projects (id bigint PRIMARY KEY, name text, org_id int NOT NULL DEFAULT 1, big numeric)"
        )
        install(shop, ["projects"])
        connection.execute("INSERT INTO projects (id, name) VALUES (2, 'b')")
        with Process("mirror", server, "projects", "--to", file) as mirror:
            eventually(lambda: rows_of(file), lambda rows: rows == [(2, "b", 1, None)])
            assert mirror.end(signal.SIGTERM) == 0

    def test_a_transaction_over_the_bound_is_taken_as_new_rows(
        self, shop: str, connection: psycopg.Connection, tmp_path: Path
    ) -> None:
        file = tmp_path / "mirror.sqlite"
        with Process("serve", "--dsn", shop, "--port", 0, "--max-transaction-bytes", "1MiB") as server:
            address = server.until_ready()["websocket"]
            with Process("mirror", address, "projects", "--to", file) as mirror:
                assert mirror.line() == "ready"
                connection.execute(
                    "INSERT INTO projects SELECT n, repeat('x', 100) FROM generate_series(1, 30000) AS n"
                )
                eventually(lambda: len(rows_of(file)), lambda count: count == 30000)
                assert mirror.end(signal.SIGTERM) == 0
            assert server.end(signal.SIGTERM) == 0
