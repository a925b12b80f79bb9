"""Subscriptions that want of an UPDATE what it has changed only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.hub.test_hub import FILTERS, JOBS, PROJECTS, Client, as_json, ids, make_hub, orgs
from tests.streams import at, change, row, table, transaction

from rowcast.model import MISSING, Change, Row, Table

KEYLESS = table("projects", "id bigint,name text,org integer", key=())


def told(*, new: Row, old: Row | None, form: str = "full", of: Table = PROJECTS, **more: Any) -> list[Any]:
    hub = make_hub(of, JOBS)
    client = Client(hub, form=form)
    client.watch("projects", only_changed=True, **more)
    hub.publish([transaction(2, change(of, "UPDATE", new, old))], 0.0)
    return [each for message in client.heard() for each in message.get("changes", [message])]


@pytest.mark.parametrize("form", ["plain", "full"])
def test_an_update_brings_the_key_and_what_it_has_changed(form: str) -> None:
    (update,) = told(new=row(1, "b", 5), old=row(1, "a", 5), form=form)
    assert update["new"] == {"id": 1, "name": "b"}
    assert update["key"] == {"id": 1}
    assert update.get("old") == ({"id": 1, "name": "a"} if form == "plain" else None)


@pytest.mark.parametrize("form", ["plain", "full"])
def test_a_value_that_becomes_null_or_was_null_has_changed(form: str) -> None:
    (update,) = told(new=row(1, None, 5), old=row(1, "a", None), form=form)
    assert update["new"] == {"id": 1, "name": None, "org": 5}


@pytest.mark.parametrize("form", ["plain", "full"])
def test_of_a_row_whose_old_one_is_not_known_everything_known_comes(form: str) -> None:
    (update,) = told(new=row(1, "b", 5), old=None, form=form)
    assert update["new"] == {"id": 1, "name": "b", "org": 5}
    (moved,) = told(new=row(2, MISSING, 5), old=(b"1", MISSING, MISSING), form=form)
    assert moved["new"] == {"id": 2, "org": 5}
    assert moved["old"] == {"id": 1}


def test_a_key_that_changes_names_the_old_one_and_brings_nothing_else() -> None:
    (update,) = told(new=row(2, "a", 5), old=row(1, "a", 5))
    assert (update["key"], update["new"], update["old"]) == ({"id": 2}, {"id": 2}, {"id": 1})


@pytest.mark.parametrize("form", ["plain", "full"])
def test_without_a_key_the_old_row_stays_whole(form: str) -> None:
    (update,) = told(new=row(1, "b", 5), old=row(1, "a", 5), form=form, of=KEYLESS)
    assert update["new"] == {"name": "b"}
    assert update["old"] == {"id": 1, "name": "a", "org": 5}


def test_an_update_of_other_columns_is_not_told_and_the_next_one_builds_on_what_was() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects", columns=("name",), only_changed=True)
    update = change(PROJECTS, "UPDATE", row(1, "a", 6), row(1, "a", 5))
    hub.publish([transaction(2, change(PROJECTS, "INSERT", row(1, "a", 5)))], 0.0)
    hub.publish([transaction(3, update)], 0.0)
    hub.publish([transaction(4, change(PROJECTS, "UPDATE", row(1, "b", 6), row(1, "a", 6)))], 0.0)
    heard = client.heard()
    assert [(message["base"], message["position"]) for message in heard] == [(at(1), at(2)), (at(2), at(4))]
    assert heard[1]["changes"][0]["new"] == {"id": 1, "name": "b"}
    assert hub.deliveries["projects"] == 2
    resumed = Client(hub)
    hub.replay(resumed.subscriber, [resumed.watch("projects", columns=("name",), only_changed=True)], at(2))
    assert [message["position"] for message in resumed.heard()] == [at(4)]


def test_a_confirm_is_told_although_its_update_is_not() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects", columns=("name",), only_changed=True)
    update = change(PROJECTS, "UPDATE", row(1, "a", 6), row(1, "a", 5))
    hub.publish([transaction(2, update, confirms=("m",))], 0.0)
    (message,) = client.heard()
    assert (message["changes"], message["confirms"]) == ([], ["m"])


def test_a_row_that_comes_into_the_filter_comes_whole() -> None:
    (update,) = told(new=row(1, "a", 5), old=row(1, "a", 6), filter_text="org=eq.5")
    assert (update["op"], update["new"]) == ("INSERT", {"id": 1, "name": "a", "org": 5})


def test_both_kinds_watch_one_shape_and_are_encoded_once_each() -> None:
    hub = make_hub()
    whole, cut = [Client(hub) for _ in range(2)], [Client(hub) for _ in range(2)]
    for client in whole:
        client.watch("projects")
    numbers = {client.watch("projects", only_changed=True).outlet.number for client in cut}
    hub.publish([transaction(2, change(PROJECTS, "UPDATE", row(1, "b", 5), row(1, "a", 5)))], 0.0)
    assert hub.shape_count == 1
    assert hub.audience_count == 2
    assert cut[0].sink.data[0] is cut[1].sink.data[0]
    assert whole[0].sink.data[0] is whole[1].sink.data[0]
    (change_told,) = cut[0].heard()[0]["changes"]
    assert {change_told["shape"]} == numbers
    assert "org" not in change_told["new"]
    assert "org" in whole[0].heard()[0]["changes"][0]["new"]


def test_shapes_of_equal_columns_have_the_difference_made_once() -> None:
    hub = make_hub()
    clients = [Client(hub) for _ in range(2)]
    for client, filter_text in zip(clients, (None, "org=eq.5"), strict=True):
        client.watch("projects", filter_text, only_changed=True)
    hub.publish([transaction(2, change(PROJECTS, "UPDATE", row(1, "b", 5), row(1, "a", 5)))], 0.0)
    first, second = (client.heard()[0]["changes"][0]["new"] for client in clients)
    assert first == second == {"id": 1, "name": "b"}


def test_one_connection_may_have_both_and_tells_them_apart() -> None:
    hub = make_hub()
    client = Client(hub)
    whole = client.watch("projects", name="whole").outlet.number
    cut = client.watch("projects", name="cut", only_changed=True).outlet.number
    hub.publish([transaction(2, change(PROJECTS, "UPDATE", row(1, "b", 5), row(1, "a", 5)))], 0.0)
    (message,) = client.heard()
    news = {each["shape"]: each["new"] for each in message["changes"]}
    assert news == {whole: {"id": 1, "name": "b", "org": 5}, cut: {"id": 1, "name": "b"}}
    hub.leave(client.subscriber)
    assert hub.shape_count == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(st.tuples(ids, st.sampled_from("xy"), orgs, st.booleans()), min_size=1, max_size=4),
        max_size=8,
    ),
    st.sampled_from(FILTERS),
    st.sampled_from([None, ("name",), ("org",), ("id",)]),
    st.sampled_from(["live", "replayed"]),
)
def test_rows_that_are_put_together_are_the_query(
    commits: list[list[tuple[int, str, int | None, bool]]],
    filter_text: str | None,
    columns: tuple[str, ...] | None,
    way: str,
) -> None:
    hub = make_hub()
    stored: dict[int, Row] = {}
    client = Client(hub)
    subscription = client.watch("projects", filter_text, columns=columns, only_changed=True)
    for step, commit in enumerate(commits):
        changes: list[Change] = []
        for number, name, org, delete in commit:
            old = stored.pop(number, None)
            if delete and old is not None:
                changes.append(change(PROJECTS, "DELETE", None, old))
            elif not delete:
                stored[number] = row(number, name, org)
                changes.append(change(PROJECTS, "UPDATE" if old else "INSERT", stored[number], old))
        hub.publish([transaction(step + 2, *changes)], 0.0)
    if way == "replayed":
        client.heard()
        hub.replay(client.subscriber, [subscription], at(1))
    base: dict[int, dict[str, Any]] = {}
    for message in client.heard():
        for each in message["changes"]:
            key = each["key"]["id"]
            if each["op"] == "DELETE":
                del base[key]
            elif each["op"] == "INSERT":
                base[key] = each["new"]
            else:
                assert len(each["new"]) > 1, "one that changed nothing is not told"
                base[key] = {**base[key], **each["new"]}
    bound = subscription.shape.filter
    shown = {"id", "name", "org"} if columns is None else {"id", *columns}
    assert base == {
        key: {name: value for name, value in as_json(values).items() if name in shown}
        for key, values in stored.items()
        if bound is None or bound.matches(values)
    }
