"""Fixtures for everything: one PostgreSQL cluster a run, a database of its own for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import psycopg
import pytest

from rowcast.testing import EmbeddedPostgres, PostgresServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The run's server: an embedded PostgreSQL 18, or the version that ROWCAST_TEST_POSTGRES_VERSION names.

    ROWCAST_TEST_DSN names another server instead, with wal_level=logical and a superuser's URL. Tests that kill or
    configure their server start embedded ones of their own all the same.
    """
    url = os.environ.get("ROWCAST_TEST_DSN")
    if url:
        yield PostgresServer(url)
        return
    with EmbeddedPostgres(version=int(os.environ.get("ROWCAST_TEST_POSTGRES_VERSION", "18"))) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> Iterator[str]:
    """The database that each test's own is a copy of."""
    name = f"template_{os.getpid()}"
    postgres.create_database(name)
    yield name
    postgres.drop_database(name)


@pytest.fixture
def dsn(postgres: PostgresServer, template: str) -> Iterator[str]:
    """The URL of a fresh database, dropped with its slots afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    yield postgres.create_database(name, template=template)
    postgres.drop_database(name)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to the test's database."""
    with psycopg.connect(dsn, autocommit=True) as connected:
        yield connected
