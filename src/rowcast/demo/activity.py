"""Other people's work, made up: jobs progress, results arrive, offers are scored, layers are redrawn.

The one rule of this room: each step is one transaction such as an application would make, and the tables stay
within bounds however long it runs.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

import psycopg
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

from rowcast.demo import data

Connection: TypeAlias = psycopg.AsyncConnection[DictRow]

DEFAULT_RATE: Final = 4.0  # transactions a second: lively, and still readable
MAXIMUM_RATE: Final = 20.0  # faster than this, people see noise
_AWAY_SECONDS: Final = 1.0  # between tries while the database is away
_WORK_SECONDS: Final = 0.35  # between two steps of a job that somebody started: done in about ten seconds
# A screenful of each: the oldest rows go when there are more.
_MOST_JOBS: Final = 14
_MOST_MATCHES: Final = 16
_MOST_RUNNING: Final = 3

_logger = logging.getLogger(__name__)


class Activity:
    """The generator, and the workers of jobs that somebody started.

    Args:
        pool: The application's connections.
        seed: For the same sequence of steps at every run; None for a new one.

    `start()` and `stop()` belong to the application's lifespan. It starts switched off.
    """

    def __init__(self, pool: AsyncConnectionPool[Connection], *, seed: int | None = None) -> None:
        self.rate = DEFAULT_RATE
        self._pool = pool
        self._random = random.Random(seed)  # noqa: S311 - sample data, not secrets
        self._switched_on = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> bool:
        return self._switched_on.is_set()

    def set(self, *, running: bool, rate: float) -> None:
        """Switch the generator; `rate` is in transactions a second."""
        self.rate = rate
        if running:
            self._switched_on.set()
        else:
            self._switched_on.clear()

    def start(self) -> None:
        self._keep(self._generate())

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def free_worker(self) -> str:
        return self._random.choice(data.WORKERS)

    def work_on(self, job: int) -> None:
        """Carry a started job through to its end, whether or not the generator is on."""
        self._keep(self._work(job))

    async def step(self) -> None:
        """One transaction of somebody's work."""
        steps: tuple[tuple[int, Callable[[Connection], Awaitable[object]]], ...] = (
            (11, self._advance_any_job),
            (2, self._begin_job),
            (1, self._queue_job),
            (3, self._score_match),
            (1, self._offer_match),
            (4, self._redraw_layer),
            (1, self._review),
        )
        (chosen,) = self._random.choices([step for _, step in steps], [weight for weight, _ in steps])
        async with self._pool.connection() as connection:
            await chosen(connection)

    def _keep(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _generate(self) -> None:
        while True:
            await self._switched_on.wait()
            # Uneven, as people are, but never a long silence that looks like a fault.
            await asyncio.sleep(min(self._random.expovariate(self.rate), 2.5 / self.rate))
            if self.running:
                await self._try(self.step)

    async def _work(self, job: int) -> None:
        unfinished = True

        async def advance() -> None:
            nonlocal unfinished
            async with self._pool.connection() as connection:
                unfinished = await self._advance_job(connection, job)

        while unfinished:
            await asyncio.sleep(_WORK_SECONDS)
            await self._try(advance)

    async def _try(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except (
            psycopg.Error
        ) as error:  # it is away, or somebody changed the tables: others' work goes on later
            _logger.info("the demo's activity waits for the database: %s", error)
            await asyncio.sleep(_AWAY_SECONDS)

    async def _advance_any_job(self, connection: Connection) -> None:
        running = await _pick(connection, "SELECT id FROM extraction_jobs WHERE status = 'running'")
        if running is None:
            await self._begin_job(connection)
        else:
            await self._advance_job(connection, running["id"])

    async def _advance_job(self, connection: Connection, job: int) -> bool:
        """One step of a job, often with a result in the same transaction; False once it does not run any more."""
        found = await connection.execute(
            "UPDATE extraction_jobs SET progress = least(progress + %(by)s, 100),"
            " status = CASE WHEN progress + %(by)s >= 100 THEN 'completed' ELSE status END"
            " WHERE id = %(job)s AND status = 'running' RETURNING status, pages, project_id",
            {"by": self._random.randint(2, 6), "job": job},
        )
        row = await found.fetchone()
        if row is None:
            return False
        if self._random.random() < 0.2:
            field, values = self._random.choice(data.MORE_FINDINGS)
            value = self._random.choice(values)
            await connection.execute(
                "INSERT INTO extraction_results (job_id, field, value, extracted_value, page, confidence)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (job, field, value, value, self._random.randint(1, row["pages"]), self._confidence()),
            )
        if row["status"] == "completed":
            await connection.execute(
                "UPDATE projects SET documents = documents + 1 WHERE id = %s", (row["project_id"],)
            )
        return bool(row["status"] == "running")

    async def _begin_job(self, connection: Connection) -> None:
        await connection.execute(
            "UPDATE extraction_jobs SET status = 'running', progress = 0, worker = %s WHERE id ="
            " (SELECT id FROM extraction_jobs WHERE status = 'queued' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)"
            " AND (SELECT count(*) FROM extraction_jobs WHERE status = 'running') < %s",
            (self.free_worker(), _MOST_RUNNING),
        )

    async def _queue_job(self, connection: Connection) -> None:
        await connection.execute(
            "DELETE FROM extraction_jobs WHERE id IN (SELECT id FROM extraction_jobs"
            " WHERE status NOT IN ('queued', 'running') ORDER BY id LIMIT"
            " greatest(0, (SELECT count(*) FROM extraction_jobs) - %s))",
            (_MOST_JOBS - 1,),
        )
        await connection.execute(
            "INSERT INTO extraction_jobs (project_id, document, pages)"
            " SELECT id, %s, %s FROM projects"
            " WHERE (SELECT count(*) FROM extraction_jobs WHERE status = 'queued') < 3 ORDER BY random() LIMIT 1",
            (self._random.choice(data.MORE_DOCUMENTS), self._random.randint(2, 60)),
        )

    async def _score_match(self, connection: Connection) -> None:
        match = await _pick(connection, "SELECT id FROM supplier_matches WHERE status = 'proposed'")
        if match is None:
            await self._offer_match(connection)
            return
        await connection.execute(
            "UPDATE supplier_matches SET score = greatest(40, least(99.5, score + %s)) WHERE id = %s",
            (round(self._random.uniform(-3, 3.5), 1), match["id"]),
        )

    async def _offer_match(self, connection: Connection) -> None:
        await connection.execute(
            "DELETE FROM supplier_matches WHERE id IN (SELECT id FROM supplier_matches ORDER BY id LIMIT"
            " greatest(0, (SELECT count(*) FROM supplier_matches) - %s))",
            (_MOST_MATCHES - 1,),
        )
        item, supplier, price, lead_time_days = self._random.choice(data.MORE_ITEMS)
        await connection.execute(
            "INSERT INTO supplier_matches (project_id, item, supplier, score, unit_price, lead_time_days)"
            " SELECT id, %s, %s, %s, %s, %s FROM projects ORDER BY random() LIMIT 1",
            (
                *(item, supplier, round(self._random.uniform(58, 96), 1)),
                *(round(price * self._random.uniform(0.9, 1.15), 2), lead_time_days),
            ),
        )

    async def _redraw_layer(self, connection: Connection) -> None:
        await connection.execute(
            "UPDATE data_layers SET features = greatest(0, features + %s), version = version + 1 WHERE id ="
            " (SELECT id FROM data_layers WHERE geometry <> 'raster' ORDER BY random() LIMIT 1)",
            (self._random.randint(-4, 12),),
        )

    async def _review(self, connection: Connection) -> None:
        await connection.execute(
            "UPDATE extraction_results SET status = 'accepted' WHERE id ="
            " (SELECT id FROM extraction_results WHERE status = 'pending' AND confidence > 0.96 ORDER BY id LIMIT 1)"
        )

    def _confidence(self) -> float:
        return round(min(0.995, self._random.betavariate(9, 1.8)), 3)


async def _pick(connection: Connection, statement: str) -> DictRow | None:
    return await (await connection.execute(f"{statement} ORDER BY random() LIMIT 1".encode())).fetchone()
