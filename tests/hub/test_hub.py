"""The hub with streams made by hand: who gets what, in which order, with which bytes shared."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.streams import Collector, at, change, row, table, transaction

from rowcast.errors import ProtocolError
from rowcast.filters import parse_postgrest
from rowcast.hub import Hub, Request, Subscriber, Subscription
from rowcast.log import MemoryLog
from rowcast.model import MISSING, Change, Gap, Position, Progress, Row, Table, TablesChanged
from rowcast.protocol.forms import FULL, PLAIN
from rowcast.protocol.framing import LINE

PROJECTS = table("projects", "id bigint,name text,org integer")
JOBS = table("jobs", "id bigint,project bigint", oid=1001)


class Client:
    """A connection to the hub that keeps what it is told."""

    def __init__(self, hub: Hub, *, form: str = "full", mutations: str | None = None) -> None:
        self.hub = hub
        self.sink = Collector()
        self.resyncs: list[tuple[str, str, Position]] = []
        self.columns: list[tuple[str, str]] = []
        self.subscriber = Subscriber(
            self.sink, FULL if form == "full" else PLAIN, LINE, self._resync, self._columns, mutations
        )

    def _resync(self, subscription: Subscription, reason: str, after_ms: int, position: Position) -> None:
        assert after_ms >= 0
        self.resyncs.append((subscription.id, reason, position))

    def _columns(self, subscription: Subscription, error: ProtocolError | None) -> None:
        self.columns.append((subscription.id, error.code if error else "changed"))

    def watch(
        self, channel: str, filter_text: str | None = None, name: str | None = None, **more: Any
    ) -> Subscription:
        expression = None if filter_text is None else parse_postgrest(filter_text)
        label = channel if self.subscriber.form is PLAIN else ""
        return self.hub.subscribe(
            self.subscriber, Request(name or channel, channel, expression=expression, label=label, **more)
        )

    def heard(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.sink.lines()]

    def operations(self) -> list[tuple[str, int]]:
        return [
            (each["op"], each.get("key", {}).get("id"))
            for message in self.heard()
            for each in message.get("changes", [message])
        ]


def make_hub(*tables: Table, **more: Any) -> Hub:
    tables = tables or (PROJECTS, JOBS)
    log = MemoryLog(at(1), max_bytes=10**6, max_seconds=1000)
    return Hub(log, {each.oid: each for each in tables}, **more)


def insert(number: int, name: str = "a", org: int | None = 5) -> Change:
    return change(PROJECTS, "INSERT", row(number, name, org))


def test_leaving_and_entering_a_filter_are_a_delete_and_an_insert() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects", "org=eq.5")
    hub.publish(
        [
            transaction(
                2,
                insert(1),
                insert(2, org=6),
                change(PROJECTS, "UPDATE", row(1, "b", 5), row(1, "a", 5)),
                change(PROJECTS, "UPDATE", row(1, "b", 6), row(1, "b", 5)),
                change(PROJECTS, "UPDATE", row(2, "a", 5), row(2, "a", 6)),
                change(PROJECTS, "UPDATE", row(3, "a", 7), row(3, "a", 8)),
                change(PROJECTS, "DELETE", None, row(2, "a", 5)),
                change(PROJECTS, "DELETE", None, row(3, "a", 7)),
                change(PROJECTS, "TRUNCATE"),
            )
        ],
        0.0,
    )
    (message,) = client.heard()
    assert [(each["op"], each.get("key", {}).get("id")) for each in message["changes"]] == [
        ("INSERT", 1),
        ("UPDATE", 1),
        ("DELETE", 1),
        ("INSERT", 2),
        ("DELETE", 2),
        ("TRUNCATE", None),
    ]
    left = message["changes"][2]
    assert "new" not in left, "who leaves does not see what the row became"


def test_without_old_rows_whoever_does_not_get_the_new_one_is_told_to_delete_by_key() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects", "org=eq.5")
    hub.publish(
        [
            transaction(
                2,
                change(PROJECTS, "UPDATE", row(1, "a", 5), None),
                change(PROJECTS, "UPDATE", row(1, "a", 6), None),
                change(PROJECTS, "DELETE", None, (b"1", MISSING, MISSING)),
            )
        ],
        0.0,
    )
    assert client.operations() == [("UPDATE", 1), ("DELETE", 1), ("DELETE", 1)]


def test_a_filter_on_a_value_that_was_not_sent_is_a_resync_not_a_guess() -> None:
    hub = make_hub()
    filtered, everything = Client(hub), Client(hub)
    filtered.watch("projects", "name=eq.a")
    everything.watch("projects")
    hub.publish([transaction(2, change(PROJECTS, "UPDATE", (b"1", MISSING, b"5"), None))], 0.0)
    assert filtered.resyncs == [("projects", "unchanged_value", at(1))], "before the change that it is about"
    assert everything.operations() == [("UPDATE", 1)]


def test_a_key_that_changes_and_leaves_names_the_key_that_the_client_knows() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects", "org=eq.5")
    hub.publish([transaction(2, change(PROJECTS, "UPDATE", row(9, "a", 6), row(1, "a", 5)))], 0.0)
    assert client.operations() == [("DELETE", 1)]


def test_clients_of_equal_shapes_share_the_same_bytes() -> None:
    hub = make_hub()
    clients = [Client(hub) for _ in range(3)]
    for client in clients:
        client.watch("projects", "org=eq.5", name=f"own name {id(client)}")
    hub.publish([transaction(2, insert(1))], 0.0)
    first, *others = (client.sink.data[0] for client in clients)
    assert all(other is first for other in others)
    assert hub.audience_count == 1
    assert len(list(hub.shapes)) == 1
    assert hub.deliveries["projects"] == 3


def test_what_comes_together_leaves_together() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects")
    hub.publish([transaction(2, insert(1)), Progress(at(3)), transaction(4, insert(2))], 0.0)
    assert len(client.sink.data) == 1
    assert [message["position"] for message in client.heard()] == [at(2), at(4)]


def test_each_transaction_names_the_one_before_it_in_the_clients_own_stream() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects")
    hub.publish([transaction(2, insert(1)), transaction(3, change(JOBS, "INSERT", row(1, 1)))], 0.0)
    later = Client(hub)
    later.watch("projects")
    hub.publish([transaction(4, insert(2))], 0.0)
    first, second = client.heard()
    assert (first["base"], second["base"]) == (at(1), at(2))
    (joined,) = later.heard()
    assert joined["base"] <= at(3), "who joined at 3 applies it"


def test_a_subscription_gets_nothing_from_before_it() -> None:
    hub = make_hub()
    hub.publish([transaction(2, insert(1))], 0.0)
    client = Client(hub)
    assert client.watch("projects").position == at(2)
    assert client.heard() == []


def test_a_confirmation_reaches_full_clients_and_only_them() -> None:
    hub = make_hub()
    full, plain = Client(hub), Client(hub, form="plain")
    hub.join(full.subscriber)
    plain.watch("projects")
    hub.publish([transaction(2, confirms=("m",))], 0.0)
    (message,) = full.heard()
    assert (message["changes"], message["confirms"]) == ([], ["m"])
    assert plain.heard() == []


def test_unknown_channels_name_the_known_ones_once() -> None:
    with pytest.raises(ProtocolError, match=r'no channel "x"; known: jobs, projects$'):
        Client(make_hub()).watch("x")


def test_what_there_is_to_watch_can_be_looked_up() -> None:
    hub = make_hub()
    assert hub.tables == {PROJECTS.oid: PROJECTS, JOBS.oid: JOBS}
    assert {name: table.name for name, table in hub.channels.items()} == {
        **dict.fromkeys(["projects", "public.projects"], "projects"),
        **dict.fromkeys(["jobs", "public.jobs"], "jobs"),
    }
    shape = Client(hub).watch("projects", columns=("org",)).shape
    assert shape.columns_description() == [
        {"name": "id", "type": "bigint"},
        {"name": "org", "type": "integer"},
    ]


def test_an_id_is_taken_once() -> None:
    client = Client(make_hub())
    client.watch("projects", name="mine")
    with pytest.raises(ProtocolError, match="unsubscribe first, or give the second one another id"):
        client.watch("jobs", name="mine")


def test_shapes_of_equal_columns_have_a_row_encoded_once() -> None:
    encoded: list[Row] = []
    hub = make_hub()
    clients = [Client(hub), Client(hub, form="plain"), Client(hub)]
    for client, filter_text in zip(clients, (None, None, "org=eq.5"), strict=True):
        projection = client.watch("projects", filter_text).shape.projection
    once = projection.row

    def counted(values: Row) -> bytes:
        encoded.append(values)
        return once(values)

    projection.row = counted
    hub.publish([transaction(2, insert(1))], 0.0)
    assert [client.operations() for client in clients] == [[("INSERT", 1)]] * 3
    assert len(encoded) == 1


def test_only_offered_tables_are_channels() -> None:
    hub = make_hub(offered=["public.jobs"])
    client = Client(hub)
    client.watch("jobs")
    with pytest.raises(ProtocolError):
        client.watch("projects")


def test_tables_of_other_schemas_are_named_with_them() -> None:
    hub = make_hub(PROJECTS, table("projects", "id bigint", schema="old", oid=1002))
    client = Client(hub)
    assert client.watch("projects").shape.table is PROJECTS
    assert client.watch("old.projects").shape.table.schema == "old"
    assert client.watch("public.projects").shape.table is PROJECTS


def test_a_scope_is_a_filter() -> None:
    hub = make_hub(scopes={"projects": "org"})
    client = Client(hub)
    client.watch("projects:5", "name=eq.a")
    other = Client(hub)
    other.watch("projects", "name=eq.a&org=eq.5")
    assert len(list(hub.shapes)) == 1
    with pytest.raises(ProtocolError, match="no channel"):
        client.watch("jobs:5")
    with pytest.raises(ProtocolError) as refused:
        client.watch("projects:five")
    assert refused.value.code == "invalid_filter"


def test_unknown_columns_list_the_known_ones() -> None:
    with pytest.raises(ProtocolError, match="it has: id, name, org"):
        Client(make_hub()).watch("projects", columns=("colour",))


def test_what_nobody_watches_is_forgotten() -> None:
    hub = make_hub()
    clients = [Client(hub), Client(hub, form="plain")]
    for client in clients:
        client.watch("projects", "org=eq.5")
        client.watch("jobs")
    hub.unsubscribe(clients[0].subscriber, "jobs")
    with pytest.raises(ProtocolError):
        hub.unsubscribe(clients[0].subscriber, "jobs")
    for client in clients:
        hub.leave(client.subscriber)
        hub.leave(client.subscriber)
    assert list(hub.shapes) == []
    assert hub.audience_count == 0
    assert not hub.subscribers
    assert [list(routes) for routes in hub._routes.values()] == [[], []]


def test_an_inactive_subscription_waits_for_its_turn() -> None:
    hub = make_hub()
    client, other = Client(hub, form="plain"), Client(hub, form="plain")
    waiting = hub.subscribe(client.subscriber, Request("p", "projects", label="projects"), active=False)
    other.watch("projects")
    hub.publish([transaction(2, insert(1))], 0.0)
    hub.leave(other.subscriber)
    assert client.heard() == []
    hub.activate(client.subscriber, waiting)
    assert waiting.position == at(2)
    hub.publish([transaction(3, insert(2))], 0.0)
    assert client.operations() == [("INSERT", 2)]


def test_a_resume_tells_all_subscriptions_in_one_pass() -> None:
    hub = make_hub()
    hub.publish(
        [
            transaction(2, insert(1), change(JOBS, "INSERT", row(1, 1)), confirms=("m",)),
            transaction(3, change(JOBS, "DELETE", None, row(1, 1))),
            transaction(4, insert(2, org=6), confirms=("n",)),
        ],
        0.0,
    )
    client = Client(hub)
    wanted = [client.watch("projects", "org=eq.5"), client.watch("jobs")]
    hub.replay(client.subscriber, wanted, at(1))
    assert client.resyncs == []
    messages = client.heard()
    assert [(m["base"], m["position"], len(m["changes"]), m["confirms"]) for m in messages] == [
        (at(1), at(2), 2, ["m"]),
        (at(2), at(3), 1, []),
        (at(3), at(4), 0, ["n"]),
    ]


def test_what_the_client_has_seen_is_not_replayed() -> None:
    hub = make_hub()
    hub.publish([transaction(2, insert(1), xid=10), transaction(3, insert(2), xid=11)], 0.0)
    client = Client(hub)
    hub.replay(client.subscriber, [client.watch("projects")], at(1), seen=lambda xid: xid == 10)
    assert client.operations() == [("INSERT", 2)]


def test_where_a_resume_would_be_incomplete_it_says_so() -> None:
    hub = make_hub()
    assert hub.resumable(at(0)) == "log_expired"
    assert hub.resumable(at(99)) == "position_unknown"
    assert hub.resumable(Position("0" * 16 + at(1)[16:])) == "epoch_changed"
    hub.publish(
        [transaction(2, insert(1)), Gap(at(3), "transaction_too_large", frozenset({PROJECTS.oid}))], 0.0
    )
    hub.publish([transaction(4, change(PROJECTS, "UPDATE", (b"1", MISSING, b"5"), None))], 0.0)
    hub.publish([transaction(5, change(JOBS, "INSERT", row(1, 1)))], 0.0)
    client = Client(hub)
    projects, jobs = client.watch("projects"), client.watch("jobs")
    named = client.watch("projects", "name=eq.a", name="named")
    hub.replay(client.subscriber, [projects, jobs], at(1))
    assert client.resyncs == [("projects", "transaction_too_large", at(3))]
    hub.replay(client.subscriber, [named], at(3))
    assert client.resyncs[1:] == [("named", "unchanged_value", at(3))]


def test_a_resumed_subscription_is_told_of_its_gap_before_anything_behind_it() -> None:
    hub = make_hub()
    hub.publish(
        [
            transaction(2, insert(1)),
            Gap(at(3), "transaction_too_large", frozenset({PROJECTS.oid})),
            transaction(4, change(JOBS, "INSERT", row(1, 1))),
        ],
        0.0,
    )
    order: list[str] = []

    class Ordered(Client):
        def _resync(self, subscription: Subscription, reason: str, after_ms: int, position: Position) -> None:
            order.extend(message["position"] for message in self.heard())
            order.append(f"{subscription.id}: {reason}")

    client = Ordered(hub)
    hub.replay(client.subscriber, [client.watch("projects"), client.watch("jobs")], at(1))
    order.extend(message["position"] for message in client.heard())
    assert order == [at(2), "projects: transaction_too_large", at(4)]


def test_a_value_that_is_not_known_resyncs_every_subscription_to_the_shape() -> None:
    hub = make_hub()
    hub.publish([transaction(2, change(PROJECTS, "UPDATE", (b"1", MISSING, b"5"), None))], 0.0)
    client = Client(hub)
    twins = [client.watch("projects", "name=eq.a", name=name) for name in ("one", "two")]
    hub.replay(client.subscriber, twins, at(1))
    assert [name for name, _, _ in client.resyncs] == ["one", "two"]


def test_a_replay_over_the_bound_is_a_resync() -> None:
    hub = make_hub()
    text = "x" * 1_000_000
    for number in range(2, 30):
        hub.publish([transaction(number, insert(number, text))], 0.0)
    client = Client(hub)
    subscription = client.watch("projects")
    hub.replay(client.subscriber, [subscription], at(1))
    assert client.resyncs == [("projects", "log_expired", hub.head)]
    assert client.heard() == []


def test_a_gap_tells_those_concerned_and_the_rest_goes_on() -> None:
    hub = make_hub()
    concerned, other = Client(hub), Client(hub)
    concerned.watch("projects")
    other.watch("jobs")
    hub.publish([Gap(at(5), "transaction_too_large", frozenset({PROJECTS.oid, 4711}))], 0.0)
    hub.publish([transaction(6, insert(1), change(JOBS, "INSERT", row(1, 1)))], 0.0)
    assert concerned.resyncs == [("projects", "transaction_too_large", at(5))]
    assert other.resyncs == []
    assert other.heard()[0]["base"] == at(1), "who missed nothing is not made to resume"


def test_a_new_epoch_tells_everybody() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects")
    hub.publish([transaction(2, insert(1))], 0.0)
    client.heard()
    fresh = Position("f" * 16 + at(9)[16:])
    hub.publish([Gap(fresh, "slot_lost")], 0.0)
    assert client.resyncs == [("projects", "slot_lost", fresh)]
    assert hub.head == hub.log.floor == fresh
    assert hub.resumable(at(2)) == "epoch_changed"


def test_a_slow_client_is_told_for_each_subscription() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects")
    client.watch("jobs")
    hub.resync_all(client.subscriber, "slow_client")
    assert [reason for _, reason, _ in client.resyncs] == ["slow_client", "slow_client"]
    hub.resync_shapes([], "nothing", at(9))


def test_new_columns_reach_subscribers_with_a_resync_between() -> None:
    hub = make_hub()
    everything, chosen, other = Client(hub), Client(hub), Client(hub)
    everything.watch("projects")
    chosen.watch("projects", columns=("name",))
    other.watch("jobs")
    wider = table("projects", "id bigint,org integer,colour text")
    hub.publish([TablesChanged(at(5), {wider.oid: wider, JOBS.oid: JOBS})], 0.0)
    assert everything.columns == [("projects", "changed")]
    assert everything.resyncs == [("projects", "schema_changed", at(5))]
    assert chosen.columns == [("projects", "unknown_column")]
    assert other.resyncs == []
    hub.publish([transaction(6, change(wider, "INSERT", row(1, 5, "red")))], 0.0)
    (message,) = everything.heard()
    assert message["changes"][0]["new"] == {"id": 1, "org": 5, "colour": "red"}
    assert chosen.heard() == []
    client = Client(hub)
    subscription = client.watch("projects")
    hub.replay(client.subscriber, [subscription], at(4))
    assert client.resyncs == [("projects", "schema_changed", at(5))]


def test_a_resume_over_changes_from_before_new_columns_is_a_resync() -> None:
    hub = make_hub()
    wider = table("projects", "id bigint,name text,org integer,colour text")
    hub.publish([transaction(2, change(JOBS, "INSERT", row(1, 1))), transaction(3, insert(1))], 0.0)
    hub.publish([TablesChanged(at(4), {wider.oid: wider, JOBS.oid: JOBS})], 0.0)
    client = Client(hub)
    hub.replay(client.subscriber, [client.watch("projects"), client.watch("jobs")], at(1))
    assert client.resyncs == [("projects", "schema_changed", at(2))]
    assert client.operations() == [("INSERT", 1)]


def test_a_table_that_goes_ends_its_subscriptions_and_one_that_comes_is_a_channel() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects")
    notes = table("notes", "id bigint", oid=1003)
    hub.publish([TablesChanged(at(5), {JOBS.oid: JOBS, notes.oid: notes})], 0.0)
    assert client.resyncs == [("projects", "table_dropped", at(5))]
    assert client.subscriber.subscriptions == {}
    client.watch("notes")
    hub.publish([TablesChanged(at(6), {JOBS.oid: JOBS, notes.oid: notes})], 0.0)
    hub.publish([transaction(7, change(notes, "INSERT", row(1)))], 0.0)
    assert client.operations() == [("INSERT", 1)]


def test_a_recreated_table_is_the_same_channel() -> None:
    hub = make_hub()
    client = Client(hub)
    client.watch("projects")
    again = table("projects", "id bigint,title text", oid=2000)
    hub.publish([TablesChanged(at(5), {again.oid: again})], 0.0)
    assert client.resyncs == [("projects", "schema_changed", at(5))]
    hub.publish([transaction(6, change(again, "INSERT", row(1, "a")))], 0.0)
    assert client.operations() == [("INSERT", 1)]


ids = st.integers(1, 4)
orgs = st.sampled_from([None, 1, 2, 3])
FILTERS = [
    None,
    "org=eq.1",
    "org=in.(1,2)",
    "org=gt.1",
    "org=is.null",
    "or=(org.eq.3,name.eq.x)",
    "not.and=(org.eq.1,name.eq.x)",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(st.tuples(ids, st.sampled_from("xy"), orgs, st.booleans()), min_size=1, max_size=4),
        max_size=8,
    ),
    st.sampled_from(FILTERS),
    st.integers(0, 8),
)
def test_the_base_is_always_the_query(
    commits: list[list[tuple[int, str, int | None, bool]]], filter_text: str | None, joins_at: int
) -> None:
    """Rule 4 in small: rows kept by applying frames equal the filter over the table, whatever happens."""
    hub = make_hub()
    stored: dict[int, Row] = {}
    client = Client(hub)
    base: dict[int, dict[str, Any]] = {}
    bound = None
    for step, commit in enumerate(commits):
        if step == min(joins_at, len(commits) - 1):
            bound = client.watch("projects", filter_text).shape.filter
            base = {
                int(key): as_json(values)
                for key, values in stored.items()
                if bound is None or bound.matches(values)
            }
        changes = []
        for number, name, org, delete in commit:
            old = stored.pop(number, None)
            if delete and old is not None:
                changes.append(change(PROJECTS, "DELETE", None, old))
            elif not delete:
                stored[number] = row(number, name, org)
                changes.append(change(PROJECTS, "UPDATE" if old else "INSERT", stored[number], old))
        hub.publish([transaction(step + 2, *changes)], 0.0)
        for message in client.heard():
            for each in message["changes"]:
                if each["op"] == "DELETE":
                    del base[each["key"]["id"]]
                else:
                    assert (each["op"] == "INSERT") == (each["key"]["id"] not in base)
                    base[each["key"]["id"]] = each["new"]
        if client.subscriber.subscriptions:
            assert base == {
                key: as_json(values)
                for key, values in stored.items()
                if bound is None or bound.matches(values)
            }


def as_json(values: Row) -> dict[str, Any]:
    number, name, org = (value.decode() if isinstance(value, bytes) else None for value in values)
    assert number is not None
    return {"id": int(number), "name": name, "org": None if org is None else int(org)}
