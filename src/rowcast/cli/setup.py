"""`rowcast setup`: puts Rowcast's objects into a database, and takes them out."""

from __future__ import annotations

from typing import Any

import click

from rowcast.cli.options import settings_from, settings_options


@click.command(
    epilog="""\b
Examples:
  rowcast setup --dsn postgresql://owner@db.example.com/shop --tables projects,public.jobs
  rowcast setup --tables projects --role app --print > migration.sql
  rowcast setup --capture outbox --dsn postgresql://owner@db.example.com/shop --tables projects
  rowcast setup --dsn postgresql://owner@db.example.com/shop --remove-tables jobs
  rowcast setup --dsn postgresql://owner@db.example.com/shop --down"""
)
@click.option(
    "--print", "only_print", is_flag=True, help="Print the SQL instead of running it; needs no database."
)
@click.option(
    "--down", is_flag=True, help="Remove slot, publication and schema, and put replica identities back."
)
@click.option("--remove-tables", metavar="NAMES", help="Stop watching these tables.")
@click.option(
    "--role", metavar="NAME", help="The role that `rowcast serve` connects as; it gets the rights it needs."
)
@click.option(
    "--keep-replica-identity",
    is_flag=True,
    help="Leave REPLICA IDENTITY as it is. Old rows then hold the key only: a row that leaves a filter is a DELETE "
    "by key, and unchanged large values are read again.",
)
@settings_options("database_url", "tables", "publication", "slot", "capture")
def setup(
    *,
    only_print: bool,
    down: bool,
    remove_tables: str | None,
    role: str | None,
    keep_replica_identity: bool,
    **flags: Any,
) -> None:
    """Watch tables: install the schema rowcast and the publication, and add the tables to it.

    It may be run again at any time: what is there stays, and running servers follow within a second. REPLICA
    IDENTITY FULL is set on the tables, and what it was is remembered and put back when they are removed.

    With --capture outbox, or with auto where wal_level is not logical, triggers watch the tables instead.
    """
    import psycopg

    from rowcast.capture import install
    from rowcast.errors import CaptureError, ConfigurationError
    from rowcast.settings import hide_password

    if down and (remove_tables or flags["tables"]):
        raise click.UsageError("--down removes everything: leave out --tables and --remove-tables")
    if only_print and remove_tables:
        raise click.UsageError("--remove-tables cannot be printed: run it, or print --down")
    settings = settings_from(flags)
    publication, slot, full = settings.publication, settings.slot, not keep_replica_identity
    if settings.capture == "notify":
        raise ConfigurationError(
            'capture="notify" needs no setup, as it hears what is there: give --capture auto, wal or outbox'
        )
    if only_print:
        click.echo(
            install.render_uninstall(publication=publication, slot=slot)
            if down
            else install.render(
                settings.tables,
                capture=settings.capture,
                publication=publication,
                replica_identity_full=full,
                role=role,
            ),
            nl=False,
        )
        return
    settings.require_database()
    # Who says --dsn means it, whatever DATABASE_URL_DIRECT is for the server.
    dsn = settings.database_url if flags["database_url"] else settings.database_url_direct
    try:
        if down:
            done = install.uninstall(dsn, publication=publication, slot=slot)
        elif remove_tables:
            done = install.remove_tables(dsn, [remove_tables], publication=publication)
        else:
            done = install.install(
                dsn,
                settings.tables,
                capture=settings.capture,
                publication=publication,
                replica_identity_full=full,
                role=role,
            )
    except psycopg.OperationalError as problem:
        raise CaptureError(
            f"cannot reach the database: {hide_password(str(problem).strip())}. `rowcast doctor` says more"
        ) from problem
    for line in done:
        click.echo(line)
