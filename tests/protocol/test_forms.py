"""What a change looks like in each form, for every operation and every gap in what PostgreSQL sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.streams import Collector, at, change, row, table, transaction

from rowcast.hub import Form, Hub, Request, Subscriber
from rowcast.log import MemoryLog
from rowcast.model import MISSING, Change, Table
from rowcast.protocol.forms import FULL, FULL_WITH_OLD_ROWS, PLAIN, plain_label
from rowcast.protocol.framing import LINE


def tell(form: Form, of: Table, *changes: Change, label: str = "projects") -> list[dict[str, Any]]:
    hub = Hub(MemoryLog(at(1), max_bytes=10**6, max_seconds=100), {of.oid: of})
    sink = Collector()
    subscriber = Subscriber(sink, form, LINE, lambda *_: None, lambda *_: None)
    hub.subscribe(subscriber, Request("p", of.channel, label=label if form is PLAIN else ""))
    hub.publish([transaction(5, *changes)], 0.0)
    messages = [json.loads(line) for line in sink.lines()]
    return messages if form is PLAIN else messages[0]["changes"]


KEYED = table("projects", "id bigint,name text")
KEYLESS = table("projects", "id bigint,name text", key=())


@pytest.mark.parametrize("form", [PLAIN, FULL])
def test_operations_carry_what_they_mean(form: Form) -> None:
    changes = tell(
        form,
        KEYED,
        change(KEYED, "INSERT", row(1, "a")),
        change(KEYED, "UPDATE", row(1, "b"), row(1, "a")),
        change(KEYED, "DELETE", None, row(1, "b")),
        change(KEYED, "TRUNCATE"),
    )
    assert [each["op"] for each in changes] == ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
    assert [each.get("key") for each in changes] == [{"id": 1}, {"id": 1}, {"id": 1}, None]
    assert [each.get("new") for each in changes] == [
        {"id": 1, "name": "a"},
        {"id": 1, "name": "b"},
        None,
        None,
    ]
    olds = [None, {"id": 1, "name": "a"}, {"id": 1, "name": "b"}, None] if form is PLAIN else [None] * 4
    assert [each.get("old") for each in changes] == olds
    assert [each["id"] for each in changes] == [f"{at(5)}-{index:08x}" for index in range(4)]


def test_old_rows_are_there_for_those_who_ask() -> None:
    updated, deleted = tell(
        FULL_WITH_OLD_ROWS,
        KEYED,
        change(KEYED, "UPDATE", row(1, "b"), row(1, "a")),
        change(KEYED, "DELETE", None, row(1, "b")),
    )
    assert updated["old"] == {"id": 1, "name": "a"}
    assert deleted["old"] == {"id": 1, "name": "b"}


@pytest.mark.parametrize("form", [PLAIN, FULL])
def test_a_key_that_changes_names_the_old_one(form: Form) -> None:
    (changed,) = tell(form, KEYED, change(KEYED, "UPDATE", row(2, "a"), row(1, "a")))
    assert changed["key"] == {"id": 2}
    assert changed["old"]["id"] == 1


@pytest.mark.parametrize("form", [PLAIN, FULL])
def test_without_a_key_the_whole_old_row_says_which_one(form: Form) -> None:
    inserted, updated, deleted = tell(
        form,
        KEYLESS,
        change(KEYLESS, "INSERT", row(1, "a")),
        change(KEYLESS, "UPDATE", row(1, "b"), row(1, "a")),
        change(KEYLESS, "DELETE", None, row(1, "b")),
    )
    assert "key" not in inserted
    assert "old" not in inserted
    assert updated["old"] == {"id": 1, "name": "a"}
    assert deleted["old"] == {"id": 1, "name": "b"}


@pytest.mark.parametrize("form", [PLAIN, FULL])
def test_what_postgresql_did_not_send_is_absent(form: Form) -> None:
    updated, deleted = tell(
        form,
        KEYED,
        change(KEYED, "UPDATE", (b"1", MISSING), None),
        change(KEYED, "DELETE", None, (b"1", MISSING)),
    )
    assert updated["new"] == {"id": 1}
    assert "old" not in updated
    assert deleted["key"] == {"id": 1}
    assert "name" not in deleted.get("old", {})


def test_a_plain_change_carries_the_subscriptions_own_id_where_it_has_one() -> None:
    (named,) = tell(PLAIN, KEYED, change(KEYED, "INSERT", row(1, "a")), label=plain_label("mine", "projects"))
    assert (named["subscription"], named["channel"]) == ("mine", "projects")
    (unnamed,) = tell(
        PLAIN, KEYED, change(KEYED, "INSERT", row(1, "a")), label=plain_label("projects", "projects")
    )
    assert "subscription" not in unnamed


def test_only_the_last_event_of_a_transaction_can_be_resumed_from() -> None:
    from rowcast.protocol.framing import EVENT_STREAM

    hub = Hub(MemoryLog(at(1), max_bytes=10**6, max_seconds=100), {KEYED.oid: KEYED})
    sink = Collector()
    subscriber = Subscriber(sink, PLAIN, EVENT_STREAM, lambda *_: None, lambda *_: None)
    hub.subscribe(subscriber, Request("p", "projects", label="projects"))
    inserted = [change(KEYED, "INSERT", row(number, "a")) for number in (1, 2, 3)]
    hub.publish([transaction(5, *inserted)], 0.0)
    events = b"".join(sink.data).split(b"\n\n")[:-1]
    assert [event.startswith(b"id: ") for event in events] == [False, False, True]
