"""The session as a state machine: frames in, commands out, time passed in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tests.streams import Collector, at, table

from rowcast.errors import ProtocolError
from rowcast.hub import Hub, Request, Subscriber, Subscription
from rowcast.log import MemoryLog
from rowcast.protocol.forms import PLAIN, plain_label
from rowcast.protocol.frames import parse_request
from rowcast.protocol.framing import LINE
from rowcast.protocol.native import (
    AskMutation,
    Close,
    Command,
    NativeSession,
    Reply,
    ServerState,
    Subscribe,
    Unsubscribe,
)


def session(*, state: str = "live", rate: float = 10, subscriptions: int = 3) -> NativeSession:
    return NativeSession(
        "s-1", ServerState(15.0, at(7), state, "" if state == "live" else "why"), subscriptions, rate, 0.0
    )


def say(to: NativeSession, now: float = 0.0, **frame: Any) -> list[Command]:
    return to.receive_text(json.dumps(frame).encode(), now)


def replies(commands: list[Command]) -> list[dict[str, Any]]:
    return [json.loads(command.message) for command in commands if isinstance(command, Reply)]


def code(commands: list[Command]) -> str:
    (message,) = replies(commands)
    assert message["type"] == "error"
    found: str = message["code"]
    return found


def hello(to: NativeSession, **more: Any) -> list[Command]:
    return say(to, type="hello", version=1, **more)


def test_the_first_message_decides_the_form() -> None:
    plain, full = session(), session()
    say(plain, type="heartbeat")
    hello(full)
    assert (plain.form, full.form) == ("plain", "full")
    assert code(hello(plain)) == "late_hello"
    assert code(hello(full)) == "late_hello"


def test_a_hello_of_another_version_leaves_the_form_open() -> None:
    client = session()
    assert code(say(client, type="hello", version=2)) == "unsupported_version"
    assert client.form is None
    assert replies(hello(client))[0]["type"] == "welcome"


def test_hello_brings_all_subscriptions_at_once() -> None:
    wishes = [
        {"id": "a", "channel": "projects", "since": at(3)},
        {"id": "b", "channel": "jobs", "snapshot": True},
        {"id": "a", "channel": "projects"},
        {"id": "c", "channel": "projects", "since": "yesterday"},
    ]
    commands = hello(session(state="degraded"), subscriptions=wishes)
    assert [message["type"] for message in replies(commands)] == ["welcome", "status", "error", "error"]
    assert [message.get("code") for message in replies(commands)[2:]] == [
        "duplicate_subscription",
        "invalid_position",
    ]
    subscribe = commands[-1]
    assert isinstance(subscribe, Subscribe)
    assert [(wish.request.subscription, wish.request.since, wish.snapshot) for wish in subscribe.wishes] == [
        ("a", at(3), False),
        ("b", None, True),
    ]


def test_hello_may_say_what_mutations_begin_with_and_a_bad_word_leaves_the_form_open() -> None:
    client = session()
    for word in ("short", "x" * 65, "with.a.dot", "with space", ""):
        assert code(hello(client, mutations=word)) == "invalid_frame"
        assert client.form is None
    assert replies(hello(client, mutations="3f9c0a71"))[0]["type"] == "welcome"
    assert client.mutations == "3f9c0a71"
    streamed = session()
    streamed.open("full", [{"id": "p", "channel": "projects"}], "3f9c0a71")
    assert streamed.mutations == "3f9c0a71"


def test_a_hello_whose_wishes_are_all_bad_subscribes_to_nothing() -> None:
    commands = hello(session(), subscriptions=[{"id": "", "channel": "projects"}])
    assert not any(isinstance(command, Subscribe) for command in commands)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"id": ""}, "invalid_frame"),
        ({"id": "x" * 129}, "invalid_frame"),
        ({"id": "a\0b"}, "invalid_frame"),
        ({"channel": "a\0b"}, "invalid_frame"),
        ({"snapshot": True, "since": at(1)}, "invalid_frame"),
        ({"filter": "id=eq.1", "where": "id = 1"}, "invalid_filter"),
        ({"params": [1]}, "invalid_filter"),
        ({"filter": "id=dances.1"}, "invalid_filter"),
        ({"where": "id = = 1"}, "invalid_filter"),
        ({"since": "abc"}, "invalid_position"),
        ({"columns": "id"}, "invalid_frame"),
    ],
)
def test_a_bad_field_is_named_by_its_code(frame: dict[str, Any], expected: str) -> None:
    assert code(say(session(), **{"type": "subscribe", "channel": "projects", **frame})) == expected


def test_filters_come_in_both_languages() -> None:
    frame: dict[str, Any]
    for frame in ({"filter": "org=eq.5"}, {"where": "org = $1", "params": [5]}, {"where": "org = 5"}):
        (command,) = say(session(), type="subscribe", channel="projects", **frame)
        assert isinstance(command, Subscribe)
        assert command.wishes[0].request.expression is not None


def test_after_hello_a_subscription_needs_an_id() -> None:
    client = session()
    hello(client)
    assert code(say(client, type="subscribe", channel="projects")) == "invalid_frame"


def test_a_connection_holds_so_many_subscriptions_and_a_refused_one_does_not_count() -> None:
    client = session(subscriptions=2)
    for name in ("a", "b"):
        assert not replies(say(client, type="subscribe", channel="projects", id=name))
    assert code(say(client, type="subscribe", channel="projects", id="c")) == "too_many_subscriptions"
    refused = json.loads(client.refused("b", ProtocolError("unknown_channel", "no")).message)
    assert (refused["id"], refused["code"]) == ("b", "unknown_channel")
    assert not replies(say(client, type="subscribe", channel="projects", id="c"))


def test_unsubscribe_names_an_id_or_a_channel() -> None:
    client = session()
    assert say(client, type="unsubscribe", id="a") == [Unsubscribe("a")]
    assert say(client, type="unsubscribe", channel="projects") == [Unsubscribe("projects")]
    assert code(say(client, type="unsubscribe")) == "invalid_frame"
    assert json.loads(client.unsubscribed("a", None).message) == {"type": "unsubscribed", "channel": "a"}
    assert json.loads(client.unsubscribed("a", "projects").message) == {"type": "unsubscribed", "id": "a"}


def test_unsubscribed_says_in_the_full_form_where_the_rest_goes_on() -> None:
    client = session()
    say(client, type="hello", version=1)
    told = json.loads(client.unsubscribed("a", "projects").message)
    assert told == {"type": "unsubscribed", "id": "a", "position": client.server.position}


def test_a_heartbeat_is_answered_only_if_it_asks() -> None:
    client = session()
    assert say(client, type="heartbeat") == []
    assert replies(say(client, type="heartbeat", id=4)) == [{"type": "heartbeat", "id": 4, "position": at(7)}]


def test_what_became_of_a_mutation_is_asked_by_its_id() -> None:
    client = session()
    assert say(client, type="mutation", id="m.1") == [AskMutation("m.1")]
    for identifier in ("", "x" * 201):
        assert code(say(client, type="mutation", id=identifier)) == "invalid_frame"
    unknown, committed = client.mutation("m.1", None), client.mutation("m.1", at(5))
    assert json.loads(unknown.message) == {"type": "mutation", "id": "m.1", "state": "unknown"}
    assert json.loads(committed.message)["position"] == at(5)


def test_a_new_token_is_accepted() -> None:
    assert replies(say(session(), type="token", token="t")) == [{"type": "token_accepted"}]


def test_binary_is_refused_and_counts() -> None:
    client = session(rate=1)
    for _ in range(10):
        assert code(client.receive_binary(0.0)) == "binary_frame"
    assert code(client.receive_binary(0.0)) == "rate_limited"
    assert client.receive_binary(0.0) == [Close(4003, "too many messages")]


def test_a_flood_is_warned_once_then_ignored_then_ended_and_a_pause_forgives() -> None:
    client = session(rate=10)
    for _ in range(100):
        assert say(client, type="heartbeat") == []
    assert code(say(client, type="heartbeat")) == "rate_limited"
    for _ in range(9):
        assert say(client, type="heartbeat", id=1) == []
    assert say(client, 2.0, type="heartbeat", id=1) != []
    for _ in range(9):
        say(client, 2.0, type="heartbeat")
    assert code(say(client, 2.0, type="heartbeat")) == "rate_limited"
    for _ in range(9):
        say(client, 2.0, type="heartbeat")
    assert say(client, 2.0, type="heartbeat") == [Close(4003, "too many messages")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "malformed_json"),
        (b"\xff", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
        (b'{"type":"subscribe","channel":"x","extra":' + b"[" * 50_000, "malformed_json"),
        (b"null", "invalid_frame"),
        (b"{}", "invalid_frame"),
        (b'{"type":null}', "invalid_frame"),
        (b'{"type":"presence"}', "unknown_type"),
        (b'{"type":"subscribe","channel":null}', "invalid_frame"),
    ],
)
def test_text_that_is_no_frame(text: bytes, expected: str) -> None:
    assert code(session().receive_text(text, 0.0)) == expected


def test_unknown_fields_are_ignored() -> None:
    (command,) = say(session(), type="subscribe", channel="projects", colour="green")
    assert isinstance(command, Subscribe)


def test_a_request_may_carry_what_frames_would() -> None:
    client = session()
    (command,) = client.open("plain", [{"id": "projects", "channel": "projects"}])
    assert isinstance(command, Subscribe)
    assert client.form == "plain"
    commands = session().open("full", [{"id": "p", "channel": "projects"}])
    assert [type(command) for command in commands] == [Reply, Subscribe]
    entries: tuple[dict[str, object], ...] = ({"id": "p"}, {"id": 4, "channel": "projects"})
    for entry in entries:
        with pytest.raises(ProtocolError):
            session().open("plain", [entry])


def test_a_request_without_a_session_is_read_alike() -> None:
    request = parse_request({"channel": "projects", "columns": ["id"]})
    assert (request.channel, request.columns, request.since) == ("projects", ("id",), None)
    with pytest.raises(ProtocolError):
        parse_request({"columns": ["id"]})


def test_the_last_sign_of_life_is_kept() -> None:
    client = session()
    say(client, 12.5, type="heartbeat")
    assert client.last_heard == 12.5


frames = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "channel", "id", "since", "columns", "filter", "where", "params", "version", "token"]
            ),
            inner
            | st.sampled_from(
                ["subscribe", "hello", "unsubscribe", "heartbeat", "mutation", "token", "projects"]
            ),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.lists(frames.map(lambda frame: json.dumps(frame).encode()) | st.binary(max_size=30), max_size=8))
def test_no_frame_ever_raises(texts: list[bytes]) -> None:
    client = session()
    for text in texts:
        for command in client.receive_text(text, 0.0):
            assert isinstance(command, Reply | Subscribe | Unsubscribe | AskMutation | Close)


def subscribed(name: str, channel: str) -> Subscription:
    projects = table("projects", "id bigint,name text")
    hub = Hub(MemoryLog(at(7), max_bytes=10**6, max_seconds=100), {projects.oid: projects})
    subscriber = Subscriber(Collector(), PLAIN, LINE, lambda *_: None, lambda *_: None)
    return hub.subscribe(subscriber, Request(name, channel, label=plain_label(name, channel)))


def test_a_plain_subscription_of_its_own_id_is_answered_by_it() -> None:
    client = session()
    say(client, type="subscribe", channel="projects", id="mine")
    mine = subscribed("mine", "projects")
    assert json.loads(client.subscribed(mine, at(7)).message)["id"] == "mine"
    assert json.loads(client.snapshot_end(mine).message) == {
        "type": "snapshot",
        "channel": "projects",
        "id": "mine",
        "last": True,
        "position": at(7),
    }
    assert "id" not in json.loads(client.snapshot_end(subscribed("projects", "projects")).message)


def test_a_dropped_table_ends_its_subscription() -> None:
    client = session()
    say(client, type="subscribe", channel="projects", id="mine")
    message = json.loads(client.resync(subscribed("mine", "projects"), "table_dropped", 5, at(9)).message)
    assert (message["id"], message["reason"], message["position"]) == ("mine", "table_dropped", at(9))
    assert "mine" not in client.subscriptions
