"""`doctor` finds each defect in a database that has it, and its fixes mend what they can."""

from __future__ import annotations

import contextlib
import re
import shutil
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from rowcast.capture.install import install
from rowcast.doctor import CHECKS, Finding, Report, examine
from rowcast.settings import Settings
from rowcast.testing import EmbeddedPostgres


def look(dsn: str, /, *, settings: dict[str, Any] | None = None, **options: Any) -> dict[str, list[Finding]]:
    """What `examine` found, by check; checks that are fine are left out."""
    report = examine(Settings(database_url=dsn, **(settings or {})), **options)
    assert report.connected
    found: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if finding.severity != "ok":
            found.setdefault(finding.check, []).append(finding)
    return found


def only(found: dict[str, list[Finding]], check: str, severity: str) -> Finding:
    (finding,) = found[check]
    assert finding.severity == severity
    return finding


def paste(dsn: str, finding: Finding) -> None:
    """Run a fix that is SQL, as psql would."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in finding.fix.split(";\n"):
            connection.execute(statement.encode())


@pytest.fixture
def shop(dsn: str, connection: psycopg.Connection) -> str:
    """A database that was set up with one good table."""
    connection.execute("CREATE TABLE projects (id bigint PRIMARY KEY, name text)")
    install(dsn, ["projects"])
    return dsn


def test_a_database_that_was_set_up_has_nothing_broken(shop: str) -> None:
    report = examine(Settings(database_url=shop))
    assert report.exit_code == 0
    assert [finding.check for finding in report.findings] == [check.id for check in CHECKS]
    # The embedded server leaves PostgreSQL's default, which is the one finding.
    assert {finding.check for finding in report.findings if finding.severity != "ok"} == {
        "max_slot_wal_keep_size"
    }


def test_a_fresh_database_wants_setup_which_mends_it(dsn: str, connection: psycopg.Connection) -> None:
    connection.execute('CREATE TABLE projects (id bigint PRIMARY KEY); CREATE TABLE "Odd, Name" (id int)')
    tables = {"tables": ("projects", '"Odd, Name"')}
    found = look(dsn, settings=tables)
    assert "this database was not set up" in only(found, "installation", "error").finding
    assert "no publication rowcast" in only(found, "publication", "error").finding
    assert 'public.projects, public."Odd, Name"' in only(found, "named_tables", "error").finding.replace(
        'public."Odd, Name", public.projects', 'public.projects, public."Odd, Name"'
    )
    assert "--tables 'projects,\"Odd, Name\"'" in found["publication"][0].fix
    install(dsn, tables["tables"])
    assert "no primary key" in only(look(dsn, settings=tables), "primary_keys", "warning").finding
    assert not {"installation", "publication", "named_tables"} & look(dsn, settings=tables).keys()


def test_a_table_that_the_settings_name_and_nobody_made_is_named(shop: str) -> None:
    found = only(look(shop, settings={"tables": ("projects", "projcts")}), "named_tables", "error")
    assert "public.projcts, which does not exist" in found.finding


@pytest.mark.parametrize(("version", "fix"), [(0, "rowcast setup"), (9999, "pip install --upgrade rowcast")])
def test_a_schema_of_another_version_is_told(
    shop: str, connection: psycopg.Connection, version: int, fix: str
) -> None:
    connection.execute("DELETE FROM rowcast.migration WHERE version > 1")
    connection.execute("UPDATE rowcast.migration SET version = %s", (version,))
    finding = only(look(shop), "installation", "error")
    assert f"version {version}" in finding.finding
    assert fix in finding.fix


def test_a_publication_that_hides_changes_is_told_and_mended(
    shop: str, connection: psycopg.Connection
) -> None:
    connection.execute("ALTER PUBLICATION rowcast SET (publish = 'insert, update')")
    finding = only(look(shop), "publication", "error")
    assert "does not publish delete, truncate" in finding.finding
    paste(shop, finding)
    assert "publication" not in look(shop)
    connection.execute("ALTER PUBLICATION rowcast DROP TABLE projects")
    assert "has no tables" in only(look(shop), "publication", "error").finding


def test_children_by_inheritance_are_told(shop: str, connection: psycopg.Connection) -> None:
    assert "inheritance" not in look(shop)
    connection.execute("CREATE TABLE secret_projects () INHERITS (projects)")
    finding = only(look(shop), "inheritance", "error")
    assert finding.finding.startswith("public.projects has children by inheritance (secret_projects)")


def test_partitions_are_looked_at_for_old_rows_and_the_root_for_the_rest(
    shop: str, connection: psycopg.Connection
) -> None:
    connection.execute(
        "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10);"
    )
    install(shop, ["events"])
    connection.execute("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20)")
    finding = only(look(shop), "replica_identity", "warning")
    assert finding.finding.startswith("public.events_2 sends only the key")
    connection.execute("ALTER PUBLICATION rowcast SET (publish_via_partition_root = false)")
    finding = only(look(shop), "publication", "error")
    assert "partitions under their own names" in finding.finding
    paste(shop, finding)
    assert "publication" not in look(shop)


def test_replica_identities_tell_what_cannot_be_promised_and_are_mended(
    shop: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE keyless (name text); ALTER PUBLICATION rowcast ADD TABLE keyless")
    connection.execute("ALTER TABLE projects REPLICA IDENTITY DEFAULT")
    keyless, projects = look(shop)["replica_identity"]
    assert (keyless.severity, projects.severity) == ("error", "warning")
    assert "the application's own UPDATE and DELETE on it fail" in keyless.finding
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        connection.execute("INSERT INTO keyless VALUES ('a'); DELETE FROM keyless")
    assert "leaves a filter arrives as a DELETE by key" in projects.finding
    for finding in (keyless, projects):
        paste(shop, finding)
    assert "replica_identity" not in look(shop)
    connection.execute("ALTER TABLE projects REPLICA IDENTITY NOTHING")
    assert only(look(shop), "replica_identity", "error").finding.startswith(
        "public.projects has no replica identity"
    )
    assert "public.keyless has no primary key" in only(look(shop), "primary_keys", "warning").finding


def test_an_unlogged_table_cannot_be_streamed(shop: str, connection: psycopg.Connection) -> None:
    connection.execute("CREATE UNLOGGED TABLE visits (id int PRIMARY KEY)")
    finding = only(look(shop, settings={"tables": ("visits",)}), "unlogged_tables", "error")
    paste(shop, finding)
    assert "unlogged_tables" not in look(shop, settings={"tables": ("visits",)})


def test_a_role_is_told_each_right_that_it_lacks(shop: str, connection: psycopg.Connection) -> None:
    role = f"weak_{connection.info.dbname}"
    connection.execute(f"CREATE ROLE {role} LOGIN".encode())
    connection.execute(
        "CREATE SCHEMA billing; CREATE TABLE billing.invoices (id int PRIMARY KEY);"
        "ALTER TABLE projects ENABLE ROW LEVEL SECURITY"
    )
    install(shop, ["billing.invoices"])
    weak = shop.replace("postgres@", f"{role}@")
    try:
        found = look(weak)
        assert "may not use the schema rowcast" in only(found, "installation", "error").finding
        assert "--role " + role in found["installation"][0].fix
        assert "no REPLICATION" in only(found, "replication_privilege", "error").finding
        assert [finding.fix for finding in found["select_privilege"]] == [
            f'GRANT USAGE ON SCHEMA billing TO "{role}";',
            f'GRANT SELECT ON billing.invoices TO "{role}";',
            f'GRANT SELECT ON public.projects TO "{role}";',
        ]
        assert "public.projects applies to the role" in only(found, "row_security", "error").finding
        install(shop, role=role)
        found["replication_privilege"][0] = Finding("", "error", "", f'ALTER ROLE "{role}" REPLICATION')
        for check in ("replication_privilege", "select_privilege", "row_security"):
            for finding in found[check]:
                paste(shop, finding)
        assert set(look(weak)) == {"max_slot_wal_keep_size"}
    finally:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_slots_that_nobody_reads_are_named_with_what_they_retain(
    shop: str, connection: psycopg.Connection
) -> None:
    foreign = f"foreign_{connection.info.dbname}"
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (foreign,))
    connection.execute("SELECT pg_create_logical_replication_slot('ours', 'pgoutput')")
    connection.execute("INSERT INTO projects SELECT i, repeat('x', 100) FROM generate_series(1, 20000) AS i")
    settings = {"slot": "ours", "max_slot_wal_bytes": 1 << 20}
    found = look(shop, settings=settings)
    ours = next(f for f in found["retained_wal"] if "the slot ours retains" in f.finding)
    other = next(f for f in found["retained_wal"] if foreign in f.finding)
    assert (ours.severity, other.severity) == ("error", "warning")
    assert re.search(r"retains [1-9]\d*\.\d MiB of WAL; above 1\.0 MiB", ours.finding)
    assert "nobody reads the slot" in other.finding
    paste(shop, other)
    assert not any(foreign in finding.finding for finding in look(shop, settings=settings)["retained_wal"])


def test_a_slot_of_another_database_is_not_taken_for_ours(
    shop: str, postgres: EmbeddedPostgres, connection: psycopg.Connection
) -> None:
    name = f"shared_{connection.info.dbname}"
    with psycopg.connect(postgres.dsn(), autocommit=True) as elsewhere:
        elsewhere.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        try:
            finding = only(look(shop, settings={"slot": name}), "slot", "error")
        finally:
            elsewhere.execute("SELECT pg_drop_replication_slot(%s)", (name,))
    assert "belongs to something else (database postgres, plugin pgoutput)" in finding.finding


def test_a_long_transaction_is_named_with_its_process(shop: str) -> None:
    with psycopg.connect(shop) as lingering:
        lingering.execute("SELECT 1")
        time.sleep(0.01)  # the age asked for below
        found = look(shop, long_transaction_seconds=0.01)["long_transactions"]
        mine = next(
            finding for finding in found if f"process {lingering.info.backend_pid}," in finding.finding
        )
        assert mine.severity == "warning"
        paste(shop, Finding("", "warning", "", mine.fix.partition(" --")[0]))
        with pytest.raises(psycopg.errors.AdminShutdown):
            lingering.execute("SELECT 1")


@pytest.mark.parametrize(("shift", "word"), [(-60.0, "60.0 s ahead of"), (60.0, "60.0 s behind")])
def test_clocks_that_differ_are_told(shop: str, shift: float, word: str) -> None:
    finding = only(look(shop, now=lambda: time.time() + shift), "clock", "warning")
    assert re.search(word.replace("60.0", r"(60\.0|59\.9)"), finding.finding)


def test_packages_that_are_missing_or_too_old_are_told(shop: str) -> None:
    found = look(shop, packages={"uvicorn": "0.52.0"})["packages"]
    assert [finding.fix for finding in found] == [
        "pip install 'uvicorn>=0.52.1'",
        "pip install 'psycopg>=3.3.0'",
    ]
    assert "uvicorn 0.52.0 is too old" in found[0].finding
    assert "packages" not in look(shop, packages={"uvicorn": "0.53", "psycopg": "3.3.9"})


def test_capture_by_outbox_is_asked_for_nothing_that_only_wal_needs(shop: str) -> None:
    report = examine(Settings(database_url=shop, capture="outbox"))
    assert {finding.check for finding in report.findings}.isdisjoint(
        {"wal_level", "slot", "replica_identity"}
    )


def test_a_database_that_cannot_be_reached_is_one_finding_without_its_password() -> None:
    report = examine(Settings(database_url="postgresql://app:secret@127.0.0.1:1/shop"))
    (finding,) = report.findings
    assert (report.connected, report.exit_code, finding.check) == (False, 2, "connection")
    assert "secret" not in f"{report}"


def test_urls_of_two_databases_are_not_taken_for_one(shop: str, postgres: EmbeddedPostgres) -> None:
    found = look(postgres.dsn(), settings={"database_url_direct": shop})
    assert "different databases" in only(found, "same_database", "error").finding


class _Impostor(socketserver.BaseRequestHandler):
    """Relays a connection to PostgreSQL but greets like a pooler in front of an old server."""

    target: tuple[str, int]

    def handle(self) -> None:
        import socket

        with socket.create_connection(self.target) as upstream:
            back = threading.Thread(target=self._relay, args=(upstream, self.request, self._disguise))
            back.start()
            self._relay(self.request, upstream, bytes)
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_WR)
            back.join()

    @staticmethod
    def _relay(source: Any, sink: Any, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(change(data))

    @staticmethod
    def _disguise(data: bytes) -> bytes:
        # BackendKeyData: type, length 12, process id, key. ParameterStatus: type, length, name, value.
        data = re.sub(rb"(?<=K\0\0\0\x0c)....", b"\0\0\0\x2a", data, flags=re.DOTALL)
        return re.sub(rb"S\0\0\0.server_version\0[^\0]+\0", b"S\0\0\0\x18server_version\x0013.9\0", data)


def test_a_pooler_and_an_old_server_are_recognised(shop: str) -> None:
    port = urlsplit(shop).port
    handler = type("Handler", (_Impostor,), {"target": ("127.0.0.1", port)})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        found = look(shop.replace(f":{port}/", f":{server.server_address[1]}/"))
        server.shutdown()
    assert "a pooler (PgBouncer or the like) answers" in only(found, "pooler", "error").finding
    assert "DATABASE_URL_DIRECT" in found["pooler"][0].fix
    assert "PostgreSQL 13 is older than 14" in only(found, "server_version", "error").finding


@pytest.fixture(scope="module")
def neglected() -> Iterator[EmbeddedPostgres]:
    """A server with as many defects as one can have at a time."""
    settings = {
        "wal_level": "replica",
        "max_wal_senders": "1",
        "max_replication_slots": "1",
        "max_slot_wal_keep_size": "1MB",
        "wal_sender_timeout": "0",
        "idle_replication_slot_timeout": "1h",
        "max_prepared_transactions": "2",
    }
    with EmbeddedPostgres(settings=settings) as server:
        yield server


def test_a_neglected_server_is_told_all_that_is_wrong(neglected: EmbeddedPostgres) -> None:
    dsn = neglected.create_database("neglected")
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        psycopg.connect(dsn, autocommit=True, replication="true"),
    ):
        connection.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        connection.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'it''s stuck'")
        found = look(dsn)
        assert "wal_level is replica" in only(found, "wal_level", "error").finding
        assert "rds.logical_replication = 1" in found["wal_level"][0].fix
        assert "all 1 walsenders are taken" in only(found, "wal_senders", "error").finding
        assert "ALTER SYSTEM SET max_wal_senders = 6" in found["wal_senders"][0].fix
        assert "one for replication does not" in only(found, "replication_connection", "error").finding
        assert (
            "all 1 replication slots are taken (standby)" in only(found, "replication_slots", "error").finding
        )
        assert (
            "idle_replication_slot_timeout is 1h"
            in only(found, "idle_replication_slot_timeout", "warning").finding
        )
        assert (
            "is under max_slot_wal_bytes (4.0 GiB)"
            in only(found, "max_slot_wal_keep_size", "warning").finding
        )
        assert "nobody reads the slot standby" in only(found, "retained_wal", "warning").finding
        paste(dsn, only(found, "long_transactions", "warning"))
        assert only(found, "wal_sender_timeout", "warning").fix.startswith(
            "ALTER SYSTEM SET wal_sender_timeout = '60s'"
        )
        assert "long_transactions" not in look(dsn)


def test_triggers_where_the_log_holds_no_rows_are_no_error() -> None:
    with EmbeddedPostgres(settings={"wal_level": "replica"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE projects (id int PRIMARY KEY)")
        assert "wal_level" in look(server.dsn())
        assert install(server.dsn(), ["projects"])[0].startswith("wal_level is not logical: triggers watch")
        found = look(server.dsn())
        assert "triggers write an outbox" in only(found, "fallback", "warning").finding
        assert not [each for findings in found.values() for each in findings if each.severity == "error"]
        assert "fallback" not in look(server.dsn(), settings={"capture": "outbox"})


def test_a_slot_that_postgresql_invalidated_is_told(neglected: EmbeddedPostgres) -> None:
    neglected.stop()
    neglected._settings["wal_level"] = "logical"
    neglected.start()
    with psycopg.connect(neglected.dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_drop_replication_slot('standby')")
        connection.execute("SELECT pg_create_logical_replication_slot('rowcast', 'pgoutput')")
        for _ in range(3):
            connection.execute("SELECT pg_logical_emit_message(false, 'filler', 'x'), pg_switch_wal()")
        assert "about to be invalidated" in only(look(neglected.dsn()), "slot", "error").finding
        connection.execute("CHECKPOINT")
        finding = only(look(neglected.dsn()), "slot", "warning")
    assert "was invalidated by PostgreSQL" in finding.finding
    paste(neglected.dsn(), finding)
    assert "slot" not in look(neglected.dsn())


def test_a_standby_is_recognised(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = EmbeddedPostgres()
    server.start()
    try:
        server.stop()
        signal = server.data_directory / "standby.signal"
        shutil.copy(server.data_directory / "PG_VERSION", signal)
        shutil.chown(signal, (server.data_directory / "PG_VERSION").owner())
        server.start()
        report = examine(Settings(database_url=server.dsn()))
    finally:
        server.close()
    assert "leads to a standby" in next(f for f in report.findings if f.check == "primary").finding
    assert not [finding for finding in report.findings if "could not be checked" in finding.finding]


def test_the_exit_code_tells_scripts_what_matters() -> None:
    fine, warning, error = (Finding("x", severity, "") for severity in ("ok", "warning", "error"))
    assert [
        Report((fine,)).exit_code,
        Report((fine, warning)).exit_code,
        Report((warning, error)).exit_code,
    ] == [0, 0, 1]
