"""What hostile filters meet: bounds on size, depth and matching time, each with a reason in its error."""

from __future__ import annotations

import pytest
from tests.filters.tables import table

from rowcast.errors import FilterError
from rowcast.filters import bind, parse_postgrest, parse_sql
from rowcast.filters.limits import MAX_CONDITIONS, MAX_CONSTANTS, MAX_DEPTH, MAX_LENGTH, MAX_PATTERN_LENGTH
from rowcast.filters.regular import regular

_TABLE = table({"a": "int", "b": "text", "j": "jsonb"})


# Quadratic or worse would take minutes here: a watchdog, not a measurement.
pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("a = 1" + " " * MAX_LENGTH, "65541 characters, 65536 are allowed"),
        (" OR ".join(["a > 1"] * (MAX_CONDITIONS + 1)), "more than 200 conditions"),
        (f"a IN ({','.join(['1'] * (MAX_CONSTANTS + 1))})", "more than 2000 values"),
        (f"a = ANY ('{{{','.join(['1'] * (MAX_CONSTANTS + 1))}}}')", "more than 2000 values"),
        ("(" * (MAX_DEPTH + 1) + "a = 1" + ")" * (MAX_DEPTH + 1), "nested more than 32 levels"),
        ("NOT " * (MAX_DEPTH + 1) + "a = 1", "nested more than 32 levels"),
    ],
)
def test_a_filter_in_sql_is_bounded(sql: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_sql(sql)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b=eq." + "x" * MAX_LENGTH, "characters"),
        ("&".join(["a=gt.1"] * (MAX_CONDITIONS + 1)), "more than 200 conditions"),
        (f"a=in.({','.join(['1'] * (MAX_CONSTANTS + 1))})", "more than 2000 values"),
        ("and=" + "(or" * MAX_DEPTH + "(a.eq.1)" + ")" * MAX_DEPTH, "nested more than 32 levels"),
    ],
)
def test_a_filter_in_postgrest_form_is_bounded(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_postgrest(text)


def test_filters_within_the_bounds_are_bound_in_a_moment() -> None:
    bind(parse_sql(f"a IN ({','.join(map(str, range(MAX_CONSTANTS)))})"), _TABLE)
    bind(parse_sql(" OR ".join(f"a > {number}" for number in range(MAX_CONDITIONS))), _TABLE)
    bind(parse_sql("NOT (" * 16 + "a = 1 OR b = 'x'" + ")" * 16), _TABLE)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (f"b LIKE '{'x' * (MAX_PATTERN_LENGTH + 1)}'", "at most 1000 characters"),
        (f"b ~ '{'x' * (MAX_PATTERN_LENGTH + 1)}'", "at most 1000 characters"),
        ("b ~ '((a{255}){255})'", "repeats too much"),
        ("b ~ '(a|b)*a[ab]{12}'", "too large a table"),
        (f"b ~ '{'(' * 33}a{')' * 33}'", "parentheses at most 32"),
        (f"j = '{'[' * 5000}'", "at most 4096 characters"),
        (f"j = '{'[' * 2000 + ']' * 2000}'", "nested less deep"),
        ("j = '1e5000'", "a number of at most 1000 digits"),
        (f"a = {'9' * 5000}", "a number"),
    ],
)
def test_values_and_patterns_are_bounded(sql: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        bind(parse_sql(sql), _TABLE)


def test_patterns_that_explode_elsewhere_take_linear_time() -> None:
    text = b"a" * 20_000
    for expression in ("(a+)+$b", "(a|a)*b", "(a*)*b", "^(a?){20}a{20}b", ".*.*.*.*=.*"):
        assert not regular(expression, ignore_case=False)(text)
    for pattern in ("%a%a%a%a%a%b", "%_a%_a%_a%_a%b", "%" * 500 + "b"):
        assert not bind(parse_sql(f"b LIKE '{pattern}'"), _TABLE).matches((None, text, None))


@pytest.mark.parametrize(
    "sql",
    [
        "a = " + "9" * 60_000 + "x",
        "a = " + "9" * 60_000,
        "a = 1." + "9" * 60_000,
        "a = ANY ('{1," + " " * 60_000 + "\"'}')",
        "a = ANY ('{1" + " x" * 30_000 + "{}')",
        "b = '" + "''" * 30_000,
        "b = E'" + "\\" * 30_000,
        'b = "' + '""' * 30_000,
        "a = " + "-" * 60_000,
        "b LIKE " + "$1" * 30_000,
    ],
)
def test_no_text_takes_long_to_refuse(sql: str) -> None:
    with pytest.raises(FilterError):
        bind(parse_sql(sql), _TABLE)


@pytest.mark.parametrize(
    "text",
    [
        'or=(j.cs.{"' + '\\"' * 30_000,
        'a=in.("' + '\\"' * 30_000,
        '"' + '\\"' * 30_000,
        "or=(" * 16_000,
        "&" * 60_000 + "a",
    ],
)
def test_no_text_in_postgrest_form_takes_long_to_refuse(text: str) -> None:
    with pytest.raises(FilterError):
        bind(parse_postgrest(text), _TABLE)


def test_a_pattern_meets_more_characters_than_it_remembers() -> None:
    test = regular("^[一-龥]+$", ignore_case=False)
    assert test("".join(map(chr, range(0x4E00, 0x9FA5))).encode())
    assert not test(("中" * 10 + "a").encode())
