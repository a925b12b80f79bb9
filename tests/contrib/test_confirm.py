"""rowcast.confirm() over every kind of connection that an application may have."""

from __future__ import annotations

import asyncpg
import django
import psycopg
import psycopg2
import pytest
import sqlalchemy
from django.conf import settings as django_settings
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tests.contrib.conftest import Listener

import rowcast
from rowcast.contrib.context import carrying
from rowcast.contrib.snapshot import snapshot_header
from rowcast.errors import ConfigurationError

UPDATE = "UPDATE projects SET name = 'new'"


def sqlalchemy_url(database: str, driver: str = "psycopg") -> str:
    return database.replace("postgresql://", f"postgresql+{driver}://")


async def test_psycopg(database: str, listener: Listener) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(UPDATE)
        rowcast.confirm(connection, "m-1")
    async with await psycopg.AsyncConnection.connect(database) as asynchronous:
        await asynchronous.execute(UPDATE)
        await rowcast.confirm(asynchronous, "m-2")
    await listener.hears("m-1", "m-2")


async def test_psycopg2(database: str, listener: Listener) -> None:
    connection = psycopg2.connect(database)
    with connection:
        rowcast.confirm(connection, "m-1")
    connection.close()
    await listener.hears("m-1")


async def test_asyncpg(database: str, listener: Listener) -> None:
    connection = await asyncpg.connect(database)
    async with connection.transaction():
        await connection.execute(UPDATE)
        await rowcast.confirm(connection, "m-1")
    await connection.close()
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool, pool.acquire() as pooled:
        await rowcast.confirm(pooled, "m-2")
    await listener.hears("m-1", "m-2")


async def test_sqlalchemy_core_and_orm(database: str, listener: Listener) -> None:
    engine = sqlalchemy.create_engine(sqlalchemy_url(database))
    with engine.begin() as connection:
        rowcast.confirm(connection, "m-1")
    with orm.Session(engine) as session, session.begin():
        rowcast.confirm(session, "m-2")
    scoped = orm.scoped_session(orm.sessionmaker(engine))
    rowcast.confirm(scoped, "m-3")
    scoped.commit()
    scoped.remove()
    engine.dispose()
    await listener.hears("m-1", "m-2", "m-3")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_sqlalchemy_async(database: str, listener: Listener, driver: str) -> None:
    engine = create_async_engine(sqlalchemy_url(database, driver))
    async with engine.begin() as connection:
        await rowcast.confirm(connection, "m-1")
    async with AsyncSession(engine) as session, session.begin():
        await rowcast.confirm(session, "m-2")
    await engine.dispose()
    await listener.hears("m-1", "m-2")


async def test_django(database: str, listener: Listener) -> None:
    parts = conninfo_to_dict(database)
    names = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}
    own = {name: str(parts[key]) for name, key in names.items()}
    if not django_settings.configured:
        django_settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}})
        django.setup()
    from django.db import connections, transaction

    connections["default"].settings_dict.update(own)

    def in_a_thread_of_its_own() -> None:
        with transaction.atomic():
            rowcast.confirm(connections["default"], "m-1")
        connections["default"].close()

    import asyncio

    await asyncio.to_thread(in_a_thread_of_its_own)
    await listener.hears("m-1")


async def test_plain_sql(database: str, listener: Listener) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("SELECT rowcast.confirm('m-1')")
    await listener.hears("m-1")


async def test_what_is_rolled_back_confirms_nothing(database: str, listener: Listener) -> None:
    with psycopg.connect(database) as connection:
        rowcast.confirm(connection, "never")
        connection.rollback()
        rowcast.confirm(connection, "m-1")
    await listener.hears("m-1")


async def test_without_an_id_it_is_the_requests_own(database: str, listener: Listener) -> None:
    with psycopg.connect(database) as connection:
        rowcast.confirm(connection)
        with carrying("m-1"):
            rowcast.confirm(connection)
    async with await psycopg.AsyncConnection.connect(database) as asynchronous:
        await rowcast.confirm(asynchronous)
        with carrying("m-2"):
            await rowcast.confirm(asynchronous)
    await listener.hears("m-1", "m-2")


def test_what_is_no_connection_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match=r"builtins\.str is no connection that is known here"):
        rowcast.confirm("postgresql://…", "m-1")


async def test_the_snapshot_of_a_read(database: str) -> None:
    """What commits after it is not in it, what committed before it is."""
    with psycopg.connect(database, autocommit=True) as writer, psycopg.connect(database) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        before = writer.execute(
            "UPDATE projects SET name = 'a' RETURNING pg_current_xact_id()::text"
        ).fetchone()
        header = snapshot_header(reader)
        after = writer.execute(
            "UPDATE projects SET name = 'b' RETURNING pg_current_xact_id()::text"
        ).fetchone()
        assert before is not None
        assert after is not None
        visible = writer.execute(
            "SELECT pg_visible_in_snapshot(%s, %s), pg_visible_in_snapshot(%s, %s)",
            [before[0], header, after[0], header],
        ).fetchone()
        assert visible == (True, False)
        assert reader.execute("SELECT name FROM projects").fetchall() == [("a",)]
    async with await psycopg.AsyncConnection.connect(database) as asynchronous:
        assert (await snapshot_header(asynchronous)).count(":") == 2
