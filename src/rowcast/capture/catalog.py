"""Reads tables and types from the catalogs, PostgreSQL 14 to 18. Needs no right beyond reading pg_catalog.

The one rule of this room: a table has exactly the columns that logical replication sends, in the order it sends them:
by attnum, without dropped and generated columns and without those that the publication's column list leaves out.
Captures without a publication take the same columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import args_row, dict_row

from rowcast.capture.collation import describe_collation
from rowcast.errors import CaptureError
from rowcast.model import Collation, Column, ColumnTraits, ReplicaIdentity, Table
from rowcast.values import TypeCatalog, TypeDescription, TypeKind

# `attnames` came with PostgreSQL 15, as column lists did. Generated columns are among them, but before PostgreSQL 18
# they are never sent.
_PUBLISHED: Final = """
    SELECT class.oid, to_jsonb(published) -> 'attnames'
    FROM pg_publication_tables AS published
    JOIN pg_namespace AS namespace ON namespace.nspname = published.schemaname
    JOIN pg_class AS class ON class.relnamespace = namespace.oid AND class.relname = published.tablename
    WHERE published.pubname = %(publication)s
"""
_LISTED: Final = """
    SELECT oid, NULL::jsonb FROM unnest(%(oids)s::oid[]) AS oid
"""
_PRESENT_COLUMNS: Final = """
    SELECT attname, atttypid, atttypmod, attcollation, attnum
    FROM pg_attribute
    WHERE attrelid = class.oid AND attnum > 0 AND NOT attisdropped
      AND coalesce(chosen.attnames ? attname::text, attgenerated = '')
      AND (attgenerated = '' OR current_setting('server_version_num')::integer >= 180000)
"""
_GIVEN_COLUMNS: Final = """
    SELECT given.name, given.type_oid, given.type_modifier, coalesce(attcollation, typcollation, 0), given.place
    FROM unnest(%(names)s::text[], %(type_oids)s::oid[], %(type_modifiers)s::integer[])
        WITH ORDINALITY AS given (name, type_oid, type_modifier, place)
    LEFT JOIN pg_attribute ON attrelid = class.oid AND attname = given.name AND atttypid = given.type_oid
    LEFT JOIN pg_type ON pg_type.oid = given.type_oid
"""


def _tables_query(chosen: LiteralString, columns: LiteralString) -> LiteralString:
    return f"""
WITH chosen (oid, attnames) AS ({chosen})
SELECT chosen.oid, namespace.nspname, class.relname,
    CASE class.relreplident
        WHEN 'd' THEN 'default' WHEN 'n' THEN 'nothing' WHEN 'f' THEN 'full' WHEN 'i' THEN 'index'
    END AS replica_identity,
    (
        SELECT coalesce(jsonb_agg(
            jsonb_build_array(
                name, type_oid::bigint, type_modifier, format_type(type_oid, type_modifier), collation_oid::bigint
            )
            ORDER BY place
        ), '[]')
        FROM ({columns}) AS listed (name, type_oid, type_modifier, collation_oid, place)
    ) AS columns,
    (
        SELECT coalesce(jsonb_agg(key.names ORDER BY key.indisprimary DESC), '[]')
        FROM (
            SELECT index.indisprimary, jsonb_agg(attname ORDER BY part.place) AS names
            FROM pg_index AS index
            CROSS JOIN unnest(index.indkey) WITH ORDINALITY AS part (attnum, place)
            JOIN pg_attribute ON attrelid = index.indrelid AND pg_attribute.attnum = part.attnum
            WHERE index.indrelid = chosen.oid AND (index.indisprimary OR index.indisreplident) AND index.indimmediate
              AND part.place <= index.indnkeyatts
            GROUP BY index.indexrelid, index.indisprimary
        ) AS key
    ) AS keys
FROM chosen
LEFT JOIN pg_class AS class ON class.oid = chosen.oid
LEFT JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
"""


# The types asked for and those that they are made of.
_TYPES: Final = """
WITH RECURSIVE wanted (oid) AS (
    SELECT unnest(%(type_oids)s::oid[])
    UNION
    SELECT part.oid
    FROM wanted
    JOIN pg_type AS type ON type.oid = wanted.oid
    CROSS JOIN LATERAL (
        SELECT type.typelem
        UNION ALL
        SELECT type.typbasetype
        UNION ALL
        SELECT atttypid FROM pg_attribute
        WHERE attrelid = type.typrelid AND attnum > 0 AND NOT attisdropped
    ) AS part (oid)
)
SELECT type.oid, type.typname,
    CASE type.typtype
        WHEN 'c' THEN 'composite' WHEN 'd' THEN 'domain' WHEN 'e' THEN 'enum' WHEN 'r' THEN 'range'
        WHEN 'm' THEN 'multirange'
        ELSE CASE WHEN type.typoutput = 'pg_catalog.array_out'::regproc THEN 'array' ELSE 'base' END
    END AS kind,
    type.typelem, type.typdelim::text, type.typbasetype,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_array(attname, atttypid::bigint) ORDER BY attnum), '[]')
        FROM pg_attribute
        WHERE attrelid = type.typrelid AND attnum > 0 AND NOT attisdropped
    ) AS attributes,
    ARRAY (SELECT enumlabel::text FROM pg_enum WHERE enumtypid = type.oid ORDER BY enumsortorder) AS labels
FROM wanted
JOIN pg_type AS type ON type.oid = wanted.oid
"""

# The collation "default" stands for the database's. Locales of other providers than libc moved twice: ICU's came to
# pg_database with PostgreSQL 15, where libc had been the only one, and all got one column with 17.
_COLLATIONS: Final = """
WITH known (oid, name, provider, deterministic, locale, character_type) AS (
    SELECT oid, collname, collprovider::text, collisdeterministic,
        coalesce(to_jsonb(named) ->> 'colllocale', to_jsonb(named) ->> 'colliculocale', collcollate), collctype
    FROM pg_collation AS named
    UNION ALL
    SELECT 'pg_catalog."default"'::regcollation, NULL, coalesce(to_jsonb(own) ->> 'datlocprovider', 'c'), true,
        coalesce(to_jsonb(own) ->> 'datlocale', to_jsonb(own) ->> 'daticulocale', datcollate), datctype
    FROM pg_database AS own
    WHERE datname = current_database()
)
SELECT oid, coalesce(name, locale) AS name, provider, deterministic, locale,
    CASE provider WHEN 'c' THEN character_type ELSE locale END AS character_locale,
    current_setting('server_encoding') AS encoding
FROM known
WHERE oid = ANY(%(collation_oids)s) AND provider <> 'd'
"""
_FIRST_OTHER_OID: Final = 10_000  # OIDs below it belong to types that are built in
_DEFAULT_COLLATION: Final = 100
_JSONB: Final = 3802


@dataclass(frozen=True, slots=True)
class _TableRow:
    """A row of the tables query; without names where the table is not in the catalogs (any more)."""

    oid: int
    schema: str | None
    name: str | None
    replica_identity: ReplicaIdentity | None
    columns: list[tuple[str, int, int, str, int]]  # name, type, type modifier, the type's name, collation
    keys: list[list[str]]  # columns of the primary key, then those of the replica identity's index


async def load_tables(connection: AsyncConnection[Any], publication: str) -> dict[int, Table]:
    """All tables of a publication by OID, as its stream describes them.

    Under publish_via_partition_root a partitioned table stands for its partitions. FOR ALL TABLES means all, those
    of the schema rowcast too. A publication that does not exist has no tables.
    """
    rows = await _query_tables(connection, _PUBLISHED, _PRESENT_COLUMNS, {"publication": publication})
    return await _make_tables(connection, rows)


async def load_tables_by_oid(connection: AsyncConnection[Any], oids: Iterable[int]) -> dict[int, Table]:
    """The tables with these OIDs; one that does not exist (any more) is left out."""
    rows = await _query_tables(connection, _LISTED, _PRESENT_COLUMNS, {"oids": list(oids)})
    return await _make_tables(connection, (row for row in rows if row.name is not None))


async def load_relation(
    connection: AsyncConnection[Any],
    oid: int,
    columns: Sequence[tuple[str, int, int]],
    *,
    schema: str | None = None,
    name: str | None = None,
    replica_identity: ReplicaIdentity | None = None,
) -> Table:
    """The table of a Relation message, with exactly its columns (name, type OID, type modifier).

    The message tells how the table was when its changes were made; the catalogs may be ahead of it. Schema, name and
    replica identity are taken from the message where given. The key is the present one as far as the message has
    columns of these names, else empty.

    Raises:
        CaptureError: The catalogs have no such table any more, and the message's names were not given.
    """
    names, type_oids, type_modifiers = zip(*columns, strict=True) if columns else ((), (), ())
    parameters = {
        "oids": [oid],
        "names": [*names],
        "type_oids": [*type_oids],
        "type_modifiers": [*type_modifiers],
    }
    [row] = await _query_tables(connection, _LISTED, _GIVEN_COLUMNS, parameters)
    row = replace(
        row,
        schema=schema or row.schema,
        name=name or row.name,
        replica_identity=replica_identity or row.replica_identity,
    )
    return (await _make_tables(connection, [row]))[oid]


async def _query_tables(
    connection: AsyncConnection[Any],
    chosen: LiteralString,
    columns: LiteralString,
    parameters: dict[str, Any],
) -> list[_TableRow]:
    async with connection.cursor(row_factory=args_row(_TableRow)) as cursor:
        await cursor.execute(_tables_query(chosen, columns), parameters)
        return await cursor.fetchall()


async def _make_tables(connection: AsyncConnection[Any], rows: Iterable[_TableRow]) -> dict[int, Table]:
    rows = list(rows)
    columns = [column for row in rows for column in row.columns]
    async with connection.cursor(row_factory=args_row(_make_type)) as cursor:
        await cursor.execute(_TYPES, {"type_oids": list({type_oid for _, type_oid, _, _, _ in columns})})
        types = {description.oid: description async for description in cursor}
    collation_oids = {_DEFAULT_COLLATION, *(collation_oid for *_, collation_oid in columns)}
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_COLLATIONS, {"collation_oids": list(collation_oids)})
        collations = {row.pop("oid"): describe_collation(**row) async for row in cursor}
    catalog = TypeCatalog(types.values())
    return {row.oid: _make_table(row, catalog, types, collations) for row in rows}


def _make_type(
    oid: int,
    name: str,
    kind: TypeKind,
    element_oid: int,
    delimiter: str,
    base_oid: int,
    attributes: list[tuple[str, int]],
    labels: list[str],
) -> TypeDescription:
    pairs = tuple((attribute, type_oid) for attribute, type_oid in attributes)
    return TypeDescription(oid, name, kind, element_oid, delimiter, base_oid, pairs, tuple(labels))


def _make_table(
    row: _TableRow,
    catalog: TypeCatalog,
    types: Mapping[int, TypeDescription],
    collations: Mapping[int, Collation],
) -> Table:
    if row.schema is None or row.name is None or row.replica_identity is None:
        raise CaptureError(
            f"the table with OID {row.oid} is not in the catalogs: it was dropped after the change that names it; "
            "name its schema, name and replica identity as its Relation message did"
        )
    places = {column[0]: place for place, column in enumerate(row.columns)}
    keys = [names for names in row.keys if places.keys() >= set(names)]
    return Table(
        oid=row.oid,
        schema=row.schema,
        name=row.name,
        columns=tuple(
            Column(
                name=name,
                type_oid=type_oid,
                type_modifier=type_modifier,
                type_name=type_name,
                to_json=catalog.encoder(type_oid),
                traits=_make_traits(type_oid, collation_oid, types, collations),
            )
            for name, type_oid, type_modifier, type_name, collation_oid in row.columns
        ),
        key=tuple(places[name] for name in keys[0]) if keys else (),
        replica_identity=row.replica_identity,
    )


def _make_traits(
    type_oid: int,
    collation_oid: int,
    types: Mapping[int, TypeDescription],
    collations: Mapping[int, Collation],
) -> ColumnTraits:
    base = types.get(type_oid)
    while base is not None and base.kind == "domain":
        base = types.get(base.base_oid)
    if base is None:
        return ColumnTraits()
    element = types.get(base.element_oid) if base.kind == "array" else None
    return ColumnTraits(
        base_oid=base.oid if base.oid != type_oid else 0,
        element_oid=element.oid if element is not None and element.oid >= _FIRST_OTHER_OID else 0,
        enum_labels=base.labels or (element.labels if element is not None else ()),
        collation=collations.get(_DEFAULT_COLLATION if base.oid == _JSONB else collation_oid),
    )
