"""PostgreSQL is the oracle: random tables, rows and filters through both parsers, the printer and the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.filters.kinds import KINDS, Kind
from tests.filters.oracle import Oracle, assert_agreement, quote

from rowcast.errors import FilterError
from rowcast.filters import BoundFilter, bind, parse_postgrest, parse_sql

_SIGNS = {"eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_WORDS = {"like": "LIKE", "ilike": "ILIKE", "match": "~", "imatch": "~*", "cs": "@>"}
_PATTERNS = ("a%", "%b%", "_", "^a", "[a-z]+$", "é", "A|b", "")
_EMPTY = "in.()"


@dataclass(frozen=True)
class Written:
    """One condition in every language that has it.

    Attributes:
        sql: For PostgreSQL and for our SQL parser.
        tree: Within `and(…)` of the PostgREST form; None where it cannot say it.
        parameter: As `column=…` of the PostgREST form.
    """

    sql: str
    tree: str | None = None
    parameter: str | None = None


def _encode(text: str) -> str:
    return text.replace("%", "%25").replace("&", "%26")


def _double_quote(text: str) -> str:
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


def _condition(column: str, sql: str, operation: str, value: str, *, negated: bool) -> Written:
    """Of an operator and one value."""
    operation = f"not.{operation}" if negated else operation
    return Written(
        f"NOT ({sql})" if negated else sql,
        f"{_double_quote(column)}.{operation}.{_double_quote(value)}",
        f"{_encode(_double_quote(column))}={operation}.{_encode(value)}",
    )


@st.composite
def _leaves(draw: Callable[..., Any], columns: Sequence[tuple[str, Kind]]) -> Written:
    name, kind = draw(st.sampled_from(columns))
    column = f'"{name}"'
    negated = draw(st.booleans())
    literal: Callable[[], str] = lambda: draw(kind.literal())  # noqa: E731
    form = draw(st.sampled_from(["compare"] * 5 + ["list", "null", "word", "sql", "sql", "boolean", "path"]))
    if form == "compare":
        operation, value = draw(st.sampled_from(sorted(_SIGNS))), literal()
        return _condition(
            column[1:-1], f"{column} {_SIGNS[operation]} {quote(value)}", operation, value, negated=negated
        )
    if form == "list":
        values = draw(st.lists(kind.literal(), min_size=1, max_size=4))
        listed = f"in.({','.join(map(_double_quote, values))})"
        operation = f"not.{listed}" if negated else listed
        sql = f"{column} IN ({', '.join(map(quote, values))})"
        return Written(
            f"NOT ({sql})" if negated else sql,
            f"{_double_quote(name)}.{operation}",
            f"{_encode(_double_quote(name))}={_encode(operation)}",
        )
    if form == "null":
        operation = "not.is.null" if negated else "is.null"
        return Written(
            f"{column} IS {'NOT ' if negated else ''}NULL",
            f"{_double_quote(name)}.{operation}",
            f"{_encode(_double_quote(name))}={operation}",
        )
    if form == "word" and kind.family:
        operation = draw(st.sampled_from(sorted(_WORDS)))
        value = literal() if operation == "cs" else draw(st.sampled_from(_PATTERNS))
        sql = f"{column} {_WORDS[operation]} {quote(value)}"
        return _condition(name, sql, operation, value, negated=negated)
    if form == "boolean" and kind.definition == "boolean":
        return Written(
            draw(st.sampled_from([column, f"{column} IS TRUE", f"{column} IS NOT FALSE", f"{column} = true"]))
        )
    if form == "path" and kind.family == "jsonb":
        path = draw(
            st.sampled_from(["-> 'a'", "->> 'a'", "-> 0", "->> 'kind'", "-> 'b' ->> 0", "-> 'b' -> 2"])
        )
        operator = draw(st.sampled_from(["=", "<>", "@>", "IS DISTINCT FROM"]))
        return Written(
            f"{column} {path} {operator} {quote(draw(st.sampled_from(['a', '1', '1.0', 'x', '[1]', 'null'])))}"
        )
    number = draw(st.sampled_from(kind.numbers)) if kind.numbers else quote(literal())
    return Written(
        draw(
            st.sampled_from(
                [
                    f"{column} = {number}",
                    f"{number} > {column}",
                    f"{column} <= {number} IS NOT TRUE",
                    f"{column} IN ({number}, {quote(literal())})",
                    f"{column} NOT IN ({number}, NULL)",
                    f"{column} BETWEEN {quote(literal())} AND {number}",
                    f"{column} IS DISTINCT FROM {number}",
                    f"({column} <> {number}) IS UNKNOWN",
                    f"{column} = ANY (ARRAY[{number}, {number}])",
                    f"{column} = NULL",
                ]
            )
        )
    )


def _join(word: str, operands: list[Written]) -> Written:
    trees = [operand.tree for operand in operands]
    tree = None if None in trees else f"{word}({','.join(filter(None, trees))})"
    sql = f" {word.upper()} ".join(f"({operand.sql})" for operand in operands)
    return Written(sql, tree, None if tree is None else f"{word}={_encode(tree.removeprefix(word))}")


def _negate(operand: Written) -> Written:
    negatable = operand.tree is not None and operand.tree.startswith(("and(", "or("))
    return Written(
        f"NOT ({operand.sql})",
        f"not.{operand.tree}" if negatable else None,
        f"not.{operand.parameter}" if negatable and operand.parameter else None,
    )


def _filters(columns: Sequence[tuple[str, Kind]]) -> st.SearchStrategy[Written]:
    return st.recursive(
        _leaves(columns),
        lambda inner: st.one_of(
            st.builds(_join, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)),
            inner.map(_negate),
            st.builds(
                lambda operand, truth: Written(f"({operand.sql}) IS {truth}"),
                inner,
                st.sampled_from(["TRUE", "NOT FALSE", "UNKNOWN", "NOT UNKNOWN", "NULL", "FALSE"]),
            ),
        ),
        max_leaves=5,
    )


def _bind(text: str, parse: Callable[[str], Any], table: Any) -> BoundFilter | None:
    try:
        return bind(parse(text), table)
    except FilterError:
        return None


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("database", ["oracle", "linguistic"])
def test_any_filter_of_any_table_equals_postgresql(
    request: pytest.FixtureRequest, database: str, data: st.DataObject
) -> None:
    oracle: Oracle = request.getfixturevalue(database)
    names = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5))
    columns = [(f"{name} {place}", KINDS[name]) for place, name in enumerate(names)]
    definitions = []
    for name, kind in columns:
        collations = ["", 'COLLATE "C"', *(['COLLATE "und-x-icu"'] if oracle.linguistic else [])]
        collation = data.draw(st.sampled_from(collations)) if kind.family == "text" else ""
        definitions.append(f'"{name}" {kind.definition} {collation}')
    rows = data.draw(st.lists(st.tuples(*(kind.value() for _, kind in columns)), max_size=8))
    table = oracle.table(definitions, rows)
    written = data.draw(st.lists(_filters(columns), min_size=1, max_size=12))
    filters: list[tuple[str, BoundFilter]] = []
    for one in written:
        bound = _bind(one.sql, parse_sql, table)
        if bound is not None:
            filters.append((one.sql, bound))
        if one.parameter is not None:
            assert _bind(one.parameter, parse_postgrest, table) == bound, one
        if one.tree is not None:
            assert _bind(f"and=({_encode(one.tree)})", parse_postgrest, table) == bound, one
    assert_agreement(oracle, table, filters)
    oracle.drop(table)
