"""Evaluation where PostgreSQL is no oracle: values that are missing, or cannot be compared outside of it."""

from __future__ import annotations

import pytest
from tests.filters.tables import table

from rowcast.filters import bind, parse_sql
from rowcast.model import MISSING, Missing, Value

_TABLE = table({"a": "int", "b": "text", "m": "mood", "j": "jsonb"})
_DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("sql", "a", "b", "outcome"),
    [
        ("a = 1", MISSING, b"x", MISSING),
        ("a = 1", b"1", MISSING, True),
        ("a = 1", None, MISSING, None),
        ("NOT a = 1", MISSING, b"x", MISSING),
        ("a IS NULL", MISSING, b"x", MISSING),
        ("NOT a IS NULL", MISSING, b"x", MISSING),
        ("(a = 1) IS NOT TRUE", MISSING, b"x", MISSING),
        ("(a = 1) IS NOT TRUE", None, b"x", True),
        ("(a = 1 OR b = 'x') IS UNKNOWN", None, MISSING, MISSING),
        ("(a = 1 OR b = 'x') IS UNKNOWN", b"1", MISSING, False),
        # One operand may decide without the other.
        ("a = 1 AND b = 'x'", MISSING, b"y", False),
        ("a = 1 AND b = 'x'", MISSING, b"x", MISSING),
        ("a = 1 AND b = 'x'", MISSING, None, MISSING),
        ("a = 1 AND b = 'x'", None, MISSING, MISSING),
        ("a = 1 AND b = 'x'", None, b"x", None),
        ("a = 1 OR b = 'x'", MISSING, b"x", True),
        ("a = 1 OR b = 'x'", MISSING, b"y", MISSING),
        ("a = 1 OR b = 'x'", None, b"y", None),
        ("TRUE", MISSING, MISSING, True),
        ("FALSE", MISSING, MISSING, False),
    ],
)
def test_what_is_missing_makes_the_outcome_missing_unless_it_does_not_matter(
    sql: str,
    a: Value,
    b: Value,
    outcome: bool | Missing | None,  # noqa: FBT001 - four values
) -> None:
    assert bind(parse_sql(sql), _TABLE).evaluate((a, b, None, None)) is outcome


def test_matches_needs_to_know() -> None:
    bound = bind(parse_sql("a = 1"), _TABLE)
    assert bound.matches((b"1", None, None, None)) is True
    assert bound.matches((None, None, None, None)) is False
    with pytest.raises(ValueError, match="not known"):
        bound.matches((MISSING, None, None, None))


@pytest.mark.parametrize(
    ("sql", "row"),
    [
        ("m > 'ok'", (None, None, b"added", None)),
        ("j = '1'", (None, None, None, _DEEP)),
        ("j @> '1'", (None, None, None, _DEEP)),
        ("j -> 0 = '1'", (None, None, None, _DEEP)),
        ("j -> 0 IS NULL", (None, None, None, _DEEP)),
        ("b LIKE 'a_'", (None, b"a\xff", None, None)),
        ("b ~ 'a'", (None, b"\xff", None, None)),
        ("j -> 0 = '1'", (None, None, None, b'["\xff"]')),
    ],
)
def test_what_cannot_be_compared_is_not_known(sql: str, row: tuple[Value, ...]) -> None:
    assert bind(parse_sql(sql), _TABLE).evaluate(row) is MISSING


def test_nesting_that_the_parser_bears_and_the_walk_does_not_is_not_known() -> None:
    deep = b"[" * 480 + b"]" * 480
    for sql in ("j = '1'", "j -> 0 = '1'", f"j @> '{'[' * 400}{']' * 400}'"):
        assert bind(parse_sql(sql), _TABLE).evaluate((None, None, None, deep)) is MISSING


def test_an_added_label_equals_itself_only() -> None:
    assert bind(parse_sql("m = 'ok'"), _TABLE).evaluate((None, None, b"added", None)) is False
    assert bind(parse_sql("m <= 'ok'"), _TABLE).evaluate((None, None, b"sad", None)) is True
