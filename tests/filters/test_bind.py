"""Binding: what is refused for which type, and what the refusal says to write instead."""

from __future__ import annotations

import pytest
from tests.filters.tables import EVERYTHING, LINGUISTIC, table

from rowcast.errors import FilterError, UnknownColumnError
from rowcast.filters import bind, parse_sql
from rowcast.filters.expression import Comparison, Constant, Term
from rowcast.model import Collation


def test_an_unknown_column_is_answered_with_the_known_ones() -> None:
    few = table({"id": "int", "name": "text"})
    for sql in ("nme = 'a'", "nme IS NULL", "nme IN ('a')", "id = 1 OR nme -> 'a' = '1'"):
        with pytest.raises(UnknownColumnError, match='things has no column "nme"; it has: id, name'):
            bind(parse_sql(sql), few)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("int = 'abc'", '"abc" is no value for "int" of type int4: expected a whole number, such as 42'),
        ("int = '2147483648'", "from -2147483648 to 2147483647"),
        ("int = '5'::smallint OR int = '99999'::smallint", "from -32768 to 32767"),
        ("int = 5::real", "cannot be compared with '5'::real: write the value in quotes, without a cast"),
        ("int = TRUE", "cannot be compared with TRUE"),
        ("int", "cannot be compared with TRUE"),
        ("int IS TRUE", "cannot be compared with TRUE"),
        ("oid = -1", "a whole number from 0"),
        ("oid = 5.5", "a whole number"),
        ("text = 5", "write the value in quotes"),
        ("bool = 1", "cannot be compared with 1"),
        ("bool = 'maybe'", "expected true or false"),
        ("numeric = 'x'", "a number, such as 9.95"),
        ("numeric = 1e2000", "a number of at most 1000 digits"),
        ("double = '1e400'", "within the range of float8"),
        ("real = '1e39'", "within the range of float4"),
        ("real IN (0.1, '0.1'::float8)", "mixes casts"),
        ("date = '2024-02-30'", "a day as YYYY-MM-DD"),
        ("date = 'today'", "a day as YYYY-MM-DD"),
        ("timestamp = '2024-01-01 00:00:00+02'", "without a zone"),
        ("uuid = 'x'", "a uuid, such as"),
        ("mood = 'glad'", "one of sad, ok, happy"),
        ("jsonb = 'x'", "expected JSON: text is"),
        ("jsonb > '1'", "the order of jsonb values is PostgreSQL's own"),
        ("\"int[]\" = '1'", "an array, such as {1,2}"),
        ("\"int[]\" = '{{1}}'", "an array of one dimension"),
        ("\"int[]\" < '{1}'", "arrays have no order here"),
        ("\"int[]\" @> ARRAY['1']", r"cannot be compared with '\{1\}'::text\[\]"),
        ("int LIKE '5%'", 'LIKE is for text, "int" is of type int4'),
        ("int ~ '5'", r"~ \(match\) is for text"),
        ("int @> '5'", r"@> \(cs\) is for arrays and jsonb"),
        ("text LIKE 5", "needs a pattern in quotes"),
        (r"text LIKE 'a\'", "does not end in a backslash"),
        (r"text ~ '\d'", r"such as \[0-9\] for \\d"),
        ("text ~* 'é'", "only ASCII where case is ignored"),
        ("text -> 'a' = '1'", '-> and ->> need a column of type jsonb, "text" is of type text'),
        ("json = '{}'", r"cannot compare; only IS NULL can be asked of it \(jsonb could be compared\)"),
        ("inet = '::1'", '"inet" is of type inet, which filters cannot compare; only IS NULL'),
        ("\"jsonb[]\" = '{}'", "cannot compare"),
        ("jsonb -> 'a' LIKE 'x'", "LIKE is for text"),
        (f"int = '{'9' * 100}'", "…"),
    ],
)
def test_a_refusal_says_what_to_write(sql: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        bind(parse_sql(sql), EVERYTHING)


def test_null_can_be_asked_of_every_type() -> None:
    for column in EVERYTHING.columns:
        bound = bind(parse_sql(f'"{column.name}" IS NULL'), EVERYTHING)
        assert bound.columns == (EVERYTHING.index_of(column.name),)


def test_many_labels_are_not_all_listed() -> None:
    from rowcast.filters.scalars import enum_type

    with pytest.raises(ValueError, match=r"one of 0, 1, 2, .*, 19, …$"):
        enum_type("digits", tuple(map(str, range(50)))).read("x")


@pytest.mark.parametrize("collation", [None, LINGUISTIC])
def test_without_code_point_order_text_has_none(collation: Collation | None) -> None:
    texts = table({"name": "text", "data": "jsonb"}, collation=collation)
    bound = bind(parse_sql("name = 'a' AND name LIKE 'a%' AND name ~ 'a'"), texts)
    assert bound.matches((b"a", None))
    for sql in ("name < 'a'", "data ->> 'a' BETWEEN 'a' AND 'b'"):
        with pytest.raises(FilterError, match='COLLATE "C"'):
            bind(parse_sql(sql), texts)


def test_case_is_not_ignored_under_an_unknown_collation() -> None:
    texts = table({"name": "text"}, collation=None)
    with pytest.raises(FilterError, match="no ilike"):
        bind(parse_sql("name ILIKE 'a'"), texts)
    with pytest.raises(FilterError, match="cases of its collation"):
        bind(parse_sql("name ~* 'a'"), texts)


def test_a_name_column_has_the_collation_c() -> None:
    from rowcast.filters.scalars import text_type

    assert text_type(19, LINGUISTIC) is None


def test_a_bound_filter_tells_its_columns_and_its_sql() -> None:
    bound = bind(
        parse_sql("text = 'it''s' OR NOT (int < 5 AND (bool OR jsonb ->> 'a' = 'b') IS UNKNOWN)"), EVERYTHING
    )
    assert [EVERYTHING.columns[index].name for index in bound.columns] == ["int", "text", "bool", "jsonb"]
    assert bound.sql == (
        "\"int\" >= '5' OR \"text\" = 'it''s' OR NOT ((\"bool\" = TRUE OR \"jsonb\" ->> 'a' = 'b') IS UNKNOWN)"
    )
    assert bound.key == bound.sql
    assert hash(bound) == hash(bind(parse_sql(bound.sql), EVERYTHING))
    assert bind(parse_sql("TRUE"), EVERYTHING).columns == ()


def test_what_is_printed_stays_one_literal() -> None:
    hostile = "'; DROP TABLE x; --\\' OR TRUE"
    bound = bind(Comparison(Term("text"), "=", Constant(hostile)), EVERYTHING)
    assert bound.sql == "\"text\" = E'''; DROP TABLE x; --\\\\'' OR TRUE'"
    assert bind(parse_sql(bound.sql), EVERYTHING) == bound
    [column] = (column.name for column in table({'a"b': "text"}).columns)
    assert bind(Comparison(Term(column), "=", Constant("x")), table({column: "text"})).sql == '"a""b" = \'x\''
