"""Keeps a table of a SQLite file equal to a shape: `rowcast mirror`.

The one rule of this room: rows and the position that they belong to change in one SQLite transaction, one for each
transaction of PostgreSQL. Whenever this process ends, however it ends, the file holds the shape's exact rows at
the position beside them, and the next start goes on from there.

How values are kept: numbers and text as such; booleans as 0 and 1; objects, arrays, and everything in a json or
jsonb column as JSON text; NULL as NULL. SQLite has no exact decimals, so a number that neither a 64-bit integer nor
a float holds exactly (`numeric` with many digits) is kept as text. NaN and the infinities, which JSON has as text, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import aclosing, closing
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from rowcast.client.connection import TokenSource
from rowcast.client.events import JSONObject
from rowcast.client.stream import (
    Progress,
    Resync,
    SnapshotChunk,
    StateChanged,
    StreamEvent,
    Subscribed,
    Transaction,
    stream,
)
from rowcast.errors import ClientError

# A position without changes is written this late, so that a busy database elsewhere costs this file little.
_PROGRESS_SECONDS: Final = 0.2
# Another program may read the file in long transactions; a writer waits for its turn.
_BUSY_SECONDS: Final = 30.0
_EPOCH_DIGITS: Final = 16  # of a position, see docs/protocol.md
_INTEGERS: Final = frozenset({"smallint", "integer", "bigint", "oid", "boolean"})
_FLOATS: Final = frozenset({"real", "double precision"})
_TEXTS: Final = (
    "text",
    "character varying",
    "character",
    "uuid",
    "json",
    "jsonb",
    "date",
    "timestamp",
    "time",
    "bytea",
)
_JSON: Final = frozenset({"json", "jsonb"})

_encode = msgspec.json.Encoder(decimal_format="number").encode

Value: TypeAlias = int | float | str | None
Row: TypeAlias = dict[str, Value]

_STATE = """
CREATE TABLE IF NOT EXISTS _rowcast (
    table_name TEXT PRIMARY KEY,
    channel TEXT NOT NULL,
    filter TEXT,
    "where" TEXT,
    schema TEXT NOT NULL,
    position TEXT NOT NULL,
    epoch TEXT NOT NULL
)
"""


class StaleError(Exception):
    """The file cannot go on from its position: all rows are needed anew."""


class _Shape(msgspec.Struct, frozen=True):
    """What a mirrored table looks like; kept beside it, so that a change is noticed after a restart.

    Attributes:
        table: Its name, which is the source table's.
        columns: Name and PostgreSQL type of each.
        key: Names of the key's columns; empty without one.
    """

    table: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]

    def create(self, name: str) -> str:
        """The statement that makes a table of this shape."""
        columns = [f"{_quote(column)} {_affinity(type_name)}".rstrip() for column, type_name in self.columns]
        if self.key:
            columns.append(f"PRIMARY KEY ({', '.join(map(_quote, self.key))})")
        return f"CREATE TABLE {name} ({', '.join(columns)})"

    def row(self, values: JSONObject) -> Row:
        """Values as SQLite keeps them; columns that were not sent are absent."""
        return {name: _kept(values[name], type_name) for name, type_name in self.columns if name in values}

    def key_of(self, row: Row) -> tuple[Value, ...]:
        """The values of the key's columns."""
        return tuple(row[name] for name in self.key)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _affinity(type_name: str) -> str:
    """The declared type: SQLite converts what it is given to it, so only where that changes nothing."""
    if type_name in _INTEGERS:
        return "INTEGER"
    if type_name in _FLOATS:
        return "REAL"
    return "TEXT" if type_name.startswith(_TEXTS) or type_name.endswith("[]") else ""


def _kept(value: Any, type_name: str) -> Value:
    if value is None:
        return None
    if type_name in _JSON or isinstance(value, (dict, list)):
        return _encode(value).decode()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, Decimal):
        number = float(value)
        return number if math.isfinite(number) and Decimal(repr(number)) == value else format(value, "f")
    return value if isinstance(value, float) else str(value)


class Mirror:
    """The SQLite side: takes the events of one channel, in order.

    Args:
        path: The file; made where missing.
        channel: What is mirrored.
        filter: See `rowcast.client.stream.stream`; kept in the file, where a table belongs to one shape.
        where: Likewise.

    Attributes:
        position: Of the rows in the file; None before the first snapshot.

    Raises:
        ClientError: The file is no SQLite file, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        channel: str,
        *,
        filter: str | None = None,  # noqa: A002 - the field's word
        where: str | None = None,
    ) -> None:
        self.path = path
        self.position: str | None = None
        self._wish = (channel, filter, where)
        self._shape: _Shape | None = None  # of the table in the file
        self._coming: _Shape | None = None  # as the server described it last
        self._loading = False  # the rows in the file are not followed: a snapshot is needed, or under way
        self._progress: str | None = None
        with self._sentences():
            self._database = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
            # With this, every death of the process is survived; a power cut may cost the last transactions, which
            # the position in the same file then says.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_STATE)
            known = self._database.execute(
                'SELECT schema, position FROM _rowcast WHERE (channel, filter, "where") IS (?, ?, ?)',
                self._wish,
            ).fetchone()
        if known is None:
            self._loading = True
        else:
            self._shape, self.position = msgspec.json.decode(known[0], type=_Shape), known[1]

    @property
    def follows(self) -> bool:
        """Whether the table holds the rows of its position, and every event from there on is taken."""
        return not self._loading

    def close(self) -> None:
        """Write what is left to write, and close the file."""
        with contextlib.suppress(ClientError):
            self.write_progress()
        self._database.close()

    def start_over(self) -> None:
        """A new stream begins, without a position: the rows in the file stay until its snapshot is complete."""
        self._loading = True

    def take(self, event: StreamEvent) -> None:
        """Apply one event.

        Raises:
            StaleError: All rows are needed anew: `start_over()`.
            ClientError: The file cannot be written, or holds something else under this name.
        """
        with self._sentences():
            if isinstance(event, Transaction):
                self._apply(event)
            elif isinstance(event, SnapshotChunk):
                self._load(event)
            elif isinstance(event, Subscribed):
                self._describe(_Shape(event.table, event.columns, event.key))
            elif isinstance(event, Progress) and self.follows:
                self._followed(event.position)
                self._progress = event.position
            elif isinstance(event, Resync):
                self.write_progress()
                self._loading = True

    def write_progress(self) -> None:
        """Write down how far the stream has come without changes."""
        progress, self._progress = self._progress, None
        if progress is not None and self._shape is not None and progress > (self.position or ""):
            with self._sentences(), self._transaction():
                self._advance(self._shape, progress)

    def _describe(self, shape: _Shape) -> None:
        names = [name.lower() for name, _ in shape.columns]
        if len(set(names)) < len(names):
            raise ClientError(
                f"{shape.table} has columns that differ in capitals only, which SQLite cannot tell apart: "
                f"{', '.join(name for name, _ in shape.columns)}"
            )
        owner = self._database.execute(
            'SELECT channel, filter, "where" FROM _rowcast WHERE table_name = ?', (shape.table,)
        ).fetchone()
        taken = self._database.execute(
            "SELECT 1 FROM sqlite_master WHERE name = ? COLLATE NOCASE", (shape.table,)
        ).fetchone()
        if owner is not None and owner != self._wish:
            raise ClientError(
                f"{self.path} mirrors {', '.join(filter(None, owner))} as {shape.table}: name another file"
            )
        if owner is None and taken is not None:
            raise ClientError(f"{self.path} has something else named {shape.table}: name another file")
        self._coming = shape

    def _followed(self, position: str) -> _Shape:
        """The table's shape, if what comes at `position` can be put on top of it."""
        if (
            self._shape is None
            or self._loading
            or self._shape != self._coming
            or self.position is None
            or _epoch(self.position) != _epoch(position)
        ):
            raise StaleError
        return self._shape

    def _load(self, chunk: SnapshotChunk) -> None:
        """Collect the rows beside the table, and put them in its place when all are there."""
        shape = self._coming
        if shape is None:
            raise StaleError
        self._loading = True
        arriving = "temp.arriving"
        with self._transaction():
            if chunk.chunk == 0:
                self._database.execute(f"DROP TABLE IF EXISTS {arriving}")
                self._database.execute(shape.create(arriving))
            for row in chunk.deleted:
                self._delete(arriving, shape, shape.row(row))
            self._insert(arriving, shape, [shape.row(row) for row in chunk.rows])
            if chunk.position is None:
                return
            self._swap(shape, arriving, chunk.position)
        self._shape, self.position, self._progress, self._loading = shape, chunk.position, None, False

    def _swap(self, shape: _Shape, arriving: str, position: str) -> None:
        table = f"main.{_quote(shape.table)}"
        if self._shape == shape:
            # Indexes and views that somebody has made on the table stay.
            self._database.execute(f"DELETE FROM {table}")
        else:
            if self._shape is not None:
                self._database.execute(f"DROP TABLE main.{_quote(self._shape.table)}")
                self._database.execute("DELETE FROM _rowcast WHERE table_name = ?", (self._shape.table,))
            self._database.execute(shape.create(table))
        self._database.execute(f"INSERT INTO {table} SELECT * FROM {arriving}")
        self._database.execute(f"DROP TABLE {arriving}")
        self._database.execute(
            "INSERT OR REPLACE INTO _rowcast VALUES (?, ?, ?, ?, ?, ?, ?)",
            (shape.table, *self._wish, _encode(shape).decode(), position, _epoch(position)),
        )

    def _apply(self, transaction: Transaction) -> None:
        shape = self._followed(transaction.position)
        if transaction.position <= (self.position or ""):
            return
        self._progress = None
        with self._transaction():
            for change in transaction.changes:
                self._change(f"main.{_quote(shape.table)}", shape, change)
            self._advance(shape, transaction.position)

    def _advance(self, shape: _Shape, position: str) -> None:
        moved = self._database.execute(
            "UPDATE _rowcast SET position = ?, epoch = ? WHERE table_name = ? AND position = ?",
            (position, _epoch(position), shape.table, self.position),
        )
        if moved.rowcount != 1:
            raise ClientError(
                f"another process has written to {self.path}: only one at a time may mirror into a table"
            )
        self.position = position

    def _change(self, table: str, shape: _Shape, change: JSONObject) -> None:
        operation: str = change["op"]
        new, old = shape.row(change.get("new") or {}), shape.row(change.get("old") or {})
        if operation == "TRUNCATE":
            self._database.execute(f"DELETE FROM {table}")
        elif operation == "DELETE":
            self._delete(table, shape, {**shape.row(change.get("key") or {}), **old})
        elif operation == "INSERT":
            self._insert(table, shape, [new])
        else:
            before = {**{name: new[name] for name in shape.key if name in new}, **old}
            if len(new) < len(shape.columns):
                self._patch(table, shape, before, new)
            else:
                if not shape.key or shape.key_of(before) != shape.key_of(new):
                    self._delete(table, shape, before)
                self._insert(table, shape, [new])

    def _patch(self, table: str, shape: _Shape, before: Row, new: Row) -> None:
        """Change the columns that were sent; the others kept their values."""
        condition, values = _same(table, shape, before)
        assignments = ", ".join(f"{_quote(name)} = ?" for name in new)
        statement = f"UPDATE {table} SET {assignments} WHERE {condition}"
        if self._database.execute(statement, (*new.values(), *values)).rowcount != 1:
            raise StaleError

    def _insert(self, table: str, shape: _Shape, rows: Sequence[Row]) -> None:
        names = [name for name, _ in shape.columns]
        if any(len(row) < len(names) for row in rows):
            raise StaleError
        places = ", ".join("?" * len(names))
        self._database.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES ({places})",
            ([row[name] for name in names] for row in rows),
        )

    def _delete(self, table: str, shape: _Shape, row: Row) -> None:
        condition, values = _same(table, shape, row)
        self._database.execute(f"DELETE FROM {table} WHERE {condition}", values)

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _sentences(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as problem:
            raise ClientError(f"{self.path} cannot be kept as a mirror: {problem}") from problem


def _same(table: str, shape: _Shape, row: Row) -> tuple[str, list[Value]]:
    """The condition for the row of this key or, without keys, for one of the rows that are equal to it."""
    names = shape.key or tuple(name for name, _ in shape.columns)
    if any(name not in row for name in names):
        raise StaleError
    condition = " AND ".join(f"{_quote(name)} IS ?" for name in names)
    if not shape.key:
        # SQLite's own row number, under a name of it that no column has.
        columns = {name.lower() for name in names}
        number = next(name for name in ("rowid", "_rowid_", "oid") if name not in columns)
        condition = f"{number} = (SELECT {number} FROM {table} WHERE {condition} LIMIT 1)"
    return condition, [row[name] for name in names]


def _epoch(position: str) -> str:
    return position[:_EPOCH_DIGITS]


async def mirror(
    url: str,
    channel: str,
    path: Path,
    *,
    filter: str | None = None,  # noqa: A002 - the field's word
    where: str | None = None,
    token: TokenSource = None,
    on_follow: Callable[[], None] | None = None,
    on_event: Callable[[StreamEvent], None] | None = None,
) -> None:
    """Keep a table of `path` equal to a channel, until cancelled.

    Args:
        url: The server's address.
        channel: Such as `projects`.
        path: The SQLite file.
        filter: In PostgREST form.
        where: In SQL form.
        token: See `rowcast.client.Connection`.
        on_follow: Called once, when the table holds the rows of a position and follows from there.
        on_event: Called with each event after it was applied.

    Raises:
        ClientError: The server refuses, or the file cannot be used; the text says why.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def write_progress() -> None:
        nonlocal timer
        timer = None
        # What stops this will stop the next transaction too, which says so.
        with contextlib.suppress(ClientError):
            target.write_progress()

    with closing(Mirror(path, channel, filter=filter, where=where)) as target:
        while True:
            since = target.position if target.follows else None
            following = stream(
                url, channel, filter=filter, where=where, since=since, snapshot=True, token=token
            )
            try:
                async with aclosing(following) as events:
                    async for event in events:
                        target.take(event)
                        if on_follow is not None and target.follows and not isinstance(event, StateChanged):
                            on_follow()
                            on_follow = None
                        if on_event is not None:
                            on_event(event)
                        if timer is None and isinstance(event, Progress):
                            timer = loop.call_later(_PROGRESS_SECONDS, write_progress)
            except StaleError:
                target.start_over()
            finally:
                if timer is not None:
                    timer.cancel()
                    timer = None
