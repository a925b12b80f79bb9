"""Connections to PostgreSQL for captures: noticed when dead, text in one form, refusals explained.

The one rule of this room: whoever cannot connect is told what to change, if it is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from rowcast.errors import CaptureError
from rowcast.values import session_options

# A dead peer is noticed within about a minute by the kernel, whatever the system's defaults are (two hours on Linux).
_DEFAULTS: Final[dict[str, str | int]] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "fallback_application_name": "rowcast",
}
# A statement takes milliseconds. One without an answer for this long is asked after.
SILENCE_SECONDS: Final = 10.0
POOLER_REMEDY: Final = (
    "A connection pooler stands between Rowcast and PostgreSQL: give the address of PostgreSQL itself in "
    "DATABASE_URL_DIRECT"
)


class TemporaryCaptureError(CaptureError):
    """Something that may mend itself: raised at the start, waited for where the capture was running before."""


class _Refusal(NamedTuple):
    part: str  # of the server's message, in English: libpq gives no SQLSTATE for a failed connection
    kind: type[CaptureError]
    remedy: str


_REPLICATION_RIGHT: Final = 'Run: ALTER ROLE … REPLICATION (as a superuser), or use capture="outbox"'
_REFUSALS: Final = (
    _Refusal("unsupported startup parameter", CaptureError, POOLER_REMEDY),
    _Refusal("permission denied to start WAL sender", CaptureError, _REPLICATION_RIGHT),
    _Refusal("must be superuser or replication role", CaptureError, _REPLICATION_RIGHT),
    _Refusal(
        "max_wal_senders",
        TemporaryCaptureError,
        "All walsenders are taken: stop another replication client (SELECT * FROM pg_stat_replication), or raise "
        "max_wal_senders and restart PostgreSQL",
    ),
    _Refusal(
        "authentication failed", TemporaryCaptureError, "Correct user and password in the connection URL"
    ),
    _Refusal("no password supplied", TemporaryCaptureError, "Add the password to the connection URL"),
    _Refusal(
        "pg_hba.conf", TemporaryCaptureError, "Allow this host, user and database in the server's pg_hba.conf"
    ),
    _Refusal("does not exist", TemporaryCaptureError, "Correct the connection URL"),
)


async def connect(dsn: str, **parameters: str) -> psycopg.AsyncConnection[Any]:
    """An autocommit connection whose text output is what `values` expects.

    `parameters` go over those in `dsn`, which go over our defaults.

    Raises:
        CaptureError: The server or a pooler refuses, and waiting would not help.
        psycopg.OperationalError: The server cannot be reached.
    """
    given = conninfo_to_dict(dsn)
    options = " ".join(filter(None, [str(given.get("options") or ""), session_options()]))
    defaults = {name: value for name, value in _DEFAULTS.items() if name not in given}
    conninfo = make_conninfo(dsn, **defaults, options=options, client_encoding="utf8", **parameters)
    try:
        return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        for part, kind, remedy in _REFUSALS:
            if part in str(error):
                raise kind(f"PostgreSQL cannot be captured from: {one_line(error)}. {remedy}") from error
        raise


def watch(connection: psycopg.AsyncConnection[Any], dsn: str) -> asyncio.Task[None]:
    """Until the task is cancelled, end the connection once it waits for an answer that no server is working at.

    The kernel notices a dead peer, but not what died behind a proxy that goes on taking what is sent.
    """
    return asyncio.create_task(_watch(connection, dsn), name="rowcast connection watch")


async def _watch(connection: psycopg.AsyncConnection[Any], dsn: str) -> None:
    pid = connection.info.backend_pid
    while not connection.closed:
        await asyncio.sleep(SILENCE_SECONDS)
        if _waits(connection) and not await _works(dsn, pid) and _waits(connection):
            sever(connection)


def _waits(connection: psycopg.AsyncConnection[Any]) -> bool:
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE


async def _works(dsn: str, pid: int) -> bool:
    """Whether a process of the server is in the middle of a statement, or was a moment ago.

    One that is asked all the time is between two statements as often as not, and is not lost for it.
    """
    return await finds(
        connect(dsn),
        "SELECT FROM pg_stat_activity WHERE pid = %s AND"
        " (state IN ('active', 'disabled') OR state_change > clock_timestamp() - make_interval(secs => %s))",
        (pid, SILENCE_SECONDS),
        SILENCE_SECONDS,
    )


async def finds(
    connecting: Awaitable[psycopg.AsyncConnection[Any]],
    query: LiteralString,
    parameters: Sequence[object] | Mapping[str, object],
    seconds: float,
) -> bool:
    """Whether a query over a connection of its own finds a row; not, if none answers within `seconds`."""
    try:
        connection = await connecting
    except (CaptureError, psycopg.OperationalError):
        return False
    too_late = asyncio.get_running_loop().call_later(seconds, sever, connection)
    try:
        cursor = await connection.execute(query, parameters)
        return cursor.rowcount > 0
    except psycopg.OperationalError:
        return False
    finally:
        too_late.cancel()
        sever(connection)
        await connection.close()


def sever(connection: psycopg.AsyncConnection[Any]) -> None:
    """End a connection under whoever uses it: a statement in progress fails at once.

    Cancelling the statement instead would wait for the server's answer, which a dead connection never gives.
    """
    with (
        contextlib.suppress(OSError, psycopg.Error),  # gone already
        duplicate_socket(connection) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)


def duplicate_socket(connection: psycopg.AsyncConnection[Any]) -> socket.socket:
    """The connection's socket under a file descriptor of our own, which nobody closes behind our back."""
    return socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)


def one_line(error: BaseException) -> str:
    """An error's text for a log line or a sentence: without the server's CONTEXT, in one line."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((text or str(error)).split()) or type(error).__name__
