"""What the examples run against: the demo's server, its API and sample data, in a process that tests may drop."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from tests.demo.conftest import browser  # noqa: F401 - a fixture

from rowcast.testing import EmbeddedPostgres

_SERVE = """
import asyncio, sys
from rowcast.capture.install import install
from rowcast.demo import REALTIME_PATH, TABLES, create_application, prepare
from rowcast.server import Rowcast
from rowcast.server.run import run

dsn, port = sys.argv[1], int(sys.argv[2])
asyncio.run(prepare(dsn))
install(dsn, TABLES)
rowcast = Rowcast(database_url=dsn, port=port)
application = create_application(dsn, rowcast)
run(rowcast, app=application, mounted_at=REALTIME_PATH, on_ready=lambda _: print("ready", flush=True))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Demo:
    """The demo's server over a database of its own, with what tests do behind its back."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, self.dsn, str(self.port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.communicate()
            pytest.fail("the demo's server did not start")

    def drop(self) -> None:
        """End it without a word."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=20)

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def status(self, key: int) -> str:
        """What the database says of an extraction result."""
        [(status,)] = self.execute("SELECT status FROM extraction_results WHERE id = %s", key)
        return str(status)


@pytest.fixture(scope="module")
def demo(postgres: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[Demo]:
    name = f"example_{request.path.stem}"
    running = Demo(postgres.create_database(name))
    yield running
    running.drop()
    postgres.drop_database(name)
