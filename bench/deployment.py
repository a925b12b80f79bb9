"""A database with a table to measure by, and `rowcast serve` in front of it, each on its own processors."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import psycopg

from bench.machine import OTHERS, SERVER
from bench.programs import LoadClient, Program
from rowcast.capture.install import install
from rowcast.testing import EmbeddedPostgres

TABLE: Final = "measured"
# With the other columns a row is about 200 bytes of JSON.
PAYLOAD: Final = "x" * 110
_CREATE: Final = f"""
CREATE TABLE {TABLE} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id integer NOT NULL DEFAULT 7,
    sent_us bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1e6)::bigint,
    name text NOT NULL DEFAULT 'measured row',
    payload text NOT NULL DEFAULT '{PAYLOAD}'
)"""
INSERT: Final = f"INSERT INTO {TABLE} DEFAULT VALUES"


class Database:
    """An embedded cluster with an empty table, watched. Use it with `with`."""

    def __init__(self) -> None:
        self._postgres = EmbeddedPostgres(settings={"shared_buffers": "256MB", "max_wal_size": "4GB"})
        self._numbers = iter(range(1, 1000))

    def __enter__(self) -> Self:
        self._postgres.start()
        os.sched_setaffinity(self._postgres.pid, OTHERS)  # those that it forks from here on inherit it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._postgres.close()

    @property
    def version(self) -> str:
        with psycopg.connect(self._postgres.dsn()) as connection:
            version: str = connection.execute("SHOW server_version").fetchall()[0][0]
            return version

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        """The URL of a new database with the table in it."""
        name = f"bench_{next(self._numbers)}"
        dsn = self._postgres.create_database(name)
        with psycopg.connect(dsn) as connection:
            connection.execute(_CREATE)
        install(dsn, [TABLE])
        try:
            yield dsn
        finally:
            self._postgres.drop_database(name)


class Server(Program):
    """`rowcast serve`, ready."""

    def __init__(self, dsn: str, *flags: str) -> None:
        rowcast = Path(sys.executable).with_name("rowcast")
        super().__init__(
            rowcast,
            *("serve", "--dsn", dsn, "--port", "0", "--log-level", "warning"),
            *flags,
            processors=SERVER,
        )
        addresses: dict[str, str] = {}
        while (line := self.line()) != "ready":
            name, _, address = line.partition(":")
            addresses[name] = address.strip()
        self.address = addresses["websocket"]

    def clients(self, count: int) -> LoadClient:
        address = urlsplit(self.address)
        assert address.port is not None
        return LoadClient(address.port, address.path, count)


def connect(dsn: str) -> psycopg.Connection:
    """A connection in which every statement is a commit."""
    return psycopg.connect(dsn, autocommit=True)


def commit_many(connection: psycopg.Connection, count: int) -> None:
    """Commits of one row each, one after the other, as fast as PostgreSQL takes them."""
    connection.execute(f"DO $$ BEGIN FOR i IN 1..{count} LOOP {INSERT}; COMMIT; END LOOP; END $$".encode())


def commit_paced(
    connection: psycopg.Connection, count: int, rate: float, statement: str = INSERT, keys: int = 0
) -> None:
    """Commits of one row each, at `rate` a second.

    Args:
        keys: Where over 0, the statement's one parameter goes round from 0 to below it.
    """
    cursor = connection.cursor()
    began = time.perf_counter()
    for number in range(count):
        wait = began + number / rate - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        cursor.execute(statement.encode(), (number % keys,) if keys else None, prepare=True)
