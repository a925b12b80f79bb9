"""Bad days with real processes: whatever is killed, `rowcast tail` has every committed change once and in order."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.cli.processes import Process, eventually

from rowcast.capture.install import install
from rowcast.testing import EmbeddedPostgres

pytestmark = pytest.mark.process


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A cluster for one test, to be killed."""
    # A short time-out makes the capture report twice a second what it has acknowledged.
    with EmbeddedPostgres(settings={"wal_sender_timeout": "2s"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE steps (id bigint PRIMARY KEY, body text)")
        install(server.dsn(), ["steps"])
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def counting(dsn: str) -> Iterator[Callable[[], int]]:
    """Insert 1, 2, 3, … in transactions of one or two rows until the block ends, whatever happens meanwhile.

    Yields a function that says how many rows were committed for certain.
    """
    stop = threading.Event()
    committed = 0

    def write() -> None:
        nonlocal committed
        following = 1
        while not stop.is_set():
            try:
                with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
                    row = connection.execute("SELECT coalesce(max(id), 0) FROM steps").fetchone()
                    assert row is not None
                    following = committed = row[0]
                    while not stop.wait(0.002):
                        count = 1 + following % 2
                        connection.execute(
                            "INSERT INTO steps SELECT n, 'step ' || n FROM generate_series(%s::bigint, %s) n",
                            (following + 1, following + count),
                        )
                        following = committed = following + count
            except psycopg.OperationalError:
                continue

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: committed
    finally:
        stop.set()
        thread.join()


def serve(dsn: str, port: int) -> Process:
    return Process("serve", "--dsn", dsn, "--port", port, "--heartbeat-seconds", 1)


def heard(tail: Process, total: int) -> list[dict[str, Any]]:
    """Everything that tail prints up to the row `total`."""
    messages = [tail.message()]
    while messages[-1].get("key", {}).get("id") != total:
        messages.append(tail.message())
    return messages


def walsender_terminated(server: EmbeddedPostgres, process: Process, port: int) -> Process:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    return process


def postgres_killed(server: EmbeddedPostgres, process: Process, port: int) -> Process:
    server.kill()
    server.start()
    return process


def server_killed(server: EmbeddedPostgres, process: Process, port: int) -> Process:
    process.end(signal.SIGKILL)
    process.__exit__(None, None, None)
    restarted = serve(server.dsn(), port)
    restarted.until_ready()
    return restarted


@pytest.mark.parametrize("fault", [walsender_terminated, postgres_killed, server_killed])
def test_every_commit_is_told_once_and_in_order(
    own_postgres: EmbeddedPostgres, fault: Callable[[EmbeddedPostgres, Process, int], Process]
) -> None:
    port = free_port()
    process = serve(own_postgres.dsn(), port)
    try:
        process.until_ready()
        with Process("tail", f"http://127.0.0.1:{port}", "steps", "--json") as tail:
            tail.message(lambda message: message.get("type") == "subscribed")
            with counting(own_postgres.dsn()) as committed:
                for _ in range(2):
                    before = committed()
                    eventually(committed, lambda now, least=before + 50: now >= least)  # type: ignore[misc]
                    process = fault(own_postgres, process, port)
                before = committed()
                eventually(committed, lambda now: now >= before + 50)
            with psycopg.connect(own_postgres.dsn()) as connection:
                stored = [row[0] for row in connection.execute("SELECT id FROM steps ORDER BY id")]
            messages = heard(tail, stored[-1])
    finally:
        process.__exit__(None, None, None)
    changes = [message for message in messages if "op" in message]
    assert [message for message in messages if message.get("type") == "resync"] == []
    assert [change["new"]["id"] for change in changes] == stored
    ids = [change["id"] for change in changes]
    assert ids == sorted(set(ids))


def test_a_client_away_for_longer_than_the_window_is_told_to_resync(own_postgres: EmbeddedPostgres) -> None:
    arguments = ("--dsn", own_postgres.dsn(), "--port", 0, "--replay-window-bytes", "10kB")
    with Process("serve", *arguments) as process:
        url = process.until_ready()["events"].removesuffix("/sse")
        with Process("tail", url, "steps", "--json") as tail:
            position = tail.message(lambda message: message.get("type") == "subscribed")["position"]
        with psycopg.connect(own_postgres.dsn(), autocommit=True) as connection:
            for number in range(1, 101):
                connection.execute("INSERT INTO steps VALUES (%s, repeat('x', 500))", (number,))
            with Process("tail", url, "steps", "--json", "--from", position) as tail:
                resync = tail.message(lambda message: message.get("type") == "resync")
                assert resync["reason"] == "log_expired"
                connection.execute("INSERT INTO steps VALUES (1000, 'after')")
                assert tail.change()["new"]["id"] == 1000


def test_a_transaction_over_the_bound_is_answered_by_a_resync_in_bounded_memory(
    own_postgres: EmbeddedPostgres,
) -> None:
    arguments = ("--dsn", own_postgres.dsn(), "--port", 0, "--max-transaction-bytes", "8MiB")
    with Process("serve", *arguments) as process:
        url = process.until_ready()["events"].removesuffix("/sse")
        with Process("tail", url, "steps", "--json") as tail:
            tail.message(lambda message: message.get("type") == "subscribed")
            with psycopg.connect(own_postgres.dsn(), autocommit=True) as connection:
                connection.execute("INSERT INTO steps SELECT n, 'step' FROM generate_series(1, 300000) n")
                connection.execute("INSERT INTO steps VALUES (1000001, 'after')")
            assert (
                tail.message(lambda message: message.get("type") == "resync")["reason"]
                == "transaction_too_large"
            )
            assert tail.change()["new"]["id"] == 1_000_001
        with Path(f"/proc/{process.pid}/status").open() as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        assert peak < 200_000, f"{peak} kB"


def test_a_client_that_was_away_resumes_over_a_deploy(own_postgres: EmbeddedPostgres) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with serve(own_postgres.dsn(), port) as process:
        process.until_ready()
        with Process("tail", url, "steps", "--json") as tail:
            position = tail.message(lambda message: message.get("type") == "subscribed")["position"]
        with (
            Process("tail", url, "steps", "--json") as witness,
            psycopg.connect(own_postgres.dsn(), autocommit=True) as connection,
        ):
            witness.message(lambda message: message.get("type") == "subscribed")
            for number in range(1, 51):
                connection.execute("INSERT INTO steps VALUES (%s, 'before')", (number,))
            assert [witness.change()["new"]["id"] for _ in range(50)] == list(range(1, 51))
            row = connection.execute("SELECT pg_current_wal_lsn()").fetchone()
            reported = "SELECT coalesce(max(write_lsn), '0/0') >= %s FROM pg_stat_replication"
            eventually(lambda: connection.execute(reported, row).fetchone() == (True,), bool)
        assert process.end(signal.SIGTERM) == 0
    with serve(own_postgres.dsn(), port) as process:
        process.until_ready()
        with Process("tail", url, "steps", "--json", "--from", position) as tail:
            messages = heard(tail, 50)
    assert [message["new"]["id"] for message in messages if "op" in message] == list(range(1, 51))
    assert not [message for message in messages if message.get("type") == "resync"]
