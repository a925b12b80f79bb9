"""Checks of the server and of the way to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import psycopg

from rowcast.doctor.report import (
    CONNECT_SECONDS,
    Database,
    Problem,
    check,
    error,
    quote_identifier,
    quote_literal,
    sentence,
    warning,
)

_OLDEST_VERSION: Final = 140000  # pgoutput's option `messages`, by which mutations are confirmed, is as old
# Commit timestamps are compared with this machine's clock in the lag metrics; NTP keeps machines within 0.1 s.
_CLOCK_SECONDS: Final = 2.0
# The first release whose WebSocket flow control works, and the first that can START_REPLICATION.
PACKAGES: Final = {"uvicorn": (0, 52, 1), "psycopg": (3, 3, 0)}


@check("the server's version is supported")
def server_version(database: Database) -> Iterator[Problem]:
    version = database.direct.info.server_version
    if version < _OLDEST_VERSION:
        yield error(
            f"PostgreSQL {version // 10000} is older than 14, the first whose logical replication carries messages",
            "-- upgrade the server to PostgreSQL 14 or newer",
        )


@check("the server is a primary")
def primary(database: Database) -> Iterator[Problem]:
    if database.value("SELECT pg_is_in_recovery()"):
        yield error(
            "the direct connection leads to a standby, where nothing can be installed and no heartbeat be written",
            "export DATABASE_URL_DIRECT=postgresql://…  # the address of the primary",
        )


@check("the direct connection leads to PostgreSQL itself")
def pooler(database: Database) -> Iterator[Problem]:
    # PostgreSQL tells its process id when a connection starts; a pooler tells one of its own making instead,
    # because the server behind it may change.
    if database.direct.info.backend_pid != database.value("SELECT pg_backend_pid()"):
        yield error(
            f"a pooler (PgBouncer or the like) answers on {database.direct.info.host}:{database.direct.info.port}; "
            "neither replication nor LISTEN works through it",
            "export DATABASE_URL_DIRECT=postgresql://…  "
            "# PostgreSQL's own address, often port 5432 instead of 6432 or 6543; DATABASE_URL may stay as it is",
        )


@check("both connections lead to the same database")
def same_database(database: Database) -> Iterator[Problem]:
    question = "SELECT current_database() AS name, pg_postmaster_start_time() AS started"
    direct, pooled = (
        database.direct.execute(question).fetchone(),
        database.pooled.execute(question).fetchone(),
    )
    if direct != pooled:
        yield error(
            "database_url and database_url_direct lead to different databases or servers: rows and stream would not "
            "belong together",
            "rowcast config  # shows where each comes from; both must name the same database of the same primary",
        )


@check("a replication connection can be made", wal=True)
def replication_connection(database: Database) -> Iterator[Problem]:
    try:
        psycopg.connect(
            database.settings.database_url_direct,
            replication="database",
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
        ).close()
    except psycopg.OperationalError as problem:
        yield error(
            f"an ordinary connection works, one for replication does not: {sentence(problem)}",
            f"-- in pg_hba.conf, then SELECT pg_reload_conf():\n"
            f"host {database.direct.info.dbname} {database.role} samenet scram-sha-256",
        )


_SET_WAL_LEVEL: Final = (
    "ALTER SYSTEM SET wal_level = 'logical';\n"
    "-- then restart PostgreSQL. On Amazon RDS and Aurora: rds.logical_replication = 1 in the parameter group;\n"
    "-- on Google Cloud SQL: the flag cloudsql.logical_decoding = on; on Azure: the server parameter wal_level.\n"
)


@check("wal_level is logical", wal=True)
def wal_level(database: Database) -> Iterator[Problem]:
    level = database.setting("wal_level")
    if level != "logical":
        yield error(
            f"wal_level is {level}, so the WAL holds no rows to stream",
            f"{_SET_WAL_LEVEL}-- Where that cannot be: export ROWCAST_CAPTURE=outbox",
        )


@check("capture is what was asked for")
def fallback(database: Database) -> Iterator[Problem]:
    if database.settings.capture == "auto" and not database.streams:
        yield warning(
            f"wal_level is {database.setting('wal_level')}, so triggers write an outbox, which costs every commit more "
            "than the log would",
            f"{_SET_WAL_LEVEL}-- and run rowcast setup again. To keep the outbox: export ROWCAST_CAPTURE=outbox",
        )


@check("a walsender is free", wal=True)
def wal_senders(database: Database) -> Iterator[Problem]:
    limit = int(database.setting("max_wal_senders"))
    taken = database.value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'")
    ours = database.rows(
        "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active", database.settings.slot
    )
    if not ours and taken >= limit:
        yield error(
            f"all {limit} walsenders are taken",
            f"ALTER SYSTEM SET max_wal_senders = {limit + 5};\n-- then restart PostgreSQL",
        )


@check("wal_sender_timeout ends dead connections", wal=True)
def wal_sender_timeout(database: Database) -> Iterator[Problem]:
    if database.setting("wal_sender_timeout") == "0":
        yield warning(
            "wal_sender_timeout is 0: after a server died without a word, its slot stays taken until TCP gives up, "
            "two hours by default, and no other server can take over",
            "ALTER SYSTEM SET wal_sender_timeout = '60s';\nSELECT pg_reload_conf();",
        )


@check("the role may replicate", wal=True)
def replication_privilege(database: Database) -> Iterator[Problem]:
    may = database.value(
        "SELECT rolreplication OR rolsuper OR EXISTS (SELECT FROM pg_roles granted WHERE granted.rolname = "
        "'rds_replication' AND pg_has_role(current_user, granted.oid, 'MEMBER')) FROM pg_roles "
        "WHERE rolname = current_user"
    )
    if not may:
        yield error(
            f"the role {database.role} has no REPLICATION attribute, so it may not read the stream",
            f"ALTER ROLE {quote_identifier(database.role)} REPLICATION;\n"
            f"-- on Amazon RDS: GRANT rds_replication TO {quote_identifier(database.role)};",
        )


@check("the database's clock and this machine's agree")
def clock(database: Database) -> Iterator[Problem]:
    before = database.now()
    there = float(database.value("SELECT extract(epoch FROM clock_timestamp())::float8"))
    after = database.now()
    ahead = there - (before + after) / 2
    if abs(ahead) > _CLOCK_SECONDS + (after - before):
        yield warning(
            f"the database's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's: "
            "timestamps of changes and the lag in seconds are wrong by as much",
            "timedatectl set-ntp true  # on both machines",
        )


@check("no transaction stays open for long")
def long_transactions(database: Database) -> Iterator[Problem]:
    for row in database.rows(
        "SELECT pid, usename, state, extract(epoch FROM now() - xact_start)::bigint AS seconds "
        "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
        "AND xact_start < now() - make_interval(secs => %s) ORDER BY xact_start",
        database.long_transaction_seconds,
    ):
        yield warning(
            f"a transaction of {row['usename']} (process {row['pid']}, {row['state']}) is open for {row['seconds']} s: "
            "while it is, a slot cannot be made and a newly added table gets no snapshot",
            f"SELECT pg_terminate_backend({row['pid']});  -- if nobody misses it",
        )
    for row in database.rows("SELECT gid, prepared FROM pg_prepared_xacts ORDER BY prepared"):
        yield warning(
            f"the prepared transaction {row['gid']} is open since {row['prepared']:%Y-%m-%d %H:%M:%S %Z}: while it is, "
            "a slot cannot be made and a newly added table gets no snapshot",
            f"ROLLBACK PREPARED {quote_literal(str(row['gid']))};  -- or COMMIT PREPARED",
        )


@check("the installed packages are new enough")
def packages(database: Database) -> Iterator[Problem]:
    for package, least in PACKAGES.items():
        version = database.packages.get(package)
        if version is None:
            wanted = f"{package} is not installed"
        elif tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3]) < least:
            wanted = f"{package} {version} is too old"
        else:
            continue
        number = ".".join(map(str, least))
        yield error(
            f"{wanted}; Rowcast's server needs {number} or newer", f"pip install '{package}>={number}'"
        )
