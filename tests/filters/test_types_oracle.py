"""Every operator on every type's treacherous values: PostgreSQL gives the same, or the filter is refused."""

from __future__ import annotations

import pytest
from tests.filters.kinds import KINDS, Kind
from tests.filters.oracle import Oracle, accepted, assert_agreement, quote

_OPERATORS = ("=", "<>", "<", "<=", ">", ">=")


def _comparisons(kind: Kind) -> list[str]:
    literals = [*map(quote, kind.values + kind.literals), *kind.numbers, "NULL", "TRUE"]
    some = literals[::3]
    return [
        *(f'"c" {operator} {literal}' for operator in _OPERATORS for literal in literals),
        *(f'"c" IS DISTINCT FROM {literal}' for literal in literals),
        *(f'NOT ("c" = {literal} IS NOT TRUE)' for literal in literals),
        *(f'"c" IN ({literal}, {other})' for literal in some for other in some[::2]),
        *(f'"c" NOT IN ({literal}, {other}, {literal})' for literal in some for other in some[::3]),
        *(f'"c" @> {literal}' for literal in literals),
        *(f'"c" BETWEEN {literal} AND {other}' for literal, other in zip(literals, some, strict=False)),
        '"c" IS NULL',
        '"c" IS NOT NULL',
    ]


@pytest.mark.parametrize("name", KINDS)
def test_comparisons_equal_postgresql(oracle: Oracle, name: str) -> None:
    kind = KINDS[name]
    definition = f'{kind.definition} COLLATE "C"' if kind.family == "text" else kind.definition
    table = oracle.table([f'"c" {definition}'], [*((value,) for value in kind.values), (None,)])
    filters = accepted(table, _comparisons(kind))
    assert_agreement(oracle, table, filters)
    conditions = {condition for condition, _ in filters}
    for value in kind.values:
        if value.startswith(("{{", "[0:1]")):  # array literals have one dimension
            continue
        assert f'"c" = {quote(value)}' in conditions
        if kind.family not in {"array", "jsonb"}:
            assert f'"c" < {quote(value)}' in conditions
    if kind.numbers:
        assert f'"c" >= {kind.numbers[0]}' in conditions
    oracle.drop(table)


_PATHS = (
    "-> 'a'", "->> 'a'", "-> 0", "->> 0", "-> -1", "->> -1", "-> 1", "-> 5", "-> 'a' -> 'b'", "-> 'a' ->> 'b'", "-> 'b' -> 2",
    "-> 'b' ->> 2", "-> 'b' -> -1 ->> 'c'", "-> 'b' -> 0 -> 0", "-> 'b' ->> 0", "-> ''", "-> '0'", "-> 'a' -> ''", "-> 'a' ->> ''",
    "-> 'a' ->> 0", "-> 0 ->> 0", "-> 1 ->> 'a'", "->> 'kind'",
)  # fmt: skip
_MEMBERS = (
    "1",
    "1.0",
    "a",
    "x",
    "null",
    "true",
    "[1, 2]",
    '{"b": true, "": "é\\n"}',
    "é\n",
    "",
    '"a"',
    "[1, 1]",
    "NULL",
    "[1]",
)


@pytest.mark.parametrize("path", _PATHS)
def test_paths_into_jsonb_equal_postgresql(oracle: Oracle, path: str) -> None:
    kind = KINDS["jsonb"]
    table = oracle.table(["c jsonb"], [*((value,) for value in kind.values), (None,)])
    conditions = [
        *(
            f"c {path} {operator} {quote(text)}"
            for operator in ("=", "<>", "<", "@>", "~", "LIKE")
            for text in _MEMBERS
        ),
        *(f"c {path} IN ({quote(text)}, 'null', NULL)" for text in _MEMBERS),
        f"c {path} IS NULL",
        f"NOT c {path} ILIKE '%A%'",
        f"c {path} IS DISTINCT FROM NULL",
    ]
    filters = accepted(table, conditions)
    assert_agreement(oracle, table, filters)
    assert len(filters) > 20
    oracle.drop(table)


def test_the_order_of_text_within_jsonb_is_that_of_the_database(oracle: Oracle) -> None:
    table = oracle.table(["c jsonb"], [('{"a": "b"}',), ('{"a": "B"}',), ('{"a": "é"}',), ("{}",), (None,)])
    filters = accepted(
        table, ["c ->> 'a' < 'b'", "c ->> 'a' >= 'É'", "c->>'a' ILIKE 'É'", "c ->> 'a' ~* '^B'"]
    )
    assert_agreement(oracle, table, filters)
    assert len(filters) == 4
    oracle.drop(table)
