"""The demo's API against a real PostgreSQL: what it writes, what it refuses, and what it says in the log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import psycopg
import pytest

from rowcast.capture.install import install
from rowcast.demo import TABLES, create_application, prepare
from rowcast.demo.activity import Activity
from rowcast.demo.api import create_api, create_pool
from rowcast.server import Rowcast


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API over a prepared database."""
    await prepare(dsn)
    await asyncio.to_thread(install, dsn, TABLES)
    async with create_pool(dsn) as pool:
        activity = Activity(pool)
        activity.start()
        transport = httpx.ASGITransport(create_api(pool, activity))
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            yield client
        await activity.stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another connection does."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - PostgreSQL cannot set an event of ours
            await asyncio.sleep(0.02)


def one(connection: psycopg.Connection, statement: str) -> Any:
    row = connection.execute(statement.encode()).fetchone()
    return row[0] if row else None


def state(connection: psycopg.Connection) -> list[Any]:
    return [connection.execute(f"SELECT * FROM {table} ORDER BY id".encode()).fetchall() for table in TABLES]


async def test_preparing_twice_changes_nothing(dsn: str, connection: psycopg.Connection) -> None:
    await asyncio.gather(prepare(dsn), prepare(dsn))
    before = state(connection)
    await prepare(dsn)
    assert state(connection) == before
    assert all(before), "every table has sample rows"


async def test_every_list_is_what_the_table_holds(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    for path, table in zip(("projects", "jobs", "results", "matches", "layers"), TABLES, strict=True):
        rows = (await api.get(f"/{path}")).json()
        assert [row["id"] for row in rows] == [
            key for (key,) in connection.execute(f"SELECT id FROM {table} ORDER BY id".encode())
        ]
    confidence = (await api.get("/results")).json()[0]["confidence"]
    assert float(confidence) == 0.982


async def test_a_project_is_created_renamed_and_deleted_with_everything_below_it(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    created = await api.post("/projects", json={"name": "  <b>\"Ærø\" 'ferry' 🚢</b> "})
    assert created.status_code == 201
    assert created.json()["name"] == "<b>\"Ærø\" 'ferry' 🚢</b>"
    key = created.json()["id"]

    renamed = await api.patch(f"/projects/{key}", json={"name": "Ærø"})
    assert renamed.json()["name"] == "Ærø"
    assert one(connection, f"SELECT name FROM projects WHERE id = {key}") == "Ærø"

    connection.execute(
        b"INSERT INTO extraction_jobs (project_id, document, pages) VALUES (%s, 'a.pdf', 1)", (key,)
    )
    assert (await api.delete(f"/projects/{key}")).status_code == 200
    assert one(connection, f"SELECT count(*) FROM extraction_jobs WHERE project_id = {key}") == 0
    again = await api.delete(f"/projects/{key}")
    assert (again.status_code, again.json()) == (
        404,
        {"error": f"There is no project {key}: somebody deleted it before you."},
    )


async def test_a_result_is_accepted_corrected_and_undone(api: httpx.AsyncClient) -> None:
    before = next(row for row in (await api.get("/results")).json() if row["status"] == "pending")
    path = f"/results/{before['id']}"
    assert (await api.post(f"{path}/accept")).json()["status"] == "accepted"
    corrected = (await api.patch(path, json={"value": "56 kW"})).json()
    assert (corrected["status"], corrected["value"]) == ("corrected", "56 kW")
    undone = (await api.post(f"{path}/undo")).json()
    assert (undone["status"], undone["value"]) == ("pending", before["value"])


async def test_a_match_is_decided_and_a_layer_is_hidden(api: httpx.AsyncClient) -> None:
    for decision, status in (("confirm", "confirmed"), ("reject", "rejected"), ("undo", "proposed")):
        assert (await api.post(f"/matches/2/{decision}")).json()["status"] == status
    assert (await api.patch("/layers/1", json={"visible": False})).json()["visible"] is False


async def test_a_started_job_is_worked_on_to_its_end_and_a_cancelled_one_stops(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    key = one(connection, "SELECT id FROM extraction_jobs WHERE status = 'failed'")
    started = (await api.post(f"/jobs/{key}/start")).json()
    assert (started["status"], started["progress"]) == ("running", 0)
    assert (await api.post(f"/jobs/{key}/start")).json() == {"error": f"Job {key} is running already."}

    await until(lambda: one(connection, f"SELECT progress FROM extraction_jobs WHERE id = {key}"))
    assert (await api.post(f"/jobs/{key}/cancel")).json()["status"] == "cancelled"
    refused = await api.post(f"/jobs/{key}/cancel")
    assert refused.status_code == 409
    assert refused.json() == {
        "error": f"Job {key} is cancelled: only a queued or running job can be cancelled."
    }


async def test_a_write_confirms_its_mutation_in_its_own_transaction(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    connection.execute(b"SELECT pg_create_logical_replication_slot('watch', 'pgoutput')")
    await api.post("/results/3/accept", headers={"Rowcast-Mutation": "m-1"})
    await api.post("/results/999999/accept", headers={"Rowcast-Mutation": "m-2"})
    messages = connection.execute(
        b"SELECT xid::text, data FROM pg_logical_slot_peek_binary_changes('watch', NULL, NULL,"
        b" 'proto_version', '1', 'publication_names', 'rowcast', 'messages', 'true')"
    ).fetchall()
    (confirming,) = [xid for xid, message in messages if b"confirm m-" in message]
    assert any(b"confirm m-1" in message for _, message in messages)
    assert any(xid == confirming and message[:1] == b"U" for xid, message in messages)


async def test_a_request_that_is_sent_again_runs_once(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    headers = {"Rowcast-Mutation": "m-3"}
    answers = await asyncio.gather(
        *(api.post("/projects", json={"name": "Once"}, headers=headers) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert one(connection, "SELECT count(*) FROM projects WHERE name = 'Once'") == 1

    refused = {"Rowcast-Mutation": "m-4"}
    assert (await api.delete("/projects/999999", headers=refused)).status_code == 404
    assert (await api.delete("/projects/999999", headers=refused)).status_code == 404, (
        "a refusal is not remembered"
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/projects", {"name": "   "}),
        ("POST", "/projects", {"name": "x" * 121}),
        ("POST", "/projects", {"name": "nul \x00 inside"}),
        ("POST", "/projects", {}),
        ("PATCH", "/results/1", {"value": ""}),
        ("PATCH", "/results/1", {"value": 7}),
        ("PATCH", "/projects/99999999999999999999", {"name": "far"}),
        ("PATCH", "/projects/one", {"name": "far"}),
        ("POST", "/matches/1/marry", None),
        ("PATCH", "/layers/1", {"visible": "perhaps"}),
        ("POST", "/activity", {"running": True, "rate": 1e9}),
        ("GET", "/nothing", None),
        ("PUT", "/projects/1", None),
    ],
)
async def test_what_cannot_be_done_is_answered_by_a_sentence(
    api: httpx.AsyncClient, connection: psycopg.Connection, method: str, path: str, body: Any
) -> None:
    before = state(connection)
    answer = await api.request(method, path, json=body)
    assert answer.status_code in {404, 405, 422}
    assert list(answer.json()) == ["error"]
    assert re.search(r"\w.*\w", answer.json()["error"])
    assert state(connection) == before


async def test_a_text_that_is_no_unicode_is_refused(api: httpx.AsyncClient) -> None:
    answer = await api.post(
        "/projects", content=b'{"name": "\\ud800"}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert "error" in answer.json()


async def test_a_database_that_is_away_is_said_so_and_found_again(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    await api.get("/projects")
    connection.execute(
        b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        b" WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    assert (await api.get("/projects")).status_code == 200


async def test_the_activity_switch_is_remembered_and_makes_changes(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    assert (await api.get("/activity")).json() == {"running": False, "rate": 4.0}
    before = state(connection)
    await api.post("/activity", json={"running": True, "rate": 20})
    assert (await api.get("/activity")).json() == {"running": True, "rate": 20.0}
    await until(lambda: state(connection) != before)
    await api.post("/activity", json={"running": False})
    assert (await api.get("/activity")).json()["running"] is False


async def test_activity_makes_every_kind_of_change_within_bounds(
    dsn: str, connection: psycopg.Connection
) -> None:
    await prepare(dsn)
    connection.execute(b"CREATE TABLE seen (what text PRIMARY KEY)")
    connection.execute(
        b"CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        b" INSERT INTO seen VALUES (TG_OP || ' ' || TG_TABLE_NAME) ON CONFLICT DO NOTHING; RETURN NULL; END $$"
    )
    for table in TABLES:
        connection.execute(
            f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION note()".encode()
        )
    async with create_pool(dsn) as pool:
        activity = Activity(pool, seed=7)
        for _ in range(1500):
            await activity.step()
    seen = {what for (what,) in connection.execute(b"SELECT what FROM seen")}
    assert {
        *("UPDATE projects", "INSERT extraction_jobs", "UPDATE extraction_jobs", "DELETE extraction_jobs"),
        *("INSERT extraction_results", "UPDATE extraction_results", "DELETE extraction_results"),
        *(
            "INSERT supplier_matches",
            "UPDATE supplier_matches",
            "DELETE supplier_matches",
            "UPDATE data_layers",
        ),
    } <= seen
    assert one(connection, "SELECT count(*) FROM extraction_jobs") <= 17
    assert one(connection, "SELECT count(*) FROM supplier_matches") <= 16
    assert one(connection, "SELECT count(*) FROM extraction_results") <= 200


async def test_activity_survives_whatever_people_do_to_its_tables(
    api: httpx.AsyncClient, connection: psycopg.Connection
) -> None:
    connection.execute(b"ALTER TABLE data_layers RENAME TO elsewhere")
    await api.post("/activity", json={"running": True, "rate": 20})
    connection.execute(b"DELETE FROM projects")
    connection.execute(b"ALTER TABLE elsewhere RENAME TO data_layers")
    created = (await api.post("/projects", json={"name": "A new beginning"})).json()
    await until(
        lambda: one(connection, f"SELECT count(*) FROM extraction_jobs WHERE project_id = {created['id']}")
    )


async def test_the_page_is_served_with_all_that_it_needs_and_asks_nobody_else(dsn: str) -> None:
    application = create_application(dsn, Rowcast(database_url=dsn))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://demo")
    wanted, served = ["/"], dict[str, str]()
    while wanted:
        path = wanted.pop()
        answer = await client.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["cache-control"] == "no-cache"
        served[path] = answer.text
        # "./" begins addresses relative to the page: files, and the two mounts that this test does not ask.
        named = {f"/{name}" for name in re.findall(r"""["']\./([\w-]+\.\w+)["']""", answer.text)}
        wanted += named - served.keys()
    assert {"/", "/app.js", "/store.js", "/style.css", "/icon.svg"} <= served.keys()
    for path, text in served.items():
        assert re.findall(r"https?://(?!www\.w3\.org/)[\w.]+", text) == [], path
        assert "innerHTML" not in text, path
