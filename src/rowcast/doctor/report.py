"""What a check is, what it looks at, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

from rowcast.capture.choice import HAS_OUTBOX
from rowcast.settings import Settings

Severity: TypeAlias = Literal["ok", "warning", "error"]

CONNECT_SECONDS: Final = 10  # a firewall that swallows packets would hold us for two minutes otherwise


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check saw.

    Attributes:
        check: The check's stable id, such as `wal_level`.
        fix: To paste: SQL, or a command; empty where all is well.
    """

    check: str
    severity: Severity
    finding: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All findings; `connected` is False where the database could not be reached at all."""

    findings: tuple[Finding, ...]
    connected: bool = True

    @property
    def exit_code(self) -> int:
        """0: nothing of severity error; 1: something; 2: could not connect."""
        if not self.connected:
            return 2
        return int(any(finding.severity == "error" for finding in self.findings))


@dataclass(frozen=True, slots=True)
class Problem:
    """What a check yields; its id is added when it is reported."""

    severity: Literal["warning", "error"]
    finding: str
    fix: str


@dataclass(frozen=True, slots=True)
class Table:
    """A watched table, or a partition of one.

    Attributes:
        name: Schema and name, quoted for SQL.
        kind: pg_class.relkind: r table, p partitioned table.
        persistence: pg_class.relpersistence: p permanent, u unlogged, t temporary.
        identity: pg_class.relreplident: d default, n nothing, f full, i index.
    """

    oid: int
    name: str
    kind: str
    persistence: str
    identity: str
    has_key: bool
    is_partition: bool
    published: bool


@dataclass(frozen=True, slots=True)
class Database:
    """What checks look at.

    Attributes:
        direct: The connection of capture.
        pooled: The connection of snapshots; the same one where one URL serves both.
        tables: The tables of the publication and those that the settings name, with their partitions.
        unknown_tables: Tables that the settings name and the database lacks.
        now: Seconds since 1970 on this machine.
        packages: Installed versions by package.
        long_transaction_seconds: How old a transaction may be before it is a finding.
    """

    settings: Settings
    direct: psycopg.Connection[DictRow]
    pooled: psycopg.Connection[DictRow]
    tables: tuple[Table, ...]
    unknown_tables: tuple[str, ...]
    now: Callable[[], float]
    packages: Mapping[str, str]
    long_transaction_seconds: float

    @property
    def role(self) -> str:
        return self.direct.info.user

    @property
    def streams(self) -> bool:
        """Whether the server will read the log: it is told to, or nothing keeps `auto` from it that setup has met."""
        if self.settings.capture != "auto":
            return self.settings.capture == "wal"
        return self.setting("wal_level") == "logical" or not self._has_outbox

    @property
    def _has_outbox(self) -> bool:
        return bool(
            self.value("SELECT to_regclass('rowcast.outbox_table') IS NOT NULL")
            and self.value(HAS_OUTBOX, self.settings.publication)
        )

    def rows(self, query: LiteralString, *parameters: object) -> list[DictRow]:
        return self.direct.execute(query, parameters).fetchall()

    def value(self, query: LiteralString, *parameters: object) -> Any:
        """The only column of the only row."""
        (row,) = self.rows(query, *parameters)
        (value,) = row.values()
        return value

    def setting(self, name: str) -> str:
        """A server setting; empty where this version has none of that name."""
        return str(self.value("SELECT coalesce(current_setting(%s, true), '')", name))


@dataclass(frozen=True, slots=True)
class Check:
    """A function that looks for one kind of problem.

    Attributes:
        fine: The sentence that holds when it finds nothing.
        wal: Whether it matters to capture over logical replication only.
    """

    id: str
    fine: str
    wal: bool
    look: Callable[[Database], Iterator[Problem]]

    def findings(self, database: Database) -> list[Finding]:
        """Look, and report."""
        try:
            found = [Finding(self.id, seen.severity, seen.finding, seen.fix) for seen in self.look(database)]
        except psycopg.Error as problem:
            return [Finding(self.id, "warning", f"could not be checked: {sentence(problem)}")]
        return found or [Finding(self.id, "ok", self.fine)]


def check(fine: str, *, wal: bool = False) -> Callable[[Callable[[Database], Iterator[Problem]]], Check]:
    """Make a function the check of its name; see `Check`."""
    return lambda look: Check(look.__name__, fine, wal, look)


def error(finding: str, fix: str) -> Problem:
    """Something does not work."""
    return Problem("error", finding, fix)


def warning(finding: str, fix: str) -> Problem:
    """Something works, but costs or promises less than it should."""
    return Problem("warning", finding, fix)


def quote_identifier(name: str) -> str:
    """A name as SQL writes it."""
    return sql.Identifier(name).as_string()


def quote_literal(text: str) -> str:
    """A string as SQL writes it."""
    return sql.Literal(text).as_string()


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def sentence(problem: Exception) -> str:
    """The first line of a driver's error, which is the part that people can use."""
    return str(problem).strip().split("\n", 1)[0]
