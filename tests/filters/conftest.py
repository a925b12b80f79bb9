"""Databases to compare filters with: one with the collations that sort by bytes, one with a linguistic one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.filters.oracle import Oracle

from rowcast.testing import EmbeddedPostgres
from rowcast.testing.postgres import EmbeddedPostgresError

_WITH_ICU = 15  # the wheel's servers are built without ICU; Debian's has it


@pytest.fixture(scope="session")
def oracle(postgres: EmbeddedPostgres) -> Iterator[Oracle]:
    """The run's PostgreSQL, whose collations are C, C.UTF-8 and the built-in ones."""
    made = Oracle(postgres, f"filters_{os.getpid()}", linguistic=False)
    yield made
    made.close()


@pytest.fixture(scope="session")
def linguistic() -> Iterator[Oracle]:
    """A PostgreSQL with ICU: linguistic order, full Unicode case rules, a non-deterministic collation."""
    try:
        server = EmbeddedPostgres(version=_WITH_ICU)
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    with server:
        made = Oracle(server, f"filters_{os.getpid()}", linguistic=True)
        yield made
        made.close()
