"""Writers that commit as often as they can: `python -m tests.faults.crowd DSN SCHEMA_SEED SEED COUNT`.

The campaign's, except that they stay out of each other's way: more keys, no TRUNCATE, which holds up who reads, and no
statements over a fifth of a table in one. They take the same commands from standard input.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from tests.faults.schema import Table
from tests.faults.writers import Writer, main

_KEYS: Final = 500


class BusyWriter(Writer):
    def key_value(self, kind: str) -> str:
        number = self.chance.randrange(_KEYS)
        return f"k{number}" if kind == "text" else str(number)

    def truncate(self, connection: psycopg.Connection[Any], table: Table) -> None:
        self.move(connection, table)

    def bulk(self, connection: psycopg.Connection[Any], table: Table) -> None:
        self.insert(connection, table)


if __name__ == "__main__":
    main(BusyWriter)
