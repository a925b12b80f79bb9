"""The writers of a campaign, run as a process: `python -m tests.faults.writers DSN SCHEMA_SEED SEED COUNT`.

They read commands from standard input, one a line, and answer each with one line:

    go       begin to write
    pause    stop between two transactions; the answer `paused COMMITS` comes when every one of them has
    (end)    stop and exit

Whatever happens to PostgreSQL meanwhile, they connect again and go on.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg import errors
from tests.faults.schema import POOLS, Table, random_schema

_KEYS: Final = (
    120  # few enough that transactions meet, many enough that they do not always wait for each other
)
_LARGE: Final = 9000  # incompressible characters: over 2 kB PostgreSQL moves a value out of the row
_PAUSE_SECONDS: Final = 0.02
_EXPECTED: Final = (
    errors.UniqueViolation,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.UndefinedColumn,
)


class Gate:
    """Lets writers through while it is open, and knows when all of them are waiting."""

    def __init__(self, count: int) -> None:
        self._condition = threading.Condition()
        self._count = count
        self._open = self._ended = False
        self._waiting = 0
        self.commits = 0

    def enter(self) -> bool:
        """Called between transactions; False when it is time to end."""
        with self._condition:
            self._waiting += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._open or self._ended)
            self._waiting -= 1
            return not self._ended

    def open(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()

    def close(self) -> None:
        """Wait until every writer is between two transactions."""
        with self._condition:
            self._open = False
            self._condition.wait_for(lambda: self._waiting == self._count)

    def end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def pause(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._ended or not self._open, seconds)


class Writer:
    def __init__(self, dsn: str, tables: list[Table], seed: str, gate: Gate) -> None:
        self.dsn = dsn
        self.tables = tables
        self.chance = random.Random(seed)
        self.gate = gate

    def run(self) -> None:
        options = "-c lock_timeout=2s -c statement_timeout=20s"
        if self.chance.random() < 0.2:
            options += " -c synchronous_commit=off"
        connection: psycopg.Connection[Any] | None = None
        while self.gate.enter():
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(
                        self.dsn, autocommit=True, options=options, connect_timeout=5
                    )
                self.transaction(connection)
                self.gate.commits += 1
            except _EXPECTED:
                pass
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if connection is not None:
                    connection.close()
                self.gate.pause(0.1)
            self.gate.pause(self.chance.random() * _PAUSE_SECONDS)
        if connection is not None:
            connection.close()

    def transaction(self, connection: psycopg.Connection[Any]) -> None:
        chance = self.chance
        long = chance.random() < 0.08
        with connection.transaction(force_rollback=chance.random() < 0.08):
            for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
                try:
                    if chance.random() < 0.25:
                        with connection.transaction(force_rollback=chance.random() < 0.4):
                            self.statement(connection)
                    else:
                        self.statement(connection)
                except errors.UniqueViolation:
                    if chance.random() < 0.5:
                        raise
                    return
                if long:
                    self.gate.pause(chance.random() * 0.3)

    def statement(self, connection: psycopg.Connection[Any]) -> None:
        table = self.chance.choice(self.tables)
        work: list[Callable[[psycopg.Connection[Any], Table], None]] = [
            *[self.insert] * 5,
            *[self.update] * 6,
            *[self.move] * 4,
            *[self.delete] * 2,
            self.bulk,
            *([self.change_key] * 2 if table.key else []),
            *([self.truncate] if self.chance.random() < 0.03 else []),
        ]
        self.chance.choice(work)(connection, table)

    def key_value(self, kind: str) -> str:
        return f"k{self.chance.randrange(_KEYS)}" if kind == "text" else str(self.chance.randrange(_KEYS))

    def value(self, table: Table, name: str, kind: str) -> str | None:
        if name in table.key:
            return self.key_value(kind)
        if name == "org":
            return str(self.chance.randrange(5))
        if name == table.large and self.chance.random() < 0.5:
            return "".join(self.chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=_LARGE))
        return None if self.chance.random() < 0.15 else self.chance.choice(POOLS[kind])

    def row(self, table: Table) -> list[str | None]:
        return [self.value(table, name, kind) for name, kind in table.columns]

    def where(self, table: Table) -> tuple[str, list[str]]:
        """The condition for one row, which may not be there."""
        kinds = dict(table.columns)
        if table.key:
            condition = " AND ".join(f"{name} = %s" for name in table.key)
            return condition, [self.key_value(kinds[name]) for name in table.key]
        org = str(self.chance.randrange(5))
        return f"ctid = (SELECT ctid FROM {table.name} WHERE org = %s LIMIT 1)", [org]

    def insert(self, connection: psycopg.Connection[Any], table: Table) -> None:
        places = ", ".join(["%s"] * len(table.columns))
        conflict = "" if self.chance.random() < 0.2 else " ON CONFLICT DO NOTHING"
        connection.execute(
            f"INSERT INTO {table.name} ({', '.join(table.names)}) VALUES ({places}){conflict}".encode(),
            self.row(table),
        )

    def update(self, connection: psycopg.Connection[Any], table: Table) -> None:
        others = [(name, kind) for name, kind in table.columns if name not in table.key]
        chosen = self.chance.sample(others, self.chance.randint(1, len(others)))
        condition, found = self.where(table)
        changes = ", ".join(f"{name} = %s" for name, _ in chosen)
        values = [self.value(table, name, kind) for name, kind in chosen]
        connection.execute(f"UPDATE {table.name} SET {changes} WHERE {condition}".encode(), values + found)

    def move(self, connection: psycopg.Connection[Any], table: Table) -> None:
        condition, found = self.where(table)
        org = self.chance.choice(("(org + 1) % 5", "org", str(self.chance.randrange(5))))
        connection.execute(
            f"UPDATE {table.name} SET org = {org} WHERE {condition}".replace("% ", "%% ").encode(), found
        )

    def delete(self, connection: psycopg.Connection[Any], table: Table) -> None:
        condition, found = self.where(table)
        connection.execute(f"DELETE FROM {table.name} WHERE {condition}".encode(), found)

    def change_key(self, connection: psycopg.Connection[Any], table: Table) -> None:
        kinds = dict(table.columns)
        name = self.chance.choice(table.key)
        condition, found = self.where(table)
        connection.execute(
            f"UPDATE {table.name} SET {name} = %s WHERE {condition}".encode(),
            [self.key_value(kinds[name]), *found],
        )

    def bulk(self, connection: psycopg.Connection[Any], table: Table) -> None:
        org, other = self.chance.randrange(5), self.chance.randrange(5)
        if self.chance.random() < 0.5:
            rows = [self.row(table) for _ in range(self.chance.choice((5, 20, 60)))]
            places = f"({', '.join(['%s'] * len(table.columns))})"
            connection.execute(
                (
                    f"INSERT INTO {table.name} ({', '.join(table.names)}) VALUES {', '.join([places] * len(rows))}"
                    " ON CONFLICT DO NOTHING"
                ).encode(),
                [value for row in rows for value in row],
            )
        elif self.chance.random() < 0.5:
            connection.execute(f"UPDATE {table.name} SET org = {other} WHERE org = {org}".encode())
        else:
            connection.execute(f"DELETE FROM {table.name} WHERE org = {org}".encode())

    def truncate(self, connection: psycopg.Connection[Any], table: Table) -> None:
        names = [table.name]
        if self.chance.random() < 0.3:
            names = [each.name for each in self.tables]
        connection.execute(f"TRUNCATE {', '.join(names)}".encode())


def main(kind: type[Writer] = Writer) -> None:
    dsn, schema_seed, seed, count = sys.argv[1:]
    tables = random_schema(random.Random(schema_seed))
    gate = Gate(int(count))
    writers = [kind(dsn, tables, f"{seed}-{number}", gate) for number in range(int(count))]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        if line.strip() == "go":
            gate.open()
            print("going", flush=True)
        else:
            gate.close()
            print(f"paused {gate.commits}", flush=True)
    gate.end()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
