"""Keeps `Table` objects in step with one replication stream.

The one rule of this room: what the stream says about a table wins over the catalogs, which may be ahead of it. The
catalogs say which tables there are and what the stream leaves out: keys, and the names of types.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import psycopg

from rowcast.capture.assembly import Assembler
from rowcast.capture.catalog import load_relation, load_tables
from rowcast.model import Gap, Table, TablesChanged

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """Which tables a publication has, and how they are made.

    Attributes:
        entries: For each table's OID, the OID of its entry in pg_publication_rel (0 where it is a member by schema
            or FOR ALL TABLES) and the 32-bit xid that made the entry.
        partitioned: Those that are partitioned tables.
        signature: Changes with the tables and with their columns.
    """

    entries: Mapping[int, tuple[int, int]]
    partitioned: frozenset[int]
    signature: str


async def read_membership(connection: psycopg.AsyncConnection[Any], publication: str) -> Membership:
    """The publication's tables as of now; cheap enough to ask every few seconds."""
    cursor = await connection.execute(
        """
        SELECT t.relid::bigint, coalesce(r.oid, 0)::bigint, coalesce(r.xmin::text, '0')::bigint,
            md5(concat(c.relnamespace, c.relname, c.relreplident, (
                SELECT string_agg(concat_ws(' ', attname, atttypid, atttypmod, attgenerated), ',' ORDER BY attnum)
                FROM pg_attribute WHERE attrelid = t.relid AND attnum > 0 AND NOT attisdropped
            ))), c.relkind = 'p'
        FROM pg_publication AS p
        CROSS JOIN LATERAL pg_get_publication_tables(p.pubname) AS t
        JOIN pg_class AS c ON c.oid = t.relid
        LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid AND r.prrelid = t.relid
        WHERE p.pubname = %s
        ORDER BY t.relid
        """,
        [publication],
    )
    rows = await cursor.fetchall()
    return Membership(
        {row[0]: (row[1], row[2]) for row in rows}, frozenset(row[0] for row in rows if row[4]), repr(rows)
    )


class StreamTables:
    """The captured tables as the stream of one connection sees them.

    Attributes:
        tables: By OID. Those of the schema rowcast are never among them.
        membership: As it was when the tables were last read.
        behind: The stream has described a table as it was before that, and need not describe it again.
    """

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        publication: str,
        tables: Mapping[int, Table],
        membership: Membership,
    ) -> None:
        self.tables = tables
        self.membership = membership
        self.behind = False
        self._connection = connection
        self._publication = publication

    @classmethod
    async def read(
        cls, connection: psycopg.AsyncConnection[Any], publication: str, known: Mapping[int, Table]
    ) -> Self:
        """Read them at the beginning of a stream; those equal to a `known` one are that very object."""
        membership = await read_membership(connection, publication)
        tables = await load_tables(connection, publication)
        return cls(connection, publication, _captured(tables, known), membership)

    async def bind(self, assembler: Assembler, oid: int) -> None:
        """Tell the assembler which Table the stream's latest Relation of this OID describes.

        An event says so first where it is another one than before.
        """
        relation = assembler.relation(oid)
        if oid not in self.tables:
            await self.reload(assembler)
            if oid not in self.tables:  # it has left the publication since
                assembler.bind(oid, None)
                return
        table = await load_relation(
            self._connection,
            oid,
            [(column.name, column.type_oid, column.type_modifier) for column in relation.columns],
            schema=relation.schema,
            name=relation.name,
            replica_identity=relation.replica_identity,
        )
        if table != self.tables[oid]:
            self.behind = True
            self._change(assembler, {**self.tables, oid: table})
        if oid in self.membership.partitioned and relation.replica_identity == "full":
            await self._check_partitions(assembler, oid)
        assembler.bind(oid, self.tables[oid])

    async def reload(self, assembler: Assembler) -> None:
        """Read the publication's tables as they are now; where that is too early, a Relation message corrects it."""
        before, self.membership = self.membership, await read_membership(self._connection, self._publication)
        tables = _captured(await load_tables(self._connection, self._publication), self.tables)
        for oid, table in tables.items():
            if assembler.bound(oid) != table:
                assembler.unbind(oid)
        if tables != self.tables:
            self._change(assembler, tables)
        self.tell_returned(assembler, before)

    def tell_returned(self, assembler: Assembler, before: Membership) -> None:
        """A table that has left the publication and come back since has a hole in its stream: a Gap says so.

        So has one that is told to have come in the very transaction that has just passed: its changes before that
        may belong to an earlier stay.
        """
        xid = assembler.xid % 2**32
        returned = frozenset(
            oid
            for oid, (entry, made_by) in self.membership.entries.items()
            if oid in before.entries and (entry != before.entries[oid][0] or made_by == xid)
        )
        if returned:
            assembler.events.append(Gap(assembler.position, "capture_gap", returned))

    def _change(self, assembler: Assembler, tables: Mapping[int, Table]) -> None:
        self.tables = tables
        assembler.events.append(TablesChanged(assembler.position, tables))

    async def _check_partitions(self, assembler: Assembler, oid: int) -> None:
        """Look for partitions that were made after `rowcast setup` and do not log full old rows."""
        cursor = await self._connection.execute(
            "SELECT t.relid::regclass::text FROM pg_partition_tree(%s::oid) AS t JOIN pg_class AS c ON c.oid = t.relid"
            " WHERE t.isleaf AND c.relreplident <> 'f' ORDER BY 1",
            [oid],
        )
        names = [name for (name,) in await cursor.fetchall()]
        if names:
            assembler.distrust_nulls(oid)
            _logger.warning(
                "of table %s the partitions %s do not log full old rows, so a row that leaves a subscription may be "
                "known by its key only: run rowcast setup for the table again",
                self.tables[oid].channel,
                ", ".join(names),
            )


def _captured(tables: Mapping[int, Table], known: Mapping[int, Table]) -> Mapping[int, Table]:
    return {
        oid: known[oid] if known.get(oid) == table else table
        for oid, table in tables.items()
        if table.schema != "rowcast"  # a publication FOR ALL TABLES has our own in it
    }
