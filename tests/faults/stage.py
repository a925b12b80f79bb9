"""The stage of a campaign: PostgreSQL, a Rowcast server process, writers, proxies between them, and a standby.

The one rule of this room: whatever a fault does, `calm()` ends it: afterwards everything runs again, with what was
lost, lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

import psycopg
from tests.cli.processes import Process
from tests.faults.schema import ENUM, Table, random_schema

from rowcast.capture.install import install
from rowcast.testing import EmbeddedPostgres
from rowcast.testing.proxy import FaultProxy

Capture = Literal["wal", "outbox"]
_DEADLINE_SECONDS: Final = 40.0
MARKER: Final = Table("marker", (("id", "integer"), ("n", "integer")), ("id",), full=True)

# Time-outs that a campaign can wait for.
_POSTGRES: Final = {
    "wal_sender_timeout": "4s",
    "max_wal_senders": "20",
    "max_connections": "120",
    "checkpoint_timeout": "30s",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a round runs on.

    Attributes:
        serve: Settings of the server, as flags.
        standby: Whether commits wait for a synchronous standby that answers late.
    """

    capture: Capture
    version: int
    schema_seed: str
    writers: int
    serve: dict[str, str] = field(default_factory=dict)
    standby: bool = False


class Stage:
    """Use it with `async with`."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self.folder = folder
        self.tables = random_schema(random.Random(setting.schema_seed))
        self.postgres = EmbeddedPostgres(
            folder / "cluster",
            version=setting.version,
            settings=_POSTGRES,
        )
        self.log: list[str] = []
        self.server: Process | None = None
        self.server_port = _free_port()
        self.server_errors: list[str] = []
        self.standby: Standby | None = None
        self.writers: Writers | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _begin(self) -> None:
        await asyncio.to_thread(self.postgres.start)
        self.dsn = self.postgres.dsn()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(ENUM)
            for table in (*self.tables, MARKER):
                connection.execute(table.create().encode())
            if self.setting.capture == "outbox":
                # Triggers tell whole rows without it; the oracle's slot needs it where there is no key.
                for table in self.tables:
                    if table.full:
                        connection.execute(f"ALTER TABLE {table.name} REPLICA IDENTITY FULL".encode())
        for table in (*self.tables, MARKER):
            install(self.dsn, [table.name], capture=self.setting.capture, replica_identity_full=table.full)
        self.client_link = FaultProxy(self.server_port)
        self.capture_link = FaultProxy(self.postgres.port)
        self.query_link = FaultProxy(self.postgres.port)
        self.links = {"client": self.client_link, "capture": self.capture_link, "query": self.query_link}
        for link in self.links.values():
            await self._stack.enter_async_context(link)
        if self.setting.standby:
            self.standby = Standby(self.postgres, self.folder / "standby")
            self._stack.callback(self.standby.close)

    async def __aexit__(self, *_: object) -> None:
        if self.writers is not None:
            await asyncio.to_thread(self.writers.close)
        if self.server is not None:
            self.server.send(signal.SIGCONT)
            await asyncio.to_thread(self._end_server)
        await self._stack.aclose()
        await asyncio.to_thread(self.postgres.stop, immediate=True)

    @property
    def url(self) -> str:
        """The server's address for clients, through the proxy."""
        return f"http://127.0.0.1:{self.client_link.port}"

    def start_writers(self, seed: str) -> None:
        self.writers = Writers(self.dsn, self.setting.schema_seed, seed, self.setting.writers)

    def start_server(self) -> None:
        flags = {
            "port": str(self.server_port),
            "heartbeat-seconds": "1",
            "capture-heartbeat-seconds": "0.5",
            "capture": self.setting.capture,
            "dsn": f"postgresql://postgres@127.0.0.1:{self.query_link.port}/postgres",
            "database-url-direct": f"postgresql://postgres@127.0.0.1:{self.capture_link.port}/postgres",
            **self.setting.serve,
        }
        arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
        self.server = Process("serve", *arguments)

    async def server_ready(self) -> None:
        assert self.server is not None
        await asyncio.to_thread(self.server.until_ready)

    async def kill_server(self, down_seconds: float, number: int = signal.SIGKILL) -> None:
        await self.end_server(number)
        await asyncio.sleep(down_seconds)
        self.start_server()

    async def end_server(self, number: int) -> None:
        assert self.server is not None
        self.server.send(number)
        await asyncio.to_thread(self.server.wait)
        await asyncio.to_thread(self._end_server)
        if self.setting.capture == "outbox":
            # PostgreSQL notices within a minute that a link which died in silence has nobody at its end, unless it is
            # a proxy that answers; until then the dead server would lead.
            self.capture_link.cut()

    def _end_server(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            server.__exit__(None, None, None)
            self.server_errors.extend(server.errors)

    async def kill_postgres(self, down_seconds: float) -> None:
        self.postgres.kill()
        await asyncio.sleep(down_seconds)
        await asyncio.to_thread(self.postgres.start)
        if self.standby is not None:
            await asyncio.to_thread(self.standby.restart)

    async def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement beside everything, once."""

        def run() -> list[tuple[Any, ...]]:
            with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as connection:
                cursor = connection.execute(statement.encode(), parameters)
                return cursor.fetchall() if cursor.description else []

        return await asyncio.to_thread(run)

    async def columns(self, table: str) -> tuple[str, ...]:
        """The names of a table's columns as they are now."""

        def read() -> tuple[str, ...]:
            with psycopg.connect(self.dsn) as connection:
                return tuple(name for name, _ in self.read_columns(connection, table))

        return await asyncio.to_thread(read)

    @staticmethod
    def read_columns(connection: psycopg.Connection[Any], table: str) -> list[tuple[str, str]]:
        """Name and type of each."""
        return connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (table,),
        ).fetchall()

    async def freeze_server(self, seconds: float) -> None:
        assert self.server is not None
        server = self.server
        server.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        server.send(signal.SIGCONT)

    async def calm(self) -> None:
        """End every fault."""
        for link in self.links.values():
            link.resume()
        if self.standby is not None:
            self.standby.steady()


class Writers:
    """The writers' process: `program` is a module that speaks as `tests.faults.writers` does."""

    program = "tests.faults.writers"

    def __init__(self, dsn: str, schema_seed: str, seed: str, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.program, dsn, schema_seed, seed, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        answer = self._process.stdout.readline().strip()
        assert answer, "the writers' process has ended"
        return answer

    def go(self) -> None:
        self._ask("go")

    def pause(self) -> int:
        """Wait until nobody writes; how many transactions there were since the start."""
        return int(self._ask("pause").split()[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_DEADLINE_SECONDS)
        self._process.stdout.close()


class Standby:
    """A synchronous standby: pg_receivewal, stopped and continued so that it answers late."""

    def __init__(self, postgres: EmbeddedPostgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._late = False
        self._ended = threading.Event()
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        self.restart()
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            connection.execute("SELECT pg_reload_conf()")
        self._thread = threading.Thread(target=self._hesitate)
        self._thread.start()

    def restart(self) -> None:
        """Begin anew, after PostgreSQL was killed."""
        with self._lock:
            self._end()
            self._process = subprocess.Popen(
                [
                    self._postgres.binary("pg_receivewal"),
                    *(
                        "--slot",
                        "standby",
                        "--synchronous",
                        "--status-interval",
                        "1",
                        "--directory",
                        self._folder,
                    ),
                    *("--dbname", f"{self._postgres.dsn()}?application_name=standby"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def late(self) -> None:
        """From here on it answers in bursts."""
        self._late = True

    def steady(self) -> None:
        """From here on it answers at once."""
        self._late = False

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _hesitate(self) -> None:
        chance = random.Random(0)
        while not self._ended.wait(0.005 + chance.random() * 0.01):
            if self._late:
                with self._lock:
                    self._send(signal.SIGSTOP)
                    self._ended.wait(chance.choice((0.02, 0.05, 0.1, 0.3)))
                    self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
