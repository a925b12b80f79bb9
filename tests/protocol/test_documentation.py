"""Every JSON block of docs/protocol.md, executed: what clients send is understood, what servers send is what is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.streams import Collector, change, row, table, transaction

from rowcast.errors import ProtocolError
from rowcast.hub import Hub, Request, Subscriber, Subscription
from rowcast.log import MemoryLog
from rowcast.model import Position
from rowcast.protocol.forms import FULL, PLAIN
from rowcast.protocol.framing import LINE
from rowcast.protocol.native import NativeSession, Reply, ServerState

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
BLOCKS: list[dict[str, Any]] = [
    json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
]
INLINE: list[dict[str, Any]] = [json.loads(text) for text in re.findall(r'`(\{"type": .*?\})`', PAGE)]
HEAD = Position("5e1f0c6a9d3b2e47-00000000016b3890")
BASE = Position("5e1f0c6a9d3b2e47-00000000016b3748")
FROM_CLIENT = {"hello", "subscribe", "unsubscribe", "token"}


def session(position: Position = HEAD) -> NativeSession:
    return NativeSession("s-1c4e", ServerState(15.0, position, "live"), 1000, 100, 0.0)


def sent(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(reply.message)
    return message


def is_from_client(block: dict[str, Any]) -> bool:
    return block.get("type") in FROM_CLIENT or (
        block.get("type") in {"heartbeat", "mutation"} and not block.keys() & {"position", "state"}
    )


@pytest.mark.parametrize("block", [each for each in BLOCKS + INLINE if is_from_client(each)], ids=json.dumps)
def test_a_message_of_a_client_is_understood(block: dict[str, Any]) -> None:
    full = session()
    if block["type"] != "hello":
        full.receive_text(b'{"type":"hello","version":1}', 0.0)
    if block["type"] == "token":
        block = {**block, "token": "a.b.c"}
    replies = [each for each in full.receive_text(json.dumps(block).encode(), 0.0) if isinstance(each, Reply)]
    known = [each for each in replies if each.event == "error"]
    assert known == [] or block.get("id") is None, "only plain examples may lack an id"


class Stage:
    """A hub with the page's table, one plain and one full client."""

    def __init__(self, position: Position = BASE) -> None:
        self.table = table("projects", "id bigint,name text")
        self.hub = Hub(MemoryLog(position, max_bytes=10**6, max_seconds=100), {self.table.oid: self.table})
        self.sink = Collector()
        self.replies: list[Reply] = []

    def subscribe(self, session: NativeSession, *, form: str, shape: int = 1) -> Subscription:
        session.form = "full" if form == "full" else "plain"
        subscriber = Subscriber(
            self.sink,
            FULL if form == "full" else PLAIN,
            LINE,
            lambda *arguments: self.replies.append(session.resync(*arguments)),
            lambda *_: None,
        )
        self.hub._numbers = shape - 1
        name = "p" if form == "full" else "projects"
        label = "" if form == "full" else "projects"
        self.subscriber = subscriber
        return self.hub.subscribe(subscriber, Request(name, "projects", label=label))


def find(**wanted: object) -> dict[str, Any]:
    """The page's one block that has these fields."""
    found = [
        each for each in BLOCKS if all(each.get(name, "absent") == value for name, value in wanted.items())
    ]
    assert len(found) == 1, (wanted, found)
    return found[0]


def test_plain_subscribed() -> None:
    client = session(BASE)
    subscription = Stage(BASE).subscribe(client, form="plain")
    assert sent(client.subscribed(subscription, BASE)) == find(type="subscribed", shape="absent")


def test_full_subscribed() -> None:
    client = session(HEAD)
    subscription = Stage(HEAD).subscribe(client, form="full", shape=3)
    assert sent(client.subscribed(subscription, HEAD)) == find(type="subscribed", shape=3)


def test_a_plain_change_and_a_full_transaction() -> None:
    for form, expected in (("plain", find(op="INSERT")), ("full", find(type="transaction"))):
        stage = Stage(BASE)
        stage.subscribe(session(), form=form, shape=3)
        confirms = tuple(find(type="transaction")["confirms"])
        inserted = change(stage.table, "INSERT", row(7, "Atlas"))
        stage.hub.publish([transaction(0x16B3890, inserted, confirms=confirms)], 0.0)
        (line,) = stage.sink.lines()
        assert json.loads(line) == {**expected, "timestamp": json.loads(line)["timestamp"]}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", json.loads(line)["timestamp"])


def test_welcome() -> None:
    (welcome,) = session().receive_text(b'{"type":"hello","version":1}', 0.0)
    assert isinstance(welcome, Reply)
    assert sent(welcome) == find(type="welcome")


def test_unsubscribed() -> None:
    plain, full = session(), session()
    full.form = "full"
    assert sent(plain.unsubscribed("projects", "projects")) == find(type="unsubscribed")
    assert sent(full.unsubscribed("p", "projects")) in INLINE


def test_heartbeat() -> None:
    (reply,) = session().receive_text(json.dumps(find(type="heartbeat", position="absent")).encode(), 0.0)
    assert isinstance(reply, Reply)
    assert sent(reply) == find(type="heartbeat", position=HEAD)


def test_mutation() -> None:
    question, answer = find(type="mutation", state="absent"), find(type="mutation", state="committed")
    assert sent(NativeSession.mutation(question["id"], answer["position"])) == answer


def test_resync() -> None:
    client = session()
    subscription = Stage(HEAD).subscribe(client, form="full", shape=3)
    assert sent(client.resync(subscription, "slow_client", 240, HEAD)) == find(type="resync")


def test_status_goodbye_and_error() -> None:
    client = session()
    example = find(type="status")
    client.server.state, client.server.reason = example["state"], example["reason"]
    assert sent(client.status()) == example
    assert sent(client.goodbye(1200)) == find(type="goodbye")
    stage = Stage()
    jobs = table("jobs", "id bigint", oid=1001)
    hub = Hub(stage.hub.log, {stage.table.oid: stage.table, jobs.oid: jobs})
    with pytest.raises(ProtocolError) as refused:
        hub.subscribe(
            Subscriber(stage.sink, PLAIN, LINE, lambda *_: None, lambda *_: None),
            Request("project", "project"),
        )
    assert sent(client.error(refused.value, "project")) == find(type="error")


def test_no_block_is_left_unread() -> None:
    kinds = {each.get("type", each.get("op")) for each in BLOCKS}
    assert kinds == {
        *("subscribe", "subscribed", "INSERT", "unsubscribe", "unsubscribed", "hello", "welcome", "snapshot"),
        *("transaction", "heartbeat", "resync", "status", "goodbye", "error", "mutation"),
    }


def test_every_code_in_the_source_is_on_the_page() -> None:
    source = "".join(
        path.read_text()
        for room in ("protocol", "hub", "server")
        for path in (Path(__file__).parents[2] / "src" / "rowcast" / room).glob("*.py")
    )
    codes = set(re.findall(r'ProtocolError\(\s*"([a-z_]+)"', source))
    closes = set(re.findall(r"(?:drop|close|Close|finish)\(\s*(?:_\w+, )?(\d{4})", source))
    for code in codes | closes:
        assert f"`{code}`" in PAGE or f"| {code} |" in PAGE, code
