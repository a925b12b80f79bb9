"""The store where the vectors in spec/ do not reach: its promises as properties, its bounds, its figures."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from rowcast.client.contents import Contents
from rowcast.client.events import (
    Event,
    Progress,
    Refused,
    Resync,
    ServerError,
    SnapshotChunk,
    StateChanged,
    Subscribed,
    Transaction,
)
from rowcast.client.outputs import (
    AskStatus,
    Delta,
    MutationChanged,
    Output,
    Ready,
    Refetch,
    SendMutation,
    SubscriptionChanged,
)
from rowcast.client.overlay import Delete, Insert, Patch, Update
from rowcast.client.rows import Key, Row, canonical_text, make_key
from rowcast.client.state import ConnectionState
from rowcast.client.step import MAXIMUM_SETTLED, MAXIMUM_TXIDS
from rowcast.client.store import Store
from rowcast.client.view import View
from rowcast.errors import ClientError

EPOCH = "5e1f0c6a9d3b2e47"
COLUMNS = (("id", "bigint"), ("a", "text"), ("b", "text"))
CONNECTED = StateChanged(ConnectionState("connected"))


def at(number: int) -> str:
    return f"{EPOCH}-{number:016x}"


def subscribed(
    name: str, key: tuple[str, ...] = ("id",), columns: Sequence[tuple[str, str]] = COLUMNS
) -> Subscribed:
    return Subscribed(name, name, "public", name, tuple(columns), key, at(1), 1)


def snapshot(name: str, rows: Sequence[Row], position: int = 1) -> SnapshotChunk:
    return SnapshotChunk(name, 0, [dict(row) for row in rows], (), last=True, position=at(position))


def live(*names: str, rows: Sequence[Row] = ()) -> Store:
    store = Store()
    for name in names:
        store.add(name)
    store.receive([CONNECTED, *map(subscribed, names)])
    store.receive([snapshot(name, rows) for name in names])
    return store


def row(key: object, a: str = "-", b: str = "-") -> dict[str, Any]:
    return {"id": key, "a": a, "b": b}


def put(new: Row, op: str = "UPDATE") -> dict[str, Any]:
    return {"op": op, "key": {"id": new["id"]}, "new": new}


def gone(key: object) -> dict[str, Any]:
    return {"op": "DELETE", "key": {"id": key}}


def transaction(
    number: int, changes: dict[str, list[dict[str, Any]]], *confirms: str, subscription: str | None = None
) -> Transaction:
    return Transaction(at(number), number, "", changes, confirms, subscription)


class TestReading:
    def test_visible_rows_are_a_mapping_of_base_and_overlay(self) -> None:
        store = live("p", rows=[row(1), row(2)])
        store.mutate("m", [Delete("p", 1), Insert("p", 3, row(3)), Update("p", 2, {"a": "x"})])
        rows = store.rows("p")
        assert dict(rows) == {2: row(2, "x"), 3: row(3)}
        assert len(rows) == 2
        assert 1 not in rows
        assert 3 in rows
        with pytest.raises(KeyError):
            rows[1]

    def test_visible_rows_follow_without_being_asked_for_again(self) -> None:
        store = live("p", rows=[row(1)])
        rows = store.rows("p")
        store.receive([transaction(2, {"p": [gone(1)]})])
        assert dict(rows) == {}

    def test_nobody_who_holds_a_row_sees_it_change(self) -> None:
        store = live("p", rows=[row(1)])
        held = store.rows("p")[1]
        store.mutate("m", [Update("p", 1, {"a": "x"})])
        store.receive([transaction(2, {"p": [put({"id": 1, "b": "y"})]})])
        assert held == row(1)
        assert store.row("p", 1) == row(1, "x", "y")

    def test_a_row_tells_which_mutations_it_waits_on(self) -> None:
        store = live("p", rows=[row(1)])
        store.mutate("m1", [Update("p", 1, {"a": "x"})])
        store.mutate("m2", [Update("p", 1, {"b": "x"})], strategy="stream-only")
        assert [each.id for each in store.pending("p", 1)] == ["m1", "m2"]
        store.receive([transaction(2, {"p": [put(row(1, "x"))]}, "m1")])
        assert [each.id for each in store.pending("p", 1)] == ["m2"]
        assert [each.id for each in store.mutations] == ["m2"]

    def test_keys_are_told_as_the_server_names_them(self) -> None:
        store = Store()
        store.add("p")
        assert store.key_columns("p") == ()
        store.receive([subscribed("p", ("org", "no"), [("org", "bigint"), ("no", "bigint")])])
        assert store.key_columns("p") == ("no", "org")

    def test_keys_of_any_type_can_be_looked_up(self) -> None:
        values: list[Any] = [7, "x", Decimal("1.00000000000000000001"), [1, 2], {"b": 1, "a": 2}, None, True]
        for value in values:
            store = live("p", rows=[{"id": value, "a": "", "b": ""}])
            assert store.row("p", make_key({"id": value})) == {"id": value, "a": "", "b": ""}
        assert make_key({"b": 1, "a": [2]}) == ("[2]", 1)
        assert make_key(("x", 1)) == ("x", 1)

    def test_what_is_not_there_is_an_error_that_says_so(self) -> None:
        store = live("p")
        with pytest.raises(ClientError, match="no subscription"):
            store.rows("q")
        with pytest.raises(ClientError, match="already"):
            store.add("p")
        with pytest.raises(ClientError, match="no subscription"):
            store.mutate("m", [Delete("q", 1)])
        store.mutate("m", [])
        with pytest.raises(ClientError, match="retry"):
            store.mutate("m", [])
        with pytest.raises(ClientError, match="neither pending nor rejected"):
            store.retry("other")
        assert store.mutation("other") is None


class TestSteps:
    def test_all_events_of_one_step_are_one_delta(self) -> None:
        store = live("p", rows=[row(1)])
        outputs = store.receive(
            [transaction(2, {"p": [put(row(1, "x"))]}), transaction(3, {"p": [put(row(1, "y"))]})]
        )
        assert [
            change.new for output in outputs if isinstance(output, Delta) for change in output.changes
        ] == [row(1, "y")]

    def test_what_a_snapshot_missed_comes_with_it_in_one_step(self) -> None:
        store = live("p", rows=[row(1)])
        store.receive([Resync("p", "slow_client", at(5))])
        outputs = store.receive(
            [snapshot("p", [row(1, "x")], 5), transaction(6, {"p": [put(row(1, "y"))]}, subscription="p")]
        )
        (delta,) = [output for output in outputs if isinstance(output, Delta)]
        assert delta.reset
        assert [(change.old, change.new) for change in delta.updated] == [(row(1), row(1, "y"))]
        assert delta.position == at(6)

    def test_outputs_come_when_everything_is_done(self) -> None:
        store = live("p", "q", rows=[row(1)])
        outputs = store.receive([transaction(2, {"p": [gone(1)], "q": [gone(1)]})])
        assert [output.subscription for output in outputs if isinstance(output, Delta)] == ["p", "q"]
        assert len(store.rows("p")) == len(store.rows("q")) == 0

    def test_events_of_strangers_are_passed_over(self) -> None:
        store = live("p", rows=[row(1)])
        strangers: list[Event] = [
            transaction(2, {"x": [gone(1)]}), Progress(at(3), "x"), snapshot("x", []), subscribed("x"),
            Resync("x", "slow_client", at(3)), Refused("x", "unknown_channel", ""), ServerError("rate_limited", ""),
        ]  # fmt: skip
        assert store.receive(strangers) == []
        assert dict(store.rows("p")) == {1: row(1)}

    def test_what_a_subscription_has_been_told_is_not_applied_again_whoever_tells_it(self) -> None:
        """The session sees to it; the store does not rely on that."""
        store = live("p", rows=[row(1)])
        store.receive([transaction(3, {"p": [put(row(1, "x"))]})])
        for number in (1, 2, 3):
            assert store.receive([transaction(number, {"p": [gone(1)]})]) == []
        assert store.row("p", 1) == row(1, "x")

    def test_the_reason_of_an_old_trouble_is_not_told_with_a_new_one(self) -> None:
        store = live("p", rows=[row(1)])
        store.receive([Resync("p", "slow_client", at(5)), snapshot("p", [row(1)], 5)])
        outputs = store.receive([StateChanged(ConnectionState("reconnecting"))])
        assert outputs == [SubscriptionChanged("p", "stale", "disconnected")]

    def test_a_truncate_of_rows_without_a_key_forgets_their_copies(self) -> None:
        store = Store()
        store.add("p")
        line = {"line": "a"}
        store.receive([CONNECTED, subscribed("p", (), [("line", "text")]), snapshot("p", [line, line])])
        store.receive([transaction(2, {"p": [{"op": "TRUNCATE"}, {"op": "INSERT", "new": line}]})])
        assert list(store.rows("p").values()) == [line]

    def test_a_change_that_cannot_be_applied_leaves_every_row_as_it_was(self) -> None:
        store = live("p", rows=[row(1), row(2)])
        changes = [
            gone(1),
            put(row(3), "INSERT"),
            put(row(2, "x")),
            {"op": "UPDATE", "new": {"a": "without a key"}},
        ]
        outputs = store.receive([transaction(2, {"p": changes})])
        assert outputs == [SubscriptionChanged("p", "stale", "incomplete_row"), Refetch("p")]
        assert dict(store.rows("p")) == {1: row(1), 2: row(2)}

    def test_a_held_snapshot_that_cannot_be_continued_is_read_again(self) -> None:
        store = live("p", rows=[row(1)])
        store.receive([Progress(at(9)), Resync("p", "slow_client", at(9)), snapshot("p", [row(1)], 5)])
        outputs = store.receive([transaction(6, {"p": [put({"id": 2, "a": "half a row"})]})])
        assert outputs == [Refetch("p")]
        store.receive([snapshot("p", [row(1, "x")], 9)])
        assert dict(store.rows("p")) == {1: row(1, "x")}

    def test_a_chunk_without_its_beginning_is_passed_over(self) -> None:
        store = live("p", rows=[row(1)])
        assert store.receive([SnapshotChunk("p", 3, [row(2)], (), last=True, position=at(9))]) == []

    def test_rows_that_may_not_be_read_any_more_go(self) -> None:
        store = live("p", rows=[row(1)])
        store.mutate("m", [Insert("p", 2, row(2))])
        outputs = store.receive([Refused("p", "unknown_channel", "there is no such channel")])
        assert SubscriptionChanged("p", "ended", "unknown_channel") in outputs
        assert dict(store.rows("p")) == {}
        assert store.receive([transaction(2, {}, "m")]) == [MutationChanged("m", "confirmed")]

    def test_a_refused_subscription_that_is_granted_later_lives_again(self) -> None:
        store = live("p", rows=[row(1)])
        store.receive([Refused("p", "unknown_channel", "")])
        outputs = store.receive([subscribed("p"), snapshot("p", [row(2)], 5)])
        assert SubscriptionChanged("p", "live") in outputs
        assert dict(store.rows("p")) == {2: row(2)}

    def test_a_subscription_that_is_removed_and_added_begins_empty(self) -> None:
        store = live("p", rows=[row(1)])
        store.mutate("m", [Insert("p", 2, row(2))])
        assert store.remove("p") == []
        store.add("p")
        assert (dict(store.rows("p")), store.state("p"), store.position("p")) == ({}, "loading", "")

    def test_a_retried_mutation_whose_subscription_is_gone_is_sent_all_the_same(self) -> None:
        store = live("p", "q", rows=[row(1)])
        store.mutate("m", [Delete("p", 1), Delete("q", 1)])
        store.rejected("m", "no")
        store.remove("q")
        assert SendMutation("m") in store.retry("m")
        assert dict(store.rows("p")) == {}


class TestStreamsOfTheirOwn:
    """SSE and polling carry each subscription over a stream of its own; one may be ahead of another."""

    def test_a_confirm_counts_for_a_subscription_when_its_own_stream_has_it(self) -> None:
        store = live("p", "q", rows=[row(1)])
        store.mutate("m", [Update("p", 1, {"a": "x"}), Update("q", 1, {"a": "x"})])
        changed = put(row(1, "x"))
        outputs = store.receive([transaction(2, {"p": [changed]}, "m", subscription="p")])
        assert outputs == [MutationChanged("m", "confirmed")]
        assert store.row("q", 1) == row(1, "x")
        outputs = store.receive([transaction(2, {"q": [changed]}, "m", subscription="q")])
        assert outputs == []
        store.receive([transaction(3, {"q": [put(row(1, "y"))]}, subscription="q")])
        assert store.row("q", 1) == row(1, "y")

    def test_progress_of_one_is_not_progress_of_another(self) -> None:
        store = live("p", "q", rows=[row(1)])
        store.receive([Progress(at(9), "p")])
        assert (store.position("p"), store.position("q")) == (at(9), at(1))

    def test_a_polled_result_replaces_what_is_there(self) -> None:
        store = live("p", rows=[row(1), row(2)])
        outputs = store.receive([snapshot("p", [row(2, "x")], 8)])
        (delta,) = [output for output in outputs if isinstance(output, Delta)]
        assert (delta.deleted[0].old, delta.updated[0].new) == (row(1), row(2, "x"))
        assert not any(isinstance(output, Ready | SubscriptionChanged) for output in outputs)

    def test_a_polled_result_from_a_server_that_lags_is_held_back(self) -> None:
        store = live("p", rows=[row(1)])
        store.receive([snapshot("p", [row(1, "new")], 8)])
        assert store.receive([snapshot("p", [row(1, "old")], 5)]) == []
        store.receive([snapshot("p", [row(1, "newer")], 9)])
        assert store.row("p", 1) == row(1, "newer")


class TestBounds:
    def test_settled_mutations_are_forgotten_in_the_end(self) -> None:
        store = live("p")
        for number in range(MAXIMUM_SETTLED + 10):
            store.mutate(f"m{number}", [])
            store.rejected(f"m{number}")
        assert store.mutation("m9") is None
        assert store.mutation("m10") is not None

    def test_transactions_are_forgotten_in_the_end(self) -> None:
        store = live("p", rows=[row(1)])
        store.mutate("m", [Update("p", 1, {"a": "x"})])
        for number in range(2, MAXIMUM_TXIDS + 10):
            store.receive([transaction(number, {"p": [put(row(1, str(number)))]})])
        assert store.answered("m", 0.0, txid=2) == []
        assert store.mutate("other", []) != []
        assert store.answered("other", 0.0, txid=MAXIMUM_TXIDS) == [MutationChanged("other", "confirmed")]

    def test_confirmed_mutations_leave_nothing_behind(self) -> None:
        store = live("p", rows=[row(1)])
        for number in range(2, 50):
            store.mutate(f"m{number}", [Update("p", 1, {"a": str(number)})])
            store.sent(f"m{number}", 0.0)
            store.answered(f"m{number}", 0.0, txid=number, position=at(number))
            store.receive([transaction(number, {"p": [put(row(1, str(number)))]}, f"m{number}")])
        contents: Contents = store._contents
        assert not contents.pending
        assert not contents.settling
        assert not contents.by_transaction
        assert not contents.rows["p"].overlaid
        assert store.deadline() is None


class TestTime:
    def test_the_deadline_is_that_of_the_mutation_that_waits_longest(self) -> None:
        store = Store(confirm_seconds=3.0)
        store.mutate("m1", [])
        assert store.deadline() is None
        store.sent("m1", 10.0)
        store.mutate("m2", [])
        store.sent("m2", 11.0)
        assert store.deadline() == 13.0
        assert store.tick(12.9) == []
        assert store.tick(13.0) == [MutationChanged("m1", "unconfirmed"), AskStatus("m1")]
        assert store.deadline() == 14.0

    def test_a_mutation_whose_position_is_known_is_not_asked_for(self) -> None:
        store = live("p", rows=[row(1)])
        store.mutate("m", [Update("p", 1, {"a": "x"})])
        store.sent("m", 0.0)
        store.answered("m", 1.0, position=at(5))
        assert store.deadline() is None
        assert store.receive([Progress(at(5))])[-1] == MutationChanged("m", "confirmed")

    def test_attempts_are_counted(self) -> None:
        store = Store()
        store.mutate("m", [])
        store.sent("m", 0.0)
        store.lost("m", 1.0)
        store.status("m", "unknown", 2.0)
        store.sent("m", 3.0)
        mutation = store.mutation("m")
        assert mutation is not None
        assert mutation.attempts == 2


# A run of small steps: what happens, to which subscription, to which key, with which value.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["commit", "commit", "commit", "mutate", "confirm", "reject", "resync", "load", "rekey"]
        ),
        st.sampled_from("pq"),
        st.integers(1, 4),
        st.sampled_from(["a", "b"]),
        st.sampled_from("xyz"),
        st.booleans(),
    ),
    max_size=40,
)


class Model:
    """What must be visible, from the definition: pending mutations folded over the base, one after the other."""

    def __init__(self, names: str) -> None:
        self.truth: dict[str, dict[Key, dict[str, Any]]] = {name: {} for name in names}
        self.base: dict[str, dict[Key, dict[str, Any]]] = {name: {} for name in names}
        self.pending: dict[str, Patch] = {}
        self.lost: set[str] = set()

    def visible(self, name: str) -> dict[Key, Row]:
        rows: dict[Key, Row] = dict(self.base[name])
        for patch in self.pending.values():
            if patch.subscription != name:
                continue
            if isinstance(patch, Delete):
                rows.pop(patch.key, None)
            elif isinstance(patch, Insert):
                rows.setdefault(patch.key, patch.row)
            elif patch.key in rows:
                rows[patch.key] = {**rows[patch.key], **patch.columns}
        return rows

    def catch_up(self) -> None:
        for name in self.truth:
            if name not in self.lost:
                self.base[name] = dict(self.truth[name])


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_visible_is_the_fold_and_deltas_lead_from_one_to_the_next(
    steps: list[tuple[str, str, int, str, str, bool]],
) -> None:
    store, model = live("p", "q"), Model("pq")
    mirror: dict[str, dict[Key, Row]] = {"p": {}, "q": {}}
    for number, (what, name, key, column, value, flag) in enumerate(steps, 2):
        outputs: list[Output] = []
        truth = model.truth[name]
        match what:
            case "commit" | "rekey":
                changes: list[dict[str, Any]] = []
                if what == "rekey":
                    if key in truth and key + 10 not in truth:
                        truth[key + 10] = {**truth.pop(key), "id": key + 10}
                        changes = [
                            {
                                "op": "UPDATE",
                                "key": {"id": key + 10},
                                "old": {"id": key},
                                "new": truth[key + 10],
                            }
                        ]
                elif flag and key in truth:
                    del truth[key]
                    changes = [gone(key)]
                else:
                    changed = {**truth.get(key, row(key)), column: value}
                    only_changed = {"id": key, column: value} if key in truth and flag else changed
                    changes = [put(only_changed, "UPDATE" if key in truth else "INSERT")]
                    truth[key] = changed
                told = {} if name in model.lost else {name: changes}
                outputs = store.receive([transaction(number, told)])
                model.catch_up()
            case "mutate":
                patch: Patch = Update(name, key, {column: value}) if flag else Delete(name, key)
                if not flag and value == "x":
                    patch = Insert(name, key, row(key, "new"))
                model.pending[f"m{number}"] = patch
                outputs = store.mutate(f"m{number}", [patch])
            case "confirm" if model.pending:
                oldest = next(iter(model.pending))
                if model.pending[oldest].subscription in model.lost:
                    continue
                del model.pending[oldest]
                outputs = store.receive([transaction(number, {}, oldest)])
            case "reject" if model.pending:
                refused = list(model.pending)[key % len(model.pending)]
                del model.pending[refused]
                outputs = store.rejected(refused)
            case "resync":
                model.lost.add(name)
                outputs = store.receive([Resync(name, "slow_client", at(number))])
            case "load" if name in model.lost:
                model.lost.discard(name)
                outputs = store.receive([subscribed(name), snapshot(name, list(truth.values()), number)])
                model.catch_up()
            case _:
                continue
        for output in outputs:
            if isinstance(output, Delta):
                apply_to(mirror[output.subscription], output)
        for each in "pq":
            assert dict(store.rows(each)) == model.visible(each) == mirror[each]
            assert len(store.rows(each)) == len(mirror[each])


def apply_to(rows: dict[Key, Row], delta: Delta) -> None:
    """Follow a delta as its docstring says, strictly."""
    for change in delta.changes:
        if change.old is None:
            assert change.old_key not in rows
        else:
            assert rows.pop(change.old_key) == change.old
    for change in delta.changes:
        if change.new is not None:
            assert change.key not in rows
            rows[change.key] = change.new


LINES = st.lists(st.sampled_from("ab"), max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    first=LINES,
    changes=st.lists(
        st.tuples(st.sampled_from(["INSERT", "DELETE", "UPDATE"]), *[st.sampled_from("ab")] * 2)
    ),
)
def test_rows_without_a_key_are_a_bag(first: list[str], changes: list[tuple[str, str, str]]) -> None:
    store = Store()
    store.add("p")
    store.receive(
        [
            CONNECTED,
            subscribed("p", (), [("line", "text")]),
            snapshot("p", [{"line": line} for line in first]),
        ]
    )
    bag = list(first)
    for number, (op, old, new) in enumerate(changes, 2):
        if op != "INSERT" and old not in bag:
            continue
        change: dict[str, Any] = {"op": op}
        if op != "INSERT":
            bag.remove(old)
            change["old"] = {"line": old}
        if op != "DELETE":
            bag.append(new)
            change["new"] = {"line": new}
        store.receive([transaction(number, {"p": [change]})])
        assert sorted(each["line"] for each in store.rows("p").values()) == sorted(bag)


ROWS = 100_000


def project(number: int, version: int = 0) -> dict[str, Any]:
    return {
        "id": number, "name": f"project {number}.{version}", "org_id": number % 97, "status": "open",
        "amount": number * 1.5 + version, "note": None, "active": number % 2 == 0,
        "created_at": f"2026-11-{1 + (number * 7 + version) % 28:02}T{number % 24:02}:{version % 60:02}:{number % 60:02}+00:00",
    }  # fmt: skip


@pytest.fixture(scope="module")
def text() -> bytes:
    """The rows as the server would send them."""
    return msgspec.json.encode([project(number) for number in range(ROWS)])


class TestLargeStore:
    """A hundred thousand rows; how fast it is, `make bench` measures."""

    def loaded(self, text: bytes) -> Store:
        store = Store()
        store.add("p")
        columns = [(name, "text") for name in project(0)]
        store.receive([CONNECTED, subscribed("p", columns=columns)])
        store.receive([SnapshotChunk("p", 0, msgspec.json.decode(text), (), last=True, position=at(1))])
        return store

    @pytest.mark.parametrize("moving", [300, 1000])
    def test_a_view_over_a_hundred_thousand_rows_is_what_sorting_them_anew_gives(
        self, text: bytes, moving: int
    ) -> None:
        store = self.loaded(text)
        view = View(store.rows("p"), "-created_at", limit=50)
        dice = random.Random(3)
        for number in range(2, 8):
            rows = [project(key, number) for key in dice.sample(range(ROWS), 1000)]
            for staying in rows[moving:]:
                staying["created_at"] = store.rows("p")[staying["id"]]["created_at"]
            for output in store.receive([transaction(number, {"p": [put(each) for each in rows]})]):
                assert isinstance(output, Delta)
                assert len(output.changes) == 1000
                view.apply(output.changes)
        assert view.keys == View(store.rows("p"), "-created_at", limit=50).keys

    def test_the_store_and_a_view_need_at_most_half_as_much_again_as_the_rows_alone(
        self, text: bytes
    ) -> None:
        rows_bytes, rows = measured(lambda: msgspec.json.decode(text))
        assert len(rows) == ROWS
        del rows
        store_bytes, (store, _) = measured(
            lambda: (loaded := self.loaded(text), View(loaded.rows("p"), "-created_at", limit=50))
        )
        assert len(store.rows("p")) == ROWS
        assert store_bytes <= 1.5 * rows_bytes


def measured(make: Any) -> tuple[int, Any]:
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], made
    finally:
        tracemalloc.stop()


def test_equal_values_have_equal_texts() -> None:
    assert (
        canonical_text({"b": [1, None], "a": "ä"})
        == canonical_text({"a": "ä", "b": [1, None]})
        == '{"a":"ä","b":[1,null]}'
    )
