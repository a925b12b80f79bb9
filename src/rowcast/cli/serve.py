"""`rowcast serve`: the server on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rowcast.cli.options import settings_from, settings_options

if TYPE_CHECKING:
    from rowcast.server import Addresses


@click.command(
    epilog="""\b
Examples:
  rowcast serve --dsn postgresql://app@db.example.com/shop --port 8000
  DATABASE_URL_DIRECT=postgresql://… PG_CHANNELS=projects,jobs FRONTEND_URL=https://app.example.com rowcast serve"""
)
@settings_options()
def serve(**flags: Any) -> None:
    """Serve the tables of a database that `rowcast setup` has prepared, until SIGINT or SIGTERM.

    Prints the addresses and, when subscriptions can begin, the line `ready`. Exit codes: 0 it was asked to stop,
    1 the database cannot be captured from, 2 a setting is wrong or the port is taken, 3 the database was not set up.
    """
    from rowcast.cli.process import Signals, announce, log_to_stderr
    from rowcast.server import Rowcast, run
    from rowcast.settings import hide_password

    settings = settings_from(flags)
    settings.require_database()
    log_to_stderr(settings.log_level)
    for warning in settings.warnings():
        click.echo(f"warning: {warning}", err=True)
    rowcast = Rowcast(settings)

    def on_ready(addresses: Addresses) -> None:
        channels = sorted({table.channel for table in rowcast.service.hub.channels.values()})
        announce(
            [
                ("database", hide_password(settings.database_url_direct)),
                ("channels", ", ".join(channels) or "none yet: rowcast setup --tables …"),
                ("websocket", addresses.websocket),
                ("events", addresses.events),
            ]
        )

    with Signals():
        run(rowcast, on_ready=on_ready)
