"""What is wrong, or will be, between Rowcast and a database: `rowcast doctor`.

The one rule of this room: it only looks. Every finding says what was seen and what follows from it, and has a fix
to paste: SQL (comments included) or a command.

A check is a generator of problems; its id is its function's name. To add one, write it in `server`, `slots` or
`tables` and give it a place in `CHECKS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import metadata
from typing import Final

import psycopg
from psycopg.rows import DictRow, dict_row

from rowcast.doctor import server, slots, tables
from rowcast.doctor.report import CONNECT_SECONDS, Check, Database, Finding, Report, sentence
from rowcast.settings import Settings, hide_password

__all__ = ["CHECKS", "Finding", "Report", "examine"]

# In the order of the report: what others depend on comes first.
CHECKS: Final[tuple[Check, ...]] = (
    server.server_version,
    server.primary,
    server.pooler,
    server.same_database,
    server.wal_level,
    server.fallback,
    server.replication_privilege,
    server.replication_connection,
    server.wal_senders,
    slots.replication_slots,
    tables.installation,
    tables.publication,
    tables.named_tables,
    tables.unlogged_tables,
    tables.inheritance,
    tables.primary_keys,
    tables.replica_identity,
    tables.select_privilege,
    tables.row_security,
    slots.slot,
    slots.retained_wal,
    slots.max_slot_wal_keep_size,
    slots.idle_replication_slot_timeout,
    server.wal_sender_timeout,
    server.long_transactions,
    server.clock,
    server.packages,
)
# Longer than any web request or ordinary batch: such a transaction holds up slots and new tables.
LONG_TRANSACTION_SECONDS: Final = 300.0


def examine(
    settings: Settings,
    *,
    now: Callable[[], float] = time.time,
    packages: Mapping[str, str] | None = None,
    long_transaction_seconds: float = LONG_TRANSACTION_SECONDS,
) -> Report:
    """Run every check that matters to these settings.

    With `capture` at auto, the database is judged as for wal unless `rowcast setup` had to take triggers instead; set
    it to outbox or notify to be asked for nothing that those do not need.

    Args:
        settings: Of the server that is, or will be.
        now: Seconds since 1970, instead of this machine's clock.
        packages: Versions by package, instead of those installed.
        long_transaction_seconds: How old a transaction may be before it is a finding.

    Raises:
        ConfigurationError: The settings name no database.
    """
    settings.require_database()
    with ExitStack() as stack:
        try:
            direct = pooled = stack.enter_context(_connect(settings.database_url_direct))
            if settings.database_url != settings.database_url_direct:
                pooled = stack.enter_context(_connect(settings.database_url))
        except psycopg.OperationalError as problem:
            return Report((_unreachable(settings, problem),), connected=False)
        watched, unknown = tables.find(direct, settings)
        database = Database(
            settings=settings,
            direct=direct,
            pooled=pooled,
            tables=watched,
            unknown_tables=unknown,
            now=now,
            packages=installed_packages() if packages is None else packages,
            long_transaction_seconds=long_transaction_seconds,
        )
        streams = database.streams
        chosen = [check for check in CHECKS if streams or not check.wal]
        return Report(tuple(finding for check in chosen for finding in check.findings(database)))


def installed_packages() -> dict[str, str]:
    """Versions of the packages that checks ask for, where installed."""
    found: dict[str, str] = {}
    for package in server.PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _connect(url: str) -> psycopg.Connection[DictRow]:
    # Without prepared statements: a pooler loses them between two transactions.
    return psycopg.Connection[DictRow].connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        prepare_threshold=None,
        row_factory=dict_row,
    )


def _unreachable(settings: Settings, problem: psycopg.OperationalError) -> Finding:
    return Finding(
        "connection",
        "error",
        f"cannot connect to the database: {hide_password(sentence(problem))}",
        f"psql '{hide_password(settings.database_url_direct)}'  # until this works",
    )
