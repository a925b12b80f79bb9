"""Puts Rowcast's objects into a database and takes them out again: `rowcast setup`.

The one rule of this room: what runs is what `render` prints. `install` and `uninstall` first check the wishes against
the catalog, so that a wrong one gets a sentence in place of an SQL error, and then run that very script. What was
done comes back as the script's own notices.

All objects live in the schema `rowcast`, made by the numbered migrations in `sql/`: `NNNN_name.up.sql` and
`NNNN_name.down.sql`, each run in one transaction under an advisory lock. A later migration is two more files; where
it needs something for each watched table or for the server's role, it puts its own SQL functions around
`rowcast.watch`, `rowcast.unwatch` and `rowcast.grant_to`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Final, Literal, NamedTuple, TypeAlias

import psycopg
from psycopg import errors as pg_errors, sql

from rowcast.capture.connection import one_line
from rowcast.errors import CaptureError, ConfigurationError

DEFAULT_PUBLICATION: Final = "rowcast"
DEFAULT_SLOT: Final = "rowcast"
# How tables are watched: by a publication, by triggers, or by whichever the server's wal_level allows.
Means: TypeAlias = Literal["auto", "wal", "outbox"]

# Any number does that no other application takes; this one spells the name.
_ADVISORY_LOCK: Final = int.from_bytes(b"rowcast")
_MIGRATION_FILE: Final = re.compile(r"(\d{4})_(\w+)\.up\.sql")
# As many as a person reads when a name was misspelt.
_NEAR_NAMES: Final = 5
# A quoted identifier, in which a doubled quote stands for one, or a bare one.
_IDENTIFIER: Final = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_IF_LOGICAL_WAL: Final = "IF current_setting('wal_level') = 'logical'"
_TABLE_NAME: Final = re.compile(rf"\s*(?:({_IDENTIFIER})\s*\.\s*)?({_IDENTIFIER})\s*")


class TableName(NamedTuple):
    """A table's names as PostgreSQL stores them."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{_quote(self.schema)}.{_quote(self.name)}"


class Migration(NamedTuple):
    version: int
    name: str
    up: str
    down: str


def parse_table_names(text: str) -> list[TableName]:
    """Read a list of table names as people write it: `projects, public.jobs, "Weird.Name"."t"`.

    As in SQL, a name without quotes is lower-cased; without a schema it is a table of `public`.

    Raises:
        ConfigurationError: It is not such a list; the text points at the place.
    """
    names: list[TableName] = []
    offset = 0
    while True:
        match = _TABLE_NAME.match(text, offset)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            raise ConfigurationError(
                f"{text!r} is not a list of table names, from {text[offset:].strip()[:40]!r} on: write tables as "
                'projects, billing.invoices or "Name.With.Dots"."t", with commas between them'
            )
        schema, name = match.groups()
        names.append(TableName(_stored(schema) if schema else "public", _stored(name)))
        if match.end() == len(text):
            return names
        offset = match.end() + 1


def migrations() -> list[Migration]:
    """All migrations, the oldest first."""
    folder = resources.files("rowcast.capture") / "sql"
    found = [match for entry in folder.iterdir() if (match := _MIGRATION_FILE.fullmatch(entry.name))]
    return sorted(
        Migration(
            int(match[1]),
            match[2],
            (folder / match[0]).read_text(encoding="utf-8"),
            (folder / match[0].replace(".up.", ".down.")).read_text(encoding="utf-8"),
        )
        for match in found
    )


def render(
    tables: Sequence[str] = (),
    *,
    capture: Means = "auto",
    publication: str = DEFAULT_PUBLICATION,
    replica_identity_full: bool = True,
    role: str | None = None,
) -> str:
    """The SQL that `install` runs, for psql or another tool's migration. It may be run again at any time.

    Raises:
        ConfigurationError: A table's name cannot be read.
    """
    return _script(_install_steps(_parse(tables), capture, publication, role, full=replica_identity_full))


def render_uninstall(*, publication: str = DEFAULT_PUBLICATION, slot: str = DEFAULT_SLOT) -> str:
    """The SQL that `uninstall` runs, for psql."""
    return _script(_uninstall_steps(publication, slot))


def install(
    dsn: str,
    tables: Sequence[str] = (),
    *,
    capture: Means = "auto",
    publication: str = DEFAULT_PUBLICATION,
    replica_identity_full: bool = True,
    role: str | None = None,
) -> list[str]:
    """Bring Rowcast's objects up to date and watch `tables`; tables that are watched already stay.

    Args:
        dsn: Of a role that may create in the database and owns the tables.
        tables: Names as `parse_table_names` reads them; each may hold a list.
        capture: Whether a publication watches them, or triggers do; a table that the other one watched moves over.
            `auto` takes the publication where the server has wal_level = logical.
        publication: Created where missing; one that was made FOR ALL TABLES is refused. Triggers need none: there
            it is only the name that tells deployments apart.
        replica_identity_full: Make UPDATE and DELETE log the whole old row, which large values and subscriptions
            that a row leaves need. What it was before is remembered and put back when the table is removed.
            Triggers see whole rows without it.
        role: The role that `rowcast serve` connects as, if it is another: it gets the rights it needs.

    Returns:
        What was done, one sentence each.

    Raises:
        ConfigurationError: A table cannot be watched, or there is no such role. Nothing was changed.
        CaptureError: PostgreSQL refused; the text says how to mend it. Tables before the refused one are watched.
    """
    names = _parse(tables)
    with _connected(dsn) as (connection, done):
        by_wal = capture == "wal" or (capture == "auto" and _has_logical_wal(connection))
        if by_wal:
            _check_publication(connection, publication)
        elif capture == "auto" and names:
            done.append(
                "wal_level is not logical: triggers watch the tables (rowcast doctor tells how to change it)"
            )
        warnings = [
            warning
            for name in names
            for warning in _check_table(connection, name, by_wal=by_wal, full=replica_identity_full)
        ]
        if (
            role is not None
            and not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount
        ):
            raise ConfigurationError(
                f"there is no role {role!r}: create it first, CREATE ROLE {role} LOGIN REPLICATION"
            )
        _run(connection, _install_steps(names, capture, publication, role, full=replica_identity_full))
        return done + warnings


def remove_tables(dsn: str, tables: Sequence[str], *, publication: str = DEFAULT_PUBLICATION) -> list[str]:
    """Watch `tables` no more and put their replica identity back.

    Returns:
        What was done, one sentence each.

    Raises:
        ConfigurationError: One of them is not watched. Nothing was changed.
        CaptureError: PostgreSQL refused; the text says how to mend it.
    """
    names = _parse(tables)
    with _connected(dsn) as (connection, done):
        known = watched_tables(connection, publication)
        for name in names:
            if name not in known:
                raise ConfigurationError(
                    f"{name} is not watched by publication {publication}; watched are: "
                    f"{', '.join(map(str, known)) or 'none'}"
                )
        _run(connection, [_unwatch_step(publication, name) for name in names])
        return done


def uninstall(dsn: str, *, publication: str = DEFAULT_PUBLICATION, slot: str = DEFAULT_SLOT) -> list[str]:
    """Remove slot, publication and schema, and put every replica identity back.

    The schema stays while another publication has tables in it: another deployment shares the database.

    Returns:
        What was done, one sentence each.

    Raises:
        CaptureError: A server still holds the slot (the text has its process id), or PostgreSQL refused.
    """
    with _connected(dsn) as (connection, done):
        _run(connection, _uninstall_steps(publication, slot))
        return done


def watched_tables(connection: psycopg.Connection, publication: str = DEFAULT_PUBLICATION) -> list[TableName]:
    """The tables that `install` has put into the publication, by name."""
    if not _has_schema(connection):
        return []
    rows = connection.execute(
        "SELECT n.nspname, c.relname FROM rowcast.watched AS w JOIN pg_class AS c ON c.oid = w.table_oid"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE w.publication_name = %s ORDER BY 1, 2",
        [publication],
    )
    return [TableName(*row) for row in rows]


def _parse(tables: Sequence[str]) -> list[TableName]:
    return list(dict.fromkeys(name for text in tables for name in parse_table_names(text)))


def _stored(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier.lower()


def _quote(identifier: str) -> str:
    return (
        identifier
        if re.fullmatch(r"[a-z_][a-z0-9_]*", identifier)
        else sql.Identifier(identifier).as_string()
    )


def _literal(value: str) -> str:
    return sql.Literal(value).as_string()


def _regclass(name: TableName) -> str:
    return f"{_literal(f'{sql.Identifier(name.schema).as_string()}.{sql.Identifier(name.name).as_string()}')}::regclass"


def _block(body: str) -> str:
    """One DO statement, which is one transaction wherever it is run, after the advisory lock."""
    tag = "rowcast"
    while f"${tag}$" in body:
        tag += "_"
    return f"DO ${tag}$\nBEGIN\nPERFORM pg_advisory_xact_lock({_ADVISORY_LOCK});\n{body}\nEND\n${tag}$;"


def _quoted_block(body: str) -> str:
    tag = "migration"
    while f"${tag}$" in body:
        tag += "_"
    return f"${tag}$\n{body}${tag}$"


def _install_steps(
    names: Sequence[TableName], capture: Means, publication: str, role: str | None, *, full: bool
) -> list[str]:
    name = _literal(publication)
    steps = [_migration_step(migration) for migration in migrations()]
    steps.append(_means_step(capture, f"PERFORM rowcast.publish({name});", ""))
    steps += [
        _means_step(
            capture,
            f"PERFORM rowcast.watch({name}, {_regclass(table)}, {str(full).lower()});",
            f"PERFORM rowcast.watch_outbox({name}, {_regclass(table)});",
        )
        for table in names
    ]
    if role is not None:
        steps.append(
            _block(f"PERFORM rowcast.grant_to({_literal(sql.Identifier(role).as_string())}::regrole);")
        )
    return [step for step in steps if step]


def _means_step(capture: Means, by_wal: str, by_outbox: str) -> str:
    if capture == "auto":
        otherwise = f"\nELSE\n    {by_outbox}" if by_outbox else ""
        return _block(f"{_IF_LOGICAL_WAL} THEN\n    {by_wal}{otherwise}\nEND IF;")
    body = by_wal if capture == "wal" else by_outbox
    return _block(body) if body else ""


def _migration_step(migration: Migration) -> str:
    # Two IFs: a condition is planned as a whole, and the table may not be there yet.
    return _block(f"""\
IF to_regclass('rowcast.migration') IS NOT NULL THEN
    IF EXISTS (SELECT FROM rowcast.migration WHERE version = {migration.version}) THEN
        RETURN;
    END IF;
END IF;
EXECUTE {_quoted_block(migration.up)};
INSERT INTO rowcast.migration (version, name) VALUES ({migration.version}, {_literal(migration.name)});
RAISE NOTICE 'rowcast: applied migration {migration.version:04} {migration.name}';""")


def _unwatch_step(publication: str, name: TableName) -> str:
    return _block(f"PERFORM rowcast.unwatch({_literal(publication)}, {_regclass(name)});")


def _uninstall_steps(publication: str, slot: str) -> list[str]:
    downs = "\n".join(
        f"""\
IF EXISTS (SELECT FROM rowcast.migration WHERE version = {migration.version}) THEN
    {f"DELETE FROM rowcast.migration WHERE version = {migration.version};" if migration.version > 1 else ""}
    EXECUTE {_quoted_block(migration.down)};
END IF;"""
        for migration in reversed(migrations())
    )
    name, slot_name = _literal(publication), _literal(slot)
    return [
        # In a transaction of its own and first: a slot that stays behind would fill the disk.
        _block(f"""\
IF EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {slot_name} AND database = current_database()) THEN
    PERFORM pg_drop_replication_slot({slot_name});
    RAISE NOTICE 'rowcast: dropped replication slot %', {slot_name};
END IF;"""),
        _block(f"""\
IF to_regnamespace('rowcast') IS NULL THEN
    RAISE NOTICE 'rowcast: there is nothing to remove: the database has no schema rowcast';
    RETURN;
END IF;
PERFORM rowcast.unwatch({name}, table_oid) FROM rowcast.watched WHERE publication_name = {name};
PERFORM rowcast.unpublish({name});
DELETE FROM rowcast.incarnation WHERE slot_name = {slot_name};
IF EXISTS (SELECT FROM rowcast.watched) THEN
    RAISE NOTICE 'rowcast: kept schema rowcast: another publication uses it';
    RETURN;
END IF;
{downs}
RAISE NOTICE 'rowcast: removed schema rowcast';"""),
    ]


def _script(steps: Sequence[str]) -> str:
    return "\n\n".join(steps) + "\n"


def _run(connection: psycopg.Connection, steps: Sequence[str]) -> None:
    for step in steps:
        try:
            connection.execute(step.encode())
        except pg_errors.LockNotAvailable as error:
            raise CaptureError(
                f"a table is busy: its lock was not free within 5 seconds ({one_line(error)}). A long transaction holds it; "
                "nothing was changed for this table: run the command again when it has ended"
            ) from error
        except pg_errors.InsufficientPrivilege as error:
            raise CaptureError(
                f"PostgreSQL refused: {one_line(error)}. Run setup as a role that may CREATE in the database, "
                "owns the tables and, to remove the slot, has REPLICATION"
            ) from error
        except pg_errors.ObjectInUse as error:
            raise CaptureError(
                f"PostgreSQL refused: {one_line(error)}. Stop the server that holds it, then run again"
            ) from error


@contextmanager
def _connected(dsn: str) -> Generator[tuple[psycopg.Connection, list[str]]]:
    """A connection and the list that its notices go to."""
    done: list[str] = []

    def keep(diagnostic: psycopg.errors.Diagnostic) -> None:
        message = diagnostic.message_primary or ""
        if message.startswith("rowcast: "):
            done.append(message.removeprefix("rowcast: "))
        elif diagnostic.severity_nonlocalized == "WARNING":
            done.append(
                f"warning: {message}" + (f" ({diagnostic.message_hint})" if diagnostic.message_hint else "")
            )

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET client_min_messages = notice")
        connection.add_notice_handler(keep)
        yield connection, done


def _has_schema(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT FROM pg_namespace WHERE nspname = 'rowcast'").rowcount == 1


def _has_logical_wal(connection: psycopg.Connection) -> bool:
    return connection.execute("SHOW wal_level").fetchone() == ("logical",)


def _check_publication(connection: psycopg.Connection, publication: str) -> None:
    row = connection.execute(
        "SELECT puballtables, pubviaroot FROM pg_publication WHERE pubname = %s", [publication]
    ).fetchone()
    if row is not None and row[0]:
        raise ConfigurationError(
            f"publication {publication} is FOR ALL TABLES, so setup did not make it and cannot add to it: "
            "name another one with --publication or ROWCAST_PUBLICATION"
        )


_TABLE_FACTS: Final = """
SELECT c.relkind::text, c.relpersistence::text, c.relispartition,
    (SELECT format('%%I.%%I', rn.nspname, r.relname) FROM pg_class AS r JOIN pg_namespace AS rn
        ON rn.oid = r.relnamespace WHERE r.oid = pg_partition_root(c.oid)),
    EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate),
    ARRAY (SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = c.oid AND c.relkind = 'r' ORDER BY 1),
    (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid AND NOT c.relispartition LIMIT 1)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""
_NOT_TABLES: Final = {
    "v": "is a view, and views have no changes of their own: watch the tables it reads",
    "m": "is a materialized view, and its REFRESH is not replicated: watch the tables it reads",
    "f": "is a foreign table: its changes happen in another database, set up Rowcast there",
    "i": "is an index, not a table",
    "I": "is an index, not a table",
    "S": "is a sequence, not a table",
    "c": "is a composite type, not a table",
    "t": "is a TOAST table: watch the table it belongs to",
}


def _check_table(connection: psycopg.Connection, name: TableName, *, by_wal: bool, full: bool) -> list[str]:
    """Refuse what cannot be watched; return warnings about what can."""
    facts = connection.execute(_TABLE_FACTS, name).fetchone()
    if facts is None:
        raise ConfigurationError(f"there is no table {name}{_near_names(connection, name)}")
    kind, persistence, is_partition, root, has_primary_key, children, parent = facts
    if kind in _NOT_TABLES:
        raise ConfigurationError(f"{name} {_NOT_TABLES[kind]}")
    if name.schema in {"pg_catalog", "information_schema", "rowcast"}:
        raise ConfigurationError(f"{name} is a system table: PostgreSQL and Rowcast keep it for themselves")
    if persistence == "t" or (persistence == "u" and by_wal):
        word, remedy = {
            "t": ("temporary", "use an ordinary table"),
            "u": ("unlogged", f"ALTER TABLE {name} SET LOGGED first"),
        }[persistence]
        raise ConfigurationError(f"{name} is {word}, and PostgreSQL writes no log of its changes: {remedy}")
    if is_partition:
        raise ConfigurationError(
            f"{name} is a partition: watch {root}, which then covers all its partitions, present and future"
        )
    if children:
        raise ConfigurationError(
            f"{name} has children by inheritance ({', '.join(children)}): a query of it has their rows, its changes are "
            "not theirs. Make it a partitioned table, or watch tables without children"
        )
    if parent is not None and not by_wal:
        raise ConfigurationError(
            f"{name} inherits from {parent}: a statement that names {parent} changes its rows, and triggers of {name} "
            "do not see it. Use capture wal, or make it a partition"
        )
    if has_primary_key:
        return []
    if by_wal and not full:
        raise ConfigurationError(
            f"{name} has no primary key (a deferrable one does not count): without REPLICA IDENTITY FULL PostgreSQL would refuse the application's "
            "own UPDATE and DELETE as soon as the table is watched. Add a primary key or allow FULL"
        )
    return [
        f"warning: {name} has no primary key (a deferrable one does not count): clients get its changes, but cannot keep its rows apart"
    ]


def _near_names(connection: psycopg.Connection, name: TableName) -> str:
    rows = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\\_%%'"
        " AND n.nspname NOT IN ('information_schema', 'rowcast')",
        [],
    )
    known = [TableName(*row) for row in rows]
    by_likeness = sorted(known, key=lambda other: _likeness(name, other), reverse=True)
    near = [str(other) for other in by_likeness if _likeness(name, other) > 0.6][
        :_NEAR_NAMES
    ]  # difflib's own cutoff
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f"; the database has {', '.join(map(str, known[:_NEAR_NAMES])) or 'no tables'}"


def _likeness(wanted: TableName, other: TableName) -> float:
    return difflib.SequenceMatcher(None, wanted.name.lower(), other.name.lower()).ratio()
