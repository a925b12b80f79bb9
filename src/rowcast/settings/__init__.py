"""Every setting of `rowcast serve`: declared once, read from flags, environment, a TOML file, or its default.

The one rule of this room: a value is checked before anything uses it, and a wrong one is answered with what to
write instead. Flags, variables, keys of the file and docs/settings.md are all made from the class `Settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_type_hints

from rowcast.errors import ConfigurationError
from rowcast.settings.kinds import (
    DATABASE_URL,
    Address,
    Bytes,
    Count,
    DatabaseUrl,
    Identifier,
    Kind,
    Names,
    Origins,
    Port,
    Scopes,
    Seconds,
    Switch,
    choice,
    hide_password,
    show_bytes,
)

__all__ = ["DEFAULT_FILE", "SETTINGS", "Setting", "Settings", "hide_password", "load", "markdown"]

DEFAULT_FILE: Final = Path("rowcast.toml")
CaptureChoice: TypeAlias = Literal["auto", "wal", "outbox", "notify"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Also:
    """Names of a setting besides those made from its own."""

    environment: str
    flag: str | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one server. Values are checked, and normalised, when it is made.

    Each is declared as its kind and a sentence for `--help` and the docs, with its unit and why the default is
    what it is. `database_url` and `database_url_direct` stand in for each other where only one is given.

    Attributes:
        origins: Where each value came from, by setting; see `load`.

    Raises:
        ConfigurationError: A value is wrong; the text says what to write instead.
    """

    database_url: Annotated[
        DatabaseUrl,
        "The database, for snapshots and queries; may lead through a pooler.",
        Also("DATABASE_URL", "--dsn"),
    ] = ""
    database_url_direct: Annotated[
        DatabaseUrl,
        "The same database without a pooler in between, for capture. Without it, database_url is used.",
        Also("DATABASE_URL_DIRECT"),
    ] = ""
    tables: Annotated[
        Names,
        "The tables to offer as channels. Without it, every table of the publication is one, and what "
        "`rowcast setup` adds later becomes one at once.",
        Also("PG_CHANNELS"),
    ] = ()
    scopes: Annotated[
        Scopes, "Which column scopes a table: with projects=org_id, projects:7 is the rows with org_id = 7."
    ] = field(default_factory=dict[str, str])
    slot: Annotated[
        Identifier,
        "Name of the replication slot. Deployments that share a database need one each; two servers with the "
        "same one are leader and stand-by.",
    ] = "rowcast"
    publication: Annotated[Identifier, "Name of the publication that `rowcast setup` made."] = "rowcast"
    capture: Annotated[
        CaptureChoice,
        choice(*get_args(CaptureChoice)),
        "How commits are read; auto takes wal where the database allows it, else outbox, and says why.",
    ] = "auto"
    host: Annotated[
        Address, "The address to listen on; this machine only, because a new server has no policies yet."
    ] = "127.0.0.1"
    port: Annotated[Port, "The port to listen on; 0 takes a free one."] = 8000
    frontend_url: Annotated[
        Origins,
        "Origins of the web pages that may connect, or * for any. Without it, only pages from the server's own "
        "host may.",
        Also("FRONTEND_URL"),
    ] = ()
    heartbeat_seconds: Annotated[
        Seconds,
        "Between heartbeats; 15 stays under the 30 to 60 s after which proxies cut a quiet connection.",
    ] = 15.0
    replay_window_seconds: Annotated[
        Seconds,
        "How long the stream is kept for clients that come back; 300 covers a deploy or a tunnel. The slot "
        "retains as much WAL.",
    ] = 300.0
    replay_window_bytes: Annotated[
        Bytes, "How much of the stream is kept, whatever the time; a minute or so of a very busy database."
    ] = 64 << 20
    max_transaction_bytes: Annotated[
        Bytes,
        "Size of one transaction above which it is not kept and its shapes are told to resync: it bounds the "
        "server's memory.",
    ] = 64 << 20
    session_queue_bytes: Annotated[
        Bytes,
        "What may wait for one client before its queue becomes a resync; a thousand stuck clients then hold "
        "4 GiB at worst.",
    ] = 4 << 20
    slow_client_seconds: Annotated[
        Seconds,
        "How long a client's queue may stay full before it is disconnected; a phone changes networks in less.",
    ] = 30.0
    max_message_bytes: Annotated[
        Bytes, "Size of one message from a client; far more than any subscription needs."
    ] = 256 << 10
    max_connections: Annotated[
        Count,
        "Open connections of one process; at some 10 kB each, more of them want a second process first.",
    ] = 20_000
    max_subscriptions_per_connection: Annotated[
        Count, "Subscriptions on one connection; a page that wants more of them wants filters."
    ] = 1_000
    max_messages_per_second: Annotated[
        Count,
        "Messages a second from one client, and the burst it may send at once; a page opening sends dozens.",
    ] = 100
    handshake_seconds: Annotated[
        Seconds,
        "In which a new connection must subscribe or say hello; a slow mobile network needs up to 20.",
    ] = 30.0
    max_slot_wal_bytes: Annotated[
        Bytes,
        "WAL that the slot may retain before the server lets it go and tells clients to resync: the stream gives "
        "way, not the disk.",
    ] = 4 << 30
    capture_heartbeat_seconds: Annotated[
        Seconds,
        "Between heartbeats in an idle database, so that the slot moves; shorter writes WAL for nothing.",
    ] = 10.0
    metrics: Annotated[Switch, "Whether /metrics answers Prometheus."] = True
    inspector: Annotated[
        Switch, "Whether the inspector page is served; off, because it shows every client's rows."
    ] = False
    log_level: Annotated[LogLevel, choice(*get_args(LogLevel)), "The least severe log lines to print."] = (
        "info"
    )
    origins: Mapping[str, str] = field(default_factory=dict[str, str], compare=False, repr=False)

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            value = getattr(self, setting.name)
            try:
                object.__setattr__(self, setting.name, setting.kind.read(value))
            except ValueError as problem:
                origin = self.origins.get(setting.name, "as given")
                wrong = "this value" if setting.kind is DATABASE_URL else f'"{value}"'
                raise ConfigurationError(
                    f"{setting.name} ({origin}): {wrong} cannot be used: {problem}"
                ) from None
        for name, other in (("database_url_direct", "database_url"), ("database_url", "database_url_direct")):
            if not getattr(self, name) and getattr(self, other):
                object.__setattr__(self, name, getattr(self, other))
                object.__setattr__(self, "origins", {**self.origins, name: f"same as {other}"})

    def __repr__(self) -> str:
        """Without passwords, and only what is not the default: this may end in a log."""
        given = (s for s in SETTINGS if getattr(self, s.name) != s.default)
        return f"Settings({', '.join(f'{s.name}={s.shown(self)!r}' for s in given)})"

    def require_database(self) -> None:
        """Raise ConfigurationError where no database is named."""
        if not self.database_url:
            raise ConfigurationError(
                "no database is named: give --dsn postgresql://user:password@host:5432/database, set DATABASE_URL, "
                f'or write database_url = "…" into {DEFAULT_FILE}'
            )

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but may not be meant, as sentences."""
        found: list[str] = []
        if "*" in self.frontend_url:
            found.append(
                "frontend_url is *: any web page may connect with its visitor's cookies; "
                "name the pages' origins unless everything here is public"
            )
        if self.replay_window_bytes > self.max_slot_wal_bytes:
            found.append(
                f"replay_window_bytes ({show_bytes(self.replay_window_bytes)}) is over max_slot_wal_bytes "
                f"({show_bytes(self.max_slot_wal_bytes)}): the slot will be let go before the window is full"
            )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting with all its names."""

    name: str
    kind: Kind
    help: str
    default: Any
    environment: tuple[str, ...]
    flags: tuple[str, ...]

    def shown(self, settings: Settings) -> str:
        """Its value as it would be written, passwords hidden."""
        return self.kind.show(getattr(settings, self.name))


def _declared() -> tuple[Setting, ...]:
    hints = get_type_hints(Settings, include_extras=True)
    found: list[Setting] = []
    for declared in dataclasses.fields(Settings):
        about: tuple[object, ...] = getattr(hints[declared.name], "__metadata__", ())
        if not about:
            continue
        also = [item for item in about if isinstance(item, Also)]
        make = declared.default_factory
        found.append(
            Setting(
                name=declared.name,
                kind=next(item for item in about if isinstance(item, Kind)),
                help=next(item for item in about if isinstance(item, str)),
                default=declared.default if make is dataclasses.MISSING else make(),
                environment=(f"ROWCAST_{declared.name.upper()}", *(item.environment for item in also)),
                flags=(f"--{declared.name.replace('_', '-')}", *(item.flag for item in also if item.flag)),
            )
        )
    return tuple(found)


SETTINGS: Final = _declared()


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Resolve every setting: flag, else environment, else TOML file, else default.

    Args:
        flags: Values by setting's name; None means that the flag was not given.
        environment: Instead of `os.environ`. An empty variable counts as not set.
        file: The TOML file; else the one that ROWCAST_CONFIG names, else ./rowcast.toml where it exists.

    Raises:
        ConfigurationError: A value, a key or the file is wrong; the text says what to write instead.
    """
    environment = os.environ if environment is None else environment
    if file is None and environment.get("ROWCAST_CONFIG"):
        file = Path(environment["ROWCAST_CONFIG"])
    if file is None and DEFAULT_FILE.exists():
        file = DEFAULT_FILE
    written = _read_file(file) if file else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        variable = next((name for name in setting.environment if environment.get(name)), None)
        if (flags or {}).get(setting.name) is not None:
            values[setting.name], origin = (flags or {})[setting.name], f"flag {setting.flags[0]}"
        elif variable is not None:
            values[setting.name], origin = environment[variable], f"environment {variable}"
        elif setting.name in written:
            values[setting.name], origin = written[setting.name], f"file {file}"
        else:
            origin = "default"
        origins[setting.name] = origin
    return Settings(**values, origins=origins)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        written = tomllib.loads(file.read_text("utf-8"))
    except OSError as problem:
        raise ConfigurationError(f"the settings file {file} cannot be read: {problem.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"the settings file {file} is not TOML: {problem}") from None
    names = [setting.name for setting in SETTINGS]
    for key in written:
        if key not in names:
            near = difflib.get_close_matches(key.replace("-", "_").lower(), names, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
            raise ConfigurationError(f'the settings file {file} has an unknown key "{key}": {advice}')
    return written


def markdown() -> str:
    """docs/settings.md, made from the declarations."""
    lines = [
        "# Settings",
        "",
        "Each setting of `rowcast serve` can be given as a flag, as an environment variable, or as a key of a TOML",
        "file (`--config FILE`, else the file that `ROWCAST_CONFIG` names, else `./rowcast.toml`); the first of these",
        "that has it wins. The flag is the name with dashes. `rowcast config` shows every value and where it came",
        "from. This page is the output of `rowcast config --markdown`.",
        "",
        "Bytes are written as `64MiB` (1024 based), `10MB` (1000 based) or a plain number; seconds as a plain number.",
        "Lists have commas between their items, and may be arrays in the file; pairs may be a table.",
        "",
        "| setting | kind | default | environment | meaning |",
        "|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        default = setting.kind.show(setting.default)
        flags = "".join(f", also `{flag}`" for flag in setting.flags[1:])
        cells = [
            f"`{setting.name}`{flags}",
            setting.kind.word.replace("|", "\\|"),
            f"`{default}`" if default else "none",
            ", ".join(f"`{name}`" for name in setting.environment),
            setting.help,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
