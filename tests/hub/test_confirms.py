"""Who is told that a mutation is confirmed, where the transaction shows it no row."""

from __future__ import annotations

import itertools

from hypothesis import HealthCheck, given, settings, strategies as st
from tests.hub.test_hub import JOBS, PROJECTS, Client, insert, make_hub
from tests.streams import at, change, row, transaction

from rowcast.hub import Hub
from rowcast.model import MISSING, Gap, Position, Transaction

MINE, OTHERS = "mine-0001", "others-01"


def joined(hub: Hub, mutations: str | None) -> Client:
    client = Client(hub, mutations=mutations)
    hub.join(client.subscriber)
    return client


def test_a_confirm_goes_to_the_client_whose_mutation_it_is() -> None:
    hub = make_hub()
    mine, others, anybody = (joined(hub, mutations) for mutations in (MINE, OTHERS, None))
    again = joined(hub, MINE)  # another stream of the same client
    hub.publish([transaction(2, confirms=(f"{MINE}.a", f"{MINE}.b"))], 0.0)
    for client in (mine, again, anybody):
        (message,) = client.heard()
        assert (message["changes"], message["confirms"]) == ([], [f"{MINE}.a", f"{MINE}.b"])
    assert others.heard() == []


def test_a_transaction_with_rows_tells_what_it_confirms_to_all_who_get_them_in_the_same_bytes() -> None:
    hub = make_hub()
    clients = [Client(hub, mutations=mutations) for mutations in (MINE, OTHERS)]
    for client in clients:
        client.watch("projects")
    assert hub.audience_count == 1
    hub.publish([transaction(2, insert(1), confirms=(f"{MINE}.a",))], 0.0)
    assert clients[0].sink.data[0] is clients[1].sink.data[0]
    assert clients[0].heard()[0]["confirms"] == [f"{MINE}.a"]


def test_a_confirm_of_its_own_comes_in_its_place_and_leaves_no_gap() -> None:
    hub = make_hub()
    mine, others = Client(hub, mutations=MINE), Client(hub, mutations=OTHERS)
    for client in (mine, others):
        client.watch("projects")
    hub.publish(
        [transaction(2, insert(1)), transaction(3, confirms=(f"{MINE}.a",)), transaction(4, insert(2))], 0.0
    )
    heard = [(message["base"], message["position"]) for message in mine.heard()]
    assert heard == [(at(1), at(2)), (at(2), at(3)), (at(2), at(4))]
    assert [(message["base"], message["position"]) for message in others.heard()] == [
        (at(1), at(2)),
        (at(2), at(4)),
    ]


def test_a_resync_of_the_same_transaction_comes_before_its_confirm() -> None:
    hub = make_hub()
    client = Client(hub, mutations=MINE)
    client.watch("projects", "name=eq.a")
    update = change(PROJECTS, "UPDATE", (b"1", MISSING, b"5"), None)
    hub.publish([transaction(2, update, confirms=(f"{MINE}.a",))], 0.0)
    assert client.resyncs == [("projects", "unchanged_value", at(1))]
    assert client.heard()[0]["confirms"] == [f"{MINE}.a"]


def test_a_replay_tells_confirms_as_the_stream_would_have() -> None:
    hub = make_hub()
    hub.publish(
        [
            transaction(2, confirms=(f"{OTHERS}.a",)),
            transaction(3, confirms=(f"{OTHERS}.b", f"{MINE}.a")),
            transaction(4, insert(1), confirms=(f"{OTHERS}.c",)),
        ],
        0.0,
    )
    client = Client(hub, mutations=MINE)
    hub.replay(client.subscriber, [client.watch("projects")], at(1))
    assert [message["position"] for message in client.heard()] == [at(3), at(4)]


def test_an_id_that_is_no_json_breaks_nothing() -> None:
    hub = make_hub()
    client = joined(hub, None)
    wild = ('"],"changes":[{"shape":1}],"confirms":["', "back\\slash", "line\nbreak\x00", "ключ")
    hub.publish([transaction(2, confirms=wild)], 0.0)
    (message,) = client.heard()
    assert (message["changes"], message["confirms"]) == ([], list(wild))


def test_recent_confirms_are_known_for_as_long_as_the_log_keeps_their_transactions() -> None:
    hub = make_hub()
    hub.publish([transaction(2, confirms=("a", "b")), transaction(3, confirms=("b",))], 0.0)
    assert [hub.confirmed_at(each) for each in ("a", "b", "c")] == [at(2), at(3), None]
    hub.log.trim(10_000.0)
    hub.publish([transaction(4), transaction(5, confirms=("c",))], 10_000.0)
    assert [hub.confirmed_at(each) for each in ("a", "b", "c")] == [None, at(3), at(5)]
    hub.publish([Gap(Position("f" * 16 + at(9)[16:]), "slot_lost")], 10_000.0)
    assert hub.confirmed_at("c") is None


def test_who_has_gone_is_told_nothing_and_forgotten() -> None:
    hub = make_hub()
    first, second = joined(hub, MINE), joined(hub, MINE)
    hub.leave(first.subscriber)
    hub.publish([transaction(2, confirms=(f"{MINE}.a",))], 0.0)
    assert first.heard() == []
    assert len(second.heard()) == 1
    hub.leave(second.subscriber)
    hub.leave(second.subscriber)
    assert hub._confirms._owners == {}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["project", "job"]), max_size=2),
            st.lists(st.sampled_from([MINE, OTHERS, "no dot"]), max_size=2),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 8), max_size=3),
)
def test_every_client_hears_its_own_and_never_sees_a_gap(
    commits: list[tuple[list[str], list[str]]], cuts: list[int]
) -> None:
    """Rules 1 and 2 for confirms: whatever is batched together, positions rise and no base lies beyond them."""
    hub = make_hub()
    clients = {mutations: Client(hub, mutations=mutations) for mutations in (MINE, OTHERS, None)}
    clients[MINE].watch("projects")
    clients[OTHERS].watch("projects")
    clients[None].watch("jobs")
    transactions: list[Transaction] = []
    for step, (rows, owners) in enumerate(commits):
        changes = [
            insert(step) if each == "project" else change(JOBS, "INSERT", row(step, 1)) for each in rows
        ]
        confirms = tuple(f"{owner}.{step}" for owner in owners)
        transactions.append(transaction(step + 2, *changes, confirms=confirms))
    edges = [0, *sorted(min(cut, len(transactions)) for cut in cuts), len(transactions)]
    for start, end in itertools.pairwise(edges):
        hub.publish(transactions[start:end], 0.0)
    for mutations, client in clients.items():
        position, told = at(1), list[str]()
        for message in client.heard():
            assert message["base"] <= position < message["position"]
            position = message["position"]
            told += message["confirms"]
        due = [
            confirm
            for each in transactions
            for confirm in each.confirms
            if mutations is None or confirm.startswith(f"{mutations}.")
        ]
        assert [each for each in told if each in due] == due
