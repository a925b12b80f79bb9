"""Patching rows from changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from rowcast.client.cache import ChangeEvent, InfiniteData, RowPatch

ROWS = [{"id": 1, "name": "a", "extra": True}, {"id": 2, "name": "b", "extra": False}]
KEY = ["projects"]


def insert(key: int, **values: Any) -> ChangeEvent:
    return ChangeEvent("projects", "INSERT", {"id": key}, {"id": key, **values})


def update(key: int, old: dict[str, Any] | None = None, **values: Any) -> ChangeEvent:
    return ChangeEvent("projects", "UPDATE", {"id": key}, {"id": key, **values}, old)


def delete(key: int) -> ChangeEvent:
    return ChangeEvent("projects", "DELETE", {"id": key}, None, {"id": key})


TRUNCATE = ChangeEvent("projects", "TRUNCATE", {})
by_name = RowPatch(accepts=lambda row, key: row.get("name", "") < "m", order=lambda row: row["name"])


def test_an_update_changes_the_columns_it_has() -> None:
    patched = RowPatch()(ROWS, [update(2, name="c")], KEY)
    assert patched == [ROWS[0], {"id": 2, "name": "c", "extra": False}]
    assert patched[0] is ROWS[0]


def test_a_deletion_takes_the_row_out() -> None:
    assert RowPatch()(ROWS, [delete(1)], KEY) == [ROWS[1]]


def test_what_does_not_concern_the_rows_leaves_the_very_same_data() -> None:
    assert RowPatch()(ROWS, [delete(9)], KEY) is ROWS
    assert by_name(ROWS, [insert(9, name="z"), delete(9)], KEY) is ROWS


def test_truncate_takes_all_rows_out() -> None:
    assert RowPatch()(ROWS, [TRUNCATE], KEY) == []
    empty: list[Any] = []
    assert RowPatch()(empty, [TRUNCATE], KEY) is empty


@pytest.mark.parametrize("change", [insert(3, name="c"), update(3, name="c")])
def test_a_row_that_may_belong_here_must_be_asked_for(change: ChangeEvent) -> None:
    assert RowPatch()(ROWS, [change], KEY) is None


def test_with_a_rule_new_rows_are_taken_in_and_sorted() -> None:
    assert [row["id"] for row in by_name(ROWS, [insert(3, name="aa"), insert(4, name="z")], KEY)] == [1, 3, 2]


def test_a_row_that_no_longer_belongs_is_taken_out_and_one_that_does_now_comes_in() -> None:
    assert [row["id"] for row in by_name(ROWS, [update(1, name="z"), update(5, name="c")], KEY)] == [2, 5]


def test_a_row_with_a_new_key_replaces_itself() -> None:
    patched = RowPatch()(ROWS, [update(7, old={"id": 1}, name="a")], KEY)
    assert [row["id"] for row in patched] == [2, 7]
    assert patched[1]["extra"] is True


def test_rows_that_the_key_does_not_tell_apart_must_be_asked_for() -> None:
    assert RowPatch()([{"id": 1, "tag": "x"}, {"id": 1, "tag": "y"}], [update(1)], KEY) is None
    assert RowPatch()([{"name": "without its key"}], [update(1)], KEY) is None


@pytest.mark.parametrize("data", [[{"name": "a"}], {"name": "a"}])
def test_rows_of_a_table_without_a_key_must_be_asked_for(data: Any) -> None:
    assert RowPatch()(data, [ChangeEvent("log", "UPDATE", {}, {"name": "b"})], KEY) is None


def test_one_row_is_patched_too() -> None:
    assert RowPatch()(ROWS[0], [update(1, name="c")], KEY) == {"id": 1, "name": "c", "extra": True}
    assert RowPatch()(ROWS[0], [update(2, name="c")], KEY) is ROWS[0]
    assert RowPatch()(ROWS[0], [update(7, old={"id": 1}), update(7, name="z")], KEY)["name"] == "z"


@pytest.mark.parametrize("change", [delete(1), TRUNCATE])
def test_a_row_that_is_gone_must_be_asked_for(change: ChangeEvent) -> None:
    assert RowPatch()(ROWS[0], [change], KEY) is None


def test_pages_are_patched_where_the_rows_are() -> None:
    pages = InfiniteData([[ROWS[0]], [ROWS[1]]], [0, 1])
    patched = RowPatch()(pages, [update(2, name="c"), delete(1)], KEY)
    assert patched == InfiniteData([[], [{"id": 2, "name": "c", "extra": False}]], [0, 1])
    assert RowPatch()(pages, [delete(9)], KEY) is pages
    assert RowPatch()(pages, [update(7, old={"id": 1})], KEY).pages[0][0]["id"] == 7


@pytest.mark.parametrize("change", [insert(3), update(3), TRUNCATE])
def test_new_rows_of_pages_must_be_asked_for(change: ChangeEvent) -> None:
    assert RowPatch()(InfiniteData([[ROWS[0]], [ROWS[1]]], [0, 1]), [change], KEY) is None


def test_data_of_another_form_must_be_asked_for() -> None:
    assert RowPatch()(42, [update(1)], KEY) is None


changes = st.lists(
    st.tuples(
        st.sampled_from(["INSERT", "UPDATE", "DELETE", "TRUNCATE"]), st.integers(0, 3), st.integers(0, 3)
    ),
    max_size=6,
)


@given(changes)
@settings(max_examples=200)
def test_a_list_follows_the_table_and_bears_every_change_twice(drawn: list[tuple[str, int, int]]) -> None:
    table: dict[int, int] = {0: 0, 1: 2}
    events: list[ChangeEvent] = []
    for op, key, value in drawn:
        if op == "TRUNCATE":
            table.clear()
            events.append(TRUNCATE)
        elif op == "DELETE" and key in table:
            del table[key]
            events.append(delete(key))
        elif (op == "UPDATE") is (key in table) and op != "DELETE":
            table[key] = value
            events.append(update(key, value=value) if op == "UPDATE" else insert(key, value=value))
    patch = RowPatch(accepts=lambda row, _: row["value"] < 2, order=lambda row: row["id"])
    rows = [{"id": 0, "value": 0}]
    expected = [{"id": key, "value": value} for key, value in sorted(table.items()) if value < 2]
    once = patch(rows, events, KEY)
    assert once == expected
    assert patch(once, events, KEY) == expected
