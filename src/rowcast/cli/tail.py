"""`rowcast tail`: prints changes as they happen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.text import Text


def _position(_ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    from rowcast.model import parse_position

    try:
        return value if value is None else parse_position(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


@click.command(
    epilog="""\b
Examples:
  rowcast tail http://127.0.0.1:8000 projects
  rowcast tail ws://127.0.0.1:8000/ws jobs --filter 'project_id=eq.5' --snapshot
  rowcast tail https://live.example.com billing.invoices --json | jq .new"""
)
@click.argument("url")
@click.argument("channel")
@click.option(
    "--from",
    "since",
    metavar="POSITION",
    callback=_position,
    help="First everything after this position, then what follows.",
)
@click.option("--filter", "postgrest", metavar="FILTER", help="Only these rows: org_id=eq.5&status=in.(a,b)")
@click.option("--where", metavar="SQL", help="Only these rows: org_id = 5 AND status IN ('a','b')")
@click.option("--columns", metavar="NAMES", help="Only these columns, with commas between them, and the key.")
@click.option("--snapshot", is_flag=True, help="First the rows that are there, and again after each resync.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON message a line: changes, and what has a `type`."
)
@click.option("--token", envvar="ROWCAST_TOKEN", help="Credentials. [ROWCAST_TOKEN]")
def tail(
    *,
    url: str,
    channel: str,
    since: str | None,
    postgrest: str | None,
    where: str | None,
    columns: str | None,
    snapshot: bool,
    as_json: bool,
    token: str | None,
) -> None:
    """Print each change of CHANNEL, from the server at URL, as it happens, for ever.

    It reconnects by itself and goes on where it was: each change is printed once and in order, or a line says
    `resync` where changes are missing. It ends with exit code 0 at SIGINT, SIGTERM, or when nobody reads its output
    any more, and with 1 when the server refuses.

    URL is the server's address, such as http://host:8000, http://host/realtime or ws://host:8000/ws.
    """
    import io
    from contextlib import aclosing

    from rich.console import Console

    from rowcast.cli.lines import JSONLines, Lines, PrettyLines
    from rowcast.cli.output import Output, run_until_stopped
    from rowcast.client.stream import stream

    lines: Lines = JSONLines(channel) if as_json else PrettyLines()
    terminal = sys.stdout.isatty()
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, highlight=False, soft_wrap=True)

    def render(line: bytes | Text) -> bytes:
        if isinstance(line, bytes):
            return line + b"\n"
        console.print(line)
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text.encode()

    async def follow() -> None:
        following = stream(
            url,
            channel,
            filter=postgrest,
            where=where,
            columns=columns.split(",") if columns else None,
            since=since,
            snapshot=snapshot,
            token=token,
        )
        async with Output() as output, aclosing(following) as events:
            async for event in events:
                await output.write(b"".join(map(render, lines.of(event))))

    run_until_stopped(follow())
