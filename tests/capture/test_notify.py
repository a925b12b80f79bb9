"""Capture of channels that have triggers already: what can be promised, and that the rest is said."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest
from hypothesis import given, strategies as st
from tests.capture.following import Follower, changes, eventually

from rowcast.capture.notify import NotifyCapture
from rowcast.capture.payloads import Channel
from rowcast.errors import ConfigurationError
from rowcast.model import MISSING, TablesChanged, epoch_of
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.proxy import FaultProxy
from rowcast.values import RowEncoder

TRIGGER = """
CREATE TABLE projects (id int PRIMARY KEY, name text, done boolean, tags text[]);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('projects', json_build_object('op', TG_OP, 'table', TG_TABLE_NAME,
        'new', CASE WHEN TG_OP <> 'DELETE' THEN row_to_json(NEW) END,
        'old', CASE WHEN TG_OP <> 'INSERT' THEN row_to_json(OLD) END)::text);
    RETURN NULL;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON projects FOR EACH ROW EXECUTE FUNCTION tell();
"""


def capture(dsn: str, *channels: str, heartbeat_seconds: float = 60) -> NotifyCapture:
    return NotifyCapture(
        dsn, channels or ("projects",), heartbeat_seconds=heartbeat_seconds, retry_seconds=0.05
    )


async def test_row_triggers_that_are_there_are_told_as_changes(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute(TRIGGER)
    async with Follower(capture(dsn)) as follower:
        connection.execute("INSERT INTO projects VALUES (1, 'naïve \"x\"', true, '{a,b}')")
        connection.execute("UPDATE projects SET name = NULL, done = false")
        connection.execute("DELETE FROM projects")
        with connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO projects VALUES (2)")
        await follower.caught_up()
        first = (b"1", 'naïve "x"'.encode(), b"t", b'["a","b"]')
        second = (b"1", None, b"f", b'["a","b"]')
        assert changes(follower.transactions) == [
            ("INSERT", first, None),
            ("UPDATE", second, first),
            ("DELETE", None, second),
        ]
        [table] = follower.capture.tables.values()
        assert [(column.name, column.type_name) for column in table.columns] == [
            ("id", "numeric"),
            ("name", "text"),
            ("done", "boolean"),
            ("tags", "json"),
        ]
        assert table.channel == "projects"
        assert RowEncoder(table.columns).encode(first) == (
            '{"id":1,"name":"naïve \\"x\\"","done":true,"tags":["a","b"]}'.encode()
        )
        assert isinstance(follower.events[0], TablesChanged)
        positions = [event.position for event in follower.events]
        assert positions == sorted(set(positions))
        assert {epoch_of(position) for position in positions} == {follower.capture.epoch}


async def test_any_other_payload_is_told_as_it_is(connection: psycopg.Connection, dsn: str) -> None:
    payloads = [
        "",
        "plain text",
        "[1, 2]",
        '"x"',
        '{"op": "SWIM"}',
        '{"op":"INSERT","table":"jobs","new":{"a":1}}',
        "[" * 7000,
        " 5\n",
    ]
    async with Follower(capture(dsn, 'Weird "1" Channel', "projects")) as follower:
        for payload in payloads:
            connection.execute("SELECT pg_notify('Weird \"1\" Channel', %s)", [payload])
        connection.execute("SELECT pg_notify('another', 'unheard')")
        await follower.caught_up()
        told = []
        for one in follower.transactions:
            [change] = one.changes
            assert (change.operation, change.table.columns[0].name) == ("INSERT", "payload")
            assert change.new is not None
            told.append(json.loads(RowEncoder(change.table.columns).encode(change.new))["payload"])
        assert told == ["", "plain text", [1, 2], "x", {"op": "SWIM"}, json.loads(payloads[5]), "[" * 7000, 5]


async def test_a_mark_is_passed_behind_what_committed_before_it(
    connection: psycopg.Connection, dsn: str
) -> None:
    async with Follower(capture(dsn)) as follower:
        for number in range(5):
            connection.execute(
                "SELECT pg_notify('projects', %s)", [f'{{"op":"insert","new":{{"id":{number}}}}}']
            )
            await follower.caught_up()
            assert len(follower.transactions) == number + 1
        marks = await asyncio.gather(*[follower.capture.mark() for _ in range(20)])
        assert len(set(marks)) <= 2


async def test_a_quiet_connection_is_tried_with_every_heartbeat(dsn: str) -> None:
    async with Follower(capture(dsn, heartbeat_seconds=0.05)) as follower:
        await follower.until(lambda: len(follower.events) >= 3)
        assert follower.transactions == []


async def test_a_lost_connection_is_made_again_and_is_a_gap(connection: psycopg.Connection, dsn: str) -> None:
    async with Follower(capture(dsn)) as follower:
        connection.execute("SELECT pg_notify('projects', 'before')")
        await follower.until(lambda: follower.transactions)
        connection.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'rowcast'"
        )
        connection.execute("SELECT pg_notify('projects', 'lost')")
        await follower.until(lambda: follower.gaps and follower.capture.status.state == "live")
        connection.execute("SELECT pg_notify('projects', 'after')")
        await follower.caught_up()
        assert [(gap.reason, gap.tables) for gap in follower.gaps] == [("capture_gap", None)]
        assert [one[1] for one in changes(follower.transactions)] == [(b"before",), (b"after",)]
        assert (
            follower.transactions[0].position < follower.gaps[0].position < follower.transactions[1].position
        )
        assert follower.capture.status.reconnects == 1


async def test_it_waits_for_a_database_that_is_not_there_yet(postgres: EmbeddedPostgres, dsn: str) -> None:
    async with FaultProxy(postgres.port) as proxy:
        proxy.refuse()
        listening = capture(dsn.replace(str(postgres.port), str(proxy.port)))
        starting = asyncio.create_task(listening.start())
        await eventually(lambda: "cannot be reached" in listening.status.reason)
        proxy.resume()
        await starting
        assert listening.status.state == "live"
        await listening.close()


def test_channels_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no channels to listen to: name them in PG_CHANNELS"):
        NotifyCapture("", [])
    with pytest.raises(ConfigurationError, match="has 1 to 63 bytes"):
        NotifyCapture("", ["é" * 32])


def test_columns_are_learnt_and_what_a_payload_lacks_is_missing() -> None:
    channel = Channel(1, "projects")
    assert channel.read(b'{"op":"INSERT","new":{"id":1,"at":null}}').new == (b"1", None)
    change = channel.read(b'{"op":"update","table":"public.projects","new":{"id":2,"name":"x"},"old":null}')
    assert (change.operation, change.new, change.old) == ("UPDATE", (b"2", MISSING, b"x"), None)
    before = channel.table
    assert channel.read(b'{"op":"INSERT","new":{"id":3,"at":5,"name":null}}').new == (b"3", b"5", None)
    assert channel.table is before
    assert channel.read(b'{"op":"INSERT","new":{"id":"three"}}').new == (b'"three"', MISSING, MISSING)
    assert [column.type_name for column in channel.table.columns] == ["json", "json", "text"]
    assert channel.read(b'{"op":"TRUNCATE","new":{"id":1}}').operation == "TRUNCATE"
    assert channel.read(b'{"op":"DELETE","old":{"id":1}}').old == (b"1", MISSING, MISSING)
    for payload in (
        b'{"op":"DELETE"}',
        b'{"op":"INSERT"}',
        b'{"op":"INSERT","new":[]}',
        b'{"op":1}',
        b"\xff",
    ):
        assert channel.read(payload).new is not None
        assert channel.table.columns[-1].name == "payload"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_rows = st.dictionaries(st.text(), _json, max_size=4)


@given(st.lists(st.tuples(_rows, _rows), min_size=1, max_size=4))
def test_what_goes_in_comes_out(rows: list[tuple[dict[str, object], dict[str, object]]]) -> None:
    channel = Channel(1, "t")
    for new, old in rows:
        change = channel.read(json.dumps({"op": "UPDATE", "table": "t", "new": new, "old": old}).encode())
        encode = RowEncoder(change.table.columns).encode
        assert change.new is not None
        assert change.old is not None
        assert json.loads(encode(change.new)) == new
        assert json.loads(encode(change.old)) == old
