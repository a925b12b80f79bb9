"""The vectors of spec/store, run as spec/README.md says: a session and a store, one input a step, everything compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rowcast.client.events import Interest
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
from rowcast.client.rows import canonical_text, make_key
from rowcast.client.session import Session
from rowcast.client.store import Store

SPEC = Path(__file__).parents[2] / "spec"
EPOCHS = {"@": "5e1f0c6a9d3b2e47", "@@": "00ff0c6a9d3b2e47"}
COLUMNS = [
    {"name": "id", "type": "bigint"},
    {"name": "name", "type": "text"},
    {"name": "status", "type": "text"},
]
TIMESTAMP = "2026-11-21T09:30:00.000000Z"
Object = dict[str, Any]


def vectors(folder: str) -> Iterator[Any]:
    for path in sorted((SPEC / folder).glob("*.json")):
        for vector in json.loads(path.read_text())["vectors"]:
            yield pytest.param(vector, id=f"{path.stem}: {vector['name']}")


class Machine:
    """A session and a store, and the short words of the vectors."""

    def __init__(self, start: Object | None) -> None:
        self.now = 0.0
        self.session = Session(client="spec/1", random=lambda: 0.5, renewable=True)
        self.store = Store()
        self.channels: dict[str, str] = {}
        self.wires: dict[str, list[str]] = {}
        self.mirror: dict[str, Counter[str]] = {}
        if start is not None:
            for subscription, given in start.items():
                self.perform({"do": "subscribe", "id": subscription, "channel": given["channel"]})
            self.perform({"do": "open"})
            self.perform({"do": "frame", "frame": welcome()})
            for subscription, given in start.items():
                for frame in loading(subscription, given):
                    self.perform({"do": "frame", "frame": frame})

    def perform(self, step: Object) -> Object:
        """Do one step and tell everything that came of it, in the words of `expect`."""
        outputs = list(getattr(self, f"do_{step['do']}")(step) or ())
        events = self.session.take_events()
        if events:
            outputs += self.store.receive(events)
        for output in outputs:
            if isinstance(output, Refetch):
                self.session.refetch(output.subscription, self.now)
        return self.tell(outputs)

    def tell(self, outputs: list[Output]) -> Object:
        told: Object = {}
        for output in outputs:
            match output:
                case Delta():
                    told.setdefault("deltas", {})[output.subscription] = self.delta(output)
                case Ready(subscription):
                    told.setdefault("news", []).append({"ready": subscription})
                case SubscriptionChanged(subscription, state, reason):
                    news = {"subscription": subscription, "state": state} | (
                        {"reason": reason} if reason else {}
                    )
                    told.setdefault("news", []).append(news)
                case MutationChanged(mutation, state, error):
                    changed: Object = {"mutation": mutation, "state": state}
                    told.setdefault("news", []).append(changed | ({} if error is None else {"error": error}))
                case SendMutation(mutation):
                    told.setdefault("ask", []).append({"send": mutation})
                case AskStatus(mutation):
                    told.setdefault("ask", []).append({"status": mutation})
                case Refetch():
                    pass
        frames = [frame for frame in self.session.take_frames() if frame["type"] != "heartbeat"]
        if frames:
            told["sent"] = [self.named(frame) for frame in frames]
        if self.session.must_disconnect is not None:
            told["disconnect"] = True
        if self.session.needs_token:
            told["token"] = True
        return told

    def delta(self, delta: Delta) -> Object:
        """One delta, applied to a copy of the rows as well: the copy must stay what the store shows."""
        mirror = self.mirror.setdefault(delta.subscription, Counter())
        for change in delta.changes:
            mirror.subtract([canonical_text(change.old)] if change.old is not None else [])
            mirror.update([canonical_text(change.new)] if change.new is not None else [])
        told: Object = {"reset": True} if delta.reset else {}
        if delta.inserted:
            told["inserted"] = in_order([change.new for change in delta.inserted])
        if delta.updated:
            told["updated"] = in_order([[change.old, change.new] for change in delta.updated])
        if delta.deleted:
            told["deleted"] = in_order([change.old for change in delta.deleted])
        return told

    def rows(self, subscription: str) -> list[Any]:
        rows = list(self.store.rows(subscription).values())
        assert len(self.store.rows(subscription)) == len(rows)
        assert Counter(map(canonical_text, rows)) == +self.mirror.get(subscription, Counter())
        return in_order(rows)

    # Steps.

    def do_subscribe(self, step: Object) -> None:
        self.channels[step["channel"]] = step["id"]
        columns = tuple(step["columns"]) if "columns" in step else None
        self.session.add(step["id"], Interest(step["channel"], step.get("filter"), columns=columns), self.now)
        self.store.add(step["id"])

    def do_unsubscribe(self, step: Object) -> list[Output]:
        self.session.remove(step["id"])
        self.mirror.pop(step["id"], None)
        return self.store.remove(step["id"])

    def do_refresh(self, step: Object) -> list[Output]:
        return self.store.refresh(step["id"])

    def do_open(self, step: Object) -> None:
        self.session.link_opening(self.now)
        self.session.link_opened(self.now, "websocket", step.get("token"))

    def do_lost(self, step: Object) -> None:
        self.session.link_lost(self.now, step["code"], "")

    def do_frame(self, step: Object) -> None:
        frame = self.resolved(step["frame"])
        if frame["type"] == "transaction":
            frame = {"txid": int(frame["position"][-16:], 16), "timestamp": TIMESTAMP, **frame}
        self.session.frame_received(frame, self.now)

    def do_token(self, step: Object) -> None:
        self.session.token_received(step["token"])

    def do_clock(self, step: Object) -> list[Output]:
        self.now += step["seconds"]
        self.session.tick(self.now)
        return self.store.tick(self.now)

    def do_mutate(self, step: Object) -> list[Output]:
        return self.store.mutate(
            step["id"],
            [patch(each) for each in step["patches"]],
            strategy=step.get("strategy", "overlay"),
            queued=step.get("queued", False),
        )

    def do_sent(self, step: Object) -> list[Output]:
        return self.store.sent(step["id"], self.now)

    def do_answer(self, step: Object) -> list[Output]:
        keys = {make_key(made_up): make_key(key) for made_up, key in step.get("keys", ())}
        return self.store.answered(
            step["id"],
            self.now,
            txid=step.get("txid"),
            position=self.resolved(step.get("position")),
            keys=keys,
        )

    def do_reject(self, step: Object) -> list[Output]:
        return self.store.rejected(step["id"], step["error"])

    def do_lose(self, step: Object) -> list[Output]:
        return self.store.lost(step["id"], self.now)

    def do_status(self, step: Object) -> list[Output]:
        position = self.resolved(step.get("position"))
        return self.store.status(
            step["id"], step["status"], self.now, position=position, error=step.get("error")
        )

    def do_retry(self, step: Object) -> list[Output]:
        return self.store.retry(step["id"])

    # Short words.

    def resolved(self, value: Any) -> Any:
        """`@100` is a position, `@@7` one of another epoch, `#p` the id that p has on the wire."""
        if isinstance(value, dict):
            return {name: self.resolved(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.resolved(each) for each in value]
        if isinstance(value, str) and value.startswith("@"):
            mark = value[: value.rindex("@") + 1]
            number = value[len(mark) :]
            return f"{EPOCHS[mark]}-{int(number):016x}" if number else EPOCHS[mark]
        if isinstance(value, str) and value.startswith("#"):
            name = value[1:].rstrip("'")
            return self.wires[name][-1 - value.count("'")]
        return value

    def named(self, frame: Object) -> Object:
        """A frame as the vectors write it. Ids on the wire are the client's own choice."""
        entries = (
            frame["subscriptions"]
            if frame["type"] == "hello"
            else [frame]
            if frame["type"] == "subscribe"
            else []
        )
        for entry in entries:
            self.wires.setdefault(self.channels[entry["channel"]], []).append(entry["id"])
        return frame


def patch(given: Object) -> Patch:
    subscription, key = given["subscription"], make_key(given["key"])
    match given["op"]:
        case "insert":
            return Insert(subscription, key, given["row"], given.get("temporary", False))
        case "update":
            return Update(subscription, key, given["columns"])
        case _:
            return Delete(subscription, key)


def welcome() -> Object:
    return {
        "type": "welcome", "version": 1, "session": "s", "server": "rowcast/1", "epoch": "@", "position": "@100",
        "heartbeat_seconds": 15.0, "state": "live",
    }  # fmt: skip


def loading(subscription: str, given: Object) -> list[Object]:
    channel, shape = given["channel"], given["shape"]
    subscribed = {
        "type": "subscribed", "id": f"#{subscription}", "shape": shape, "channel": channel, "schema": "public",
        "table": channel.split(":")[0], "columns": given.get("columns", COLUMNS), "key": given.get("key", ["id"]),
        "position": "@100",
    }  # fmt: skip
    snapshot = {
        "type": "snapshot", "shape": shape, "chunk": 0, "rows": given["rows"], "last": True, "position": "@100"
    }  # fmt: skip
    return [subscribed, snapshot]


def in_order(values: list[Any]) -> list[Any]:
    return sorted(values, key=canonical_text)


def ordered(expected: Object) -> Object:
    """What a vector expects, with everything sorted that has no order."""
    deltas = {
        subscription: {what: rows if what == "reset" else in_order(rows) for what, rows in delta.items()}
        for subscription, delta in expected.get("deltas", {}).items()
    }
    return {name: each for name, each in expected.items() if name != "rows"} | (
        {"deltas": deltas} if deltas else {}
    )


@pytest.mark.parametrize("vector", list(vectors("store")))
def test_vector(vector: Object) -> None:
    machine = Machine(vector.get("start"))
    for number, step in enumerate(vector["steps"], 1):
        expected = step.get("expect", {})
        told = machine.perform(step)
        where = f"step {number}, {step['do']}"
        assert told == machine.resolved(ordered(expected)), where
        for subscription in machine.channels.values():
            if subscription in expected.get("rows", {}) or subscription in machine.mirror:
                rows = machine.rows(subscription)
                assert rows == in_order(expected.get("rows", {}).get(subscription, rows)), where


def test_there_are_enough_vectors_and_their_names_are_unique() -> None:
    names = [each.id for each in vectors("store")]
    assert len(names) >= 150
    assert len(set(names)) == len(names)


def test_every_vector_says_which_race_it_is() -> None:
    assert all(each.values[0]["race"] for folder in ("store", "cache") for each in vectors(folder))
