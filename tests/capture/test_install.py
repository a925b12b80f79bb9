"""Setting a database up and taking everything out again."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from hypothesis import given, strategies as st

from rowcast.capture import install
from rowcast.capture.install import TableName, parse_table_names
from rowcast.errors import CaptureError, ConfigurationError
from rowcast.testing import EmbeddedPostgres

_numbers = itertools.count(1)

TABLES = """
CREATE TABLE projects (id int PRIMARY KEY, name text);
CREATE TABLE jobs (id int PRIMARY KEY, note text NOT NULL UNIQUE);
CREATE UNIQUE INDEX jobs_by_note ON jobs (note);
ALTER TABLE jobs REPLICA IDENTITY USING INDEX jobs_by_note;
CREATE TABLE quiet (id int PRIMARY KEY);
ALTER TABLE quiet REPLICA IDENTITY NOTHING;
CREATE TABLE full_already (id int PRIMARY KEY);
ALTER TABLE full_already REPLICA IDENTITY FULL;
CREATE TABLE keyless (note text);
CREATE SCHEMA "Weird.Name";
CREATE TABLE "Weird.Name"."t ""x"" y" (id int PRIMARY KEY);
CREATE TABLE parts (id int, kind int, PRIMARY KEY (id, kind)) PARTITION BY RANGE (kind);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (kind);
CREATE TABLE parts_1a PARTITION OF parts_1 FOR VALUES FROM (0) TO (5);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
"""
ALL = 'projects, public.jobs, quiet, full_already, keyless, "Weird.Name"."t ""x"" y", parts'


@pytest.fixture
def tables(connection: psycopg.Connection) -> psycopg.Connection:
    """A connection to a database with tables of all sorts."""
    connection.execute(TABLES)
    return connection


def traces(connection: psycopg.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Everything that setup could leave behind."""
    queries = {
        "schemas": "SELECT nspname, nspacl FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' ORDER BY 1",
        "relations": "SELECT oid, relname, relreplident, relacl FROM pg_class WHERE oid > 16383 ORDER BY 1",
        "indexes": "SELECT indexrelid, indisreplident FROM pg_index WHERE indexrelid > 16383 ORDER BY 1",
        "functions": "SELECT oid FROM pg_proc WHERE oid > 16383",
        "publications": "SELECT pubname FROM pg_publication",
        "triggers": "SELECT oid FROM pg_trigger WHERE NOT tgisinternal",
        "slots": "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
    }
    return {name: connection.execute(query.encode()).fetchall() for name, query in queries.items()}


def published(connection: psycopg.Connection, publication: str = "rowcast") -> list[str]:
    rows = connection.execute(
        "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = %s ORDER BY 1",
        [publication],
    )
    return [name for (name,) in rows]


def identities(connection: psycopg.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT relname, relreplident::text FROM pg_class WHERE relkind IN ('r', 'p') AND oid > 16383"
        " AND relnamespace IS DISTINCT FROM to_regnamespace('rowcast')"
    )
    return dict(rows.fetchall())


def messages_since(connection: psycopg.Connection, slot: str) -> int:
    """How many messages `tables` have been emitted since the last call."""
    rows = connection.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'rowcast', 'messages', 'true')",
        [slot],
    ).fetchall()
    return sum(data.startswith(b"M") and data.endswith(b"tables") for (data,) in rows)


def test_setup_watches_tables_and_taking_it_down_leaves_no_trace(
    tables: psycopg.Connection, dsn: str
) -> None:
    before, identities_before = traces(tables), identities(tables)

    done = install.install(dsn, [ALL])

    assert published(tables) == [
        '"Weird.Name"."t ""x"" y"',
        *(f"public.{name}" for name in ("full_already", "jobs", "keyless", "parts", "projects", "quiet")),
    ]
    assert set(identities(tables).values()) == {"f"}
    assert done[0] == "applied migration 0001 foundation"
    assert "set REPLICA IDENTITY FULL on public.jobs (it was an index)" in done
    assert [sentence for sentence in done if sentence.startswith("warning")] == [
        "warning: public.keyless has no primary key (a deferrable one does not count): clients get its changes, but cannot keep its rows apart"
    ]
    assert tables.execute("SELECT pubviaroot FROM pg_publication").fetchone() == (True,)

    done = install.uninstall(dsn)

    assert done[-2:] == ["dropped publication rowcast", "removed schema rowcast"]
    assert traces(tables) == before
    assert identities(tables) == identities_before
    assert install.uninstall(dsn) == ["there is nothing to remove: the database has no schema rowcast"]


def test_setting_up_again_changes_nothing_and_adds_what_is_new(tables: psycopg.Connection, dsn: str) -> None:
    install.install(
        dsn, ["jobs"]
    )  # before PostgreSQL 18 a slot needs its publication to be older than its changes
    tables.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [tables.info.dbname])
    install.install(dsn, ["projects"])
    assert messages_since(tables, tables.info.dbname) == 1
    after_first = traces(tables)
    assert install.install(dsn, ["public.projects", "projects"]) == ["public.projects is watched already"]
    assert traces(tables) == after_first
    assert messages_since(tables, tables.info.dbname) == 0
    install.install(dsn, ["quiet,parts"])
    assert published(tables) == ["public.jobs", "public.parts", "public.projects", "public.quiet"]
    assert messages_since(tables, tables.info.dbname) == 2
    with psycopg.connect(dsn) as connection:
        assert install.watched_tables(connection) == [
            TableName("public", "jobs"),
            TableName("public", "parts"),
            TableName("public", "projects"),
            TableName("public", "quiet"),
        ]


def test_a_removed_table_gets_back_what_it_had(tables: psycopg.Connection, dsn: str) -> None:
    before = identities(tables)
    install.install(dsn, [ALL])
    tables.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [tables.info.dbname])
    done = install.remove_tables(dsn, ["jobs", "parts", "full_already"])
    assert "public.jobs is not watched any more" in done
    assert messages_since(tables, tables.info.dbname) == 3
    assert {name: state for name, state in identities(tables).items() if state != "f"} == {
        name: before[name] for name in ("jobs", "parts", "parts_1", "parts_1a", "parts_2")
    }
    with pytest.raises(
        ConfigurationError, match=r"public\.jobs is not watched by publication rowcast; watched are: "
    ):
        install.remove_tables(dsn, ["projects, jobs"])
    assert "public.projects" in published(tables)


def test_a_replica_identity_that_was_changed_since_is_left_alone(
    tables: psycopg.Connection, dsn: str
) -> None:
    install.install(dsn, ["quiet", "jobs", "projects"])
    tables.execute("ALTER TABLE quiet REPLICA IDENTITY DEFAULT")
    tables.execute("DROP INDEX jobs_by_note")
    tables.execute("DROP TABLE projects")
    install.uninstall(dsn)
    assert {name: identities(tables)[name] for name in ("quiet", "jobs")} == {"quiet": "d", "jobs": "d"}


def test_without_full_identity_nothing_is_altered(tables: psycopg.Connection, dsn: str) -> None:
    before = identities(tables)
    install.install(dsn, ["projects", "jobs"], replica_identity_full=False)
    assert identities(tables) == before
    with pytest.raises(
        ConfigurationError,
        match=r"keyless has no primary key \(a deferrable one does not count\): without REPLICA IDENTITY FULL",
    ):
        install.install(dsn, ["keyless"], replica_identity_full=False)


def test_partitions_that_came_later_are_brought_in_by_setting_up_again(
    tables: psycopg.Connection, dsn: str
) -> None:
    install.install(dsn, ["parts"])
    tables.execute("CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (20) TO (30)")
    assert identities(tables)["parts_3"] == "d"
    done = install.install(dsn, ["parts"])
    assert done == [
        "set REPLICA IDENTITY FULL on public.parts_3 (it was default)",
        "public.parts is watched already",
    ]
    install.uninstall(dsn)
    assert identities(tables)["parts_3"] == "d"


def test_two_deployments_share_a_database(tables: psycopg.Connection, dsn: str) -> None:
    before = traces(tables)
    install.install(dsn, ["projects", "jobs"])
    install.install(dsn, ["jobs", "quiet"], publication="other")
    done = install.uninstall(dsn)
    assert done[-1] == "kept schema rowcast: another publication uses it"
    assert (published(tables), published(tables, "other")) == ([], ["public.jobs", "public.quiet"])
    states = identities(tables)
    assert (states["projects"], states["jobs"], states["quiet"]) == ("d", "f", "f")
    install.uninstall(dsn, publication="other", slot="other")
    assert traces(tables) == before


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ("project", "there is no table public.project: did you mean public.projects"),
        ("Projects", None),
        ('"Projects"', 'there is no table public."Projects": did you mean public.projects'),
        ("nowhere.jobs", "there is no table nowhere.jobs: did you mean public.jobs"),
        ("xyzzy", "there is no table public.xyzzy; the database has "),
        ("a_view", "is a view, and views have no changes of their own"),
        ("a_materialized_view", "is a materialized view"),
        ("a_foreign_table", "is a foreign table"),
        ("projects_pkey", "is an index"),
        ("a_sequence", "is a sequence"),
        ("an_unlogged_table", "is unlogged, and PostgreSQL writes no log of its changes: ALTER TABLE"),
        ("parts_1a", "is a partition: watch public.parts, which then covers"),
        ("a_parent", "has children by inheritance (a_child): a query of it has their rows"),
        ("pg_catalog.pg_class", "is a system table"),
        ("rowcast.incarnation", "is a system table"),
        ("two words", "is not a list of table names, from 'two words' on"),
        ("projects,", "is not a list of table names, from '' on"),
        ('"unclosed', "is not a list of table names"),
        ("a.b.c", "is not a list of table names"),
        ("", "is not a list of table names"),
    ],
)
def test_a_table_that_cannot_be_watched_is_refused_with_a_remedy_before_anything_changes(
    tables: psycopg.Connection, dsn: str, wish: str, complaint: str | None
) -> None:
    tables.execute(
        """
        CREATE VIEW a_view AS SELECT 1 AS id;
        CREATE MATERIALIZED VIEW a_materialized_view AS SELECT 1 AS id;
        CREATE FOREIGN DATA WRAPPER nothing;
        CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
        CREATE FOREIGN TABLE a_foreign_table (id int) SERVER elsewhere;
        CREATE SEQUENCE a_sequence;
        CREATE UNLOGGED TABLE an_unlogged_table (id int PRIMARY KEY);
        CREATE TABLE a_parent (id int PRIMARY KEY);
        CREATE TABLE a_child (PRIMARY KEY (id)) INHERITS (a_parent);
        """
    )
    install.install(dsn)
    if complaint is None:
        install.install(dsn, [wish])
        return
    before = traces(tables)
    with pytest.raises(ConfigurationError) as caught:
        install.install(dsn, ["projects", wish])
    assert complaint in str(caught.value)
    assert traces(tables) == before


def test_a_child_by_inheritance_is_watched_by_the_log_and_not_by_triggers(
    tables: psycopg.Connection, dsn: str
) -> None:
    tables.execute("CREATE TABLE a_child (PRIMARY KEY (id)) INHERITS (projects)")
    with pytest.raises(ConfigurationError, match="a_child inherits from projects: a statement that names"):
        install.install(dsn, ["a_child"], capture="outbox")
    install.install(dsn, ["a_child"])


def test_a_deferrable_primary_key_is_no_key(tables: psycopg.Connection, dsn: str) -> None:
    tables.execute("CREATE TABLE late (id int PRIMARY KEY DEFERRABLE)")
    assert any("late has no primary key (a deferrable one" in line for line in install.install(dsn, ["late"]))


def test_a_temporary_table_is_refused(tables: psycopg.Connection, dsn: str) -> None:
    tables.execute("CREATE TEMP TABLE fleeting (id int)")
    schema = tables.execute("SELECT pg_my_temp_schema()::regnamespace::text").fetchone()
    assert schema is not None
    with pytest.raises(ConfigurationError, match="is temporary"):
        install.install(dsn, [f"{schema[0]}.fleeting"])


def test_a_publication_for_all_tables_is_not_ours_to_change(tables: psycopg.Connection, dsn: str) -> None:
    tables.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    with pytest.raises(ConfigurationError, match="ROWCAST_PUBLICATION"):
        install.install(dsn, ["projects"], publication="everything")


def test_a_publication_that_was_made_by_hand_gets_the_settings_that_are_needed(
    tables: psycopg.Connection, dsn: str
) -> None:
    tables.execute("CREATE PUBLICATION rowcast FOR TABLE projects WITH (publish = 'insert')")
    install.install(dsn, ["projects"])
    row = tables.execute(
        "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication"
    )
    assert row.fetchone() == (True,) * 5


def test_a_table_that_is_busy_is_given_up_rather_than_holding_up_the_application(
    tables: psycopg.Connection, dsn: str
) -> None:
    install.install(dsn)
    tables.execute("ALTER FUNCTION rowcast.watch_wal SET lock_timeout = '50ms'")
    with psycopg.connect(dsn) as busy:
        busy.execute("INSERT INTO projects VALUES (1, 'x')")
        with pytest.raises(CaptureError, match=r"a table is busy: .* run the command again"):
            install.install(dsn, ["projects"])
    assert published(tables) == []
    assert identities(tables)["projects"] == "d"


def test_a_slot_goes_with_the_rest_unless_a_server_holds_it(tables: psycopg.Connection, dsn: str) -> None:
    slot = tables.info.dbname
    install.install(dsn, ["projects"])
    tables.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    tables.execute("INSERT INTO rowcast.incarnation VALUES (%s, 'x')", [slot])
    with closing(psycopg.connect(dsn, autocommit=True, replication="database")) as server:
        pid = server.info.backend_pid
        server.pgconn.send_query(
            f"START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names 'rowcast')".encode()
        )
        server.pgconn.get_result()
        with pytest.raises(CaptureError, match=f"active for PID {pid}.*Stop the server"):
            install.uninstall(dsn, slot=slot)
        assert published(tables) == ["public.projects"]
    tables.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    done = install.uninstall(dsn, slot=slot)
    assert done[0] == f"dropped replication slot {slot}"
    assert traces(tables)["slots"] == []


@pytest.fixture
def roles(tables: psycopg.Connection) -> Iterator[tuple[str, str]]:
    """An installer that owns the database and its tables, and a role for the server, both with little else."""
    installer, server = f"installer_{tables.info.dbname}", f"server_{tables.info.dbname}"
    tables.execute(f"CREATE ROLE {installer} LOGIN".encode())
    tables.execute(f"CREATE ROLE {server} LOGIN REPLICATION".encode())
    tables.execute(f"GRANT CREATE ON DATABASE {tables.info.dbname} TO {installer}".encode())
    tables.execute(f"ALTER TABLE projects OWNER TO {installer}".encode())
    yield installer, server
    for role in (server, installer):
        tables.execute(f"DROP OWNED BY {role} CASCADE".encode())
        tables.execute(f"DROP ROLE {role}".encode())


def test_one_role_installs_and_another_runs_with_little_else(
    tables: psycopg.Connection, dsn: str, roles: tuple[str, str]
) -> None:
    _, server = roles
    before = traces(tables)
    installer_dsn, server_dsn = (dsn.replace("postgres@", f"{role}@") for role in roles)
    done = install.install(installer_dsn, ["projects"], role=server)
    assert done[-1] == f"granted to role {server} what the server needs"
    with pytest.raises(CaptureError, match="owns the tables"):
        install.install(installer_dsn, ["jobs"])
    with pytest.raises(CaptureError, match="Run setup as a role that may CREATE"):
        install.install(server_dsn, ["projects"], publication="other")
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO rowcast.incarnation VALUES ('s', 'i')")
        connection.execute("UPDATE rowcast.incarnation SET incarnation = 'j'")
        connection.execute("SELECT * FROM rowcast.watched, rowcast.migration, rowcast.incarnation")
        connection.execute("DELETE FROM rowcast.incarnation")
        for forbidden in (
            "INSERT INTO rowcast.watched VALUES ('rowcast', 'projects')",
            "SELECT rowcast.unwatch('rowcast', 'projects')",
            "SELECT * FROM projects",
            "DROP PUBLICATION rowcast",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())
    install.uninstall(installer_dsn)
    assert traces(tables) == before
    assert install.install(dsn, role=server)[-1].startswith("granted")
    with pytest.raises(ConfigurationError, match="there is no role 'nobody_here'"):
        install.install(dsn, role="nobody_here")


def test_any_role_may_confirm_its_mutations(
    tables: psycopg.Connection, dsn: str, roles: tuple[str, str]
) -> None:
    install.install(dsn, ["projects"])
    slot = tables.info.dbname
    tables.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    with psycopg.connect(dsn.replace("postgres@", f"{roles[0]}@"), autocommit=True) as connection:
        connection.execute("SELECT rowcast.confirm('m-1')")
    rows = tables.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1',"
        " 'publication_names', 'rowcast', 'messages', 'true')",
        [slot],
    ).fetchall()
    assert [data[-11:] for (data,) in rows if data.startswith(b"M")] == [b"confirm m-1"]


@pytest.mark.skipif(shutil.which("psql") is None, reason="there is no psql here")
def test_what_is_printed_does_the_same_in_psql(tables: psycopg.Connection, dsn: str) -> None:
    before = traces(tables)

    def psql(script: str) -> str:
        command = ["psql", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", dsn]
        done = subprocess.run(command, input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    script = install.render([ALL], role="postgres")
    assert "applied migration 0001" in psql(script)
    assert "applied migration" not in psql(script)
    assert len(published(tables)) == 7
    assert set(identities(tables).values()) == {"f"}
    assert install.install(dsn, [ALL], role="postgres")[0] == "public.projects is watched already"
    assert "removed schema rowcast" in psql(install.render_uninstall())
    assert traces(tables) == before


@pytest.mark.parametrize("version", [16, 15])
def test_other_versions_are_set_up_alike(version: int) -> None:
    try:
        server = EmbeddedPostgres(version=version)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being here
        pytest.skip(str(error))
    with server:
        dsn = server.create_database(f"install_{os.getpid()}_{next(_numbers)}")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES)
            before = traces(connection)
            install.install(dsn, [ALL], role="postgres")
            assert len(published(connection)) == 7
            install.uninstall(dsn)
            assert traces(connection) == before


identifiers = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=10)


@given(st.lists(st.builds(TableName, identifiers, identifiers), min_size=1, max_size=4))
def test_every_name_can_be_written_and_read_back(names: list[TableName]) -> None:
    assert parse_table_names(", ".join(map(str, names))) == names


def test_names_are_read_as_sql_reads_them() -> None:
    assert parse_table_names(' Projects,"Projects" , Billing . "In""voices",_a1$é') == [
        ("public", "projects"),
        ("public", "Projects"),
        ("billing", 'In"voices'),
        ("public", "_a1$é"),
    ]


def test_every_migration_has_its_way_back_and_numbers_have_no_holes() -> None:
    versions = [migration.version for migration in install.migrations()]
    assert versions == list(range(1, len(versions) + 1))
    assert all(migration.up and migration.down for migration in install.migrations())
