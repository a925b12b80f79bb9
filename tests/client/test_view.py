"""The view against the plain definition: sort all rows, cut at the limit, compare the lists."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from rowcast.client.rows import Key, Row, RowChange
from rowcast.client.view import View, ViewDelta


def follow(rows: list[Row], delta: ViewDelta) -> list[Row]:
    """Apply a delta as its docstring says."""
    rows = list(rows)
    for index in sorted([i for i, _ in delta.removed] + [i for i, _, _ in delta.moved], reverse=True):
        del rows[index]
    for index, row in sorted(
        [*delta.inserted, *((to, row) for _, to, row in delta.moved)], key=lambda placed: placed[0]
    ):
        rows.insert(index, row)
    for index, row in delta.updated:
        rows[index] = row
    return rows


def rank(value: Any, *, descending: bool) -> tuple[Any, ...]:
    """PostgreSQL's order of one column, written down once more and differently: NULL is the greatest."""
    if value is None:
        return (-1, 0) if descending else (1, 0)
    if isinstance(value, str):
        return (
            (0, (*tuple(-ord(letter) for letter in value), 1)) if descending else (0, tuple(map(ord, value)))
        )
    return (0, -value if descending else value)


def expected(rows: dict[Key, Row], terms: list[tuple[str, bool]], limit: int | None) -> list[Row]:
    first_descends = bool(terms) and terms[0][1]

    def place(row: Row) -> tuple[Any, ...]:
        return (
            *(rank(row.get(c), descending=d) for c, d in terms),
            rank(row["id"], descending=first_descends),
        )

    return sorted(rows.values(), key=place)[:limit]


ROW = st.fixed_dictionaries(
    {
        "id": st.integers(0, 30),
        "score": st.one_of(st.none(), st.integers(-3, 3)),
        "name": st.one_of(st.none(), st.text("abB", max_size=2)),
    }
)
ORDERS = [
    "",
    "score",
    "-score",
    "name",
    "-name",
    "score,-name",
    "-score,name",
    "-name,-score",
    "-id",
    "name,score",
]


@settings(max_examples=150, deadline=None)
@given(
    start=st.lists(ROW, max_size=25),
    batches=st.lists(
        st.lists(st.tuples(ROW, st.sampled_from(["put", "put", "delete", "rekey"])), max_size=8), max_size=6
    ),
    order=st.sampled_from(ORDERS),
    limit=st.sampled_from([None, 0, 1, 3, 7, 100]),
)
def test_after_every_delta_the_list_is_what_sorting_and_cutting_all_rows_gives(
    start: list[dict[str, Any]],
    batches: list[list[tuple[dict[str, Any], str]]],
    order: str,
    limit: int | None,
) -> None:
    rows: dict[Key, Row] = {row["id"]: row for row in start}
    terms = [(term.lstrip("-"), term.startswith("-")) for term in order.split(",") if term]
    view = View(rows, order, limit)
    shown = view.rows
    assert shown == expected(rows, terms, limit)
    for batch in batches:
        before = dict(rows)
        moved: dict[Key, Key] = {}
        for row, what in batch:
            key = row["id"]
            if what == "delete":
                rows.pop(key, None)
            elif what == "rekey" and rows and key not in rows:
                old = next(iter(rows))
                rows[key] = {**rows.pop(old), "id": key}
                if old in before and key not in before:
                    moved[key] = old
            else:
                rows[key] = row
        changes = difference(before, rows, moved)
        delta = view.apply(changes)
        shown = follow(shown, delta)
        assert shown == expected(rows, terms, limit)
        assert shown == view.rows
        assert [view[index] for index in range(len(view))] == shown
        assert view.total == len(rows)


def difference(before: dict[Key, Row], after: dict[Key, Row], moved: dict[Key, Key]) -> list[RowChange]:
    joined = {new: old for new, old in moved.items() if new in after and old not in after}
    joined = {new: old for new, old in joined.items() if list(joined.values()).count(old) == 1}
    changes = [RowChange(new, before[old], after[new], old) for new, old in joined.items()]
    for key in dict.fromkeys([*before, *after]):
        if key in joined or key in joined.values() or before.get(key) == after.get(key):
            continue
        changes.append(RowChange(key, before.get(key), after.get(key), key))
    return changes


def test_a_row_that_moves_up_is_one_move() -> None:
    rows: dict[Key, Row] = {n: {"id": n, "score": n} for n in range(5)}
    view = View(rows, "score")
    old, rows[4] = rows[4], {"id": 4, "score": 0.5}
    assert view.apply([RowChange(4, old, rows[4], 4)]) == ViewDelta(moved=[(4, 1, rows[4])])


def test_a_row_that_keeps_its_place_is_an_update() -> None:
    rows: dict[Key, Row] = {n: {"id": n, "score": n, "name": ""} for n in range(5)}
    view = View(rows, "-score", limit=3)
    old, rows[3] = rows[3], {"id": 3, "score": 3.5, "name": ""}
    assert view.apply([RowChange(3, old, rows[3], 3)]) == ViewDelta(updated=[(1, rows[3])])
    old, rows[3] = rows[3], {"id": 3, "score": 3.5, "name": "x"}
    assert view.apply([RowChange(3, old, rows[3], 3)]) == ViewDelta(updated=[(1, rows[3])])


def test_a_change_below_the_limit_is_no_delta() -> None:
    rows: dict[Key, Row] = {n: {"id": n, "score": n} for n in range(5)}
    view = View(rows, "score", limit=2)
    old, rows[4] = rows[4], {"id": 4, "score": 9}
    assert not view.apply([RowChange(4, old, rows[4], 4)])
    assert view.total == 5


def test_the_next_row_comes_in_when_one_leaves_a_limited_view() -> None:
    rows: dict[Key, Row] = {n: {"id": n, "score": n} for n in range(5)}
    view = View(rows, "score", limit=2)
    gone = rows.pop(0)
    assert view.apply([RowChange(0, gone, None, 0)]) == ViewDelta(
        removed=[(0, gone)], inserted=[(1, rows[2])]
    )


def test_the_last_row_falls_off_when_one_comes_into_a_full_view() -> None:
    rows: dict[Key, Row] = {n: {"id": n, "score": n} for n in range(5)}
    view = View(rows, "-score", limit=2)
    rows[9] = {"id": 9, "score": 9}
    assert view.apply([RowChange(9, None, rows[9], 9)]) == ViewDelta(
        removed=[(1, rows[3])], inserted=[(0, rows[9])]
    )


def test_made_up_keys_and_composite_keys_stand_beside_numbers_without_an_error() -> None:
    rows: dict[Key, Row] = {
        1: {"id": 1},
        "new": {"id": "new"},
        ("a", 2): {"id": "a", "part": 2},
        None: {"id": None},
    }
    assert View(rows).keys == [1, "new", ("a", 2), None]


def test_json_values_of_any_kind_sort_without_an_error() -> None:
    values: list[Any] = [None, {"b": 1, "a": 2}, [3], "text", 2, 1.5, True]
    rows: dict[Key, Row] = {n: {"id": n, "document": value} for n, value in enumerate(values)}
    assert [row["document"] for row in View(rows, "document").rows] == [
        True,
        1.5,
        2,
        "text",
        [3],
        {"a": 2, "b": 1},
        None,
    ]


@pytest.mark.parametrize("order", ["score", "-score,name"])
def test_a_large_view_stays_right_through_splits_and_merges(order: str) -> None:
    dice = random.Random(7)
    rows: dict[Key, Row] = {}
    terms = [(term.lstrip("-"), term.startswith("-")) for term in order.split(",")]
    view = View(rows, order, limit=40)
    shown: list[Row] = []
    for step in range(400):
        changes: list[RowChange] = []
        for key in {dice.randrange(6000) for _ in range(dice.choice([1, 3, 40]))}:
            old = rows.get(key)
            new = (
                None
                if step > 250 and dice.random() < 0.8
                else {"id": key, "score": dice.randrange(500), "name": "n"}
            )
            if new is None:
                rows.pop(key, None)
            else:
                rows[key] = new
            if old != new:
                changes.append(RowChange(key, old, new, key))
        shown = follow(shown, view.apply(changes))
        if step % 20 == 0:
            assert shown == expected(rows, terms, 40) == view.rows


def test_an_index_beyond_the_rows_shown_is_an_error() -> None:
    view = View({1: {"id": 1}, 2: {"id": 2}}, limit=1)
    assert view[0] == {"id": 1}
    for index in (-1, 1):
        with pytest.raises(IndexError):
            view[index]


def test_rows_can_leave_a_large_view_one_by_one_until_none_is_left() -> None:
    rows: dict[Key, Row] = {number: {"id": number} for number in range(3000)}
    view = View(rows, limit=2)
    for number in range(3000):
        old = rows.pop(number)
        view.apply([RowChange(number, old, None, number)])
        assert view.keys == [number + 1, number + 2][: len(rows)]
    assert view.total == 0
