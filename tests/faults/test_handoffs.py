"""A small, seeded part of `make handoffs`."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from tests.faults.crowd import BusyWriter
from tests.faults.handoffs import LOOK_BACK, OURS, Handoffs, Wish
from tests.faults.naive import NAIVE
from tests.faults.oracle import Shape
from tests.faults.stage import Capture, Stage
from tests.faults.writers import Gate

pytestmark = pytest.mark.process


@pytest.mark.parametrize(("capture", "standby", "count"), [("wal", True, 40), ("outbox", False, 20)])
async def test_snapshots_under_writers_are_the_query_at_their_position(
    capture: Capture,
    standby: bool,  # noqa: FBT001 - by name, from the decorator
    count: int,
) -> None:
    async with Handoffs(capture, "test", standby=standby, writers=16) as handoffs:
        tally = await handoffs.run(count)
    assert tally.failures == []
    assert tally.taken[f"{OURS}, {capture}"] == count
    assert tally.wrong[LOOK_BACK] == 0, "the judge is wrong"


async def test_a_commit_that_is_told_before_it_is_visible_is_lost_by_every_naive_hand_off() -> None:
    async with Handoffs("wal", "held", standby=False) as handoffs:
        stage = handoffs.stage
        table = stage.tables[0]
        await stage.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        await stage.execute("SELECT pg_reload_conf()")
        committing = await insert_until_one_hangs(stage)
        for way in ("full", "plain", "http"):
            await handoffs.take(Wish(table, Shape(table.name, "", None), {}).renewed(len(way)), way)
        await stage.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await stage.execute("SELECT pg_reload_conf()")
        await committing
        await handoffs.compare()
        tally = handoffs.tally
    assert tally.failures == []
    assert tally.taken == dict.fromkeys((f"{OURS}, wal", LOOK_BACK, *NAIVE), 3)
    assert +tally.wrong == dict.fromkeys(NAIVE, 3)


async def insert_until_one_hangs(stage: Stage) -> asyncio.Task[None]:
    """Insert rows; the task of the one whose commit waits for the standby. PostgreSQL takes a moment to begin that."""
    writer = BusyWriter(stage.dsn, stage.tables, "held", Gate(1))

    def insert() -> None:
        with psycopg.connect(stage.dsn, autocommit=True) as connection:
            writer.insert(connection, stage.tables[0])

    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with asyncio.timeout(30):
        while True:
            inserting = asyncio.create_task(asyncio.to_thread(insert))
            while not inserting.done():
                if await stage.execute(waiting) == [(1,)]:
                    return inserting
            await inserting
