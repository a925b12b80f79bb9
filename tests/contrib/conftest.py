"""What a client hears of the application's commits, over a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import psycopg
import pytest
from tests.client.scripted import until

from rowcast.capture.install import install
from rowcast.client.connection import Connection
from rowcast.client.events import Event, Transaction
from rowcast.server import Rowcast
from rowcast.settings import Settings
from rowcast.testing.server import running


class Listener:
    """The confirms that a connected client is told, in order."""

    def __init__(self) -> None:
        self.confirms: list[str] = []

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Transaction):
                self.confirms.extend(event.confirms)

    async def hears(self, *mutations: str) -> None:
        """Wait until these have been told, and nothing else."""
        await until(lambda: len(self.confirms) >= len(mutations), 10)
        assert self.confirms == list(mutations)


@pytest.fixture
def database(dsn: str, connection: psycopg.Connection) -> str:
    """The URL of a database with a table `projects`, set up for Rowcast."""
    connection.execute("CREATE TABLE projects (id bigint PRIMARY KEY, name text)")
    connection.execute("INSERT INTO projects VALUES (1, 'old')")
    install(dsn, ["projects"])
    return dsn


@pytest.fixture
async def listener(database: str) -> AsyncIterator[Listener]:
    told = Listener()
    async with (
        running(Rowcast(Settings(database_url=database, port=0))) as addresses,
        Connection(addresses.http, sink=told) as client,
    ):
        await until(lambda: client.state.status == "connected", 10)
        yield told
