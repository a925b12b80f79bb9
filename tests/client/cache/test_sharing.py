"""Specification 1.10: structural sharing."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st

from rowcast.client.cache import InfiniteData
from rowcast.client.cache.sharing import share_structure


class Point(NamedTuple):
    x: list[int]
    y: list[int]


@dataclass
class Person:
    name: str


class Unequal:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    def __hash__(self) -> int:
        return 0


def test_equal_data_keeps_the_old_reference() -> None:
    old = [{"id": 1, "tags": ["a"]}, {"id": 2, "tags": []}]
    assert share_structure(old, [{"id": 1, "tags": ["a"]}, {"id": 2, "tags": []}]) is old


def test_only_the_changed_parts_are_new() -> None:
    old = {"a": [1, 2], "b": {"c": [3]}, "gone": 1}
    new = {"a": [1, 2], "b": {"c": [4]}}
    shared = share_structure(old, new)
    assert shared == new
    assert shared is not new
    assert shared["a"] is old["a"]
    assert shared["b"] is not old["b"]


def test_a_longer_list_keeps_its_beginning() -> None:
    old = [{"id": 1}]
    shared = share_structure(old, [{"id": 1}, {"id": 2}])
    assert shared == [{"id": 1}, {"id": 2}]
    assert shared[0] is old[0]


@pytest.mark.parametrize(
    ("old", "new"), [(1, True), (0, False), (1, 1.0), ([1], (1,)), ({"a": 1}, {"a": True})]
)
def test_equality_does_not_hide_another_type(old: object, new: Any) -> None:
    shared = share_structure(old, new)
    assert repr(shared) == repr(new)


def test_values_that_json_lacks_are_kept_if_they_are_equal() -> None:
    old = [dt.date(2026, 1, 1), Decimal(1), Person("Ann"), Point([1], [2])]
    new = [dt.date(2026, 1, 1), Decimal(1), Person("Ann"), Point([1], [2])]
    assert share_structure(old, new) is old
    assert share_structure(old, [dt.date(2026, 1, 2), *new[1:]])[2] is old[2]


def test_named_tuples_are_walked_and_keep_their_type() -> None:
    old = InfiniteData([[1], [2]], [0, 1])
    shared = share_structure(old, InfiniteData([[1], [3]], [0, 1]))
    assert isinstance(shared, InfiniteData)
    assert shared.pages[0] is old.pages[0]
    assert shared.page_params is old.page_params
    assert shared.pages[1] == [3]


def test_what_cannot_be_compared_counts_as_changed() -> None:
    new = [Unequal()]
    assert share_structure([Unequal()], new)[0] is new[0]


def test_data_deeper_than_the_limit_is_taken_as_it_comes() -> None:
    def nested(depth: int) -> list[Any]:
        data: list[Any] = []
        for _ in range(depth):
            data = [data]
        return data

    shared = share_structure(nested(2_000), nested(2_000))
    for _ in range(2_000):
        (shared,) = shared
    assert shared == []


@given(
    *[
        st.recursive(
            st.integers(0, 2) | st.booleans() | st.none() | st.text("ab", max_size=1),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
            ),
            max_leaves=6,
        )
    ]
    * 2
)
def test_sharing_never_changes_what_the_data_says(old: Any, new: Any) -> None:
    before = repr(old), repr(new)
    shared = share_structure(old, new)
    assert repr(shared) == repr(new)
    assert (repr(old), repr(new)) == before
    if repr(old) == repr(new):
        assert shared is old or isinstance(new, int | str | None)
