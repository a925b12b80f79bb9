"""`rowcast mirror`: keeps a table of a SQLite file equal to a channel."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Example:
  rowcast mirror http://127.0.0.1:8000 projects --filter 'org_id=eq.5' --to projects.sqlite
  sqlite3 projects.sqlite 'SELECT count(*) FROM projects'"""
)
@click.argument("url")
@click.argument("channel")
@click.option("--filter", "postgrest", metavar="FILTER", help="Only these rows: org_id=eq.5&status=in.(a,b)")
@click.option("--where", metavar="SQL", help="Only these rows: org_id = 5 AND status IN ('a','b')")
@click.option(
    "--to",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The SQLite file.",
)
@click.option("--token", envvar="ROWCAST_TOKEN", help="Credentials. [ROWCAST_TOKEN]")
def mirror(
    *, url: str, channel: str, postgrest: str | None, where: str | None, path: Path, token: str | None
) -> None:
    """Keep a table of a SQLite file equal to the rows of CHANNEL, until SIGINT or SIGTERM.

    The table has the source table's name and columns. Each transaction of PostgreSQL is one of SQLite's, with the
    position beside it in the table _rowcast, so that the file is right at every moment and the next start goes on
    where this one ended, however it ended. Prints `ready` when the table is there.

    Numbers and text are kept as such, booleans as 0 and 1, everything else as JSON text; a number with more digits
    than SQLite's numbers have is kept as text.
    """
    from rowcast.cli.output import run_until_stopped
    from rowcast.cli.process import READY
    from rowcast.client.stream import Resync, StateChanged, StreamEvent
    from rowcast.mirror import mirror as keep

    def tell(event: StreamEvent) -> None:
        if isinstance(event, Resync):
            click.echo(f"resync ({event.reason}): all rows are taken anew", err=True)
        elif isinstance(event, StateChanged) and event.state.status != "connected":
            click.echo(": ".join(filter(None, (event.state.status, event.state.reason))), err=True)

    run_until_stopped(
        keep(
            url,
            channel,
            path,
            filter=postgrest,
            where=where,
            token=token,
            on_follow=lambda: click.echo(READY),
            on_event=tell,
        )
    )
