"""Random tables, values and filters: what a campaign writes, watches and asks PostgreSQL about.

The one rule of this room: everything follows from a `random.Random`, so that a seed repeats it; a filter is written
twice, as a client sends it and as SQL for PostgreSQL, and the second is never made from the first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

ENUM: Final = "CREATE TYPE mood AS ENUM ('sad', 'mid', 'happy')"

# Few values of each type, so that rows meet, move in and out of filters, and are equal where there is no key.
POOLS: Final[dict[str, tuple[str, ...]]] = {
    "integer": ("-1", "0", "1", "2", "3", "7"),
    "bigint": ("-5", "0", "1", "2", "40", "9007199254740993"),
    "text": ("", "a", "b", "Ab", "it's", "ü", "a%b", "a b", "null", "10", "9"),
    "boolean": ("true", "false"),
    "numeric(10,2)": ("0.00", "1.50", "-3.25", "2.00", "12345.67"),
    "double precision": ("0.5", "-1.25", "2", "1e10"),
    "date": ("2024-02-29", "1999-12-31", "2026-01-01"),
    "timestamptz": ("2024-01-01 12:00:00+00", "2024-01-01 12:34:56.5+00", "1999-12-31 23:59:59+00"),
    "uuid": ("0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11", "00000000-0000-0000-0000-000000000000"),
    "jsonb": ('{"k": 1}', '{"k": "v", "n": [1, 2]}', "[]", '"x"', '{"k": 1, "deep": {"a": null}}'),
    "integer[]": ("{}", "{1,2}", "{1,NULL}"),
    "mood": ("sad", "mid", "happy"),
}
_ORDERED: Final = frozenset(POOLS) - {"boolean", "jsonb", "integer[]", "mood"}
_COMPARISONS: Final = (("eq", "="), ("neq", "<>"), ("gt", ">"), ("gte", ">="), ("lt", "<"), ("lte", "<="))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a campaign.

    Attributes:
        columns: Name and type of each, in order; the key's first, then `org`.
        full: REPLICA IDENTITY FULL, without which PostgreSQL does not tell old rows.
        large: A column whose values are too large to be kept in the row.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]
    full: bool
    large: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    def create(self) -> str:
        parts = [f"{name} {kind}{' NOT NULL' if name == 'org' else ''}" for name, kind in self.columns]
        if self.key:
            parts.append(f"PRIMARY KEY ({', '.join(self.key)})")
        return f"CREATE TABLE {self.name} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition as it is sent, and as PostgreSQL is asked. Both empty: all rows."""

    wire: dict[str, Any]
    sql: str


EVERYTHING: Final = Filter({}, "")


def random_schema(chance: random.Random) -> list[Table]:
    """Two to four tables; the first always has a key and logs full old rows."""
    kinds = ["full", *chance.sample(("composite", "keyless", "default", "full"), chance.randint(1, 3))]
    tables: list[Table] = []
    for number, kind in enumerate(kinds):
        key: tuple[tuple[str, str], ...] = (("id", chance.choice(("bigint", "integer", "text"))),)
        if kind == "composite":
            key = (("region", "text"), ("number", "integer"))
        elif kind == "keyless":
            key = ()
        more = [(f"c{place}", chance.choice(list(POOLS))) for place in range(chance.randint(1, 4))]
        large = None
        if kind in {"default", "full"} and chance.random() < 0.6:
            large = "body"
            more.append(("body", "text"))
        columns = (*key, ("org", "integer"), *more)
        tables.append(
            Table(f"t{number}_{kind}", columns, tuple(name for name, _ in key), kind != "default", large)
        )
    return tables


def literal(value: str) -> str:
    return "'{}'".format(value.replace("'", "''"))


def random_filter(chance: random.Random, table: Table) -> Filter:
    """Everything, one term, or several joined, in one of the two languages."""
    if chance.random() < 0.2:
        return EVERYTHING
    usable = [
        (name, kind)
        for name, kind in table.columns
        if kind != "integer[]" and name != table.large and name not in table.key[1:]
    ]
    # `org` is what writers move rows by.
    chosen = [("org", "integer"), *chance.sample(usable, min(len(usable), chance.randint(0, 2)))]
    chance.shuffle(chosen)
    return chance.choice((_postgrest, _sql))(chance, chosen[: chance.randint(1, 3)])


def _postgrest(chance: random.Random, columns: Sequence[tuple[str, str]]) -> Filter:
    terms = [_postgrest_term(chance, name, kind) for name, kind in columns]
    if len(terms) > 1 and chance.random() < 0.5:
        joined = ",".join(f"{name}.{condition}" for name, condition, _ in terms)
        negation = chance.choice(("", "not."))
        sql = " OR ".join(f"({sql})" for _, _, sql in terms)
        return Filter({"filter": f"{negation}or=({joined})"}, f"NOT ({sql})" if negation else sql)
    return Filter(
        {"filter": "&".join(f"{name}={condition}" for name, condition, _ in terms)},
        " AND ".join(f"({sql})" for _, _, sql in terms),
    )


def _postgrest_term(chance: random.Random, name: str, kind: str) -> tuple[str, str, str]:
    values = [value for value in POOLS[kind] if value and not set(value) & set("'\"%,(){}[] :.+")] or ["1"]
    if name == "id" and kind != "text":
        values = [str(chance.randrange(120))]
    value = chance.choice(values)
    forms = ["null", "in"]
    if kind == "jsonb":
        wanted = chance.choice(("1", "v"))
        return f"{name}->>k", f"eq.{wanted}", f"{name} ->> 'k' = {literal(wanted)}"
    if kind == "boolean":
        return name, f"is.{value}", f"{name} IS {value}"
    if kind in {"numeric(10,2)", "double precision", "timestamptz"}:
        forms = ["null", "range"]
    if kind in {"integer", "bigint", "date", "text"}:
        forms += ["range", "range", "range"]
    form = chance.choice(forms)
    if form == "range":
        if kind == "timestamptz":
            return name, "gte.2024-01-01T12:00:00Z", f"{name} >= '2024-01-01 12:00:00+00'"
        if kind == "numeric(10,2)":
            return name, "lt.1.5", f"{name} < 1.5"
        if kind == "double precision":
            return name, "gte.0.5", f"{name} >= 0.5"
        word, sign = chance.choice(_COMPARISONS)
        return name, f"{word}.{value}", f"{name} {sign} {literal(value)}"
    if form == "in":
        several = chance.sample(values, min(len(values), 3))
        return (
            name,
            f"in.({','.join(several)})",
            f"{name} IN ({', '.join(literal(each) for each in several)})",
        )
    negation = chance.choice(("", "not."))
    return name, f"{negation}is.null", f"{name} IS {'NOT ' if negation else ''}NULL"


def _sql(chance: random.Random, columns: Sequence[tuple[str, str]]) -> Filter:
    parameters: list[Any] = []
    sent: list[str] = []
    asked: list[str] = []
    for name, kind in columns:
        value = chance.choice(POOLS[kind])
        if name == "id" and kind != "text":
            value = str(chance.randrange(120))
        if kind == "jsonb":
            part = json.dumps({"k": chance.choice((1, "v"))})
            condition = f"{name} @> {literal(part)}"
            sent.append(condition)
            asked.append(condition)
        elif chance.random() < 0.4:
            parameters.append(value)
            sign = chance.choice(("=", "<>", "<=") if kind in _ORDERED else ("=", "<>"))
            sent.append(f"{name} {sign} ${len(parameters)}")
            asked.append(f"{name} {sign} {literal(value)}")
        else:
            condition = chance.choice(
                (
                    f"{name} IS NULL OR {name} <> {literal(value)}",
                    f"NOT ({name} = {literal(value)})",
                    f"{name} IN ({literal(value)}, {literal(chance.choice(POOLS[kind]))})",
                )
            )
            if kind == "text" and chance.random() < 0.3:
                condition = f"{name} LIKE 'a%'"
            sent.append(f"({condition})")
            asked.append(f"({condition})")
    join = chance.choice((" AND ", " OR "))
    wire: dict[str, Any] = {"where": join.join(sent)}
    if parameters:
        wire["params"] = parameters
    return Filter(wire, join.join(asked))


def random_columns(chance: random.Random, table: Table) -> tuple[str, ...] | None:
    """All columns, or a selection; the key is always delivered."""
    if chance.random() < 0.7:
        return None
    return tuple(chance.sample(table.names, chance.randint(1, len(table.names))))
