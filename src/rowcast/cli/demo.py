"""`rowcast demo`: everything at once, on an embedded PostgreSQL."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rowcast.server import Addresses
    from rowcast.testing import EmbeddedPostgres

DEFAULT_PORT = 8000
_DATABASE = "demo"


@click.command(epilog="\b\nExample:\n  rowcast demo --port 8080 --data ./demo-data")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"The port to listen on; 0 takes a free one. [default: {DEFAULT_PORT}, or the next that is free]",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the database here; without it, it is gone afterwards.",
)
@click.option("--no-open", is_flag=True, help="Do not open the page in a browser.")
@click.option(
    "--log-level", default="warning", show_default=True, help="The least severe log lines to print."
)
def demo(*, host: str, port: int | None, data: Path | None, no_open: bool, log_level: str) -> None:
    """Start PostgreSQL with sample data, the server and a web page; nothing else is needed.

    Prints the addresses and the line `ready`. SIGINT and SIGTERM end all of it.
    """
    import asyncio
    import webbrowser

    from rowcast import demo as application
    from rowcast.capture.install import install
    from rowcast.cli.process import Signals, announce, log_to_stderr
    from rowcast.errors import ConfigurationError
    from rowcast.server import Rowcast, run
    from rowcast.settings import Settings
    from rowcast.testing import EmbeddedPostgres

    log_to_stderr(Settings(log_level=log_level).log_level)  # type: ignore[arg-type]
    if port:
        _claim(host, port)

    def serve(dsn: str, port: int) -> None:
        rowcast = Rowcast(Settings(database_url=dsn, host=host, port=port))

        def on_ready(addresses: Addresses) -> None:
            if not no_open and _has_display():
                webbrowser.open(addresses.http)
            announce([("database", dsn), ("page", addresses.http), ("websocket", addresses.websocket)])

        run(
            rowcast,
            app=application.create_application(dsn, rowcast),
            mounted_at=application.REALTIME_PATH,
            on_ready=on_ready,
        )

    # What is kept shall survive a power cut; what is not may be fast.
    postgres = EmbeddedPostgres(data, settings={"fsync": "on", "full_page_writes": "on"} if data else None)
    with Signals() as noted:
        try:
            postgres.start()
            noted.check()
            dsn = _database(postgres)
            asyncio.run(application.prepare(dsn))
            noted.check()
            install(dsn, application.TABLES)
            noted.check()
            while True:
                chosen = _next_free(host) if port is None else port
                try:
                    serve(dsn, chosen)
                    break
                except ConfigurationError:
                    # Another demo, started at the same moment, may have been faster.
                    if port is not None or _next_free(host) == chosen:
                        raise
        finally:
            postgres.close()


def _database(postgres: EmbeddedPostgres) -> str:
    """The demo's database, made where --data did not bring it."""
    import psycopg

    with psycopg.connect(postgres.dsn()) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (_DATABASE,)).fetchone()
    return postgres.dsn(_DATABASE) if known is not None else postgres.create_database(_DATABASE)


def _claim(host: str, port: int) -> None:
    """Fail before anything is started if a port that was asked for is taken."""
    from rowcast.errors import ConfigurationError

    try:
        with socket.create_server((host, port)):
            pass
    except OSError as problem:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {problem.strerror}; choose another --port, or leave it out to take "
            "the next free one"
        ) from problem


def _next_free(host: str) -> int:
    """The first port from the default on that nobody listens on; 0, any, if a hundred are taken."""
    for port in range(DEFAULT_PORT, DEFAULT_PORT + 100):
        try:
            with socket.create_server((host, port)):
                return port
        except OSError:
            continue
    return 0


def _has_display() -> bool:
    """Whether somebody sits in front of this machine who would see a browser."""
    if os.environ.get("CI"):
        return False
    return sys.platform in {"darwin", "win32"} or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
