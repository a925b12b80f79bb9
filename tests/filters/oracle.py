"""PostgreSQL as the oracle of the filters' tests: makes tables, reads rows as snapshots do, and evaluates conditions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import psycopg

from rowcast.capture.catalog import load_tables_by_oid
from rowcast.errors import FilterError
from rowcast.filters import BoundFilter, FilterIndex, bind, parse_sql
from rowcast.model import MISSING, Row, Table
from rowcast.testing import EmbeddedPostgres
from rowcast.values import parse_copy_line, session_options

Result = TypeVar("Result")

# Labels that sort otherwise than their text.
_SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'Mid', 'happy', 'a b');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN label AS text;
"""
_LINGUISTIC_SCHEMA = """
CREATE COLLATION ignoring_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""


def quote(text: str) -> str:
    """A literal as a careful user would write it."""
    quoted = text.replace("'", "''")
    return f"'{quoted}'" if "\\" not in text else "E'{}'".format(quoted.replace("\\", "\\\\"))


class Oracle:
    """A database with the types of the tests. Close it.

    Attributes:
        linguistic: Whether it has ICU's collations.
    """

    def __init__(self, server: EmbeddedPostgres, name: str, *, linguistic: bool) -> None:
        self._server = server
        self._name = name
        self._numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self.linguistic = linguistic
        self.version = server.version
        dsn = server.create_database(name)
        self._connection = self._run(
            psycopg.AsyncConnection.connect(dsn, autocommit=True, options=session_options())
        )
        self.execute(_SCHEMA)
        if linguistic:
            self.execute(_LINGUISTIC_SCHEMA)

    def close(self) -> None:
        self._run(self._connection.close())
        self._loop.close()
        self._server.drop_database(self._name)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run_until_complete(work)

    def execute(self, statement: str) -> None:
        self._run(self._connection.execute(statement.encode()))

    def table(self, definitions: Sequence[str], rows: Iterable[Sequence[str | None]] = ()) -> Table:
        """Make a table of these columns (beside its key `row_number`) with rows of literals."""
        name = f"rows_{next(self._numbers)}"
        columns = ", ".join(["row_number integer PRIMARY KEY", *definitions])
        self.execute(f'CREATE TEMPORARY TABLE "{name}" ({columns})')
        values = [
            f"({number}, {', '.join('NULL' if value is None else quote(value) for value in row)})"
            for number, row in enumerate(rows)
        ]
        if values:
            self.execute(f'INSERT INTO "{name}" VALUES {", ".join(values)}')
        return self._run(self._load(name))

    async def _load(self, name: str) -> Table:
        cursor = await self._connection.execute("SELECT %s::regclass::oid", (f'"{name}"',))
        [oid] = await cursor.fetchone() or (0,)
        [table] = (await load_tables_by_oid(self._connection, [oid])).values()
        return table

    def drop(self, table: Table) -> None:
        self.execute(f'DROP TABLE "{table.name}"')

    def rows(self, table: Table, condition: str = "TRUE") -> list[Row]:
        """The rows for which a condition is true, as a snapshot reads them."""
        return self._run(self._copy(f'SELECT * FROM "{table.name}" WHERE {condition} ORDER BY row_number'))

    async def _copy(self, query: str) -> list[Row]:
        async with (
            self._connection.cursor() as cursor,
            cursor.copy(f"COPY ({query}) TO STDOUT".encode()) as copy,
        ):
            data = b"".join([bytes(block) async for block in copy])
        return [parse_copy_line(line) for line in data.split(b"\n")[:-1]]

    def truths(self, table: Table, conditions: Sequence[str]) -> list[list[bool]]:
        """For each row whether each of the conditions is true."""
        listed = ", ".join([f"(({condition}) IS TRUE)" for condition in conditions])
        try:
            found = self.query(f'SELECT {listed} FROM "{table.name}" ORDER BY row_number')
        except psycopg.Error as error:
            for condition in conditions if len(conditions) > 1 else ():  # tell which one
                self.truths(table, [condition])
            raise AssertionError(f"PostgreSQL refuses {conditions[0]}") from error
        return [list(row) for row in found]

    def query(self, query: str) -> list[tuple[Any, ...]]:
        return self._run(self._query(query))

    async def _query(self, query: str) -> list[tuple[Any, ...]]:
        return await (await self._connection.execute(query.encode())).fetchall()


def accepted(table: Table, conditions: Iterable[str]) -> list[tuple[str, BoundFilter]]:
    """The conditions that are not refused, with the filters that they become."""
    found: list[tuple[str, BoundFilter]] = []
    for condition in conditions:
        with contextlib.suppress(FilterError):
            found.append((condition, bind(parse_sql(condition), table)))
    return found


def assert_agreement(oracle: Oracle, table: Table, filters: Sequence[tuple[str, BoundFilter]]) -> None:
    """Each filter is true for the rows for which PostgreSQL finds its source true, and the SQL that it prints.

    So is it in an index with the others. Without a value that it needs, a filter never gives another answer than
    with it: it gives the same, or says that it does not know.
    """
    rows = oracle.rows(table)
    index = FilterIndex[int]()
    for number, (_, bound) in enumerate(filters):
        index.add(bound, number)
        assert bind(parse_sql(bound.sql), table) == bound, bound.sql
    numbered = list(enumerate(filters))
    for start in range(0, len(numbered), 300):
        batch = numbered[start : start + 300]
        sources = oracle.truths(table, [source for _, (source, _) in batch])
        printed = oracle.truths(table, [bound.sql for _, (_, bound) in batch])
        for row, by_source, by_print in zip(rows, sources, printed, strict=True):
            found = frozenset(index.match(row))
            for (number, (source, bound)), truth, again in zip(batch, by_source, by_print, strict=True):
                told = f"{source}  ⇒  {bound.sql}  on {row}"
                assert again is truth, f"PostgreSQL finds the print {again}, the source {truth}: {told}"
                assert bound.matches(row) is truth, f"PostgreSQL finds it {truth}: {told}"
                assert (number in found) is truth, f"the index finds it {not truth}: {told}"
                for hidden in bound.columns:
                    partial = (*row[:hidden], MISSING, *row[hidden + 1 :])
                    outcome = bound.evaluate(partial)
                    assert outcome is MISSING or (outcome is True) is truth, (
                        f"it is {outcome} without {hidden}: {told}"
                    )
