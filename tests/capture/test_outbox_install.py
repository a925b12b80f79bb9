"""Watching tables by triggers, and taking them out again."""

from __future__ import annotations

import subprocess

import psycopg
import pytest
from click.testing import CliRunner
from tests.capture.test_install import ALL, identities, published, roles, tables, traces

from rowcast.capture import install
from rowcast.cli.commands import rowcast
from rowcast.errors import CaptureError, ConfigurationError
from rowcast.testing import EmbeddedPostgres

__all__ = ["roles", "tables"]  # fixtures


def triggers(connection: psycopg.Connection) -> dict[str, int]:
    """How many of ours each table has."""
    rows = connection.execute(
        "SELECT c.relname, count(*) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid"
        " WHERE t.tgname LIKE 'rowcast%' AND t.tgenabled = 'A' GROUP BY 1 ORDER BY 1"
    )
    return dict(rows.fetchall())


def test_triggers_watch_tables_and_taking_them_down_leaves_no_trace(
    tables: psycopg.Connection, dsn: str
) -> None:
    before, identities_before = traces(tables), identities(tables)
    done = install.install(dsn, [ALL], capture="outbox")
    assert triggers(tables) == dict.fromkeys(
        [
            *("full_already", "jobs", "keyless", "parts", "parts_1", "parts_1a", "parts_2"),
            *("projects", "quiet", 't "x" y'),
        ],
        5,
    )
    assert "public.projects is watched now, by triggers that write into rowcast.outbox" in done
    [warning] = [sentence for sentence in done if sentence.startswith("warning")]
    assert warning.startswith("warning: public.keyless has no primary key")
    assert identities(tables) == identities_before
    assert published(tables) == []
    installed = traces(tables)
    assert install.install(dsn, ["projects"], capture="outbox") == ["public.projects is watched already"]
    assert traces(tables) == installed

    assert "removed the outbox triggers of public.jobs" in install.remove_tables(dsn, ["jobs"])
    assert "jobs" not in triggers(tables)

    done = install.uninstall(dsn)
    assert done[-1] == "removed schema rowcast"
    assert traces(tables) == before


def test_the_other_capture_and_another_deployment_keep_what_is_theirs(
    tables: psycopg.Connection, dsn: str
) -> None:
    before = traces(tables)
    install.install(dsn, ["projects", "jobs"], capture="outbox")
    install.install(dsn, ["jobs"], capture="outbox", publication="other")
    install.install(dsn, ["quiet"], capture="wal")
    assert published(tables) == ["public.quiet"]
    install.uninstall(dsn)
    assert list(triggers(tables)) == ["jobs"]
    install.uninstall(dsn, publication="other", slot="other")
    assert traces(tables) == before


def test_an_unlogged_table_can_be_watched_by_triggers(tables: psycopg.Connection, dsn: str) -> None:
    tables.execute("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)")
    install.install(dsn, ["unlogged"], capture="outbox", replica_identity_full=False)
    assert triggers(tables) == {"unlogged": 5}
    with pytest.raises(ConfigurationError, match="is unlogged"):
        install.install(dsn, ["unlogged"], capture="wal")


def test_a_table_that_is_busy_is_given_up(tables: psycopg.Connection, dsn: str) -> None:
    install.install(dsn)
    tables.execute("ALTER FUNCTION rowcast.watch_outbox SET lock_timeout = '50ms'")
    with psycopg.connect(dsn) as busy:
        busy.execute("INSERT INTO projects VALUES (1, 'x')")
        with pytest.raises(CaptureError, match=r"a table is busy: .* run the command again"):
            install.install(dsn, ["projects"], capture="outbox")
    assert triggers(tables) == {}


def test_an_owner_who_is_no_superuser_installs(
    tables: psycopg.Connection, dsn: str, roles: tuple[str, str]
) -> None:
    installer, server = roles
    install.install(dsn.replace("postgres@", f"{installer}@"), ["projects"], capture="outbox", role=server)
    tables.execute("INSERT INTO projects VALUES (1, 'by somebody else')")
    assert tables.execute("SELECT content FROM rowcast.outbox WHERE operation = 'I'").fetchall() == [
        ('(1,"by somebody else")',)
    ]


def test_writes_go_on_when_somebody_has_taken_a_trigger_away(tables: psycopg.Connection, dsn: str) -> None:
    install.install(dsn, ["projects"], capture="outbox")
    tables.execute("ALTER TABLE projects DISABLE TRIGGER rowcast_statement")
    tables.execute("INSERT INTO projects VALUES (1, 'x')")
    with tables.transaction():
        tables.execute("INSERT INTO projects VALUES (2, 'y')")
        tables.execute("UPDATE projects SET name = 'z'")
    assert tables.execute(
        "SELECT count(*) FROM rowcast.outbox WHERE operation IN ('I', 'O', 'N')"
    ).fetchone() == (6,)


def test_a_full_notification_queue_fails_no_commit(tables: psycopg.Connection, dsn: str) -> None:
    install.install(dsn, ["projects"], capture="outbox")
    definition = tables.execute("SELECT pg_get_functiondef('rowcast.outbox_ring()'::regprocedure)").fetchone()
    assert definition is not None
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN rowcast_outbox")
        listener.execute("SELECT pg_advisory_lock(%s)", [int.from_bytes(b"rowbell")])
        tables.execute("INSERT INTO projects VALUES (1, 'x')")
        assert [notify.channel for notify in listener.notifies(timeout=5, stop_after=1)] == ["rowcast_outbox"]
        # Filling the queue would take 8 GB.
        tables.execute("CREATE FUNCTION public.usage() RETURNS float8 RETURN 1")
        tables.execute(definition[0].replace("pg_notification_queue_usage()", "public.usage()").encode())
        tables.execute("INSERT INTO projects VALUES (2, 'x')")
        assert list(listener.notifies(timeout=0.2)) == []


@pytest.mark.parametrize(
    ("means", "wal_level"), [("outbox", "logical"), ("auto", "replica"), ("auto", "logical")]
)
def test_what_is_printed_does_the_same(postgres: EmbeddedPostgres, means: str, wal_level: str) -> None:
    with EmbeddedPostgres(settings={"wal_level": wal_level}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE projects (id int PRIMARY KEY)")
            printed = CliRunner().invoke(
                rowcast,
                ["setup", "--print", "--capture", means, "--tables", "projects"],
                catch_exceptions=False,
            )
            assert printed.exit_code == 0
            for _ in range(2):
                subprocess.run(
                    [server.binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", server.dsn()],
                    input=printed.output.encode(),
                    check=True,
                    capture_output=True,
                )
            by_wal = (means, wal_level) == ("auto", "logical")
            assert triggers(connection) == ({} if by_wal else {"projects": 5})
            assert published(connection) == (["public.projects"] if by_wal else [])
            subprocess.run(
                [server.binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", server.dsn()],
                input=install.render_uninstall().encode(),
                check=True,
                capture_output=True,
            )
            assert traces(connection)["schemas"] == [
                row for row in traces(connection)["schemas"] if row[0] != "rowcast"
            ]
            assert triggers(connection) == {}


def test_setup_takes_the_capture_from_the_command_line(tables: psycopg.Connection, dsn: str) -> None:
    result = CliRunner().invoke(
        rowcast, ["setup", "--dsn", dsn, "--capture", "outbox", "--tables", "projects"]
    )
    assert (result.exit_code, triggers(tables)) == (0, {"projects": 5})
    result = CliRunner().invoke(
        rowcast, ["setup", "--dsn", dsn, "--capture", "notify", "--tables", "projects"]
    )
    assert result.exit_code == 2
    assert "needs no setup" in result.output
