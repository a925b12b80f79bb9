"""The user's own API in this story: FastAPI and plain SQL, as it stood before anybody thought of realtime.

The one rule of this room: a write tells nobody. It changes its rows in one transaction and, where the request
names its mutation in the header `Rowcast-Mutation`, says so with `SELECT rowcast.confirm(...)` in that same
transaction; every screen, the sender's included, learns of it from PostgreSQL's own log.

A mutation id is also what makes a request safe to send again: one that was carried out before is only confirmed
anew. Errors are JSON, `{"error": "a sentence"}`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Literal, LiteralString, TypeAlias

import psycopg
from fastapi import FastAPI, Header, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field, StringConstraints
from starlette.exceptions import HTTPException as StarletteHTTPException

from rowcast.demo.activity import MAXIMUM_RATE, Activity

Pool: TypeAlias = AsyncConnectionPool[psycopg.AsyncConnection[DictRow]]

# Two windows, the generator and a few workers at a time; embedded PostgreSQL has connections left for users.
_POOL_SIZE: Final = 6
# A page that waits longer than this for an answer would rather hear that the database is away.
_POOL_TIMEOUT_SECONDS: Final = 5.0

Text: TypeAlias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120)]
LongText: TypeAlias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Key: TypeAlias = Annotated[int, Path(ge=1, le=2**63 - 1)]  # bigint
MutationId: TypeAlias = Annotated[str | None, Header(alias="Rowcast-Mutation", min_length=1, max_length=200)]


class NewProject(BaseModel):
    name: Text
    client: Text = "Internal"


class ProjectPatch(BaseModel):
    name: Text


class ResultPatch(BaseModel):
    value: LongText


class LayerPatch(BaseModel):
    visible: bool


class ActivitySetting(BaseModel):
    """Whether the generator runs, and how many transactions a second it makes."""

    running: bool
    rate: float = Field(default=4.0, ge=0.5, le=MAXIMUM_RATE)


class Answered(Exception):  # noqa: N818 - not an error
    """The mutation was carried out by an earlier request, and is confirmed once more."""


def create_pool(dsn: str) -> Pool:
    """A pool that is opened by the application's lifespan and outlives restarts of the database."""
    return Pool(
        dsn,
        min_size=1,
        max_size=_POOL_SIZE,
        timeout=_POOL_TIMEOUT_SECONDS,
        kwargs={"row_factory": dict_row},
        check=Pool.check_connection,
        open=False,
    )


def create_api(pool: Pool, activity: Activity) -> FastAPI:
    """The API as an application of its own, to be mounted at /api."""
    api = FastAPI(title="Rowcast demo: the application's API", version="1")
    _add_error_handlers(api)

    @asynccontextmanager
    async def write(mutation: str | None) -> AsyncGenerator[psycopg.AsyncConnection[DictRow]]:
        async with pool.connection() as connection:  # one transaction: committed at the end of the block
            if mutation is None or await _begin_mutation(connection, mutation):
                yield connection
                return
        raise Answered

    async def read(statement: LiteralString) -> Sequence[DictRow]:
        async with pool.connection() as connection:
            return await (await connection.execute(statement)).fetchall()

    @api.get("/projects")
    async def list_projects() -> Sequence[DictRow]:
        return await read("SELECT * FROM projects ORDER BY id")

    @api.post("/projects", status_code=201)
    async def create_project(body: NewProject, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "INSERT INTO projects (code, name, client) VALUES"
                " ('NEW-' || (SELECT coalesce(max(id), 0) + 1 FROM projects), %s, %s) RETURNING *",
                (body.name, body.client),
                missing="",
            )

    @api.patch("/projects/{key}")
    async def rename_project(key: Key, body: ProjectPatch, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "UPDATE projects SET name = %s WHERE id = %s RETURNING *",
                (body.name, key),
                missing=f"There is no project {key}: somebody deleted it.",
            )

    @api.delete("/projects/{key}")
    async def delete_project(key: Key, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "DELETE FROM projects WHERE id = %s RETURNING *",
                (key,),
                missing=f"There is no project {key}: somebody deleted it before you.",
            )

    @api.get("/jobs")
    async def list_jobs() -> Sequence[DictRow]:
        return await read("SELECT * FROM extraction_jobs ORDER BY id")

    @api.post("/jobs/{key}/start")
    async def start_job(key: Key, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            job = await _locked(
                connection, "SELECT * FROM extraction_jobs WHERE id = %s FOR UPDATE", key, "job"
            )
            if job["status"] == "running":
                raise HTTPException(409, f"Job {key} is running already.")
            started = await _one(
                connection,
                "UPDATE extraction_jobs SET status = 'running', progress = 0, worker = %s WHERE id = %s RETURNING *",
                (activity.free_worker(), key),
                missing="",
            )
        activity.work_on(key)
        return started

    @api.post("/jobs/{key}/cancel")
    async def cancel_job(key: Key, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            job = await _locked(
                connection, "SELECT * FROM extraction_jobs WHERE id = %s FOR UPDATE", key, "job"
            )
            if job["status"] not in {"queued", "running"}:
                raise HTTPException(
                    409, f"Job {key} is {job['status']}: only a queued or running job can be cancelled."
                )
            return await _one(
                connection,
                "UPDATE extraction_jobs SET status = 'cancelled' WHERE id = %s RETURNING *",
                (key,),
                missing="",
            )

    @api.get("/results")
    async def list_results() -> Sequence[DictRow]:
        return await read("SELECT * FROM extraction_results ORDER BY id")

    @api.patch("/results/{key}")
    async def correct_result(key: Key, body: ResultPatch, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "UPDATE extraction_results SET value = %s, status = 'corrected' WHERE id = %s RETURNING *",
                (body.value, key),
                missing=f"There is no result {key}: its job was removed.",
            )

    @api.post("/results/{key}/accept")
    async def accept_result(key: Key, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "UPDATE extraction_results SET status = 'accepted' WHERE id = %s RETURNING *",
                (key,),
                missing=f"There is no result {key}: its job was removed.",
            )

    @api.post("/results/{key}/undo")
    async def undo_result(key: Key, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "UPDATE extraction_results SET status = 'pending', value = extracted_value WHERE id = %s RETURNING *",
                (key,),
                missing=f"There is no result {key}: its job was removed.",
            )

    @api.get("/matches")
    async def list_matches() -> Sequence[DictRow]:
        return await read("SELECT * FROM supplier_matches ORDER BY id")

    @api.post("/matches/{key}/{decision}")
    async def decide_match(
        key: Key, decision: Literal["confirm", "reject", "undo"], mutation: MutationId = None
    ) -> DictRow:
        status = {"confirm": "confirmed", "reject": "rejected", "undo": "proposed"}[decision]
        async with write(mutation) as connection:
            return await _one(
                connection,
                "UPDATE supplier_matches SET status = %s WHERE id = %s RETURNING *",
                (status, key),
                missing=f"There is no supplier match {key}: it was withdrawn.",
            )

    @api.get("/layers")
    async def list_layers() -> Sequence[DictRow]:
        return await read("SELECT * FROM data_layers ORDER BY id")

    @api.patch("/layers/{key}")
    async def show_layer(key: Key, body: LayerPatch, mutation: MutationId = None) -> DictRow:
        async with write(mutation) as connection:
            return await _one(
                connection,
                "UPDATE data_layers SET visible = %s WHERE id = %s RETURNING *",
                (body.visible, key),
                missing=f"There is no layer {key}: its project was deleted.",
            )

    @api.get("/activity")
    async def activity_setting() -> ActivitySetting:
        return ActivitySetting(running=activity.running, rate=activity.rate)

    @api.post("/activity")
    async def set_activity(body: ActivitySetting) -> ActivitySetting:
        activity.set(running=body.running, rate=body.rate)
        return body

    return api


async def _begin_mutation(connection: psycopg.AsyncConnection[DictRow], mutation: str) -> bool:
    """Confirm the mutation with this transaction; False if an earlier transaction carried it out."""
    await connection.execute("SELECT rowcast.confirm(%s)", (mutation,))
    remembered = await connection.execute(
        "INSERT INTO handled_mutations (mutation_id) VALUES (%s) ON CONFLICT DO NOTHING", (mutation,)
    )
    return remembered.rowcount == 1


async def _one(
    connection: psycopg.AsyncConnection[DictRow],
    statement: LiteralString,
    parameters: Sequence[object],
    *,
    missing: str,
) -> DictRow:
    row = await (await connection.execute(statement, parameters)).fetchone()
    if row is None:
        raise HTTPException(404, missing)
    return row


async def _locked(
    connection: psycopg.AsyncConnection[DictRow], statement: LiteralString, key: int, what: str
) -> DictRow:
    return await _one(
        connection, statement, (key,), missing=f"There is no {what} {key}: its project was deleted."
    )


def _add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(StarletteHTTPException)
    async def failed(_: Request, error: StarletteHTTPException) -> JSONResponse:
        sentence = "There is nothing at this address." if error.detail == "Not Found" else error.detail
        return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": " ".join(map(_sentence, error.errors()))}, 422)

    @api.exception_handler(psycopg.DataError)
    async def refused(_: Request, error: psycopg.DataError) -> JSONResponse:
        return JSONResponse(
            {"error": f"PostgreSQL cannot store this value: {str(error).splitlines()[0]}."}, 422
        )

    @api.exception_handler(psycopg.OperationalError)
    async def away(_: Request, __: psycopg.OperationalError) -> JSONResponse:
        return JSONResponse({"error": "The database does not answer. Try again in a moment."}, 503)

    @api.exception_handler(Answered)
    async def answered(_: Request, __: Answered) -> JSONResponse:
        return JSONResponse({"repeated": True})


def _sentence(problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"][1:]) or "the request"
    return f"{place}: {problem['msg']}."
