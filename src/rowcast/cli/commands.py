"""The group of commands, and what all of them share: how an error ends the process."""

from __future__ import annotations

import platform
from typing import Any

import click

from rowcast import __version__
from rowcast.cli.config import config
from rowcast.cli.demo import demo
from rowcast.cli.doctor import doctor
from rowcast.cli.mirror import mirror
from rowcast.cli.serve import serve
from rowcast.cli.setup import setup
from rowcast.cli.tail import tail
from rowcast.errors import ConfigurationError, NotInstalledError, RowcastError


class _Commands(click.Group):
    """Ends the process with a sentence, not a traceback, for every error that has one."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RowcastError as error:
            click.echo(f"rowcast: {error}", err=True)
            code = (
                2
                if isinstance(error, ConfigurationError)
                else 3
                if isinstance(error, NotInstalledError)
                else 1
            )
            ctx.exit(code)
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("rowcast"):
                raise
            click.echo(
                f"rowcast: `rowcast {ctx.invoked_subcommand}` needs the package {missing.name}: "
                'pip install "rowcast[demo]"',
                err=True,
            )
            ctx.exit(1)


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if not wanted:
        return
    from importlib import metadata

    lines = [f"rowcast {__version__}", f"Python {platform.python_version()}"]
    for package in ("psycopg", "uvicorn", "websockets"):
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    click.echo("\n".join(lines))
    ctx.exit()


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print versions.",
)
def rowcast() -> None:
    """Keep every client's view of a PostgreSQL database live.

    \b
    Try it:      rowcast demo
    Set it up:   rowcast setup --dsn postgresql://… --tables projects,public.jobs
    Run it:      rowcast serve --dsn postgresql://…
    Watch it:    rowcast tail ws://127.0.0.1:8000/ws projects
    """  # noqa: D301 - click wants the backspace itself


for command in (demo, setup, serve, tail, mirror, doctor, config):
    rowcast.add_command(command)
