"""The command line itself: help, versions, errors as sentences, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from tests.cli.processes import environment

from rowcast.cli.commands import rowcast

COMMANDS = ("demo", "setup", "serve", "tail", "mirror", "doctor", "config")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """In a directory and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "DATABASE_URL_DIRECT", "PG_CHANNELS", "FRONTEND_URL", "ROWCAST_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner()


def test_help_names_every_command(runner: CliRunner) -> None:
    output = runner.invoke(rowcast, ["--help"]).output
    assert [name for name in COMMANDS if f"\n  {name} " in output] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_an_example_in_its_help(runner: CliRunner, command: str) -> None:
    result = runner.invoke(rowcast, [command, "--help"])
    assert result.exit_code == 0
    assert (
        f"rowcast {command} " in result.output.partition("Example")[2]
        or f"rowcast {command}\n" in result.output
    )
    assert "\b" not in result.output


def test_version_tells_what_a_report_of_a_fault_needs(runner: CliRunner) -> None:
    lines = runner.invoke(rowcast, ["--version"]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["rowcast", "Python", "psycopg", "uvicorn", "websockets"]


def test_the_client_commands_need_nothing_of_the_server() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['psycopg', 'uvicorn', 'starlette', 'fastapi']));"
        "import rowcast.cli.commands, rowcast.mirror, rowcast.cli.lines, rowcast.client.stream"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=environment())


def test_config_shows_value_and_origin_and_hides_passwords(runner: CliRunner) -> None:
    Path("rowcast.toml").write_text("port = 9000\nfrontend_url = '*'\n")
    result = runner.invoke(
        rowcast, ["config", "--slot", "mine"], env={"DATABASE_URL": "postgresql://a:secret@b/c"}
    )
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["database_url"].split(maxsplit=1) == ["postgresql://a:***@b/c", "environment DATABASE_URL"]
    assert rows["port"].split(maxsplit=1) == ["9000", "file rowcast.toml"]
    assert rows["slot"].split(maxsplit=1) == ["mine", "flag --slot"]
    assert rows["metrics"].split(maxsplit=1) == ["on", "default"]
    assert "any web page may connect" in result.stderr
    assert "secret" not in result.output


def test_switches_are_flags_in_both_directions(runner: CliRunner) -> None:
    output = runner.invoke(rowcast, ["config", "--no-metrics", "--inspector"]).stdout
    rows = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert rows["metrics"].split() == ["off", "flag", "--metrics"]
    assert rows["inspector"].split() == ["on", "flag", "--inspector"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["serve"], 2, "no database is named: give --dsn"),
        (["serve", "--dsn", "mysql://x"], 2, "database_url (flag --database-url): this value cannot be used"),
        (["serve", "--port", "web"], 2, 'port (flag --port): "web" cannot be used: write a number'),
        (["serve", "--config", "missing.toml"], 2, "missing.toml cannot be read"),
        (["doctor"], 2, "no database is named"),
        (["setup"], 2, "no database is named"),
        (["setup", "--down", "--tables", "a"], 2, "leave out --tables"),
        (["setup", "--print", "--remove-tables", "a"], 2, "cannot be printed"),
        (["setup", "--print", "--tables", "a b"], 2, "is not a list of table names"),
        (["mirror", "http://127.0.0.1:1", "projects", "--to", "/dev/null/x"], 1, "/dev/null/x cannot be"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_an_error_is_a_sentence_and_an_exit_code(
    runner: CliRunner, arguments: list[str], code: int, said: str
) -> None:
    result = runner.invoke(rowcast, arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_setup_watches_tables_says_what_it_did_and_takes_it_back(
    runner: CliRunner, dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute('CREATE TABLE projects (id int PRIMARY KEY); CREATE TABLE "Jobs" (id int PRIMARY KEY)')

    def setup(*arguments: str, **variables: str) -> list[str]:
        result = runner.invoke(rowcast, ["setup", *arguments], env=variables)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    def watched() -> list[str]:
        rows = connection.execute(
            "SELECT tablename FROM pg_publication_tables WHERE pubname = 'rowcast' ORDER BY 1"
        )
        return [str(name) for (name,) in rows]

    assert "public.projects is watched now" in setup("--dsn", dsn, "--tables", 'projects,"Jobs"')
    assert watched() == ["Jobs", "projects"]
    assert "public.projects is watched already" in setup(DATABASE_URL_DIRECT=dsn, PG_CHANNELS="projects")
    # A --dsn given by hand is meant, whatever the environment says for the server.
    setup("--dsn", dsn, "--remove-tables", '"Jobs"', DATABASE_URL_DIRECT="postgresql://127.0.0.1:1/x")
    assert watched() == ["projects"]
    setup("--dsn", dsn, "--down")
    assert watched() == []
    assert connection.execute("SELECT to_regnamespace('rowcast')").fetchone() == (None,)


def test_what_setup_prints_can_be_run_by_another_tool(
    runner: CliRunner, dsn: str, connection: psycopg.Connection
) -> None:
    connection.execute("CREATE TABLE projects (id int PRIMARY KEY)")
    script = runner.invoke(rowcast, ["setup", "--print", "--tables", "projects"]).stdout
    connection.execute(script.encode())
    assert runner.invoke(rowcast, ["doctor", "--dsn", dsn, "--tables", "projects"]).exit_code == 0
    connection.execute(runner.invoke(rowcast, ["setup", "--print", "--down"]).stdout.encode())
    assert connection.execute("SELECT to_regnamespace('rowcast')").fetchone() == (None,)


def test_setup_of_a_database_that_is_away_says_so_without_the_password(runner: CliRunner) -> None:
    result = runner.invoke(
        rowcast, ["setup", "--dsn", "postgresql://a:secret@127.0.0.1:1/x", "--tables", "t"]
    )
    assert result.exit_code == 1
    assert "cannot reach the database" in result.stderr
    assert "secret" not in result.output


def test_doctor_prints_findings_for_people_and_for_scripts(runner: CliRunner, dsn: str) -> None:
    result = runner.invoke(rowcast, ["doctor", "--dsn", dsn])
    assert result.exit_code == 1
    assert "✗ installation: the schema rowcast is missing" in result.stdout
    assert '      rowcast setup --dsn "$DATABASE_URL_DIRECT"' in result.stdout
    assert "✓ wal_level: wal_level is logical" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("2 broken, 1 to look at, ")
    quiet = runner.invoke(rowcast, ["doctor", "--dsn", dsn, "--quiet"]).stdout
    assert "wal_level:" not in quiet
    report = json.loads(runner.invoke(rowcast, ["doctor", "--dsn", dsn, "--json"]).stdout)
    assert (report["exit_code"], report["connected"]) == (1, True)
    assert {"check", "severity", "finding", "fix"} == set(report["findings"][0])
    assert runner.invoke(rowcast, ["doctor", "--dsn", "postgresql://127.0.0.1:1/x"]).exit_code == 2
