"""Canonical form: equal filters are equal objects, and no truth value changes on the way."""

from __future__ import annotations

import pytest
from tests.filters.tables import table

from rowcast.filters import bind, parse_postgrest, parse_sql

_TABLE = table(
    {"a": "int", "b": "int", "c": "bool", "n": "numeric", "r": "real", "t": "text", "d": "date", "j": "jsonb"}
)


@pytest.mark.parametrize(
    "equal",
    [
        (
            "a = 1",
            "1 = a",
            "a = '1'",
            "a = 01",
            "a = 1.0",
            "a IN (1)",
            "a IN (1, 1)",
            "a = 1 OR a = 1",
            "NOT a <> 1",
        ),
        ("a = 1 AND b = 2", "b = 2 AND a = 1", "(b = 2) AND (a = 1 AND b = 2)", "NOT (a <> 1 OR b <> 2)"),
        ("a IN (1, 2)", "a = 2 OR a = 1", "a = ANY ('{2,1}')", "a IN (2, NULL, 1)", "NOT a NOT IN (1, 2)"),
        ("a NOT IN (1, 2)", "a <> 1 AND a <> 2", "a <> ALL (ARRAY[2, 1])", "NOT (a = 1 OR a = 2)"),
        ("a > 1", "1 < a", "NOT a <= 1", "a > 1 IS TRUE", "a > 1 AND TRUE OR FALSE AND b = 1"),
        (
            "a = 1",
            "a IS NOT DISTINCT FROM 1",
            "(a = 1) IS TRUE",
            "((a = 1) IS TRUE) IS TRUE",
            "NOT ((a = 1) IS NOT TRUE)",
        ),
        (
            "a IS NULL",
            "(a = 1) IS UNKNOWN",
            "a IS NOT DISTINCT FROM NULL",
            "NOT a IS NOT NULL",
            "(a <> 1) IS NULL",
        ),
        ("c", "c = true", "c = 't'", "c IS TRUE", "NOT c = FALSE", "c <> false", "NOT NOT c"),
        ("NOT c", "c = false", "c IS FALSE", "c <> 'on'", "(NOT c) IS TRUE"),
        (
            "FALSE",
            "a = NULL",
            "NULL",
            "a IN (NULL)",
            "NOT TRUE",
            "a = 1 AND NULL",
            "(a IS NULL) IS UNKNOWN",
            "a = ANY ('{}')",
        ),
        (
            "TRUE",
            "NOT FALSE",
            "a = 1 OR TRUE",
            "NULL IS UNKNOWN",
            "a <> ALL ('{}')",
            "(a = 1) IS TRUE OR NULL IS NULL",
        ),
        ("n = 1.5", "n = '1.50'", "n = 15e-1", "n = '+1.5'::numeric"),
        ("r = '0.1'", "r IN (0.1, 0.1)", "r = '0.10000000149'", "r = 0.1::real"),
        ("r = 0.5", "r = '0.5'", "r = 0.5::float8"),
        ("d = '2024-01-01'", "d = ' 2024-01-01 '::date"),
        ('j = \'{"a": 1.0, "b": [2]}\'', 'j = \'{"b":[2.00],"a":1}\''),
        ("(a = 1 OR b = 2) AND (a = 3 OR b = 4)", "(b = 4 OR a = 3) AND (b = 2 OR a = 1)"),
        ("(a = 1 AND b = 2) IS FALSE", "(a = 1 IS FALSE) OR (b = 2 IS FALSE)"),
        ("(a = 1 OR b = 2) IS TRUE", "a = 1 OR b = 2"),
        ("NOT (c OR a > 1) IS UNKNOWN", "(a > 1 OR c) IS NOT UNKNOWN"),
        ("t LIKE 'a' IS NOT TRUE", "NOT (t LIKE 'a' IS TRUE)"),
        ("(a IS NULL) IS FALSE", "a IS NOT NULL"),
    ],
)
def test_equal_filters_are_equal(equal: tuple[str, ...]) -> None:
    first, *others = [bind(parse_sql(sql), _TABLE) for sql in equal]
    for sql, other in zip(equal[1:], others, strict=True):
        assert other == first, f"{sql} became {other.sql}, not {first.sql}"
        assert (other.key, hash(other)) == (first.key, hash(first))


def test_both_languages_give_one_filter() -> None:
    assert bind(parse_postgrest("a=in.(2,1)&c=is.true"), _TABLE) == bind(
        parse_sql("c AND a IN (1, 2)"), _TABLE
    )


@pytest.mark.parametrize(
    "different",
    [
        ("a = 1", "b = 1"),
        ("a = 1", "a = 10"),
        ("t = 'a'", "t LIKE 'a'"),
        ("t LIKE 'a'", "t ILIKE 'a'"),
        ("r = 0.1", "r = '0.1'"),
        ("NOT a = 1", "(a = 1) IS NOT TRUE"),  # NULL
        ("t = 'a'", "t = 'A'"),
        ("j -> 'a' = '1'", "j ->> 'a' = '1'"),
        ("j -> 0 = '1'", "j -> '0' = '1'"),
        ("a = 1 OR b = 2 AND c", "(a = 1 OR b = 2) AND c"),
    ],
)
def test_different_filters_are_different(different: tuple[str, str]) -> None:
    one, other = [bind(parse_sql(sql), _TABLE) for sql in different]
    assert one != other
    assert one.key != other.key


def test_nesting_does_not_make_it_slow() -> None:
    condition = "a = 1"
    for number in range(10):
        condition = f"({condition} AND b > {number}) IS FALSE OR a < {number}"
    for number in range(10):
        condition = f"NOT ({condition} AND b > {number}) OR a < {number}"
    assert bind(parse_sql(condition), _TABLE).columns == (0, 1)
