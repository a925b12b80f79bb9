"""The PostgREST form: what it means, and what its errors say."""

from __future__ import annotations

import pytest
from tests.filters.tables import table

from rowcast.errors import FilterError
from rowcast.filters import bind, conjunction, equality, parse_postgrest, parse_sql

_TABLE = table(
    {"id": "int", "name": "text", "active": "bool", "data": "jsonb", "ids": "int[]", 'my "col".x': "text"}
)


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("", "true"),
        ("id=eq.5", "id = 5"),
        ("id=neq.5", "id <> 5"),
        ("id=gt.5&id=lte.9", "id > 5 AND id <= 9"),
        ("id=gte.5&&id=lt.9&", "id >= 5 AND id < 9"),
        ("id=not.eq.5", "NOT id = 5"),
        ("id=isdistinct.5", "id IS DISTINCT FROM 5"),
        ("id=not.isdistinct.5", "id IS NOT DISTINCT FROM 5"),
        ("id=in.(1,2,3)", "id IN (1, 2, 3)"),
        ("id=not.in.(1,2)", "id NOT IN (1, 2)"),
        ("id=in.()", "false"),
        ("id=is.null", "id IS NULL"),
        ("id=is.not_null", "id IS NOT NULL"),
        ("id=not.is.NULL", "id IS NOT NULL"),
        ("active=is.true", "active IS TRUE"),
        ("active=is.false", "active IS FALSE"),
        ("active=is.unknown", "active IS UNKNOWN"),
        ("active=not.is.true", "active IS NOT TRUE"),
        ("name=like.*a_*", "name LIKE '%a_%'"),
        ("name=ilike.a*", "name ILIKE 'a%'"),
        ("name=match.^a.b$", "name ~ '^a.b$'"),
        ("name=imatch.^a", "name ~* '^a'"),
        ("ids=cs.{1,2}", "ids @> '{1,2}'"),
        ('data=cs.{"a":[1,2]}', "data @> '{\"a\": [1, 2]}'"),
        # A value on its own goes to its end, quotes and all.
        ("name=eq.a,b.(c)", "name = 'a,b.(c)'"),
        ('name=eq."a"', "name = '\"a\"'"),
        ("name=eq.", "name = ''"),
        ("name=eq.not.eq.5", "name = 'not.eq.5'"),
        ("name=eq.a=b", "name = 'a=b'"),
        ("name=eq.a+b", "name = 'a+b'"),
        ("name=eq.50%25%20%26%2c", "name = '50% &,'"),
        ("name=eq.50%", "name = '50%'"),
        ("n%61me=eq.%C3%A9", "name = 'é'"),
        ('name=in.("a,b","c\\"d",e f,)', "name IN ('a,b', 'c\"d', 'e f', '')"),
        # Trees.
        ("or=(id.eq.1,name.eq.a)", "id = 1 OR name = 'a'"),
        ("and=(id.eq.1,or(id.gt.2,id.not.lt.3))", "id = 1 AND (id > 2 OR NOT id < 3)"),
        (
            "not.or=(id.eq.1,not.and(id.eq.2,active.is.true))",
            "NOT (id = 1 OR NOT (id = 2 AND active IS TRUE))",
        ),
        ("not.and=(id.eq.1,active.is.null)", "NOT (id = 1 AND active IS NULL)"),
        ('or=(name.eq."a,b)",name.eq.c.d)', "name = 'a,b)' OR name = 'c.d'"),
        ("or=(id.in.(1,2),id.not.in.(3))", "id IN (1, 2) OR id NOT IN (3)"),
        ('or=(ids.cs.{1,2},data.cs.{"}":[{}]})', "ids @> '{1,2}' OR data @> '{\"}\":[{}]}'"),
        ("or=(name.in.(),id.eq.1)", "id = 1"),
        # Columns and paths.
        ("data->a=eq.5", "data -> 'a' = '5'"),
        ("data->a->0->>-1=eq.x", "data -> 'a' -> 0 ->> -1 = 'x'"),
        ("data->>a b=like.x*", "data ->> 'a b' LIKE 'x%'"),
        ("or=(data->>a.eq.1,data->b->>0.eq.2)", "data ->> 'a' = '1' OR data -> 'b' ->> 0 = '2'"),
        ('"my \\"col\\".x"=eq.1', '"my ""col"".x" = \'1\''),
        ('or=("my \\"col\\".x".eq.1,"data"->>a.eq.2)', "\"my \"\"col\"\".x\" = '1' OR data ->> 'a' = '2'"),
    ],
)
def test_it_means(text: str, sql: str) -> None:
    assert bind(parse_postgrest(text), _TABLE) == bind(parse_sql(sql), _TABLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id", r'"id" is not a filter: write column=operator.value, such as id=eq.5'),
        ("id=5", "an operator with a dot .one of eq, neq"),
        ("id=foo.5", "one of eq, neq, gt, gte, lt, lte, in, is, like"),
        ("id=not.not.eq.5", "an operator"),
        ("id=is.nil", '"nil" where null or not_null or true or false or unknown was expected'),
        ("id=in.1,2", r"where \( was expected"),
        ("id=in.(1,2", r"ends where \) was expected"),
        ("id=in.(1)2", '"2" where the end was expected'),
        ("or=(id.eq.1)x", '"x" where the end was expected'),
        ("or=", '"or" ends where'),
        ("or=()", "where a column was expected"),
        ("or=(id)", r"where \. was expected"),
        ("or=(id.eq.1", r"where \) was expected"),
        ('or=(ids.cs.{1,"}"', "where a closing } was expected"),
        ("name=like.%ada%", "write %25 for a percent sign"),
        ("=eq.5", "is no column"),
        ("data->=eq.5", "is no column"),
        ("data->>a->b=eq.5", "is no column"),
        ('"data"x=eq.5', "is no column"),
        ("name=eq.%00", "NUL character"),
        ("name=eq.\ud800", "surrogate"),
    ],
)
def test_an_error_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_postgrest(text)


def test_a_scope_and_a_filter_are_one_condition() -> None:
    scoped = conjunction(equality("id", "7"), parse_postgrest("name=eq.a"))
    assert bind(scoped, _TABLE) == bind(parse_sql("name = 'a' AND id = 7"), _TABLE)
