"""The hand-offs that lose transactions, beside ours: a process that reads tables next to a stream of its own.

`python -m tests.faults.naive DSN` says `ready` and then answers each wish, a line `{"table": …, "sql": …}`, with a
`Reading` as a line of JSON. A reading is taken at once after the stream has delivered a commit, which is when a naive
hand-off has the most to lose; it has all that the hand-offs in `NAIVE` know, so that one reading judges all of them.

The one rule of this room: nothing here uses Rowcast, and no hand-off gets to see more than it could in an application.
"""

from __future__ import annotations

import json
import select
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg
from tests.faults.oracle import SLOT

_FRESH_SECONDS: Final = 0.5  # where nobody commits, a reading is taken without a fresh commit
_LSN: Final = "(pg_current_wal_lsn() - '0/0')::bigint"
_STATUS: Final = struct.Struct("!cQQQqB")


@dataclass(frozen=True, slots=True)
class Reading:
    """The rows of a table that meet a condition, and where the stream and the WAL stood around them.

    Attributes:
        heard_before, heard_after: End of the last commit that the stream had delivered.
        lsn_before, lsn_after: `pg_current_wal_lsn()`.
        snapshot: `pg_current_snapshot()` of the rows.
        rows: As JSON texts.
        end: `pg_current_wal_insert_lsn()` after everything: what the rows show had been written by then.
    """

    table: str
    sql: str
    heard_before: int
    lsn_before: int
    snapshot: str
    rows: list[str]
    lsn_after: int
    heard_after: int
    end: int


class Visible:
    """Which transactions a `pg_current_snapshot()` shows."""

    def __init__(self, snapshot: str) -> None:
        xmin, xmax, running = snapshot.split(":")
        self.xmin, self.xmax = int(xmin), int(xmax)
        self.running = {int(xid) for xid in running.split(",") if xid}

    def __call__(self, xid: int) -> bool:
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


# Of a commit that ends at an LSN and has an xid: whether it is applied over the rows.
Applies = Callable[[Reading, Visible, int, int], bool]
NAIVE: Final[dict[str, Applies]] = {
    "read, then subscribe": lambda reading, _, end, __: end > reading.heard_after,
    "subscribe, read, apply what came since": lambda reading, _, end, __: end > reading.heard_before,
    "subscribe, read, drop what the rows have by xid": lambda reading, visible, end, xid: (
        end > reading.heard_before and not visible(xid)
    ),
    "LSN, then read, apply what is after it": lambda reading, _, end, __: end > reading.lsn_before,
    "read, then LSN, apply what is after it": lambda reading, _, end, __: end > reading.lsn_after,
    "read, apply from the next xid on": lambda _, visible, __, xid: xid >= visible.xmax,
}


class Tail:
    """A stream of the oracle's publication, from a slot of its own.

    Attributes:
        heard: End of the last commit that was delivered.
    """

    def __init__(self, dsn: str) -> None:
        # Nobody reads while no rows are wished for.
        self._connection = psycopg.connect(
            dsn, autocommit=True, replication="database", options="-c wal_sender_timeout=0"
        )
        self._connection.execute("CREATE_REPLICATION_SLOT naive TEMPORARY LOGICAL pgoutput")
        self._connection.execute(
            f"START_REPLICATION SLOT naive LOGICAL 0/0 (proto_version '1', publication_names '{SLOT}')".encode()
        )
        self.heard = 0

    def drain(self) -> int:
        """Take in all that is there; how many commits that was."""
        pgconn = self._connection.pgconn
        commits = 0
        consumed = False
        while True:
            length, data = pgconn.get_copy_data(1)
            if length > 0:
                consumed = False
                if data[0] == ord("w") and data[25] == ord("C"):
                    [self.heard] = struct.unpack_from("!Q", data, 35)
                    commits += 1
            elif consumed:
                break
            else:
                pgconn.consume_input()
                consumed = True
        if commits:
            pgconn.put_copy_data(_STATUS.pack(b"r", self.heard, self.heard, self.heard, 0, 0))
            pgconn.flush()
        return commits

    def hear(self) -> None:
        """Wait for a commit, and take in all that is there with it."""
        self.drain()  # what has piled up is old
        deadline = time.monotonic() + _FRESH_SECONDS
        while not self.drain() and (left := deadline - time.monotonic()) > 0:
            select.select([self._connection.fileno()], [], [], left)


def read(connection: psycopg.Connection[Any], tail: Tail, table: str, sql: str) -> Reading:
    where = f" WHERE {sql}" if sql else ""
    tail.hear()
    before = tail.heard
    cursor = connection.execute(f"SELECT {_LSN}".encode())
    [(lsn_before,)] = cursor.fetchall()
    cursor.execute(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot()::text;"
        f" SELECT to_jsonb(t)::text FROM {table} t{where}; COMMIT; SELECT {_LSN}".encode()
    )
    [], [(snapshot,)], rows, [], [(lsn_after,)] = (
        cursor.fetchall() if cursor.description else [] for cursor in cursor.results()
    )
    tail.drain()
    after = tail.heard
    cursor.execute(b"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    [(end,)] = cursor.fetchall()
    return Reading(
        table, sql, before, lsn_before, snapshot, [text for (text,) in rows], lsn_after, after, end
    )


def main() -> None:
    [dsn] = sys.argv[1:]
    tail = Tail(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(read(connection, tail, **json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
