"""The oracle: what every table held at every position, from a logical slot of its own, and what PostgreSQL says of it.

The one rule of this room: nothing here uses Rowcast. The stream is read by SQL at barriers and decoded by hand; which
rows a filter lets through, and what they look like as JSON, PostgreSQL says itself, of every version that a row ever
had. At each barrier the fold of the stream must equal `SELECT * FROM table`, so the oracle is verified too.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import psycopg
from tests.faults.order import LogOrder, Order, Place
from tests.faults.schema import Table
from tests.faults.wire import UNCHANGED, Change, Reader, Transaction, Values

SLOT: Final = "oracle"
PREFIX: Final = "oracle"  # of the messages that tell a change of a table's columns

Texts = tuple[str | None, ...]
Key = tuple[Any, ...]  # a key's values as JSON has them; of a table without a key, the row as canonical JSON
JSONRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """A table, a condition and columns (None for all), as the oracle needs them."""

    table: str
    sql: str
    columns: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A table's columns for a time."""

    table: str
    columns: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)


@dataclass(slots=True)
class _Versions:
    """All versions of rows that one layout has had, numbered from `first` of the oracle's count on."""

    layout: Layout
    relation: str
    rows: dict[int, Texts] = field(default_factory=dict)
    loaded: int = -1  # the newest that PostgreSQL has


@dataclass(slots=True)
class _History:
    """What one table went through: for each row, the versions by transaction."""

    table: Table
    layout: Layout
    live: dict[Any, int] = field(default_factory=dict)  # row → its present version
    chain: dict[Any, tuple[list[int], list[int | None]]] = field(default_factory=dict)
    same: dict[Texts, list[int]] = field(
        default_factory=lambda: defaultdict(list)
    )  # rows without a key, by content
    touched: list[tuple[int, Any]] = field(default_factory=list)  # (transaction, row), in order
    layouts: list[tuple[int, Layout]] = field(default_factory=list)
    rows_seen: int = 0
    json_keys: dict[Any, Key] = field(default_factory=dict)
    row_ids: dict[Key, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction: where it stands, its id, and what it did, for people."""

    place: Place
    xid: int
    did: str

    @property
    def end(self) -> int:
        """The number in its position: over the log, the LSN behind it."""
        return self.place[1] // 2


class Oracle:
    """See the module. Its methods block.

    Args:
        dsn: The database.
        tables: Those it follows; they exist and are empty.
        order: What the stream's order is; that of the WAL by default.
    """

    def __init__(self, dsn: str, tables: Sequence[Table], order: Order | None = None) -> None:
        self.dsn = dsn
        self.commits: list[Commit] = []
        self._order = order = order or LogOrder()
        self._reader = Reader()
        self._places: list[Place] = []
        self._tables = {
            table.name: _History(table, layout := Layout(table.name, table.columns), layouts=[(-1, layout)])
            for table in tables
        }
        self._versions: dict[Layout, _Versions] = {}
        self._layout_of: list[Layout] = []
        self.json: list[JSONRow] = []
        self._truth: dict[tuple[str, Layout], tuple[int, set[int]]] = {}
        self._connection: psycopg.Connection[Any] | None = None
        with psycopg.connect(dsn, autocommit=True) as connection:
            order.prepare(connection)
            names = ", ".join(self._tables)
            connection.execute(f"CREATE PUBLICATION {SLOT} FOR TABLE {names}".encode())
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    # Reading the stream.

    def read(self) -> None:
        """Take in everything that has committed."""
        connection = self._connect()
        rows = connection.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL,"
            " 'proto_version', '1', 'publication_names', %s, 'messages', 'true')",
            (SLOT, ",".join((SLOT, *self._order.publications))),
        ).fetchall()
        for (data,) in rows:
            transaction = self._reader.feed(bytes(data))
            for placed in self._order.feed(transaction) if transaction is not None else ():
                self._commit(*placed)

    def _connect(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
            for versions in self._versions.values():
                versions.loaded = -1
        else:
            try:
                self._connection.execute("SELECT")
            except psycopg.OperationalError:
                self._connection.close()
                return self._connect()
        return self._connection

    def _commit(self, place: Place, transaction: Transaction) -> None:
        number = len(self.commits)
        did: Counter[str] = Counter()
        for change in transaction.changes:
            if change.operation == "M":
                if change.table == PREFIX:
                    told = json.loads(change.content)
                    self._alter(number, self._tables[told["table"]], told)
                did[f"M {change.table}"] += 1
            elif change.table in self._tables:
                self._apply(number, self._tables[change.table], change)
                did[f"{change.operation} {change.table}"] += 1
        told_did = ", ".join(f"{count} {what}" for what, count in did.items())
        self.commits.append(Commit(place, transaction.xid, told_did))
        self._places.append(place)

    def _apply(self, number: int, history: _History, change: Change) -> None:
        names = history.layout.names
        assert change.columns == names, f"the stream has {change.columns}, the oracle {names}"
        if change.operation == "T":
            for row in list(history.live):
                self._put(history, number, row, None)
            return
        row = before = None
        known = change.old if change.old is not None else change.new
        if change.operation != "I":
            assert known is not None
            row = self._find(history, known)
            before = self._row(history.live[row])
        texts = None if change.new is None else self._texts(change.new, before)
        self._put(history, number, row, texts)

    def _alter(self, number: int, history: _History, told: dict[str, Any]) -> None:
        """A table has other columns from here on; `keep` says which old column each is, `fill` what is new."""
        before = history.layout
        layout = history.layout = Layout(before.table, tuple((name, kind) for name, kind in told["columns"]))
        history.layouts.append((number, layout))
        keep, fill = told["keep"], told["fill"]
        for row, version in list(history.live.items()):
            old = dict(zip(before.names, self._row(version), strict=True))
            texts = tuple(old[keep[name]] if name in keep else fill[name] for name in layout.names)
            self._place(history, number, row, self._version(layout, texts))

    # The fold.

    @staticmethod
    def _texts(values: Values, before: Texts | None) -> Texts:
        texts: list[str | None] = []
        for place, value in enumerate(values):
            if value is UNCHANGED:
                assert before is not None
                value = before[place]  # noqa: PLW2901
            texts.append(value)
        return tuple(texts)

    def _find(self, history: _History, values: Values) -> Any:
        key = history.table.key
        if key:
            names = history.layout.names
            return tuple(values[names.index(name)] for name in key)
        return history.same[tuple(values)][-1]

    def _put(self, history: _History, number: int, row: Any, texts: Texts | None) -> None:
        """Replace a row (None: there was none) by another (None: it is gone)."""
        if row is not None:
            version = history.live[row]
            if not history.table.key:
                history.same[self._row(version)].remove(row)
            self._place(history, number, row, None)
        if texts is None:
            return
        if history.table.key:
            names = history.layout.names
            row = tuple(texts[names.index(name)] for name in history.table.key)
            assert row not in history.live, f"{history.table.name} has {row} twice"
        else:
            history.rows_seen += 1
            row = history.rows_seen
            history.same[texts].append(row)
        self._place(history, number, row, self._version(history.layout, texts))

    def _place(self, history: _History, number: int, row: Any, version: int | None) -> None:
        if version is None:
            del history.live[row]
        else:
            history.live[row] = version
        numbers, versions = history.chain.setdefault(row, ([], []))
        if numbers and numbers[-1] == number:
            versions[-1] = version
        else:
            numbers.append(number)
            versions.append(version)
        history.touched.append((number, row))

    def _version(self, layout: Layout, texts: Texts) -> int:
        versions = self._versions.get(layout)
        if versions is None:
            versions = self._versions[layout] = _Versions(layout, f"v{len(self._versions)}")
        number = len(self._layout_of)
        self._layout_of.append(layout)
        versions.rows[number] = texts
        return number

    def _row(self, version: int) -> Texts:
        return self._versions[self._layout_of[version]].rows[version]

    # What PostgreSQL says of the versions.

    def evaluate(self, shapes: Iterable[Shape]) -> None:
        """Have PostgreSQL say of every version what it is as JSON, and which of these shapes' conditions it meets."""
        connection = self._connect()
        self.json.extend({} for _ in range(len(self._layout_of) - len(self.json)))
        for versions in self._versions.values():
            self._load(connection, versions)
        for history in self._tables.values():
            for row, (_, numbers) in history.chain.items() if history.table.key else ():
                # One that came and went within a transaction never had a version.
                version = next((number for number in numbers if number is not None), None)
                if row not in history.json_keys and version is not None:
                    key = history.json_keys[row] = self.key_of(history.table.name, self.json[version])
                    history.row_ids[key] = row
        for shape in set(shapes):
            for layout, versions in self._versions.items():
                if layout.table == shape.table and shape.sql:
                    done, matching = self._truth.setdefault((shape.sql, layout), (-1, set()))
                    found = connection.execute(
                        f"SELECT version FROM {versions.relation} WHERE version > %s AND ({shape.sql.replace('%', '%%')})".encode(),
                        (done,),
                    )
                    matching.update(number for (number,) in found)
                    self._truth[shape.sql, layout] = versions.loaded, matching

    def _load(self, connection: psycopg.Connection[Any], versions: _Versions) -> None:
        definitions = ", ".join(f"{name} {kind}" for name, kind in versions.layout.columns)
        if versions.loaded < 0:
            connection.execute(
                f"CREATE TEMP TABLE {versions.relation} (version bigint, {definitions})".encode()
            )
        before = versions.loaded
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY {versions.relation} FROM STDIN".encode()) as copy,
        ):
            for number in reversed(versions.rows):
                if number <= before:
                    break
                copy.write_row((number, *versions.rows[number]))
                versions.loaded = max(versions.loaded, number)
        for number, text in connection.execute(
            f"SELECT version, (to_jsonb(t) - 'version')::text FROM {versions.relation} t WHERE version > %s".encode(),
            (before,),
        ):
            self.json[number] = json.loads(text)

    def verify(self) -> None:
        """Compare the fold with the tables as they are, while nobody writes."""
        connection = self._connect()
        for name, history in self._tables.items():
            found = Counter(
                canonical(json.loads(text))
                for (text,) in connection.execute(f"SELECT to_jsonb(t)::text FROM {name} t".encode())
            )
            folded = Counter(canonical(self.json[version]) for version in history.live.values())
            assert found == folded, f"the oracle's own fold of {name} is wrong: {difference(folded, found)}"

    def select(self, shape: Shape) -> Counter[str]:
        """The query that a shape is, as PostgreSQL answers it now: rows as canonical JSON."""
        where = f" WHERE {shape.sql}" if shape.sql else ""
        rows = self._connect().execute(f"SELECT to_jsonb(t)::text FROM {shape.table} t{where}".encode())
        return Counter(canonical(self.project(shape, json.loads(text))) for (text,) in rows)

    # What there was at a position.

    def number_at(self, position: str | int) -> int:
        """How many commits there were up to a position, or up to an LSN where the order is the WAL's."""
        place = (0, 2 * position) if isinstance(position, int) else self._order.place_of(position)
        return bisect_right(self._places, place)

    def commit_at(self, position: str) -> Commit | None:
        """The transaction whose position it is."""
        number = self.number_at(position) - 1
        found = number >= 0 and self._places[number] == self._order.place_of(position)
        return self.commits[number] if found else None

    def around(self, count: int) -> str:
        """The commits around a place, for a failure's text."""
        return "; ".join(
            f"{'>' if number >= count else ' '}{commit.xid} {commit.end:x}: {commit.did}"
            for number, commit in enumerate(self.commits)
            if count - 12 <= number < count + 4
        )

    def key_of(self, table: str, row: JSONRow) -> Key:
        key = self._tables[table].table.key
        return tuple(row[name] for name in key) if key else (canonical(row),)

    def columns_at(self, shape: Shape, count: int) -> tuple[str, ...]:
        """The columns of a shape after so many commits."""
        history = self._tables[shape.table]
        layout = next(layout for number, layout in reversed(history.layouts) if number < count)
        return tuple(name for name in layout.names if self._wanted(shape, name))

    def rows_at(self, shape: Shape, count: int) -> list[JSONRow]:
        """The rows of a shape after so many commits."""
        history = self._tables[shape.table]
        found = (self._visible(shape, history, row, count) for row in history.chain)
        return [row for row in found if row is not None]

    def touched_between(self, table: str, before: int, after: int) -> list[Any]:
        """Which rows of a table were written by the commits from `before` up to `after` (counts)."""
        touched = self._tables[table].touched
        start, end = (bisect_right(touched, count - 1, key=lambda each: each[0]) for count in (before, after))
        history = self._tables[table]
        rows = dict.fromkeys(row for _, row in touched[start:end])
        return [row for row in rows if row in history.json_keys or not history.table.key]

    def row_at(self, shape: Shape, row: Any, count: int) -> JSONRow | None:
        """One row of a shape after so many commits, if it was in it."""
        return self._visible(shape, self._tables[shape.table], row, count)

    def json_key(self, table: str, row: Any) -> Key:
        """A row's key as JSON has it."""
        return self._tables[table].json_keys[row]

    def row_id(self, table: str, key: Key) -> Any:
        """The row that has this key in JSON, if there ever was one."""
        return self._tables[table].row_ids.get(key)

    def _visible(self, shape: Shape, history: _History, row: Any, count: int) -> JSONRow | None:
        numbers, versions = history.chain[row]
        place = bisect_right(numbers, count - 1) - 1
        version = versions[place] if place >= 0 else None
        if version is None:
            return None
        if shape.sql and version not in self._truth[shape.sql, self._layout_of[version]][1]:
            return None
        return self.project(shape, self.json[version])

    def project(self, shape: Shape, row: JSONRow) -> JSONRow:
        if shape.columns is None:
            return row
        return {name: value for name, value in row.items() if self._wanted(shape, name)}

    def _wanted(self, shape: Shape, name: str) -> bool:
        key = self._tables[shape.table].table.key
        return shape.columns is None or name in shape.columns or name in key


def plain(value: Any) -> Any:
    """JSON with numbers of equal value equal, whatever a decoder made of them."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def canonical(row: JSONRow) -> str:
    return json.dumps(plain(row), sort_keys=True)


def difference(ours: Counter[str], theirs: Counter[str]) -> str:
    """What is too much and what is missing, shortened."""
    extra = [row[:300] for row in (ours - theirs).elements()]
    missing = [row[:300] for row in (theirs - ours).elements()]
    return f"{len(extra)} too many {extra[:3]}, {len(missing)} missing {missing[:3]}"
