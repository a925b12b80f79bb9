"""The overlay alone: what patches show over a row, and what is left when they are taken away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from rowcast.client import overlay as overlay_module
from rowcast.client.overlay import Delete, Insert, Mutation, Overlay, Patch, Strategy, Update
from rowcast.client.rows import Row

BASE: Row = {"id": 1, "name": "Atlas", "status": "open"}


def lay(overlay: Overlay, name: str, *patches: Patch, strategy: Strategy = "overlay") -> Mutation:
    mutation = Mutation(name, list(patches), strategy)
    overlay.add(mutation)
    return mutation


def rename_to(name: str) -> Update:
    return Update("p", 1, {"name": name})


def test_an_update_sets_its_columns_and_hides_no_other() -> None:
    overlay = Overlay()
    lay(overlay, "m", rename_to("mine"))
    assert overlay.fold("p", 1, BASE) == {"id": 1, "name": "mine", "status": "open"}
    assert overlay.fold("p", 1, {**BASE, "status": "done"}) == {"id": 1, "name": "mine", "status": "done"}


def test_an_update_brings_no_row_back() -> None:
    overlay = Overlay()
    lay(overlay, "m", rename_to("mine"))
    assert overlay.fold("p", 1, None) is None


def test_an_insert_shows_its_row_only_where_there_is_none() -> None:
    overlay = Overlay()
    lay(overlay, "m", Insert("p", 1, {"id": 1, "name": "mine"}))
    assert overlay.fold("p", 1, None) == {"id": 1, "name": "mine"}
    assert overlay.fold("p", 1, BASE) == BASE


def test_a_delete_hides_and_an_insert_after_it_shows_again() -> None:
    overlay = Overlay()
    lay(overlay, "m1", Delete("p", 1))
    assert overlay.fold("p", 1, BASE) is None
    lay(overlay, "m2", Insert("p", 1, {"id": 1, "name": "again"}))
    assert overlay.fold("p", 1, BASE) == {"id": 1, "name": "again"}


def test_folding_changes_no_row_in_place() -> None:
    overlay = Overlay()
    lay(overlay, "m", rename_to("mine"))
    base = dict(BASE)
    overlay.fold("p", 1, base)
    assert base == BASE


def test_a_stream_only_mutation_is_pending_and_shows_nothing() -> None:
    overlay = Overlay()
    mutation = lay(overlay, "m", rename_to("mine"), strategy="stream-only")
    assert overlay.fold("p", 1, BASE) == BASE
    assert overlay.pending("p", 1) == [mutation]


def test_patches_of_other_subscriptions_and_keys_do_not_mix() -> None:
    overlay = Overlay()
    lay(overlay, "m", rename_to("mine"))
    assert overlay.fold("q", 1, BASE) == BASE
    assert overlay.fold("p", 2, BASE) == BASE
    assert list(overlay.keys("p")) == [1]
    assert list(overlay.keys("q")) == []


def test_taking_a_mutation_away_tells_which_rows_to_look_at_again() -> None:
    overlay = Overlay()
    first = lay(overlay, "m1", rename_to("one"), Delete("p", 2), Delete("q", 3))
    second = lay(overlay, "m2", rename_to("two"))
    assert overlay.subscriptions(first) == ["p", "q"]
    assert overlay.take(first, "p") == {1, 2}
    assert overlay.subscriptions(first) == ["q"]
    assert overlay.pending("p", 1) == [second]
    assert not overlay.covers("p", 2)


def test_forgetting_a_subscription_leaves_nothing_over_it() -> None:
    overlay = Overlay()
    mutation = lay(overlay, "m", rename_to("one"), Delete("q", 3))
    overlay.forget("p")
    assert overlay.subscriptions(mutation) == ["q"]
    assert overlay.fold("p", 1, BASE) == BASE


def test_a_made_up_key_becomes_the_servers_for_all_patches_on_it_and_those_to_come() -> None:
    overlay = Overlay()
    insert = lay(overlay, "m1", Insert("p", "t", {"id": "t", "name": "new"}, temporary=True))
    lay(overlay, "m2", Update("p", "t", {"name": "newer"}))
    overlay.rename("p", "t", 7, ["id"])
    assert overlay.fold("p", 7, None) == {"id": 7, "name": "newer"}
    assert overlay.fold("p", "t", None) is None
    assert overlay.resolve("p", "t") == 7
    lay(overlay, "m3", Update("p", "t", {"name": "newest"}))
    assert overlay.fold("p", 7, None) == {"id": 7, "name": "newest"}
    overlay.take(insert, "p")
    assert overlay.fold("p", 7, None) is None


def test_a_made_up_key_of_several_columns_becomes_the_servers() -> None:
    overlay = Overlay()
    lay(overlay, "m1", Insert("p", (1, "t"), {"org": 1, "no": "t", "name": "new"}, temporary=True))
    overlay.rename("p", (1, "t"), (5, 1), ["no", "org"])
    assert overlay.fold("p", (5, 1), None) == {"org": 1, "no": 5, "name": "new"}


def test_made_up_keys_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_module, "MAXIMUM_ALIASES", 2)
    overlay = Overlay()
    for number in range(3):
        overlay.rename("p", f"t{number}", number, ["id"])
    assert [overlay.resolve("p", f"t{number}") for number in range(3)] == ["t0", 1, 2]


@pytest.mark.parametrize(
    ("earlier", "later", "uncovers"),
    [
        (rename_to("one"), rename_to("two"), True),
        (Update("p", 1, {"status": "done"}), rename_to("two"), False),
        (Delete("p", 1), Insert("p", 1, BASE), True),
        (Insert("p", 1, BASE), Delete("p", 1), True),
        (rename_to("one"), Delete("p", 1), False),
        (Insert("p", 1, BASE), rename_to("two"), False),
    ],
)
def test_what_would_show_something_older_if_it_went(earlier: Patch, later: Patch, uncovers: bool) -> None:  # noqa: FBT001
    overlay = Overlay()
    first = lay(overlay, "m1", earlier)
    second = lay(overlay, "m2", later)
    assert overlay.uncovers(second, "p") is uncovers
    assert not overlay.uncovers(first, "p")
    overlay.take(first, "p")
    assert not overlay.uncovers(second, "p")


COLUMNS = st.dictionaries(st.sampled_from(["name", "status"]), st.sampled_from("abc"), min_size=1)
PATCHES = st.one_of(
    COLUMNS.map(lambda columns: Update("p", 1, columns)),
    COLUMNS.map(lambda columns: Insert("p", 1, {"id": 1, **columns})),
    st.just(Delete("p", 1)),
)


@given(
    made=st.lists(st.lists(PATCHES, min_size=1, max_size=2), max_size=5),
    base=st.none() | COLUMNS.map(lambda columns: {"id": 1, **columns}),
    data=st.data(),
)
def test_what_is_left_after_taking_one_away_is_what_would_be_there_without_it(
    made: list[list[Patch]], base: dict[str, Any] | None, data: st.DataObject
) -> None:
    overlay, without = Overlay(), Overlay()
    mutations = [lay(overlay, f"m{number}", *patches) for number, patches in enumerate(made)]
    gone = data.draw(st.integers(0, len(made)))
    for number, patches in enumerate(made):
        if number != gone:
            lay(without, f"m{number}", *patches)
    if gone < len(made):
        overlay.take(mutations[gone], "p")
    assert overlay.fold("p", 1, base) == without.fold("p", 1, base)
