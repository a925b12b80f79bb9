"""`rowcast config`: every setting, its value, and where it came from."""

from __future__ import annotations

from typing import Any

import click

from rowcast.cli.options import settings_from, settings_options


@click.command(epilog="\b\nExample:\n  ROWCAST_PORT=9000 rowcast config")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/settings.md instead.")
@settings_options()
def config(*, as_markdown: bool, **flags: Any) -> None:
    """Show every setting of `rowcast serve` and where it came from; passwords are hidden."""
    from rowcast.settings import SETTINGS, markdown

    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    settings = settings_from(flags)
    rows = [
        (setting.name, setting.shown(settings) or "none", settings.origins[setting.name])
        for setting in SETTINGS
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, origin in rows:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")
    for warning in settings.warnings():
        click.echo(f"warning: {warning}", err=True)
