"""Settings: which source wins, what each kind of value takes, and that wrong ones say what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from rowcast.errors import ConfigurationError
from rowcast.settings import SETTINGS, Settings, hide_password, load, markdown

URL = "postgresql://app:secret@db.example.com:5432/shop"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a rowcast.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wrong(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings(**values)
    return str(caught.value)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(elsewhere: Path) -> None:
    file = elsewhere / "some.toml"
    file.write_text("port = 1\nheartbeat_seconds = 1\nslot = 'from_file'\n")
    environment = {"ROWCAST_PORT": "2", "ROWCAST_HEARTBEAT_SECONDS": "2"}
    settings = load({"port": "3", "slot": None}, environment=environment, file=file)
    assert (settings.port, settings.heartbeat_seconds, settings.slot, settings.host) == (
        3,
        2.0,
        "from_file",
        "127.0.0.1",
    )
    assert {name: settings.origins[name] for name in ("port", "heartbeat_seconds", "slot", "host")} == {
        "port": "flag --port",
        "heartbeat_seconds": "environment ROWCAST_HEARTBEAT_SECONDS",
        "slot": f"file {file}",
        "host": "default",
    }


def test_common_names_of_the_environment_are_read_and_the_own_ones_win() -> None:
    environment = {
        "DATABASE_URL": URL,
        "DATABASE_URL_DIRECT": f"{URL}?direct=1",
        "PG_CHANNELS": "projects, public.jobs,,projects",
        "FRONTEND_URL": "https://App.example.com/,http://localhost:3000",
        "ROWCAST_DATABASE_URL": f"{URL}_own",
    }
    settings = load(environment=environment)
    assert settings.database_url == f"{URL}_own"
    assert settings.database_url_direct == f"{URL}?direct=1"
    assert settings.tables == ("projects", "public.jobs")
    assert settings.frontend_url == ("https://app.example.com", "http://localhost:3000")
    assert settings.origins["tables"] == "environment PG_CHANNELS"


def test_a_comma_inside_double_quotes_belongs_to_the_name() -> None:
    assert load({"tables": 'a, "B,c"."d" ,e'}, environment={}).tables == ("a", '"B,c"."d"', "e")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(environment={"ROWCAST_PORT": "", "PG_CHANNELS": ""}) == Settings()


def test_one_database_url_stands_in_for_the_other() -> None:
    only_pooled, only_direct = Settings(database_url=URL), Settings(database_url_direct=URL)
    assert only_pooled.database_url_direct == only_direct.database_url == URL
    assert only_pooled.origins["database_url_direct"] == "same as database_url"


def test_without_a_database_the_error_names_the_ways_to_say_one() -> None:
    Settings(database_url=URL).require_database()
    with pytest.raises(ConfigurationError, match=r"--dsn .* DATABASE_URL, .* rowcast\.toml"):
        Settings().require_database()


def test_the_file_is_found_by_variable_or_in_the_working_directory(elsewhere: Path) -> None:
    (elsewhere / "rowcast.toml").write_text("port = 1")
    (elsewhere / "other.toml").write_text("port = 2")
    assert load(environment={}).port == 1
    assert load(environment={"ROWCAST_CONFIG": str(elsewhere / "other.toml")}).port == 2


def test_a_file_may_hold_native_types(elsewhere: Path) -> None:
    (elsewhere / "rowcast.toml").write_text(
        'tables = ["projects", "with, comma"]\nmetrics = false\nmax_message_bytes = 1024\n'
        'heartbeat_seconds = 2.5\n[scopes]\nprojects = "org_id"\n'
    )
    settings = load(environment={})
    assert settings.tables == ("projects", "with, comma")
    assert (settings.metrics, settings.max_message_bytes, settings.heartbeat_seconds) == (False, 1024, 2.5)
    assert settings.scopes == {"projects": "org_id"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("heartbeat = 15", 'unknown key "heartbeat": did you mean heartbeat_seconds?'),
        ("Slow-Client-Seconds = 15", "did you mean slow_client_seconds?"),
        ("zzzz = 1", "there are: database_url, "),
        ("port = ", "is not TOML"),
        ("port = 'x'", '"x" cannot be used: write a number from 0 to 65535'),
        ("port = true", "write a number from 0 to 65535"),
        ("tables = [1]", "write names with commas"),
        ("scopes = {projects = 1}", "write table=column pairs"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it_and_says_what_to_write(
    elsewhere: Path, content: str, said: str
) -> None:
    file = elsewhere / "wrong.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        load(environment={}, file=file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_is_an_error_when_it_was_named(elsewhere: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml cannot be read: No such file"):
        load(environment={}, file=elsewhere / "missing.toml")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1048576", 1 << 20),
        ("64MiB", 64 << 20),
        ("10MB", 10_000_000),
        ("1.5 KiB", 1536),
        ("2gib", 2 << 30),
        (7, 7),
    ],
)
def test_bytes_take_units(written: Any, meant: int) -> None:
    assert Settings(max_message_bytes=written).max_message_bytes == meant


@pytest.mark.parametrize("written", ["64M", "0", "-1", "MiB", "1e6", "", 0, True, "9 parsecs"])
def test_wrong_bytes_say_what_to_write(written: Any) -> None:
    assert "such as 64MiB (1024 based), 10MB (1000 based)" in wrong(max_message_bytes=written)


@pytest.mark.parametrize("written", ["0", "-3", "nan", "inf", "15s", "5m", True])
def test_wrong_seconds_say_what_to_write(written: Any) -> None:
    assert "a number of seconds over 0 without a unit" in wrong(heartbeat_seconds=written)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"database_url": "postgresql+psycopg://a:secret@b/c"}, "without a driver's name after the +"),
        ({"database_url": "mysql://a:secret@b/c"}, "write postgresql://user:password@host:5432/database"),
        ({"database_url": "a:secret@b/c"}, "write postgresql://user:password@host:5432/database"),
        ({"frontend_url": "app.example.com"}, "scheme, host and port without a path"),
        ({"frontend_url": "https://app.example.com/login"}, "without a path"),
        ({"slot": "Rowcast-1"}, "lower-case letters, digits and underscores"),
        ({"capture": "polling"}, "write one of auto, wal, outbox, notify"),
        ({"metrics": "perhaps"}, "write true or false"),
        ({"scopes": "projects"}, "table=column pairs"),
        ({"tables": 'projects,"jobs'}, "close the double quote"),
        ({"port": "70000"}, "from 0 to 65535"),
        ({"port": "tcp://10.0.0.7:8000"}, "enableServiceLinks: false"),
        ({"max_connections": "0"}, "at least 1"),
        ({"host": " "}, "0.0.0.0 for all interfaces"),
    ],
)
def test_a_wrong_value_names_its_setting_and_says_what_to_write(values: dict[str, Any], said: str) -> None:
    message = wrong(**values)
    assert message.startswith(f"{next(iter(values))} (as given): ")
    assert said in message
    assert "secret" not in message


def test_what_is_allowed_but_may_not_be_meant_is_a_warning() -> None:
    assert Settings().warnings() == ()
    open_to_all, too_large = Settings(frontend_url=("*",), replay_window_bytes=8 << 30).warnings()
    assert "any web page may connect" in open_to_all
    assert "replay_window_bytes (8GiB) is over max_slot_wal_bytes (4GiB)" in too_large


def test_settings_in_a_log_show_no_password() -> None:
    shown = repr(Settings(database_url=URL, port=0))
    assert "secret" not in shown
    assert "app:***@db.example.com" in shown
    assert "port='0'" in shown


awkward = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\\&"), min_size=1)


@given(password=awkward.map(lambda text: f"#{text}?@%/:{text}~"))
def test_no_password_survives_hiding(password: str) -> None:
    assert password not in hide_password(f"postgresql://app:{password}@db:5432/shop?sslmode=require")
    assert password not in hide_password(f"postgresql://app@db/shop?password={password}&sslmode=require")
    assert password not in hide_password(f"host=db password={password} dbname=shop")
    assert password not in hide_password(f"host=db sslpassword = '{password} \\' {password}' dbname=shop")


def test_hiding_leaves_what_is_no_secret() -> None:
    assert hide_password("postgresql://app@db:5432/shop?sslmode=require") == (
        "postgresql://app@db:5432/shop?sslmode=require"
    )
    assert hide_password("host=db password='a b' dbname=shop") == "host=db password=*** dbname=shop"


def test_every_shown_value_reads_back_as_itself() -> None:
    for setting in SETTINGS:
        assert setting.kind.read(setting.kind.show(setting.default)) == setting.default
    scoped = Settings(scopes={"projects": "org_id", "jobs": "team"})
    shown = next(setting for setting in SETTINGS if setting.name == "scopes").shown(scoped)
    assert Settings(scopes=shown) == scoped  # type: ignore[arg-type]


def test_the_page_in_the_docs_is_made_from_the_declarations() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text("utf-8") == markdown(), "run: rowcast config --markdown > docs/settings.md"
