"""Text under every kind of collation: order, LIKE, ILIKE and regular expressions equal PostgreSQL's, or are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.filters.kinds import KINDS
from tests.filters.oracle import Oracle, accepted, assert_agreement, quote

from rowcast.errors import FilterError
from rowcast.filters import bind, parse_sql
from rowcast.filters.patterns import _FULL, _STABLE, _UNSTABLE
from rowcast.model import Table

_TEXTS = KINDS["text"].values
_PATTERNS = (
    *_TEXTS, "%", "_", "__", "a%", "%a", "%b%", "a%b", "a%%b", "a_%", "%_b", "_%_", "%a%b%", "\\%", "a\\_b", "a\\\\b", "a\\",
    "İ%", "i_", "%i", "k%", "%K", "É%", "ß%", "%σ%", "日_", "_\u0301", "%\u0301", "z%A", "İstanbul", "ü", "ж", "ა%", "%😀",  # noqa: RUF001
    "_" * 3, "%" * 3 + "k", "%ω", "å%", "%S%S%",
)  # fmt: skip
_EXPRESSIONS = (
    "", "a", "^a", "a$", "^a$", "^$", "$^", "a|b", "a|", "|a", "()", "(a|b)c", "(?:a|b)+", "a*", "a+", "a?", "a{2}", "a{1,2}", "a{0}",
    "a{2,}", "a{,2}", "a{", "a{x}", "a{2,1}", "a{256}", "a**", "a*?", "a+?b", "a??", "*a", "+", "(*a)", "^*", "(^)*a", "($|a)b", "a^b",
    "a$b", "(^a)+", ".", "..", "a.b", "[ab]", "[^ab]", "[a-z]", "[A-Z]", "[a-]", "[-a]", "[]a]", "[^]a]", "[a-c-e]", "[z-a]", "[a",
    "[[:alpha:]]", "[[.a.]]", "[[=a=]]", "[[]", "[a\\]b]", "[\\^a]", "[\\w]", "\\d", "\\.", "\\\\", "\\_", "\\é", "\\", "a)", "(a", "(?i)a",
    "(?=a)", "\\1", "***=a", "]", "}", "a]", "a}", "^[0-9]+$", "k", "K", "i", "s", "[k-m]", "[^k]", "é", "É", "[é-ü]", "日", "^.$", "^..$",
    "[a-z]{2,}", "(a|b)*$", "^(a|b)*$", "(ab|ba){1,3}", "((a?)*)*b", "^(?:[^a]|a[^b])*$", "a\nb", "^\\s", "(a)(b)?", "a{1}{2}",
    "[\\-a]", "[a-\\z]", "\\*", "a|b|", "x|^$", "(|a)b", "[^\\n]", "[!--]", "[+--a]", "[%--]",
)  # fmt: skip


def _text_conditions() -> Iterator[str]:
    for pattern in _PATTERNS:
        for operator in ("LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"):
            yield f'"c" {operator} {quote(pattern)}'
    for expression in _EXPRESSIONS:
        for operator in ("~", "~*", "!~", "!~*"):
            yield f'"c" {operator} {quote(expression)}'
    for text in _TEXTS:
        for operator in ("=", "<>", "<", ">="):
            yield f'"c" {operator} {quote(text)}'


def _table(oracle: Oracle, definition: str) -> Table:
    return oracle.table([f'"c" {definition}'], [*((text,) for text in _TEXTS), (None,)])


_COLLATIONS = ("C", "default", "pg_c_utf8", "pg_unicode_fast")


@pytest.mark.parametrize("collation", _COLLATIONS)
def test_collations_that_sort_by_code_points_equal_postgresql(oracle: Oracle, collation: str) -> None:
    if not oracle.query(f"SELECT FROM pg_collation WHERE collname = '{collation}'"):
        pytest.skip(f"PostgreSQL {oracle.version} has no collation {collation}")
    table = _table(oracle, f'text COLLATE "{collation}"')
    filters = accepted(table, _text_conditions())
    assert_agreement(oracle, table, filters)
    conditions = {condition for condition, _ in filters}
    assert {f'"c" < {quote(text)}' for text in _TEXTS} <= conditions
    assert {"\"c\" ILIKE 'a%'", "\"c\" ILIKE 'É%'", "\"c\" ~* '[a-z]'", "\"c\" ~ '^(a|b)*$'"} <= conditions


@pytest.mark.parametrize("collation", ["und-x-icu", "en-x-icu", "de-x-icu"])
def test_a_linguistic_collation_equals_postgresql_but_for_its_order(
    linguistic: Oracle, collation: str
) -> None:
    table = _table(linguistic, f'text COLLATE "{collation}"')
    filters = accepted(table, _text_conditions())
    assert_agreement(linguistic, table, filters)
    conditions = {condition for condition, _ in filters}
    assert {f'"c" = {quote(text)}' for text in _TEXTS} <= conditions
    assert {"\"c\" ILIKE 'a%'", "\"c\" ILIKE 'É%'", "\"c\" ~* '[a-z]'", "\"c\" ~ '^(a|b)*$'"} <= conditions
    assert not any(" < " in condition or " >= " in condition for condition in conditions)
    with pytest.raises(FilterError, match=f'sorts by the collation .*{collation}.*COLLATE "C"'):
        bind(parse_sql("c > 'a'"), table)


def test_turkish_has_cases_of_its_own(linguistic: Oracle) -> None:
    table = _table(linguistic, 'text COLLATE "tr-x-icu"')
    filters = accepted(table, _text_conditions())
    assert_agreement(linguistic, table, filters)
    assert not any("ILIKE" in condition or "~*" in condition for condition, _ in filters)
    with pytest.raises(FilterError, match="no ilike"):
        bind(parse_sql("c ILIKE 'a'"), table)
    with pytest.raises(FilterError, match="cases"):
        bind(parse_sql("c ~* 'a'"), table)


@pytest.mark.parametrize("definition", ["text", "text[]"])
def test_under_a_non_deterministic_collation_only_null_can_be_asked_for(
    linguistic: Oracle, definition: str
) -> None:
    table = linguistic.table([f"c {definition} COLLATE ignoring_case"], [("{A}",), (None,)])
    assert_agreement(linguistic, table, accepted(table, ["c IS NULL", "c IS NOT NULL"]))
    for condition in ("c = '{a}'", "c LIKE 'a'", "c @> '{a}'", "c IN ('a', 'b')"):
        with pytest.raises(FilterError, match="non-deterministic"):
            bind(parse_sql(condition), table)


@pytest.mark.parametrize("definition", ["varchar(20)", "label", "name"])
def test_patterns_on_other_text_types_equal_postgresql(oracle: Oracle, definition: str) -> None:
    table = _table(oracle, definition)
    assert_agreement(oracle, table, accepted(table, _text_conditions()))


def test_patterns_see_the_padding_of_char(oracle: Oracle) -> None:
    table = oracle.table(["c char(5)"], [("a",), ("ab",), ("",), ("a b",), (None,)])
    filters = accepted(table, _text_conditions())
    assert_agreement(oracle, table, filters)
    assert not bind(parse_sql("c LIKE 'a'"), table).matches((b"1", b"a    "))
    assert bind(parse_sql("c = 'a'"), table).matches((b"1", b"a    "))


_ALPHABET = "aAbBkKiI_%\\éÉİ\u212aß. "


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("database", ["oracle", "linguistic"])
def test_any_pattern_equals_postgresql(
    request: pytest.FixtureRequest, database: str, data: st.DataObject
) -> None:
    oracle: Oracle = request.getfixturevalue(database)
    collation = data.draw(
        st.sampled_from(["und-x-icu", "default"] if oracle.linguistic else ["default", "C"])
    )
    texts = data.draw(st.lists(st.text(_ALPHABET, max_size=6), min_size=1, max_size=12))
    patterns = data.draw(st.lists(st.text(_ALPHABET, max_size=6), min_size=1, max_size=20))
    table = oracle.table([f'c text COLLATE "{collation}"'], [(text,) for text in texts])
    conditions = [f"c {operator} {quote(pattern)}" for pattern in patterns for operator in ("LIKE", "ILIKE")]
    assert_agreement(oracle, table, accepted(table, conditions))
    oracle.drop(table)


_ATOMS = st.sampled_from(
    ["a", "b", "A", "k", ".", "[ab]", "[^a]", "[a-c]", "^", "$", "\\.", "é", "\n", "[^\\]k-m]", "[A-z]", "()"]
)
_REGULAR = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map(lambda text: f"({text})"),
        st.tuples(
            inner.map(lambda text: f"(?:{text})") | _ATOMS,
            st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{1,3}?", "{3,1}"]),
        ).map("".join),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("aabbAkK.\né\u212a", max_size=7), min_size=1, max_size=12),
    patterns=st.lists(_REGULAR | st.text("ab^$.*+?|()[]{}-\\,12", max_size=7), min_size=1, max_size=20),
)
def test_any_regular_expression_equals_postgresql(
    oracle: Oracle, texts: list[str], patterns: list[str]
) -> None:
    table = oracle.table(["c text"], [(text,) for text in texts])
    conditions = [f"c {operator} {quote(pattern)}" for pattern in patterns for operator in ("~", "~*")]
    assert_agreement(oracle, table, accepted(table, conditions))
    oracle.drop(table)


def test_nothing_else_is_lowered_to_a_letter_that_ilike_relies_on() -> None:
    stable = {chr(code) for codes in _STABLE for code in codes} - _UNSTABLE
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if code not in _FULL and not "\ud800" <= character <= "\udfff" and character.lower() != character:
            assert not stable & set(character.lower()), hex(code)
