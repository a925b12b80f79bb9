"""Specification 1.10: canonical keys, their hashes, and the partial match of filters."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from rowcast.client.cache.key_index import KeyIndex
from rowcast.client.cache.keys import QueryKey, canonical_key, hash_key, partial_match_key

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", ""]) | st.just(0.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
keys = st.lists(json_values, max_size=3)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Filter:
    org: int
    open: bool


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["a", {"x": 1, "y": 2}], ["a", {"y": 2, "x": 1}]),
        (["a", (1, 2)], ("a", [1, 2])),
        ([1.0], [1]),
        ([-0.0], [0]),
        ([float("nan")], [None]),
        ([Colour.RED], ["red"]),
        ([Filter(5, open=True)], [{"org": 5, "open": True}]),
        ([uuid.UUID(int=1)], ["00000000-0000-0000-0000-000000000001"]),
        ([Decimal("1.50")], ["1.50"]),
        ([dt.date(2026, 1, 2)], ["2026-01-02"]),
        (
            [dt.datetime(2026, 1, 2, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))],
            [dt.datetime(2026, 1, 2, 10, tzinfo=dt.UTC)],
        ),
    ],
)
def test_keys_that_mean_the_same_have_the_same_hash(left: QueryKey, right: QueryKey) -> None:
    assert hash_key(left) == hash_key(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1], ["1"]),
        ([1], [True]),
        ([0], [False]),
        ([None], []),
        ([{"a": None}], [{}]),
        (["a", "b"], [["a", "b"]]),
        (["a"], ["a", None]),
    ],
)
def test_keys_that_differ_have_different_hashes(left: QueryKey, right: QueryKey) -> None:
    assert hash_key(left) != hash_key(right)


@pytest.mark.parametrize("key", ["projects", {"a": 1}, 5, {1}])
def test_a_key_must_be_a_list_or_tuple(key: Any) -> None:
    with pytest.raises(TypeError, match="a query key is a list or tuple"):
        hash_key(key)


@pytest.mark.parametrize("element", [{1, 2}, object(), b"bytes", Filter])
def test_what_has_no_canonical_form_is_refused(element: object) -> None:
    with pytest.raises(TypeError, match="a query key cannot hold"):
        hash_key([element])


def test_names_of_fields_must_be_strings() -> None:
    with pytest.raises(TypeError, match="names of fields must be strings"):
        hash_key([{1: "a"}])


@pytest.mark.parametrize(
    ("key", "prefix", "matches"),
    [
        (["t", {"a": 1, "b": 2}], ["t", {"a": 1}], True),
        (["todos", [1, 2, 3]], ["todos", [1]], True),
        (["t"], [], True),
        (["t", 1], ["t"], True),
        (["t"], ["t", 1], False),  # longer than the key
        (["t", []], ["t", {}], True),  # an empty container asks for nothing
        (["t", {}], ["t", []], True),
        (["t", [1]], ["t", {}], True),
        (["t", {}], ["t", [1]], False),
        (["t", {"a": {"b": [1, 2]}}], ["t", {"a": {"b": [1]}}], True),
        (["t", {"a": None}], ["t", {"a": None}], True),
        (["t", {}], ["t", {"a": None}], False),  # None is a value, not an absence
        (["t", 1], ["t", True], False),
        (["t", "1"], ["t", 1], False),
        (["t", 2], ["t", [2]], False),
    ],
)
def test_a_prefix_matches_its_part_of_a_key(key: QueryKey, prefix: QueryKey, matches: bool) -> None:  # noqa: FBT001
    assert partial_match_key(key, prefix) is matches


@given(st.lists(keys, max_size=8), keys)
@settings(max_examples=150)
def test_the_index_finds_exactly_what_matches(stored: list[list[Any]], prefix: list[Any]) -> None:
    index: KeyIndex[str] = KeyIndex()
    for key in stored:
        index.add(key, hash_key(key))
    assert sorted(index.find(prefix)) == sorted(
        {hash_key(key) for key in stored if partial_match_key(key, prefix)}
    )


@given(st.lists(keys, max_size=6, unique_by=hash_key), st.data())
@settings(max_examples=100)
def test_what_is_removed_from_the_index_is_not_found_and_leaves_nothing_behind(
    stored: list[list[Any]], data: st.DataObject
) -> None:
    index: KeyIndex[str] = KeyIndex()
    for key in stored:
        index.add(key, hash_key(key))
    removed = data.draw(st.lists(st.sampled_from(stored), unique_by=hash_key)) if stored else []
    for key in removed:
        index.remove(key)
    assert sorted(index.find([])) == sorted(map(hash_key, [key for key in stored if key not in removed]))
    for key in stored:
        index.remove(key)
    index.remove(["never", "there"])
    assert not index._root.children
    assert canonical_key([]) == ()
