"""Fixtures for everything: one PostgreSQL cluster a run, a database of its own for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import psycopg
import pytest

from rowcast.testing import EmbeddedPostgres

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The run's cluster: PostgreSQL 18, or the version that ROWCAST_TEST_POSTGRES_VERSION names."""
    with EmbeddedPostgres(version=int(os.environ.get("ROWCAST_TEST_POSTGRES_VERSION", "18"))) as server:
        yield server


@pytest.fixture
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh database, dropped with its slots afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to the test's database."""
    with psycopg.connect(dsn, autocommit=True) as connected:
        yield connected
