"""The SQL subset: what it means, its parameters, and what its errors say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.filters.oracle import Oracle, assert_agreement
from tests.filters.tables import EVERYTHING, table

from rowcast.errors import FilterError
from rowcast.filters import bind, parse_sql

_TABLE = table(
    {
        "a": "int",
        "b": "text",
        "c": "bool",
        "d": "jsonb",
        "e": "int[]",
        "f": "real",
        "Mixed Case": "int",
        "ä": "int",
    }
)

_CONDITIONS = (
    "a = 1",
    "a=1",
    "a=-1",
    "a=+1",
    "a = - 1",
    "a <-1",
    "A = 1",
    "a != 1",
    "1 < a",
    "1 <= a AND 5 >= a AND 1 <> a AND 7 > a AND 1 = a",
    "a = 1 OR b = 'x' AND c OR NOT \"a\" = 2",
    "not c and (c or (not c))",
    "NOT NOT a = 1",
    "a = 1 is true",
    "not a = 1 is not true",
    "(a = 1) is false or (a = 1) is unknown",
    "a = 1 IS NULL OR (b LIKE 'x%') IS NOT NULL",
    "a IN (1) IS NOT UNKNOWN",
    "c",
    "c IS TRUE OR c IS NOT FALSE",
    "c IS UNKNOWN OR c = true",
    "a IS NULL AND b IS NOT NULL",
    "a IS DISTINCT FROM 1 AND a IS NOT DISTINCT FROM 2",
    "a IS DISTINCT FROM NULL",
    "a BETWEEN 1 AND 2 AND c",
    "a NOT BETWEEN -5 AND 2",
    "b NOT IN ('a', 'it''s', E'tab\\t\\'\\u00e9\\U0001f600\\\\', '')",
    "b LIKE 'a%' OR b NOT LIKE '_' OR b ILIKE 'A' OR b NOT ILIKE 'b'",
    "b ~ '^a' AND b ~* 'A' OR b !~ 'c' OR b !~* 'd'",
    "d -> 'a' @> '1' AND d->'x'->0->>-1 = 'y' AND d->>'it''s' IS NULL",
    "e @> '{1,2}' AND e @> ARRAY[1] AND e @> ARRAY[1, NULL]::integer[]",
    "a = ANY ('{1,2}') OR a = ANY (ARRAY[1, 3000000000, 2.5]) OR a = ANY ('{3}'::int[])",
    "a <> ALL (ARRAY[1, 2]) AND a <> ALL ('{}') AND b = ANY (ARRAY['a', 'b'])",
    "a = ANY (ARRAY[]::int[]) OR a = ANY (NULL) OR c = ANY (ARRAY[true, NULL])",
    "a = ANY (ARRAY[1::bigint, 2::bigint])",
    "a = '5'::integer AND a = 5::bigint AND b = 'x'::character varying AND f = 0.1::double precision",
    "f IN (0.1, 0.2) OR f = 0.1 OR f IN ('0.1'::float4, '0.1'::float8) OR f = 0.5",
    "g = '0.1'::real OR g = 0.1 OR g IN (0.5::real, 'NaN') OR g = 'NaN'::real OR g = '-inf'::real",
    "f = 1e300 OR f < 1e300 AND f > '0.1'::float8 OR f = 'NaN'::float8",
    "TRUE",
    "FALSE OR NULL OR a = 1",
    "NULL IS NULL AND a = NULL",
    "TRUE IS TRUE AND NULL = a",
    '"Mixed Case" = 1 OR "ä" = 3 OR ä = 2',
    "\ta\n=\r1\f",
    "a = 1.0 OR a = .5 OR a = 5. OR a = 1e0",
)


def test_conditions_mean_what_they_mean_to_postgresql(oracle: Oracle) -> None:
    database = oracle.table(
        [
            "a int",
            "b text",
            "c boolean",
            "d jsonb",
            "e int[]",
            "f real",
            '"Mixed Case" int',
            '"ä" int',
            "g float8",
        ],
        [
            ("1", "a", "t", '{"a": [1, 2], "x": [["y"]]}', "{1,2}", "0.1", "1", "2", "0.1"),
            ("-1", "it's", "f", '{"it\'s": null}', "{}", "0.5", "2", "3", "0.5"),
            ("5", "x", None, "1", "{1}", "0.2", None, None, "0.10000000149011612"),
            (None, None, None, None, None, None, "1", "2", None),
            ("2", "A", "t", '{"a": 1}', None, "NaN", "3", "4", "NaN"),
        ],
    )
    assert_agreement(oracle, database, [(sql, bind(parse_sql(sql), database)) for sql in _CONDITIONS])
    oracle.drop(database)


@pytest.mark.parametrize(
    ("sql", "parameters", "inlined"),
    [
        ("a = $1 AND b = $2", (5, "it's"), "a = 5 AND b = 'it''s'"),
        ("a IN ($2, $1, $1)", ("1", 2), "a IN (1, 2)"),
        ("c = $1 OR c = $2", (True, False), "c = true OR c = false"),
        ("a = $1", (None,), "false"),
        ("b LIKE $1", (None,), "false"),
        ("b ~ $1", (None,), "false"),
        ("e @> $1", (None,), "false"),
        ("f = $1", (0.1,), "f = '0.1'"),
        ("a = ANY ($1)", ([1, 2, None],), "a IN (1, 2)"),
        ("b = ANY ($1)", (("x", 'y"z', "null"),), "b IN ('x', 'y\"z', 'null')"),
        ("e @> $1", ([1, 2],), "e @> '{1,2}'"),
        ("a = $1::bigint", ("3000000000",), "a = 3000000000"),
        ("b = $1", (5,), "b = '5'"),
    ],
)
def test_parameters_are_read_as_what_they_are_compared_with(
    sql: str, parameters: Sequence[object], inlined: str
) -> None:
    assert bind(parse_sql(sql, parameters), _TABLE) == bind(parse_sql(inlined), _TABLE)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "has its end at character 1, where a column or a value was expected"),
        ("a = 1 b", '"b" at character 7, where AND, OR or the end'),
        ("a =", "where a value was expected"),
        ("a = 1 --x", "at character 7"),
        ("a = 1; DROP TABLE x", 'cannot be read from character 6 on: "; DROP TABLE x"'),
        ("a = 5x", "cannot be read from character 5"),
        ("a = 0x10", "cannot be read from character 5"),
        ("a = $1x", "cannot be read"),
        ("a = 'x", "cannot be read"),
        ("a == 1", '"==" at character 3, where one of = <>'),
        ("a @@ 'x'", '"@@" at character 3'),
        ("a !=-1", '"!=-" at character 3'),
        ("a = b", '"b" at character 5, where a value was expected'),
        ("1 = 1", "a comparison needs a column on one side"),
        ("5", "where a comparison was expected"),
        ("5 IN (5)", "where a comparison was expected"),
        ("(a = 1", r"where \) was expected"),
        ("a IN 1", r"where \( was expected"),
        ("a IN ()", "where a value was expected"),
        ("a NOT 5", "where IN, BETWEEN, LIKE or ILIKE was expected"),
        ("a BETWEEN 1 OR 2", "where AND was expected"),
        ("(a = 1) IS 5", "where TRUE, FALSE, UNKNOWN or NULL was expected"),
        ("a IS 5", "where TRUE, FALSE, UNKNOWN or NULL was expected"),
        ("user = 'x'", r'a column \(one of this name is written "user"\)'),
        ("lower(b) = 'x'", r'no functions in filters: "lower\(…\)"'),
        ("things.a = 1", 'without "things." before it'),
        ("a::text = '1'", "columns cannot be cast"),
        ("d -> a = '1'", "a key in quotes or an array index"),
        ("d -> 1.5 = '1'", "a key in quotes or an array index"),
        ("d -> NULL = '1'", "a key in quotes or an array index"),
        ("d ->> 'a' -> 'b' = '1'", "the end of the path"),
        ("a = $1", "uses \\$1, but 0 values"),
        ("a = $0", "uses \\$0"),
        ("a = '1'::varchar(3)", r"write the type without \(varchar"),
        ("b = 'x'::char", r"char means char\(1\)"),
        ("a = '1'::5", "where a type was expected"),
        ("a = '1'::int[", r"where \] was expected"),
        ("b = 5::text", "the number 5 cannot be cast to text here: write it in quotes"),
        ("c = TRUE::text", "TRUE and FALSE cannot be cast to text"),
        ("a = '5'::int::bigint", "cast once only"),
        ("a = ANY (5)", "ANY needs an array"),
        ("a = ANY ('5')", "is no array for ANY: expected an array, such as"),
        ("a = ANY '{5}'", r"where \( was expected"),
        ("a = ANY ('{5}'", r"where \) was expected"),
        ("a = ANY (ARRAY[1, '2'])", "must be all in quotes, all numbers or all of one cast"),
        ("e @> ARRAY[1]::int", r"write int\[\]"),
        (r"b = E'\x41'", r"the escape \\x cannot be used"),
        (r"b = E'\U00110000'", "is no character"),
        (r"b = E'\u0000'", "NUL character"),
        ("b = '\0'", "NUL character"),
        (f"b ?? '{'x' * 100}'", '"\\?\\?" at character 3'),
        (f"a ; {'x' * 100}", "…"),
    ],
)
def test_an_error_names_the_place(sql: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_sql(sql)


def test_parameters_must_be_used() -> None:
    with pytest.raises(FilterError, match=r"a value is given for \$2, but the filter does not use it"):
        parse_sql("a = $1 OR a = $3", [1, 2, 3])


@pytest.mark.parametrize("value", [{"a": 1}, object(), [[1]], [{"a": 1}]])
def test_a_parameter_must_be_text_a_number_a_boolean_or_a_list(value: object) -> None:
    with pytest.raises(FilterError, match="a parameter cannot be of type"):
        parse_sql("a = $1", [value])


def test_a_cast_may_name_the_type_of_the_column() -> None:
    for sql, same in (
        ("mood = 'sad'::mood", "mood = 'sad'"),
        ("timestamp = '2024-01-01 00:00:00'::timestamp without time zone", "timestamp = '2024-01-01'"),
        ("uuid = '0B9C7A525B0E4B9E9A530B6E5A3B1C11'::uuid", "uuid = '0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11'"),
        ("bool = 'on'::boolean", "bool"),
        ("\"int[]\" @> '{1}'::integer[]", '"int[]" @> ARRAY[1]'),
    ):
        assert bind(parse_sql(sql), EVERYTHING) == bind(parse_sql(same), EVERYTHING)
    for sql in (
        "mood = 'sad'::other.mood",
        "mood = 'sad'::\"Mood\"",
        "uuid = '1'::text",
        "text = 'a'::bpchar",
    ):
        with pytest.raises(FilterError, match="cannot be compared with"):
            bind(parse_sql(sql), EVERYTHING)
