"""Checks of what `rowcast setup` installs, and of the watched tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg.rows import DictRow

from rowcast.capture.install import migrations, parse_table_names
from rowcast.doctor.report import Database, Problem, Table, check, error, quote_identifier, warning
from rowcast.settings import Settings

# The tables asked for by OID or by publication, and the partitions of those that are partitioned.
_FIND_TABLES: Final = """
WITH published AS (
    SELECT relation.oid
    FROM pg_publication_tables AS entry
    JOIN pg_namespace AS space ON space.nspname = entry.schemaname
    JOIN pg_class AS relation ON relation.relnamespace = space.oid AND relation.relname = entry.tablename
    WHERE entry.pubname = %(publication)s
), wanted AS (
    SELECT oid FROM published UNION SELECT unnest(%(named)s::oid[])
), members AS (
    SELECT oid FROM wanted UNION SELECT tree.relid FROM wanted, pg_partition_tree(wanted.oid) AS tree
)
SELECT relation.oid, format('%%I.%%I', space.nspname, relation.relname) AS name, relkind::text AS kind,
    relpersistence::text AS persistence, relreplident::text AS identity, relispartition AS is_partition,
    EXISTS (SELECT FROM pg_index WHERE indrelid = relation.oid AND indisprimary AND indimmediate) AS has_key,
    relation.oid IN (SELECT oid FROM published) AS published
FROM members JOIN pg_class AS relation ON relation.oid = members.oid
JOIN pg_namespace AS space ON space.oid = relation.relnamespace
ORDER BY name
"""


def find(
    connection: psycopg.Connection[DictRow], settings: Settings
) -> tuple[tuple[Table, ...], tuple[str, ...]]:
    """The tables of the publication and of the settings with their partitions, and those named in vain."""
    named: list[int] = []
    unknown: list[str] = []
    for name in (name for text in settings.tables for name in parse_table_names(text)):
        found = connection.execute(
            "SELECT relation.oid FROM pg_class AS relation JOIN pg_namespace AS space "
            "ON space.oid = relation.relnamespace WHERE space.nspname = %s AND relation.relname = %s "
            "AND relkind IN ('r', 'p')",
            name,
        ).fetchone()
        if found:
            named.append(int(found["oid"]))
        else:
            unknown.append(str(name))
    rows = connection.execute(_FIND_TABLES, {"publication": settings.publication, "named": named})
    return tuple(Table(**row) for row in rows), tuple(unknown)


def setup_command(database: Database) -> str:
    """The `rowcast setup` that these settings want."""
    tables = ",".join(database.settings.tables) or "projects,public.jobs"
    publication = database.settings.publication
    named = "" if publication == "rowcast" else f" --publication {publication}"
    return f"rowcast setup --dsn \"$DATABASE_URL_DIRECT\" --tables '{tables}'{named}"


@check("Rowcast's own objects are installed and up to date")
def installation(database: Database) -> Iterator[Problem]:
    setup = setup_command(database)
    if not database.value("SELECT to_regclass('rowcast.migration') IS NOT NULL"):
        yield error("the schema rowcast is missing: this database was not set up", setup)
        return
    if not database.value(
        "SELECT has_table_privilege('rowcast.migration', 'SELECT') "
        "AND has_table_privilege('rowcast.incarnation', 'INSERT')"
    ):
        yield error(
            f"the role {database.role} may not use the schema rowcast",
            f"{setup} --role {database.role}  # as the role that installed it",
        )
        return
    installed = int(database.value("SELECT coalesce(max(version), 0) FROM rowcast.migration"))
    newest = max(migration.version for migration in migrations())
    if installed < newest:
        yield error(f"the schema rowcast is at version {installed}, this Rowcast needs {newest}", setup)
    elif installed > newest:
        yield error(
            f"the schema rowcast is at version {installed}, newer than this Rowcast knows ({newest})",
            "pip install --upgrade rowcast",
        )


@check("the publication exists, has tables and publishes all operations", wal=True)
def publication(database: Database) -> Iterator[Problem]:
    name = database.settings.publication
    found = database.rows("SELECT * FROM pg_publication WHERE pubname = %s", name)
    if not found:
        yield error(f"there is no publication {name}, so nothing is streamed", setup_command(database))
        return
    missing = [word for word in ("insert", "update", "delete", "truncate") if not found[0][f"pub{word}"]]
    if missing:
        yield error(
            f"the publication {name} does not publish {', '.join(missing)}: clients would keep rows that changed",
            f"ALTER PUBLICATION {quote_identifier(name)} SET (publish = 'insert, update, delete, truncate');",
        )
    if not found[0]["pubviaroot"] and any(
        table.kind == "p" or table.is_partition for table in database.tables
    ):
        yield error(
            f"the publication {name} sends partitions under their own names, not under the table's",
            f"ALTER PUBLICATION {quote_identifier(name)} SET (publish_via_partition_root = true);",
        )
    if not any(table.published for table in database.tables):
        yield error(f"the publication {name} has no tables", setup_command(database))


@check("every table that the settings name exists and is published")
def named_tables(database: Database) -> Iterator[Problem]:
    for name in database.unknown_tables:
        yield error(
            f"the settings name the table {name}, which does not exist",
            f"# take {name} out of tables ({database.settings.origins.get('tables', 'as given')}), or create it",
        )
    if database.streams:
        unpublished = [t.name for t in database.tables if not t.published and not t.is_partition]
        if unpublished:
            yield error(
                f"not in the publication {database.settings.publication}: {', '.join(unpublished)}",
                setup_command(database),
            )


@check("no watched table is unlogged or temporary", wal=True)
def unlogged_tables(database: Database) -> Iterator[Problem]:
    for table in database.tables:
        if table.persistence == "u":
            yield error(
                f"{table.name} is unlogged: its rows are not in the WAL and cannot be streamed",
                f"ALTER TABLE {table.name} SET LOGGED;",
            )


@check("no watched table has children by inheritance")
def inheritance(database: Database) -> Iterator[Problem]:
    rows = database.rows(
        "SELECT inhparent::bigint AS parent, string_agg(inhrelid::regclass::text, ', ' ORDER BY inhrelid) AS children "
        "FROM pg_inherits GROUP BY inhparent"
    )
    children = {row["parent"]: row["children"] for row in rows}
    for table in database.tables:
        if table.kind == "r" and table.oid in children:
            yield error(
                f"{table.name} has children by inheritance ({children[table.oid]}): a query of it has their rows, its "
                "changes are not theirs",
                f"rowcast setup --dsn \"$DATABASE_URL_DIRECT\" --remove-tables '{table.name}'  # or partition it",
            )


@check("every watched table has a primary key")
def primary_keys(database: Database) -> Iterator[Problem]:
    for table in database.tables:
        if not table.has_key and not table.is_partition:
            yield warning(
                f"{table.name} has no primary key (a deferrable one does not count): changes carry no key, and equal rows cannot be told apart",
                f"ALTER TABLE {table.name} ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;",
            )


@check("every watched table sends full old rows", wal=True)
def replica_identity(database: Database) -> Iterator[Problem]:
    for table in database.tables:
        fix = f"ALTER TABLE {table.name} REPLICA IDENTITY FULL;"
        # A partitioned table has no rows: those of its partitions count.
        if table.kind == "p" or table.identity == "f":
            continue
        if table.identity == "n" or (table.identity == "d" and not table.has_key):
            yield error(
                f"{table.name} has no replica identity: once it is published, the application's own UPDATE and "
                "DELETE on it fail",
                fix,
            )
        else:
            yield warning(
                f"{table.name} sends only the key of old rows (replica identity "
                f"{'default' if table.identity == 'd' else 'index'}): a row that leaves a filter arrives as a DELETE by "
                "key, `old` is not there, and an unchanged large value has to be read again",
                fix,
            )


@check("the watched tables can be read for snapshots")
def select_privilege(database: Database) -> Iterator[Problem]:
    role = database.pooled.info.user
    for table in database.tables:
        may = database.pooled.execute(
            "SELECT has_schema_privilege(relnamespace, 'USAGE') AS usage, has_table_privilege(oid, 'SELECT') AS select, "
            "relnamespace::regnamespace::text AS schema FROM pg_class WHERE oid = %s",
            (table.oid,),
        ).fetchone()
        if table.is_partition or may is None:
            continue
        if not may["usage"]:
            yield error(
                f"the role {role} may not use the schema {may['schema']}, so {table.name} has no snapshots",
                f"GRANT USAGE ON SCHEMA {may['schema']} TO {quote_identifier(role)};",
            )
        if not may["select"]:
            yield error(
                f"the role {role} may not read {table.name}, so it has no snapshots",
                f"GRANT SELECT ON {table.name} TO {quote_identifier(role)};",
            )


@check("row-level security does not hide rows from snapshots")
def row_security(database: Database) -> Iterator[Problem]:
    role = database.pooled.info.user
    for table in database.tables:
        row = database.pooled.execute(
            "SELECT row_security_active(%s::oid) AS active", (table.oid,)
        ).fetchone()
        if row and row["active"] and not table.is_partition:
            yield error(
                f"row-level security of {table.name} applies to the role {role}: snapshots would lack rows that the "
                "stream delivers",
                f"ALTER ROLE {quote_identifier(role)} BYPASSRLS;",
            )
