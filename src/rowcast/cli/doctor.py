"""`rowcast doctor`: what is wrong with database or deployment, each with a fix to paste."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rowcast.cli.options import settings_from, settings_options

if TYPE_CHECKING:
    from rowcast.doctor import Finding

_STYLES = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command(
    epilog="\b\nExample:\n  rowcast doctor --dsn postgresql://app@db.example.com/shop --tables projects"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: exit_code, connected, findings.")
@click.option("--quiet", is_flag=True, help="Leave out what is fine.")
@settings_options(
    "database_url", "database_url_direct", "tables", "slot", "publication", "capture", "max_slot_wal_bytes"
)
@click.pass_context
def doctor(ctx: click.Context, /, *, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Examine the database and this machine, and print a fix for each finding.

    It changes nothing. Exit code: 0 nothing is broken (there may be warnings), 1 something is, 2 the database
    cannot be reached or a flag is wrong.
    """
    import msgspec

    from rowcast.doctor import examine

    report = examine(settings_from(flags))
    shown = [finding for finding in report.findings if not (quiet and finding.severity == "ok")]
    if as_json:
        content = {"exit_code": report.exit_code, "connected": report.connected, "findings": shown}
        click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2))
    else:
        for finding in shown:
            _print(finding)
        counts = [
            sum(f.severity == severity for f in report.findings) for severity in ("error", "warning", "ok")
        ]
        click.echo("{} broken, {} to look at, {} fine".format(*counts))
    ctx.exit(report.exit_code)


def _print(finding: Finding) -> None:
    mark, color = _STYLES[finding.severity]
    click.echo(
        f"{click.style(mark, fg=color, bold=True)} {click.style(finding.check, bold=True)}: {finding.finding}"
    )
    for line in finding.fix.splitlines():
        click.echo(f"      {line}")
