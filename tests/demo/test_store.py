"""The page's store, fed by hand with the protocol's frames: what it shows after each, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import rowcast.demo

pytestmark = pytest.mark.browser

_STORE = Path(rowcast.demo.__file__).parent / "page" / "store.js"
_ADDRESS = "http://store.test"


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """A blank page that can import store.js."""
    opened = browser.new_page()
    script = _STORE.read_text(encoding="utf-8")
    opened.route(f"{_ADDRESS}/**", lambda route: route.fulfill(body="", content_type="text/html"))
    opened.route(
        f"{_ADDRESS}/store.js", lambda route: route.fulfill(body=script, content_type="text/javascript")
    )
    opened.goto(f"{_ADDRESS}/")
    yield opened
    opened.close()


class Store:
    """The store in the page, with two tables `a` and `b` (shapes 1 and 2)."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._page.evaluate(
            "async () => { const { Store } = await import('./store.js');"
            " globalThis.store = new Store({ a: 'alpha', b: 'beta' }); }"
        )

    def receive(self, *frames: dict[str, Any]) -> list[str]:
        """The kinds of what happened."""
        kinds: list[str] = self._page.evaluate(
            "(frames) => frames.flatMap((frame) => store.receive(frame)).map(({ kind }) => kind)",
            list(frames),
        )
        return kinds

    def connected(self) -> list[dict[str, Any]]:
        wishes: list[dict[str, Any]] = self._page.evaluate("() => store.connected()")
        return wishes

    def renew(self, table: str) -> dict[str, Any]:
        wish: dict[str, Any] = self._page.evaluate("(id) => store.renew(id)", table)
        return wish

    def edit(self, name: str, columns: dict[str, Any], *, key: int = 1, table: str = "a") -> None:
        self._page.evaluate(
            "([id, subscription, key, columns]) => store.addEdit("
            "{ id, subscription, key, apply: (row) => row && { ...row, ...columns } })",
            [name, table, f"[{key}]", columns],
        )

    def delete(self, name: str, *, key: int, table: str = "a") -> None:
        self._page.evaluate(
            "([id, subscription, key]) => store.addEdit({ id, subscription, key, apply: () => undefined })",
            [name, table, f"[{key}]"],
        )

    def reject(self, name: str) -> None:
        self._page.evaluate("(id) => store.removeEdit(id)", name)

    def rows(self, table: str = "a") -> dict[int, str]:
        """id → v of the visible rows."""
        rows: list[dict[str, Any]] = self._page.evaluate("(id) => [...store.rows(id).values()]", table)
        return {row["id"]: row["v"] for row in rows}

    @property
    def pending(self) -> list[str]:
        names: list[str] = self._page.evaluate("() => store.edits.map(({ id }) => id)")
        return names


def at(number: int, epoch: str = "e") -> str:
    return f"{epoch * 16}-{number:016x}"


def row(key: int, value: str) -> dict[str, Any]:
    return {"id": key, "v": value}


def subscribed(number: int, table: str = "a", **fields: Any) -> dict[str, Any]:
    shape = {"a": 1, "b": 2}[table]
    return {
        "type": "subscribed",
        "id": table,
        "shape": shape,
        "key": ["id"],
        "position": at(number),
        **fields,
    }


def snapshot(
    number: int | None, *rows: dict[str, Any], chunk: int = 0, shape: int = 1, **fields: Any
) -> dict[str, Any]:
    end = {} if number is None else {"last": True, "position": at(number)}
    return {"type": "snapshot", "shape": shape, "chunk": chunk, "rows": list(rows), **end, **fields}


def transaction(
    base: int, number: int, *changes: dict[str, Any], confirms: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "type": "transaction",
        "base": at(base),
        "position": at(number),
        "changes": list(changes),
        "confirms": list(confirms),
    }


def update(key: int, value: str, *, shape: int = 1, **fields: Any) -> dict[str, Any]:
    return {"shape": shape, "op": "UPDATE", "key": {"id": key}, "new": row(key, value), **fields}


def insert(key: int, value: str, *, shape: int = 1) -> dict[str, Any]:
    return {"shape": shape, "op": "INSERT", "key": {"id": key}, "new": row(key, value)}


def delete(key: int, *, shape: int = 1) -> dict[str, Any]:
    return {"shape": shape, "op": "DELETE", "key": {"id": key}, "old": {"id": key}}


@pytest.fixture
def store(page: Page) -> Store:
    """Connected, with rows 1: "one" and 2: "two" in `a` and row 1: "eins" in `b`, at position 10."""
    made = Store(page)
    assert made.connected() == [
        {"id": "a", "channel": "alpha", "snapshot": True},
        {"id": "b", "channel": "beta", "snapshot": True},
    ]
    made.receive(
        subscribed(10),
        subscribed(10, "b"),
        snapshot(10, row(1, "one"), row(2, "two")),
        snapshot(10, row(1, "eins"), shape=2),
    )
    return made


def test_a_transaction_is_applied_once_however_often_it_comes(store: Store) -> None:
    frame = transaction(10, 12, update(1, "ONE"), insert(3, "three"), delete(2))
    assert store.receive(frame) == ["transaction"]
    assert store.rows() == {1: "ONE", 3: "three"}
    store.receive(transaction(12, 14, update(1, "uno")))
    assert store.receive(frame) == []
    assert store.rows() == {1: "uno", 3: "three"}


def test_rows_are_shown_when_the_last_chunk_has_come_and_with_what_came_between(page: Page) -> None:
    store = Store(page)
    store.connected()
    store.receive(subscribed(8), snapshot(None, row(1, "old"), row(2, "two"), row(4, "four")))
    store.receive(transaction(8, 9, update(1, "in the snapshot already")))
    store.receive(transaction(9, 12, update(1, "after it")))
    assert store.rows() == {}
    last = snapshot(10, row(1, "one"), row(3, "three"), chunk=1, deleted=[{"id": 4}])
    assert store.receive(last) == ["rows"]
    assert store.rows() == {1: "after it", 2: "two", 3: "three"}


def test_a_snapshot_that_begins_anew_drops_what_it_had_sent(page: Page) -> None:
    store = Store(page)
    store.connected()
    store.receive(subscribed(8), snapshot(None, row(1, "one"), row(2, "two")), snapshot(11, row(1, "ONE")))
    assert store.rows() == {1: "ONE"}


def test_a_row_whose_key_changes_leaves_its_former_place(store: Store) -> None:
    store.receive(transaction(10, 12, update(7, "one", old={"id": 1, "v": "one"})))
    assert store.rows() == {7: "one", 2: "two"}


def test_a_column_that_was_not_sent_keeps_its_value(store: Store) -> None:
    change = {"shape": 1, "op": "UPDATE", "key": {"id": 1}, "new": {"id": 1, "other": 5}}
    store.receive(transaction(10, 12, change))
    assert store.rows() == {1: "one", 2: "two"}


def test_truncate_empties_the_table_and_no_other(store: Store) -> None:
    store.receive(transaction(10, 12, {"shape": 1, "op": "TRUNCATE"}))
    assert (store.rows(), store.rows("b")) == ({}, {1: "eins"})


def test_after_a_lost_connection_it_goes_on_where_it_was(store: Store) -> None:
    store.receive(transaction(10, 12, update(1, "ONE")), {"type": "heartbeat", "position": at(20)})
    assert store.connected() == [
        {"id": "a", "channel": "alpha", "since": at(20)},
        {"id": "b", "channel": "beta", "since": at(20)},
    ]
    store.receive(
        subscribed(20, shape=5), subscribed(20, "b", shape=6), transaction(18, 24, delete(1, shape=5))
    )
    assert store.rows() == {2: "two"}


def test_a_stretch_that_is_missing_is_noticed(store: Store) -> None:
    assert store.receive(transaction(14, 16, update(1, "ONE"))) == ["behind"]
    assert store.rows() == {1: "one", 2: "two"}


def test_after_a_resync_the_old_rows_stay_until_the_new_ones_replace_them(store: Store) -> None:
    resync = {"type": "resync", "id": "a", "shape": 1, "reason": "slow_client", "position": at(20)}
    assert store.receive(resync) == ["resync"]
    assert store.renew("a") == {"id": "a", "channel": "alpha", "snapshot": True}
    both = transaction(20, 22, update(1, "too early"), update(1, "zwei", shape=2))
    store.receive(subscribed(20), both, snapshot(None, row(1, "new")))
    assert (store.rows(), store.rows("b")) == ({1: "one", 2: "two"}, {1: "zwei"})
    store.receive(snapshot(24, chunk=1))
    assert store.rows() == {1: "new"}


def test_a_connection_lost_in_mid_snapshot_begins_it_again(store: Store) -> None:
    store.receive({"type": "resync", "id": "a", "shape": 1, "reason": "slow_client", "position": at(20)})
    store.renew("a")
    store.receive(snapshot(None, row(9, "half")))
    assert store.connected()[0] == {"id": "a", "channel": "alpha", "snapshot": True}
    store.receive(subscribed(26), snapshot(28, row(1, "whole")))
    assert store.rows() == {1: "whole"}


def test_another_epoch_replaces_everything(store: Store) -> None:
    store.connected()
    for table, shape in (("a", 1), ("b", 2)):
        fields = {"id": table, "shape": shape, "reason": "epoch_changed", "position": at(3, "f")}
        store.receive(subscribed(0, table, position=at(3, "f")), {"type": "resync", **fields})
        store.renew(table)
        store.receive({**snapshot(None, row(1, "reborn"), shape=shape), "last": True, "position": at(4, "f")})
    later = {**transaction(0, 0, update(1, "grown")), "base": at(3, "f"), "position": at(5, "f")}
    assert store.receive(later) == ["transaction"]
    assert (store.rows(), store.rows("b")) == ({1: "grown"}, {1: "reborn"})


def test_an_edit_is_seen_at_once_and_leaves_with_its_confirmation(store: Store) -> None:
    store.edit("m", {"v": "mine"})
    assert store.rows() == {1: "mine", 2: "two"}
    store.receive(transaction(10, 12, update(1, "theirs")))
    assert store.rows() == {1: "mine", 2: "two"}, "a foreign change below it is not shown yet"
    store.receive(transaction(12, 14, update(1, "mine"), confirms=("m",)))
    assert (store.rows(), store.pending) == ({1: "mine", 2: "two"}, [])


def test_an_edit_that_changed_no_row_is_confirmed_as_well(store: Store) -> None:
    store.edit("m", {"v": "mine"})
    assert store.receive(transaction(10, 12, confirms=("m",))) == ["transaction"]
    assert (store.rows(), store.pending) == ({1: "one", 2: "two"}, [])


def test_a_quick_undo_never_shows_the_state_between(store: Store) -> None:
    store.edit("accept", {"v": "accepted"})
    store.edit("undo", {"v": "one"})
    store.receive(transaction(10, 12, update(1, "accepted"), confirms=("accept",)))
    assert store.rows()[1] == "one"
    store.receive(transaction(12, 14, update(1, "one"), confirms=("undo",)))
    assert (store.rows()[1], store.pending) == ("one", [])


def test_a_rejected_edit_undoes_nobody_elses(store: Store) -> None:
    store.edit("wrong", {"v": "wrong"})
    store.edit("right", {"v": "right"}, key=2)
    store.receive(transaction(10, 12, update(1, "theirs")))
    store.reject("wrong")
    assert store.rows() == {1: "theirs", 2: "right"}


def test_an_edit_of_a_row_that_somebody_deletes_brings_nothing_back(store: Store) -> None:
    store.edit("m", {"v": "mine"})
    store.receive(transaction(10, 12, delete(1)))
    assert store.rows() == {2: "two"}


def test_a_deleted_row_stays_away_although_others_change_it(store: Store) -> None:
    store.delete("m", key=1)
    store.receive(transaction(10, 12, update(1, "theirs")))
    assert store.rows() == {2: "two"}
    store.receive(transaction(12, 14, delete(1), confirms=("m",)))
    assert (store.rows(), store.pending) == ({2: "two"}, [])


def test_a_confirmation_during_a_resync_waits_for_the_rows(store: Store) -> None:
    store.edit("m", {"v": "mine"})
    store.receive({"type": "resync", "id": "a", "shape": 1, "reason": "slow_client", "position": at(20)})
    store.renew("a")
    store.receive(subscribed(20), transaction(20, 22, update(1, "mine"), confirms=("m",)))
    assert (store.rows()[1], store.pending) == ("mine", ["m"]), "the old row must not come back"
    store.receive(snapshot(24, row(1, "mine")))
    assert (store.rows(), store.pending) == ({1: "mine"}, [])


def test_frames_of_kinds_that_it_does_not_know_are_ignored(store: Store) -> None:
    assert store.receive(json.loads('{"type": "presence", "who": "knows"}')) == []
    assert store.rows() == {1: "one", 2: "two"}
