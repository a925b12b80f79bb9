"""What a WAL capture needs of the server: the start-up checks and the replication slot.

The one rule of this room: a slot that was made anew gets a new incarnation *before* it exists, so that no position
of the old one can ever be taken for one of the new.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors as pg_errors
from psycopg.rows import class_row

from rowcast.capture.connection import TemporaryCaptureError, one_line
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.model import EPOCH_DIGITS

_logger: Final = logging.getLogger(__name__)

_OLDEST_VERSION: Final = 140000  # the first whose pgoutput sends logical messages


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot and, from rowcast.incarnation, which making of it this is."""

    plugin: str
    database: str | None
    is_lost: bool
    confirmed: int
    incarnation: str | None

    def epoch(self, system_identifier: str, timeline: int) -> str:
        text = f"{system_identifier}/{timeline}/{self.incarnation}"
        return hashlib.sha256(text.encode()).hexdigest()[:EPOCH_DIGITS]


async def check_server(connection: psycopg.AsyncConnection[Any], publication: str) -> float:
    """Refuse a server that cannot be captured from; return its wal_sender_timeout in seconds.

    Raises:
        CaptureError: For the reason given, with the remedy.
        NotInstalledError: The database was not set up.
    """
    cursor = await connection.execute(
        """
        SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(), current_setting('wal_level'),
            (SELECT setting::float / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout'),
            EXISTS (SELECT FROM pg_publication WHERE pubname = %s), to_regnamespace('rowcast') IS NOT NULL,
            current_database()
        """,
        [publication],
    )
    [row] = await cursor.fetchall()
    version, in_recovery, wal_level, timeout_seconds, has_publication, has_schema, database = row
    if version < _OLDEST_VERSION:
        raise CaptureError(
            f'the server is PostgreSQL {version // 10000}; capture="wal" needs 14 or newer: upgrade it'
        )
    if in_recovery:
        raise TemporaryCaptureError(
            "the server is a standby, which cannot be captured from: give the primary's address, or all addresses "
            "with target_session_attrs=read-write"
        )
    if wal_level != "logical":
        raise CaptureError(
            f"the server has wal_level = {wal_level}: run ALTER SYSTEM SET wal_level = logical and restart "
            'PostgreSQL, or use capture="outbox"'
        )
    if not has_publication or not has_schema:
        missing = "schema rowcast" if not has_schema else f"publication {publication}"
        raise NotInstalledError(
            f"database {database} has no {missing}: run: rowcast setup --dsn … --tables …"
            + (f" --publication {publication}" if publication != "rowcast" else "")
        )
    return float(timeout_seconds)


async def read_slot(connection: psycopg.AsyncConnection[Any], name: str) -> Slot | None:
    """The slot as it is now, or None."""
    async with connection.cursor(row_factory=class_row(Slot)) as cursor:
        await cursor.execute(
            """
            SELECT plugin, database, wal_status = 'lost' AS is_lost,
                coalesce(confirmed_flush_lsn - '0/0', 0)::bigint AS confirmed,
                (SELECT incarnation FROM rowcast.incarnation AS i WHERE i.slot_name = s.slot_name)
            FROM pg_replication_slots AS s WHERE slot_name = %s
            """,
            [name],
        )
        return await cursor.fetchone()


async def ensure_slot(connection: psycopg.AsyncConnection[Any], name: str, reached: int) -> None:
    """Make the slot where there is none, or none that could continue.

    Creating a slot waits for all writing transactions to end. `reached` is the LSN that was delivered last: a
    database that has not come as far, because it was restored from a copy, cannot continue either.

    Raises:
        CaptureError: The role may not, the name is taken by something else, or there is no room for a slot.
    """
    # One of several servers that start together makes it.
    lock = f"rowcast slot {name}"
    await connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [lock])
    try:
        slot = await read_slot(connection, name)
        cursor = await connection.execute(
            "SELECT pg_current_wal_insert_lsn() - '0/0' < %s, current_database()", [reached]
        )
        [[fell_back, database]] = await cursor.fetchall()
        if slot is not None:
            _check_ownership(slot, name, database)
            if not (slot.is_lost or fell_back):
                if slot.incarnation is None:  # made by hand
                    await _write_incarnation(connection, name)
                return
            await connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
        _logger.info(
            "making replication slot %s, which waits until all writing transactions have ended", name
        )
        await _write_incarnation(connection, name)
        await connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    except pg_errors.ConfigurationLimitExceeded as error:
        raise TemporaryCaptureError(
            f"the server has no free replication slot ({one_line(error)}): drop one that is not used any more "
            "(SELECT * FROM pg_replication_slots), or raise max_replication_slots and restart PostgreSQL"
        ) from error
    finally:
        if not connection.broken:
            await connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [lock])


async def _write_incarnation(connection: psycopg.AsyncConnection[Any], name: str) -> None:
    await connection.execute(
        "INSERT INTO rowcast.incarnation VALUES (%s, %s) ON CONFLICT (slot_name)"
        " DO UPDATE SET incarnation = excluded.incarnation, created_at = now()",
        [name, secrets.token_hex(16)],
    )


def _check_ownership(slot: Slot, name: str, database: str) -> None:
    if slot.plugin != "pgoutput" or slot.database != database:
        raise CaptureError(
            f"replication slot {name} exists already, for plugin {slot.plugin} in database {slot.database}, "
            "and slots are shared by all databases of a server: choose another name with ROWCAST_SLOT"
        )


async def end_walsender(connection: psycopg.AsyncConnection[Any], slot: str, pid: int) -> None:
    """End the walsender that a dead connection of ours has left on the slot.

    The server itself would notice after wal_sender_timeout, and until then the slot is taken.
    """
    with suppress(pg_errors.InsufficientPrivilege):  # it is another role's by now
        await connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active_pid = %s",
            [slot, pid],
        )
