"""A small part of the campaign with fixed seeds, and whether the harness sees what it is there to see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from tests.faults.campaign import FailedError, make_plan, run_plan
from tests.faults.journal import Journal, WrongError
from tests.faults.oracle import JSONRow, Oracle
from tests.faults.schema import Filter, Table
from tests.faults.stage import Capture
from tests.faults.strict import StrictClient

# What takes no longer than a test may: no link that died in silence, which is found out after many seconds.
ACTS = {
    "sleep": 3,
    "wake": 5,
    "reload": 2,
    "cut": 4,
    "stall": 1,
    "drop_after": 2,
    "kill_server": 2,
    "kill_postgres": 1,
    "lose_place": 1,
    "terminate_walsender": 2,
    "terminate_snapshots": 2,
    "alter": 3,
}
# A machine may be as busy as it likes.
PATIENCE_SECONDS = 600.0


@pytest.mark.parametrize(
    ("seed", "capture"), [("one", "wal"), ("two", "wal"), ("three", "outbox"), ("four", "outbox")]
)
async def test_every_state_that_a_subscriber_shows_is_the_query_at_its_position(
    seed: str, capture: Capture
) -> None:
    plan = make_plan(seed, capture, 18, steps=2, acts=ACTS)
    report = await run_plan(plan, patience_seconds=PATIENCE_SECONDS)
    assert report.states > 0
    assert report.snapshots > 0


async def test_a_client_that_loses_one_change_fails_a_campaign_which_names_its_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received = StrictClient._receive
    lost: list[int] = []

    async def forgetful(self: StrictClient, link: Any, message: dict[str, Any]) -> None:
        shown = {
            each.shape
            for each in self.subscriptions
            if not each.journal.invalid
            and message.get("position", "") > max(each.start, each.journal.position)
        }
        told = [change for change in message.get("changes", ()) if change["shape"] in shown]
        if told and not lost:
            lost.append(message["txid"])
            message["changes"].remove(told[0])
        await received(self, link, message)

    monkeypatch.setattr(StrictClient, "_receive", forgetful)
    plan = make_plan("forgetful", "wal", 18, steps=1, acts={"reload": 1})
    with pytest.raises(FailedError, match="seed forgetful"):
        await run_plan(plan, patience_seconds=PATIENCE_SECONDS)
    assert lost


# A stream that somebody has thought up, next to a database in which it happened otherwise.

TABLE = Table("t", (("id", "integer"), ("org", "integer")), ("id",), full=True)
EPOCH = "00000000000000aa"
Frame = tuple[str, list[dict[str, Any]], int]


def put(row_id: int, org: int, operation: str = "INSERT", **more: Any) -> dict[str, Any]:
    return {"op": operation, "key": {"id": row_id}, "new": {"id": row_id, "org": org}, **more}


def drop(row_id: int) -> dict[str, Any]:
    return {"op": "DELETE", "key": {"id": row_id}, "old": {"id": row_id, "org": 1}}


@pytest.fixture
def oracle(dsn: str, connection: psycopg.Connection) -> Oracle:
    """After three transactions, of which a subscriber of `org = 1` should have heard what `told` says."""
    connection.execute(TABLE.create().encode())
    connection.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    made = Oracle(dsn, [TABLE])
    connection.execute("INSERT INTO t VALUES (1, 1), (2, 1)")
    with connection.transaction():
        connection.execute("UPDATE t SET org = 2 WHERE id = 1")
        connection.execute("INSERT INTO t VALUES (3, 1)")
    connection.execute("DELETE FROM t WHERE id = 2")
    made.read()
    made.evaluate([journal().shape])
    made.verify()
    return made


def journal() -> Journal:
    made = Journal("j", TABLE, Filter({}, "org = 1"), None)
    made.load(f"{EPOCH}-{0:016x}", ("id", "org"), [])
    return made


def told(oracle: Oracle) -> list[Frame]:
    """What is right."""
    changes = [[put(1, 1), put(2, 1)], [drop(1), put(3, 1)], [drop(2)]]
    frames: list[Frame] = []
    for commit, each in zip(oracle.commits, changes, strict=True):
        position = f"{EPOCH}-{commit.end:016x}"
        for index, change in enumerate(each):
            change["id"] = f"{position}-{index:08x}"
        frames.append((position, each, commit.xid))
    return frames


def hear(oracle: Oracle, frames: list[Frame]) -> None:
    subscriber = journal()
    for position, changes, txid in frames:
        if changes:
            subscriber.apply(position, changes, txid)
        else:
            subscriber.move_to(position)
    subscriber.verify(oracle)
    subscriber.verify_end(oracle)


def test_what_is_right_is_found_right(oracle: Oracle) -> None:
    hear(oracle, told(oracle))
    oracle.close()


def miss(frames: list[Frame]) -> None:
    frames[2][1].clear()


def halve(frames: list[Frame]) -> None:
    frames[0][1].pop()


def keep(frames: list[Frame]) -> None:
    """The row that has left stays."""
    del frames[1][1][0]


def repeat(frames: list[Frame]) -> None:
    frames.insert(1, frames[0])


def double(frames: list[Frame]) -> None:
    frames[1][1].append({**put(3, 1), "id": f"{frames[1][0]}-00000009"})


def falsify(frames: list[Frame]) -> None:
    frames[0][1][0]["new"]["org"] = 7


def misdate(frames: list[Frame]) -> None:
    """What the second transaction did comes as part of the first."""
    position, changes, txid = frames[0]
    for index, change in enumerate(frames.pop(1)[1]):
        changes.append({**change, "id": f"{position}-{index + 2:08x}"})
    assert txid


def mistake(frames: list[Frame]) -> None:
    frames[0] = (*frames[0][:2], 7)


def swap(frames: list[Frame]) -> None:
    frames[1:] = frames[:0:-1]


def invent(frames: list[Frame]) -> None:
    frames[0][1].append({**put(9, 1), "id": f"{frames[0][0]}-00000009"})


@pytest.mark.parametrize(
    "spoil", [miss, halve, keep, repeat, double, falsify, misdate, mistake, swap, invent]
)
def test_what_is_wrong_is_found_wrong(oracle: Oracle, spoil: Callable[[list[Frame]], None]) -> None:
    frames = told(oracle)
    spoil(frames)
    with pytest.raises(WrongError):
        hear(oracle, frames)
    oracle.close()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"id": 2, "org": 1}, {"id": 3, "org": 1}, {"id": 1, "org": 2}],
        [{"id": 2, "org": 1}, {"id": 2, "org": 1}],
        [{"id": 2, "org": 1}, {"id": 3, "org": 2}],
    ],
    ids=["none", "one too many", "one twice", "another value"],
)
def test_a_wrong_snapshot_is_found_wrong(oracle: Oracle, rows: list[JSONRow]) -> None:
    position, _, _ = told(oracle)[1]
    right = journal()
    right.load(position, ("id", "org"), [{"id": 2, "org": 1}, {"id": 3, "org": 1}])
    right.verify(oracle)
    wrong = journal()
    with pytest.raises(WrongError):
        wrong.load(position, ("id", "org"), rows)
        wrong.verify(oracle)
    oracle.close()
