"""A mutation that is sent twice is done once, whatever breaks off in between."""

from __future__ import annotations

import asyncio
import threading
import uuid

import asyncpg
import psycopg
import pytest
import sqlalchemy
from tests.contrib.conftest import Listener

from rowcast.capture.install import install, uninstall
from rowcast.client.client import connect
from rowcast.contrib.idempotency import purge, purge_async, run_once, status, status_async
from rowcast.errors import ConfigurationError
from rowcast.server import Rowcast
from rowcast.settings import Settings
from rowcast.testing.server import running


class Counter:
    """Work that can be counted."""

    def __init__(self, result: object = None) -> None:
        self.runs = 0
        self.result = result

    def __call__(self) -> object:
        self.runs += 1
        return self.result

    async def later(self) -> object:
        return self()


def test_a_retry_gets_the_first_outcome(database: str) -> None:
    work = Counter({"id": 7, "names": ["é", None]})
    for _ in range(3):
        with psycopg.connect(database) as connection:
            assert run_once(connection, "m-1", work) == {"id": 7, "names": ["é", None]}
    assert work.runs == 1


async def test_over_async_connections_and_sqlalchemy(database: str) -> None:
    work = Counter(5)
    async with await psycopg.AsyncConnection.connect(database) as first:
        assert await run_once(first, "m-1", work.later) == 5
    second = await asyncpg.connect(database)
    async with second.transaction():
        assert await run_once(second, "m-1", work.later) == 5
    await second.close()
    engine = sqlalchemy.create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as third:
        assert run_once(third, "m-1", work) == 5
    engine.dispose()
    assert work.runs == 1


def test_without_an_id_it_simply_runs(database: str) -> None:
    work = Counter()
    with psycopg.connect(database) as connection:
        run_once(connection, None, work)
        run_once(connection, None, work)
    assert work.runs == 2


def test_what_is_rolled_back_runs_again(database: str) -> None:
    work = Counter()
    with psycopg.connect(database) as connection:
        run_once(connection, "m-1", work)
        connection.rollback()
        run_once(connection, "m-1", work)
    assert work.runs == 2


def test_what_fails_is_not_remembered_even_if_its_claim_was_committed(database: str) -> None:
    """A connection in autocommit commits the claim by itself; the retry must run all the same."""

    def fail() -> None:
        raise RuntimeError("half way")

    work = Counter("done")
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(RuntimeError):
            run_once(connection, "m-1", fail)
        assert status(connection, "m-1") == "unknown"
        assert run_once(connection, "m-1", work) == "done"
        assert run_once(connection, "m-1", work) == "done"
        assert status(connection, "m-1") == "committed"
    assert work.runs == 1


def test_of_two_at_the_same_time_one_runs_and_both_get_its_outcome(database: str) -> None:
    outcomes: list[object] = []
    entered, leave = threading.Event(), threading.Event()
    runs: list[str] = []

    def slow() -> str:
        runs.append("run")
        entered.set()
        leave.wait(10)
        return "done"

    def request() -> None:
        with psycopg.connect(database) as connection:
            outcomes.append(run_once(connection, "m-1", slow))

    first = threading.Thread(target=request)
    first.start()
    assert entered.wait(10)
    second = threading.Thread(target=request)
    second.start()
    with psycopg.connect(database, autocommit=True) as observer:
        while not observer.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
            pass
    assert outcomes == []
    leave.set()
    first.join(10)
    second.join(10)
    assert (runs, outcomes) == (["run"], ["done", "done"])


def test_an_outcome_that_is_no_json_says_so(database: str) -> None:
    with (
        psycopg.connect(database) as connection,
        pytest.raises(ConfigurationError, match="as JSON, and this cannot be"),
    ):
        run_once(connection, "m-1", object)


async def test_old_ones_are_forgotten(database: str, connection: psycopg.Connection) -> None:
    for number in range(3):
        run_once(connection, f"m-{number}", Counter())
    connection.execute("UPDATE rowcast.mutation SET created_at = now() - interval '1 hour' WHERE id <> 'm-2'")
    assert purge(connection, older_than_seconds=7200) == 0
    assert purge(connection, older_than_seconds=1800) == 2
    assert [status(connection, f"m-{number}") for number in range(3)] == ["unknown", "unknown", "committed"]
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as asynchronous:
        assert await status_async(asynchronous, "m-2") == "committed"
        assert await purge_async(asynchronous) == 0


def test_an_application_role_needs_no_rights_and_may_not_look_at_others(
    database: str, connection: psycopg.Connection
) -> None:
    role = f"app_{uuid.uuid4().hex[:8]}"
    connection.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
    try:
        with psycopg.connect(database, user=role, autocommit=True) as app:
            assert run_once(app, "m-1", Counter(1)) == 1
            assert status(app, "m-1") == "committed"
            for forbidden in ("SELECT * FROM rowcast.mutation", "SELECT rowcast.purge_mutations()"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    app.execute(forbidden.encode())
    finally:
        connection.execute(f'DROP ROLE "{role}"'.encode())


async def test_the_confirm_comes_with_it_and_again_with_a_retry(database: str, listener: Listener) -> None:
    for _ in range(2):
        with psycopg.connect(database) as connection:
            run_once(connection, "m-1", Counter())
    await listener.hears("m-1", "m-1")


def test_the_objects_go_without_a_trace(database: str, connection: psycopg.Connection) -> None:
    uninstall(database)
    assert connection.execute("SELECT FROM pg_namespace WHERE nspname = 'rowcast'").fetchall() == []
    install(database, ["projects"])
    run_once(connection, "m-1", Counter())


async def test_a_client_whose_answers_are_lost_changes_the_database_once(
    database: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: optimistic row, two lost answers, the same id, one commit, no flicker."""
    monkeypatch.setattr("rowcast.client.backoff.STEPS_SECONDS", (0.02,))
    connection.execute("CREATE TABLE log (at timestamptz)")
    answers_to_lose = 2
    lost = 0

    async def rename(mutation: str) -> str:
        nonlocal lost

        async def do() -> str:
            await mine.execute("UPDATE projects SET name = 'new' WHERE id = 1")
            await mine.execute("INSERT INTO log VALUES (now())")
            return "renamed"

        async with await psycopg.AsyncConnection.connect(database) as mine:
            outcome = await run_once(mine, mutation, do)
        await asyncio.sleep(0)
        if lost < answers_to_lose:
            lost += 1
            raise ConnectionResetError("the answer was lost")
        return outcome

    settings = Settings(database_url=database, port=0)
    async with (
        running(Rowcast(settings)) as addresses,
        connect(addresses.http) as rc,
        rc.live("projects") as projects,
    ):
        shown: list[object] = []
        projects.on_change(lambda _: shown.append(projects[0]["name"]))
        mutation = projects.mutate(projects.updating(1, name="new"), send=rename)
        await mutation
        assert shown == ["new"]
    assert connection.execute("SELECT count(*) FROM log").fetchone() == (1,)
