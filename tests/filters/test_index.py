"""The index gives what evaluating every filter would give, at the cost of one look-up a term."""

from __future__ import annotations

import random
import sys
import tracemalloc

import pytest
from hypothesis import given, settings, strategies as st
from tests.filters.tables import table

from rowcast.filters import BoundFilter, FilterIndex, bind, equality, parse_sql
from rowcast.model import MISSING, Row, Value

_TABLE = table({"a": "int", "b": "text", "c": "numeric", "d": "jsonb", "e": "json", "f": "mood"})
_EMPTY: Row = (None,) * 6


def _bind(sql: str) -> BoundFilter:
    return bind(parse_sql(sql), _TABLE)


def _index(*filters: str) -> FilterIndex[str]:
    index = FilterIndex[str]()
    for sql in filters:
        index.add(_bind(sql), sql)
    return index


def _row(
    a: Value = None, b: Value = None, c: Value = None, d: Value = None, e: Value = None, f: Value = None
) -> Row:
    return a, b, c, d, e, f


_LEAVES = st.sampled_from(
    [
        *(f"a = {number}" for number in range(3)), "a IN (0, 1, 5)", "a IS NULL", "a > 0", "a <> 1", "b = 'x'", "b IN ('x', 'y')",
        "b IS NULL", "b LIKE 'x%'", "c = 1.0", "c IN (1, 2)", "c IS NOT NULL", "d ->> 'k' = 'x'", "d = '1'", "d -> 'k' IS NULL",
        "e IS NULL", "f = 'sad'", "f > 'ok'", "TRUE", "FALSE", "NULL",
    ]
)  # fmt: skip
_FILTERS = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' AND '.join(parts)})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' OR '.join(parts)})"),
        inner.map(lambda part: f"NOT ({part})"),
        inner.map(lambda part: f"({part}) IS TRUE"),
    ),
    max_leaves=6,
)
_ROWS = st.tuples(
    st.sampled_from([None, MISSING, b"0", b"1", b"2", b"5"]),
    st.sampled_from([None, MISSING, b"x", b"y", b"xx"]),
    st.sampled_from([None, MISSING, b"1", b"1.0", b"2"]),
    st.sampled_from([None, MISSING, b"1", b"null", b'{"k": "x"}', b'{"k": null}', b"[" * 9999]),
    st.sampled_from([None, MISSING, b"{}"]),
    st.sampled_from([None, MISSING, b"sad", b"ok", b"happy", b"added"]),
)


@settings(max_examples=150, deadline=None)
@given(
    filters=st.lists(_FILTERS, max_size=15),
    rows=st.lists(_ROWS, min_size=1, max_size=10),
    seed=st.integers(0, 2**32),
)
def test_it_finds_what_a_linear_scan_finds(filters: list[str], rows: list[Row], seed: int) -> None:
    index = FilterIndex[int]()
    present: dict[int, BoundFilter] = {}

    def compare() -> None:
        assert len(index) == len(present)
        for row in rows:
            found, unknown = index.partition(row)
            assert len(found) == len(set(found))
            assert len(unknown) == len(set(unknown))
            outcomes = {number: bound.evaluate(row) for number, bound in present.items()}
            assert set(found) == {number for number, outcome in outcomes.items() if outcome is True}
            # A place that the row is not in settles what evaluation alone leaves open, never the other way.
            assert set(unknown) <= {number for number, outcome in outcomes.items() if outcome is MISSING}
            for number in set(outcomes) - set(found) - set(unknown):
                assert outcomes[number] is not MISSING or _is_settled(present[number], row)

    for number, sql in enumerate(filters):
        present[number] = _bind(sql)
        index.add(present[number], number)
    compare()
    numbers = sorted(present)
    random.Random(seed).shuffle(numbers)
    for number in numbers:
        index.remove(present.pop(number), number)
        if number % 4 == 0:
            compare()
    compare()
    assert not index._probes
    assert index.linear == 0
    assert index._branching == 0


def _is_settled(bound: BoundFilter, row: Row) -> bool:
    """Whether the filter is true for none of the values that the row's missing ones may have."""
    candidates: list[tuple[Value, ...]] = [()]
    pools: tuple[tuple[Value, ...], ...] = (
        (None, b"0", b"1", b"2", b"5", b"7"),
        (None, b"x", b"y", b"xx", b"z"),
        (None, b"1", b"2", b"3"),
        (None, b"1", b"null", b'{"k": "x"}', b"2"),
        (None, b"{}"),
        (None, b"sad", b"ok", b"happy"),
    )
    for value, pool in zip(row, pools, strict=True):
        unknown = value is MISSING or value in {b"added", b"[" * 9999}
        candidates = [(*head, other) for head in candidates for other in (pool if unknown else (value,))]
    return not any(bound.matches(candidate) for candidate in candidates)


def test_null_has_a_place_of_its_own() -> None:
    index = _index("a IS NULL", "e IS NULL", "d = 'null'")
    assert index.linear == 0
    assert index.match(_row(d=b"null")) == ["a IS NULL", "e IS NULL", "d = 'null'"]
    assert index.match(_row(a=b"1", e=b"{}")) == []


def test_of_two_operands_the_more_selective_one_is_chosen() -> None:
    index = FilterIndex[int]()
    for number in range(100):
        index.add(_bind(f"a = {number} AND b = 'x'"), number)
    loads = {term.column: max(map(len, probe.candidates.values())) for term, probe in index._probes.items()}
    assert max(loads.values()) == 1
    for number in range(100):
        assert index.match(_row(a=str(number).encode(), b=b"x")) == [number]


def test_a_filter_is_found_once_although_two_places_lead_to_it() -> None:
    index = _index(
        "a = 1 OR b = 'x'",
        "a = 1 AND (b = 'x' OR b = 'y') OR a = 1 AND c = 1",
        "a IN (1, 2) AND c > 0 OR f = 'sad'",
    )
    assert index.linear == 0
    assert sorted(index.match(_row(b"1", b"x", b"1", f=b"sad"))) == sorted(
        [
            "a = 1 OR b = 'x'",
            "a = 1 AND (b = 'x' OR b = 'y') OR a = 1 AND c = 1",
            "a IN (1, 2) AND c > 0 OR f = 'sad'",
        ]
    )


def test_filters_without_a_value_to_look_up_are_counted() -> None:
    index = _index("a > 1", "b LIKE 'x%' OR a = 1", "a = 1", "TRUE", "FALSE")
    assert index.linear == 2
    assert len(index) == 5
    assert index.match(_row(b"2", b"xx")) == ["TRUE", "a > 1", "b LIKE 'x%' OR a = 1"]


def test_equal_filters_under_different_handles_are_all_found() -> None:
    index = FilterIndex[str]()
    for handle in ("p", "q", "r"):
        index.add(_bind("a = 1"), handle)
    index.remove(_bind("a = 1"), "q")
    assert index.match(_row(b"1")) == ["p", "r"]


def test_match_needs_to_know_and_partition_tells_what_is_not_known() -> None:
    index = _index("a = 1", "a = 2 AND b = 'x'", "a = 2 AND b = 'y'", "b = 'x'", "a > 5")
    row = _row(MISSING, b"x")
    with pytest.raises(ValueError, match="not known"):
        index.match(row)
    found, unknown = index.partition(row)
    assert found == ["b = 'x'"]
    assert sorted(unknown) == ["a = 1", "a = 2 AND b = 'x'", "a > 5"]


def test_a_hundred_thousand_filters_are_found_without_a_look_at_each() -> None:
    many = FilterIndex[int]()
    tracemalloc.start()
    filters = [bind(equality("a", str(number)), _TABLE) for number in range(20_000)]
    for number, bound in enumerate(filters):
        many.add(bound, number)
    bytes_per_filter = tracemalloc.get_traced_memory()[0] / len(filters)
    tracemalloc.stop()
    for number in range(20_000, 100_000):
        many.add(bind(equality("a", str(number)), _TABLE), number)
    assert many.linear == 0
    assert bytes_per_filter < 2 * 2**30 / 1_000_000, "a million of them fit in 2 GB"
    for number in random.sample(range(100_000), 1_000):
        assert many.match(_row(str(number).encode())) == [number]


def test_handles_may_be_any_hashable_object() -> None:
    handle = object()
    index = FilterIndex[object]()
    index.add(_bind("a = 1 AND b > 'a'"), handle)
    references = sys.getrefcount(handle)
    assert index.match(_row(b"1", b"b")) == [handle]
    index.remove(_bind("a = 1 AND b > 'a'"), handle)
    assert sys.getrefcount(handle) < references
    assert index.match(_EMPTY) == []
