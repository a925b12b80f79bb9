"""Which capture is taken, and that it is said why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from tests.capture.following import Follower, changes, eventually

from rowcast.capture import install
from rowcast.capture.choice import AutoCapture, choose_capture
from rowcast.capture.notify import NotifyCapture
from rowcast.capture.outbox import OutboxCapture
from rowcast.capture.wal import WalCapture
from rowcast.errors import CaptureError, ConfigurationError, NotInstalledError
from rowcast.settings import Settings
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.proxy import FaultProxy


@pytest.fixture(scope="module")
def replica_level() -> Iterator[EmbeddedPostgres]:
    """A server without logical replication."""
    with EmbeddedPostgres(settings={"wal_level": "replica"}) as server:
        yield server


def settings(dsn: str, **values: object) -> Settings:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    return Settings(**{"database_url": dsn, "slot": name, "capture_heartbeat_seconds": 0.2, **values})  # type: ignore[arg-type]


def test_a_capture_that_is_named_is_taken() -> None:
    assert isinstance(choose_capture(settings("dbname=x", capture="wal")), WalCapture)
    assert isinstance(choose_capture(settings("dbname=x", capture="outbox")), OutboxCapture)
    assert isinstance(choose_capture(settings("dbname=x", capture="notify", tables="a,b")), NotifyCapture)
    with pytest.raises(ConfigurationError, match="PG_CHANNELS"):
        choose_capture(settings("dbname=x", capture="notify"))


async def test_logical_replication_is_taken_where_it_is_allowed(
    connection: psycopg.Connection, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY)")
    install.install(dsn, ["jobs"])
    capture = choose_capture(settings(dsn))
    assert capture.name == "auto"
    async with Follower(capture) as follower:
        assert capture.name == "wal"
        assert capture.status.choice == "the server allows logical replication"
        assert "capture wal was chosen: the server allows logical replication" in caplog.text
        connection.execute("INSERT INTO jobs VALUES (1)")
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"1",), None)]
        assert [table.name for table in capture.tables.values()] == ["jobs"]
        capture.acknowledge(follower.position)
        await capture.close()
        await follower.ended()
        assert capture.status.state == "stopped"


async def test_the_outbox_is_taken_where_it_is_installed_and_replication_is_not_to_be_had(
    replica_level: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dsn = replica_level.create_database("by_outbox")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE jobs (id int PRIMARY KEY)")
        with pytest.raises(
            NotInstalledError, match="by_outbox was not set up: the server has wal_level = replica"
        ):
            await choose_capture(settings(dsn)).start()
        install.install(dsn, ["jobs"])
        capture = choose_capture(settings(dsn))
        async with Follower(capture) as follower:
            connection.execute("INSERT INTO jobs VALUES (1)")
            await follower.caught_up()
            assert changes(follower.transactions) == [("INSERT", (b"1",), None)]
            assert capture.name == "outbox"
            reason = "the server has wal_level = replica, and the outbox is installed"
            assert capture.status.choice == reason
            assert f"capture outbox was chosen: {reason}" in caplog.text


async def test_the_outbox_is_taken_where_the_role_may_not_replicate(
    postgres: EmbeddedPostgres, connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY)")
    connection.execute("DROP ROLE IF EXISTS modest")
    connection.execute("CREATE ROLE modest LOGIN")
    connection.execute("CREATE PUBLICATION rowcast FOR TABLE jobs")
    as_role = dsn.replace("postgres@", "modest@")
    try:
        install.install(dsn, ["jobs"], capture="outbox", role="modest")
        connection.execute("CREATE TABLE other (id int)")
        connection.execute("ALTER PUBLICATION rowcast ADD TABLE other")
        async with Follower(choose_capture(settings(as_role))) as follower:
            assert "the server refuses replication (" in follower.capture.status.choice
            connection.execute("INSERT INTO jobs VALUES (1)")
            await follower.caught_up()
            assert len(follower.transactions) == 1
        # With the right, it is by WAL; and somebody should know that nobody reads the outbox.
        connection.execute("ALTER ROLE modest REPLICATION")
        capture = choose_capture(settings(as_role))
        await capture.start()
        assert capture.name == "wal"
        assert "rowcast setup --capture wal removes them" in capture.status.choice
        await capture.close()
        connection.execute("REVOKE SELECT ON rowcast.outbox_table FROM modest")
        with pytest.raises(CaptureError, match="the role lacks a right: permission denied"):
            await choose_capture(settings(as_role)).start()
    finally:
        connection.execute("DROP OWNED BY modest; DROP ROLE modest")


async def test_a_table_that_is_set_up_for_the_other_capture_moves_over(
    connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY)")

    async def chosen() -> tuple[str, str]:
        capture = choose_capture(settings(dsn))
        await capture.start()
        await capture.close()
        return capture.name, capture.status.choice

    install.install(dsn, ["jobs"], capture="outbox")
    assert await chosen() == ("outbox", "there is no publication rowcast, and the outbox is installed")
    done = install.install(dsn, ["jobs"], capture="wal")
    assert "removed the outbox triggers of public.jobs" in done
    assert (await chosen())[0] == "wal"
    done = install.install(dsn, ["jobs"], capture="outbox")
    assert "public.jobs is not watched any more" in done
    assert "put the replica identity of public.jobs back" in done
    assert await chosen() == ("outbox", "the publication rowcast has no tables, and the outbox is installed")


async def test_the_choice_waits_for_a_database_that_is_not_there_yet(
    postgres: EmbeddedPostgres, connection: psycopg.Connection, dsn: str
) -> None:
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY)")
    install.install(dsn, ["jobs"])
    async with FaultProxy(postgres.port) as proxy:
        proxy.refuse()
        capture = AutoCapture(settings(dsn.replace(str(postgres.port), str(proxy.port))), retry_seconds=0.05)
        starting = asyncio.create_task(capture.start())
        await eventually(lambda: "cannot be reached" in capture.status.reason)
        with pytest.raises(CaptureError, match="has not been started"):
            await capture.mark()
        proxy.resume()
        await starting
        assert capture.name == "wal"
        await capture.close()
