"""The session on a fake clock: what it sends, tells and plans after each input."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from rowcast.client.events import (
    Event,
    Interest,
    Progress,
    Refused,
    Resync,
    ServerError,
    SnapshotChunk,
    StateChanged,
    Subscribed,
    Transaction,
)
from rowcast.client.session import HELLO_BYTES, Session

EPOCH = "5e1f0c6a9d3b2e47"
OTHER_EPOCH = "00ff0c6a9d3b2e47"
Frame = dict[str, Any]


def at(number: int, epoch: str = EPOCH) -> str:
    return f"{epoch}-{number:016x}"


class Harness:
    """A session, its clock, and the server's side in short words."""

    def __init__(self, *, attempts: int | None = None, renewable: bool = False, jitter: float = 0.5) -> None:
        self.now = 1000.0
        self.session = Session(client="test/1", random=lambda: jitter, attempts=attempts, renewable=renewable)

    def open(self, token: str | None = None) -> Frame:
        assert self.session.must_connect(self.now)
        self.session.link_opening(self.now)
        assert self.session.link_opened(self.now, "websocket", token)
        hello, *rest = self.session.take_frames()
        assert hello["type"] == "hello"
        assert rest == []
        return hello

    def welcome(self, position: str = at(1), state: str = "live") -> list[Event]:
        return self.receive(
            {
                "type": "welcome", "version": 1, "session": "s", "server": "x", "epoch": position[:16],
                "position": position, "heartbeat_seconds": 15.0, "state": state,
            }
        )  # fmt: skip

    def up(self, position: str = at(1)) -> Frame:
        hello = self.open()
        self.welcome(position)
        return hello

    def receive(self, frame: Frame, lane: str | None = None) -> list[Event]:
        self.session.frame_received(frame, self.now, lane)
        return self.session.take_events()

    def subscribed(
        self, wire: str, shape: int = 1, position: str = at(1), lane: str | None = None
    ) -> list[Event]:
        return self.receive(
            {
                "type": "subscribed", "id": wire, "shape": shape, "channel": "projects", "schema": "public",
                "table": "projects", "columns": [{"name": "id", "type": "bigint"}], "key": ["id"],
                "position": position,
            },
            lane,
        )  # fmt: skip

    def transaction(
        self, base: str, position: str, *changes: Frame, confirms: Sequence[str] = (), lane: str | None = None
    ) -> list[Event]:
        return self.receive(
            {
                "type": "transaction", "base": base, "position": position, "txid": 7, "timestamp": "t",
                "changes": list(changes), "confirms": list(confirms),
            },
            lane,
        )  # fmt: skip

    def live(self, position: str = at(1), *, rows: bool = False) -> str:
        """Subscribe `p` and bring it to life; returns its id on the wire."""
        self.session.add("p", Interest("projects", rows=rows), self.now)
        wire = str(self.up(position)["subscriptions"][0]["id"])
        self.subscribed(wire, position=position)
        if rows:
            self.receive(snapshot(1, 0, last=position))
        self.session.take_frames()
        return wire

    def at_deadline(self) -> list[Event]:
        deadline = self.session.deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.session.tick(self.now)
        return self.session.take_events()

    @property
    def frames(self) -> list[Frame]:
        return self.session.take_frames()

    @property
    def status(self) -> str:
        return self.session.state(self.now).status


def change(number: int, shape: int = 1) -> Frame:
    return {"shape": shape, "op": "INSERT", "id": f"c{number}", "key": {"id": number}, "new": {"id": number}}


def snapshot(
    shape: int, chunk: int, *rows: int, last: str | None = None, deleted: Sequence[int] = ()
) -> Frame:
    frame: Frame = {"type": "snapshot", "shape": shape, "chunk": chunk, "rows": [{"id": row} for row in rows]}
    if deleted:
        frame["deleted"] = [{"id": key} for key in deleted]
    return frame if last is None else {**frame, "last": True, "position": last}


def heartbeat(position: str) -> Frame:
    return {"type": "heartbeat", "position": position}


def resync(wire: str, reason: str, position: str, after_ms: int = 200) -> Frame:
    return {
        "type": "resync", "id": wire, "shape": 1, "channel": "projects", "reason": reason, "after_ms": after_ms,
        "position": position,
    }  # fmt: skip


class TestConnecting:
    def test_a_new_session_wants_a_link_at_once(self) -> None:
        harness = Harness()
        assert harness.session.must_connect(harness.now)
        assert harness.status == "connecting"

    def test_hello_asks_for_everything_in_one_frame(self) -> None:
        harness = Harness()
        for number in range(50):
            harness.session.add(f"s{number}", Interest(f"channel{number}", filter="a=eq.1"), harness.now)
        hello = harness.open(token="secret")
        assert hello["token"] == "secret"
        assert [entry["channel"] for entry in hello["subscriptions"]] == [f"channel{n}" for n in range(50)]
        assert all(entry["snapshot"] and entry["filter"] == "a=eq.1" for entry in hello["subscriptions"])

    def test_fifty_subscriptions_come_back_in_one_round_trip(self) -> None:
        harness = Harness()
        for number in range(50):
            harness.session.add(f"s{number}", Interest(f"channel{number}"), harness.now)
        for shape, entry in enumerate(harness.up()["subscriptions"]):
            harness.subscribed(entry["id"], shape)
            harness.receive(snapshot(shape, 0, last=at(5)))
        harness.session.take_frames()
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        hello = harness.open()
        assert [entry["since"] for entry in hello["subscriptions"]] == [at(5)] * 50
        harness.welcome(at(9))
        for shape, entry in enumerate(hello["subscriptions"]):
            harness.subscribed(entry["id"], shape, at(5))
        assert [frame["type"] for frame in harness.frames] == ["heartbeat"]
        assert all("snapshot" not in entry for entry in hello["subscriptions"])

    def test_all_fields_of_an_interest_are_sent(self) -> None:
        harness = Harness()
        interest = Interest(
            "projects", where="a = $1", params=(5,), columns=("a", "b"), rows=False, since=at(3)
        )
        harness.session.add("p", interest, harness.now)
        assert harness.open()["subscriptions"] == [
            {
                "id": "1", "channel": "projects", "columns": ["a", "b"], "where": "a = $1", "params": [5],
                "since": at(3),
            }
        ]  # fmt: skip

    def test_a_hello_over_the_frame_limit_is_followed_by_single_subscribes(self) -> None:
        harness = Harness()
        for number in range(40):
            harness.session.add(
                f"s{number}", Interest("projects", filter=f"name=eq.{'x' * 10_000}"), harness.now
            )
        harness.session.link_opening(harness.now)
        harness.session.link_opened(harness.now, "websocket", None)
        hello, *others = harness.frames
        assert len(str(hello)) < HELLO_BYTES * 1.1
        assert len(hello["subscriptions"]) + len(others) == 40
        assert {frame["type"] for frame in others} == {"subscribe"}

    def test_a_server_that_never_welcomes_is_left(self) -> None:
        harness = Harness()
        harness.open()
        harness.at_deadline()
        assert harness.session.must_disconnect == "no welcome within 10 s"

    def test_a_subscription_made_later_is_asked_for_at_once(self) -> None:
        harness = Harness()
        harness.up()
        harness.session.take_frames()
        harness.session.add("p", Interest("projects"), harness.now)
        assert harness.frames == [{"type": "subscribe", "id": "1", "channel": "projects", "snapshot": True}]

    def test_a_removed_subscription_is_unsubscribed_and_its_late_frames_find_nobody(self) -> None:
        harness = Harness()
        wire = harness.live()
        harness.session.remove("p")
        assert harness.frames == [{"type": "unsubscribe", "id": wire}]
        assert [type(event) for event in harness.transaction(at(1), at(2), change(1))] == [Progress]
        assert harness.subscribed(wire) == []

    def test_a_stopped_wish_for_a_link_is_not_revived_by_a_link_that_opens_late(self) -> None:
        harness = Harness()
        harness.session.link_opening(harness.now)
        harness.session.close(harness.now)
        assert not harness.session.link_opened(harness.now, "websocket", None)


class TestComingBack:
    def test_the_delays_follow_the_ladder_with_jitter(self) -> None:
        harness = Harness()
        delays = []
        for _ in range(7):
            harness.session.link_opening(harness.now)
            harness.session.link_lost(harness.now, None, "connection refused")
            deadline = harness.session.deadline()
            assert deadline is not None
            delays.append(deadline - harness.now)
            harness.now = deadline
        assert delays == [0.5, 1, 2, 4, 8, 15, 15]
        state = harness.session.state(harness.now)
        assert (state.status, state.attempt, state.reason) == ("reconnecting", 7, "connection refused")

    def test_a_link_that_lived_for_a_while_starts_the_ladder_anew(self) -> None:
        harness = Harness()
        for _ in range(3):
            harness.session.link_opening(harness.now)
            harness.session.link_lost(harness.now, None, "refused")
            harness.now += 30
        harness.up()
        harness.now += 6
        harness.session.link_lost(harness.now, 1006, "")
        assert harness.session.deadline() == harness.now + 0.5

    def test_a_server_that_welcomes_and_drops_does_not_reset_the_ladder(self) -> None:
        harness = Harness()
        delays = []
        for _ in range(4):
            harness.up()
            harness.session.link_lost(harness.now, 1006, "")
            deadline = harness.session.deadline()
            assert deadline is not None
            delays.append(deadline - harness.now)
            harness.now = deadline
        assert delays == [0.5, 1, 2, 4]

    def test_goodbye_says_when_to_come_back(self) -> None:
        harness = Harness()
        harness.up()
        harness.receive({"type": "goodbye", "reason": "shutdown", "after_ms": 1200})
        harness.session.link_lost(harness.now, 1001, "")
        assert harness.session.deadline() == harness.now + 1.2
        assert harness.session.state(harness.now).reason == "the server is shutting down"

    def test_too_many_messages_means_coming_back_slower(self) -> None:
        harness = Harness()
        harness.up()
        harness.session.link_lost(harness.now, 4003, "")
        assert harness.session.deadline() == harness.now + 4

    @pytest.mark.parametrize("code", [4500, 4999])
    def test_codes_from_4500_on_are_final(self, code: int) -> None:
        harness = Harness()
        harness.up()
        harness.session.link_lost(harness.now, code, "no")
        assert harness.session.closed
        assert harness.session.deadline() is None
        assert not harness.session.must_connect(harness.now + 1e6)

    def test_unknown_codes_below_4500_are_not(self) -> None:
        harness = Harness()
        harness.up()
        harness.session.link_lost(harness.now, 4321, "who knows")
        assert harness.status == "reconnecting"

    def test_after_the_last_attempt_the_session_is_offline_until_somebody_wishes(self) -> None:
        harness = Harness(attempts=2)
        for _ in range(3):
            harness.session.link_opening(harness.now)
            harness.session.link_lost(harness.now, None, "refused")
            harness.now += 60
        assert harness.status == "offline"
        assert harness.session.deadline() is None
        assert harness.session.state(harness.now).reason.startswith("gave up after 2 attempts (refused)")
        harness.session.reconnect(harness.now, "the user came back")
        assert harness.session.must_connect(harness.now)
        assert harness.status == "reconnecting"

    def test_wishes_while_waiting_bring_the_attempt_forward_once(self) -> None:
        harness = Harness()
        for _ in range(5):
            harness.session.link_opening(harness.now)
            harness.session.link_lost(harness.now, None, "refused")
            harness.now += 30
        harness.session.link_opening(harness.now)
        harness.session.link_lost(harness.now, None, "refused")
        harness.session.take_events()
        harness.now += 0.2
        for _ in range(10):
            harness.session.reconnect(harness.now, "the tab is visible")
        assert harness.session.deadline() == pytest.approx(harness.now + 0.8)
        assert len(harness.session.take_events()) == 1

    def test_wishes_during_an_attempt_are_part_of_it(self) -> None:
        harness = Harness()
        harness.session.link_opening(harness.now)
        harness.session.reconnect(harness.now, "the network is back")
        assert harness.session.deadline() is None
        assert not harness.session.must_connect(harness.now)

    def test_a_wish_on_a_link_that_is_up_probes_it(self) -> None:
        harness = Harness()
        harness.live()
        harness.session.reconnect(harness.now, "the laptop woke up")
        harness.session.reconnect(harness.now, "the tab is visible")
        assert [frame["type"] for frame in harness.frames] == ["heartbeat"]
        assert harness.session.deadline() == harness.now + 3
        harness.at_deadline()
        assert harness.session.must_disconnect == "no answer within 3 s"

    def test_an_answered_probe_leaves_the_link_alone(self) -> None:
        harness = Harness()
        harness.live()
        harness.session.reconnect(harness.now, "the laptop woke up")
        harness.receive(heartbeat(at(1)))
        harness.now += 5
        harness.session.tick(harness.now)
        assert harness.session.must_disconnect is None

    def test_without_a_network_nothing_is_tried_and_with_it_at_once(self) -> None:
        harness = Harness()
        harness.up()
        harness.session.set_online(harness.now, online=False)
        assert harness.session.must_disconnect == "there is no network"
        harness.session.link_lost(harness.now, None, "")
        assert (harness.status, harness.session.deadline()) == ("offline", None)
        harness.session.reconnect(harness.now, "impatient")
        assert harness.session.deadline() is None
        harness.now += 100
        harness.session.set_online(harness.now, online=True)
        assert harness.session.must_connect(harness.now)

    def test_close_ends_everything(self) -> None:
        harness = Harness()
        harness.live()
        harness.session.close(harness.now)
        assert harness.session.must_disconnect == "closed by the application"
        assert (harness.status, harness.session.deadline()) == ("closed", None)
        harness.session.set_online(harness.now, online=False)
        harness.session.reconnect(harness.now, "zombie")
        harness.session.close(harness.now)
        assert not harness.session.must_connect(harness.now)

    def test_a_link_that_takes_over_is_not_noticed(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.transaction(at(5), at(6), change(1))
        harness.session.take_events()
        assert harness.session.link_opened(harness.now, "websocket", None)
        assert harness.session.take_events() == []
        (hello,) = harness.frames
        assert hello["subscriptions"][0]["since"] == at(6)


class TestLiveness:
    def test_heartbeats_are_sent_and_measure_the_round_trip(self) -> None:
        harness = Harness()
        harness.up()
        (ping,) = harness.frames
        harness.now += 0.02
        harness.receive({"type": "heartbeat", "id": ping["id"], "position": at(1)})
        assert harness.session.state(harness.now).round_trip_seconds == pytest.approx(0.02)
        harness.receive({"type": "heartbeat", "position": at(1)})
        harness.at_deadline()
        assert [frame["type"] for frame in harness.frames] == ["heartbeat"]

    def test_silence_for_two_and_a_half_intervals_ends_the_link(self) -> None:
        harness = Harness()
        harness.up()
        began = harness.now
        while harness.session.must_disconnect is None:
            harness.at_deadline()
        assert harness.now - began == 37.5
        assert "nothing heard from the server for 38 s" in harness.session.must_disconnect

    def test_any_frame_is_a_sign_of_life(self) -> None:
        harness = Harness()
        harness.up()
        for _ in range(20):
            harness.now += 10
            harness.receive({"type": "something new"})
            harness.session.tick(harness.now)
        assert harness.session.must_disconnect is None

    def test_a_reader_that_pauses_is_not_silence(self) -> None:
        harness = Harness()
        harness.up()
        harness.session.pause()
        for _ in range(10):
            harness.at_deadline()
        assert harness.session.must_disconnect is None
        harness.session.resume(harness.now)
        while harness.session.must_disconnect is None:
            harness.at_deadline()

    def test_a_subscription_that_is_never_answered_is_asked_for_again(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.up()
        harness.session.take_frames()
        asked: list[Frame] = []
        for _ in range(6):
            harness.at_deadline()
            harness.receive({"type": "heartbeat", "position": at(1)})
            asked += [frame for frame in harness.frames if frame["type"] != "heartbeat"]
        assert [frame["type"] for frame in asked] == ["unsubscribe", "subscribe"]
        assert asked[0]["id"] != asked[1]["id"]

    def test_a_position_that_stands_still_while_the_servers_moves_on_ends_the_link(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        harness.up(at(9))
        harness.subscribed("2", position=at(5))
        assert harness.session.state(harness.now).lag_seconds == 0
        for _ in range(6):
            harness.receive({"type": "heartbeat"})
            harness.at_deadline()
        assert harness.session.must_disconnect == "the server's position moves on and ours does not"
        assert harness.session.state(harness.now).lag_seconds > 60

    def test_degraded_is_told_and_taken_back(self) -> None:
        harness = Harness()
        harness.open()
        (event,) = harness.welcome(state="degraded")
        assert isinstance(event, StateChanged)
        assert event.state.status == "degraded"
        harness.receive({"type": "status", "state": "degraded", "reason": "PostgreSQL is down"})
        assert harness.session.state(harness.now).reason == "PostgreSQL is down"
        (event,) = harness.receive({"type": "status", "state": "live", "reason": ""})
        assert isinstance(event, StateChanged)
        assert (event.state.status, event.state.reason) == ("connected", "")

    def test_a_frame_that_breaks_the_protocol_ends_the_link_not_the_program(self) -> None:
        harness = Harness()
        harness.live()
        harness.receive({"type": "transaction", "base": 5})
        assert harness.session.must_disconnect is not None
        assert "transaction frame that cannot be understood" in harness.session.must_disconnect


class TestCredentials:
    def test_a_warning_makes_the_session_ask_for_a_token_and_send_it(self) -> None:
        harness = Harness(renewable=True)
        harness.live()
        harness.receive({"type": "token_expiring", "expires_in": 60})
        needed = [harness.session.needs_token]
        harness.session.token_received("fresh")
        assert [*needed, harness.session.needs_token] == [True, False]
        assert harness.frames == [{"type": "token", "token": "fresh"}]
        harness.receive({"type": "token_accepted", "expires_in": 3600})
        assert [type(e) for e in harness.transaction(at(1), at(2), change(1))] == [Transaction]

    def test_a_fixed_token_is_not_renewed(self) -> None:
        harness = Harness()
        harness.live()
        harness.receive({"type": "token_expiring", "expires_in": 60})
        assert not harness.session.needs_token

    def test_an_expired_token_heals_itself_on_the_open_link(self) -> None:
        harness = Harness(renewable=True)
        harness.live()
        harness.receive({"type": "error", "code": "token_expired", "message": "expired"})
        assert harness.session.needs_token
        assert harness.status == "connected"
        harness.session.token_received("fresh")
        harness.receive({"type": "token_accepted"})
        harness.receive({"type": "error", "code": "token_expired", "message": "expired again, an hour later"})
        assert harness.session.needs_token

    def test_a_refused_token_is_replaced_on_the_next_link(self) -> None:
        harness = Harness(renewable=True)
        harness.open()
        harness.session.link_lost(harness.now, 4501, "token_invalid")
        assert harness.status == "reconnecting"
        harness.now += 1
        assert harness.open(token="another")["token"] == "another"

    def test_three_bad_tokens_are_enough(self) -> None:
        harness = Harness(renewable=True)
        for _ in range(3):
            harness.open()
            harness.receive({"type": "error", "code": "token_invalid", "message": "bad signature"})
            harness.session.link_lost(harness.now, 4501, "token_invalid")
            harness.now += 10
        assert harness.session.closed
        reason = harness.session.state(harness.now).reason
        assert reason == "the server does not accept the credentials: bad signature"

    def test_a_fixed_token_that_is_refused_closes_at_once(self) -> None:
        harness = Harness()
        harness.open()
        harness.session.link_lost(harness.now, 4501, "token_invalid")
        assert harness.session.closed


class TestTransactions:
    def test_a_transaction_is_told_with_the_changes_of_each_subscription(self) -> None:
        harness = Harness()
        for name in ("a", "b", "c"):
            harness.session.add(name, Interest("projects", rows=False), harness.now)
        harness.up()
        for wire, shape in (("1", 1), ("2", 1), ("3", 2)):
            harness.subscribed(wire, shape)
        (event,) = harness.transaction(at(1), at(2), change(1), change(2, shape=2), change(3), confirms=["m"])
        assert isinstance(event, Transaction)
        assert event.changes == {
            "a": [change(1), change(3)],
            "b": [change(1), change(3)],
            "c": [change(2, shape=2)],
        }
        assert event.confirms == ["m"]

    def test_duplicates_are_ignored(self) -> None:
        harness = Harness()
        harness.live()
        assert harness.transaction(at(1), at(2), change(1))
        assert harness.transaction(at(1), at(2), change(1)) == []
        assert harness.transaction(at(0), at(1), change(0)) == []

    def test_a_missing_frame_ends_the_link_and_everything_is_resumed(self) -> None:
        harness = Harness()
        harness.live()
        harness.transaction(at(1), at(2), change(1))
        assert harness.transaction(at(3), at(4), change(3)) == []
        assert harness.session.must_disconnect is not None
        harness.session.link_lost(harness.now, None, "")
        harness.now += 1
        assert harness.open()["subscriptions"][0]["since"] == at(2)

    def test_after_an_unsubscribe_the_next_base_is_no_gap(self) -> None:
        harness = Harness()
        harness.live()
        harness.session.add("q", Interest("jobs", rows=False), harness.now)
        harness.subscribed("2", shape=2, position=at(3))
        harness.session.remove("q")
        harness.receive({"type": "unsubscribed", "id": "2"})
        assert len(harness.transaction(at(7), at(8), change(1))) == 1
        assert harness.session.must_disconnect is None

    def test_a_heartbeat_moves_the_position_that_is_resumed_from(self) -> None:
        harness = Harness()
        harness.live()
        assert harness.receive(heartbeat(at(9))) == [Progress(at(9))]
        assert harness.receive(heartbeat(at(9))) == []
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        assert harness.open()["subscriptions"][0]["since"] == at(9)

    def test_a_replay_gives_each_subscription_what_it_lacks(self) -> None:
        """One subscription was ahead of the other when the link broke; the replay starts at the older one."""
        harness = Harness()
        harness.live(at(5))
        harness.session.add("q", Interest("projects"), harness.now)
        harness.subscribed("2", position=at(5))
        harness.receive(snapshot(1, 0, 1, last=at(8)))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        hello = harness.up(at(10))
        assert [entry["since"] for entry in hello["subscriptions"]] == [at(5), at(8)]
        harness.subscribed("3", position=at(5))
        harness.subscribed("4", position=at(5))
        told = []
        for number in range(6, 11):
            told += harness.transaction(at(number - 1), at(number), change(number))
        given_to = [sorted(event.changes) for event in told if isinstance(event, Transaction)]
        assert given_to == [["p"], ["p"], ["p"], ["p", "q"], ["p", "q"]]

    def test_a_base_up_to_the_welcomed_position_is_no_gap_after_a_replay(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        harness.up(at(9))
        harness.subscribed("2", position=at(5))
        harness.transaction(at(5), at(6), change(6))
        assert len(harness.transaction(at(9), at(10), change(10))) == 1
        assert harness.session.must_disconnect is None

    def test_a_replay_in_mid_stream_reaches_only_who_asked_for_it(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.transaction(at(5), at(9), change(9))
        harness.session.add("q", Interest("projects", rows=False, since=at(6)), harness.now)
        harness.subscribed("2", position=at(6))
        (event,) = harness.transaction(at(6), at(7), change(7))
        assert isinstance(event, Transaction)
        assert list(event.changes) == ["q"]
        (event,) = harness.transaction(at(9), at(10), change(10))
        assert isinstance(event, Transaction)
        assert list(event.changes) == ["p", "q"]

    def test_a_heartbeat_before_the_server_is_ready_does_not_hide_the_replay(self) -> None:
        """The server answers heartbeats while it starts, and the subscriptions wait until it has caught up."""
        harness = Harness()
        harness.live(at(5))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        harness.up(at(0, "0" * 16))
        harness.receive(heartbeat(at(0, "0" * 16)))
        assert harness.receive(heartbeat(at(8))) == []
        harness.subscribed("2", position=at(5))
        (event,) = harness.transaction(at(5), at(6), change(6))
        assert isinstance(event, Transaction)
        assert harness.session.must_disconnect is None

    def test_what_is_told_to_all_is_not_told_to_those_who_still_wait_for_their_replay(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.session.add("q", Interest("jobs", rows=False, since=at(2)), harness.now)
        assert harness.receive(heartbeat(at(8))) == [Progress(at(8), "p")]
        (event,) = harness.transaction(at(8), at(9), change(9), confirms=["m"])
        assert event == Transaction(at(9), 7, "t", {"p": [change(9)]}, ["m"], "p")


class TestSnapshots:
    def test_chunks_are_passed_on_and_the_last_gives_the_position(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.up()
        assert [type(e) for e in harness.subscribed("1")] == [Subscribed]
        assert harness.receive(snapshot(1, 0, 1, 2)) == [
            SnapshotChunk("p", 0, [{"id": 1}, {"id": 2}], (), False, None)
        ]
        assert harness.receive(snapshot(1, 1, 3, deleted=[2], last=at(4))) == [
            SnapshotChunk("p", 1, [{"id": 3}], [{"id": 2}], True, at(4))
        ]
        assert harness.session.state(harness.now).position == at(4)

    def test_transactions_between_chunks_are_told_on_top_of_the_finished_snapshot(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.up()
        harness.subscribed("1")
        harness.receive(snapshot(1, 0, 1))
        assert [type(e) for e in harness.transaction(at(1), at(2), change(2))] == [Progress]
        assert [type(e) for e in harness.transaction(at(2), at(3), change(3))] == [Progress]
        chunk, transaction = harness.receive(snapshot(1, 1, 2, last=at(2)))
        assert isinstance(chunk, SnapshotChunk)
        assert isinstance(transaction, Transaction)
        assert (transaction.position, transaction.changes) == (at(3), {"p": [change(3)]})

    def test_a_confirm_that_came_while_loading_is_repeated_for_the_loaded(self) -> None:
        harness = Harness()
        harness.live()
        harness.session.add("q", Interest("projects"), harness.now)
        harness.subscribed("2")
        harness.receive(snapshot(1, 0))
        (event,) = harness.transaction(at(1), at(2), change(2), confirms=["m"])
        assert isinstance(event, Transaction)
        assert list(event.changes) == ["p"]
        _, event = harness.receive(snapshot(1, 1, last=at(3)))
        assert event == Transaction(at(2), 7, "t", {"q": ()}, ["m"], "q")

    def test_chunk_zero_begins_anew_and_stray_chunks_are_dropped(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.up()
        harness.subscribed("1")
        assert harness.receive(snapshot(1, 3, 9, last=at(2))) == []  # the end of somebody else's snapshot
        chunks = harness.receive(snapshot(1, 0, 1)) + harness.receive(snapshot(1, 0, 2, last=at(2)))
        assert [(e.chunk, e.rows) for e in chunks if isinstance(e, SnapshotChunk)] == [
            (0, [{"id": 1}]),
            (0, [{"id": 2}]),
        ]

    def test_a_snapshot_is_for_those_who_wait_for_one(self) -> None:
        harness = Harness()
        harness.live(rows=True)
        harness.session.add("q", Interest("projects"), harness.now)
        harness.subscribed("2")
        (event,) = harness.receive(snapshot(1, 0, last=at(2)))
        assert isinstance(event, SnapshotChunk)
        assert event.subscription == "q"

    def test_a_snapshot_that_a_broken_link_cut_off_is_asked_for_again(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.up()
        harness.subscribed("1")
        harness.receive(snapshot(1, 0, 1))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        (entry,) = harness.open()["subscriptions"]
        assert entry == {"id": "2", "channel": "projects", "snapshot": True}

    def test_a_refetch_takes_a_new_snapshot(self) -> None:
        harness = Harness()
        harness.live(rows=True)
        harness.session.refetch("p", harness.now)
        assert harness.frames == [
            {"type": "unsubscribe", "id": "1"},
            {"type": "subscribe", "id": "2", "channel": "projects", "snapshot": True},
        ]

    def test_a_polled_snapshot_replaces_the_rows_of_a_live_subscription(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.session.link_opening(harness.now)
        harness.session.link_opened(harness.now, "polling", None)
        harness.receive({"type": "welcome", "heartbeat_seconds": 15.0})
        harness.subscribed("1", -1, at(2), lane="1")
        for position in (at(2), at(5), at(1, OTHER_EPOCH)):
            frame = {**snapshot(-1, 0, 1, last=position), "replaces": True}
            assert [type(e) for e in harness.receive(frame, "1")] == [SnapshotChunk]
            assert harness.session.state(harness.now).position == position


class TestResyncs:
    def test_rows_are_read_anew_after_the_servers_jitter(self) -> None:
        harness = Harness()
        wire = harness.live(rows=True)
        assert harness.receive(resync(wire, "slow_client", at(9), 200)) == [Resync("p", "slow_client", at(9))]
        assert harness.frames == []
        assert [type(e) for e in harness.transaction(at(9), at(10), change(1))] == [Progress]
        harness.at_deadline()
        assert harness.now == 1000.2
        assert harness.frames == [
            {"type": "unsubscribe", "id": "1"},
            {"type": "subscribe", "id": "2", "channel": "projects", "snapshot": True},
        ]
        harness.subscribed("2", position=at(11))
        harness.receive(snapshot(1, 0, 1, last=at(11)))
        assert [type(e) for e in harness.transaction(at(11), at(12), change(2))] == [Transaction]

    def test_without_a_stated_delay_the_session_draws_one(self) -> None:
        harness = Harness(jitter=0.75)
        wire = harness.live(rows=True)
        frame = resync(wire, "slow_client", at(9))
        del frame["after_ms"]
        harness.receive(frame)
        assert harness.session.deadline() == harness.now + 0.75

    def test_a_subscription_without_rows_goes_on_after_the_gap(self) -> None:
        harness = Harness()
        wire = harness.live()
        assert harness.receive(resync(wire, "slow_client", at(9))) == [Resync("p", "slow_client", at(9))]
        assert [type(e) for e in harness.transaction(at(9), at(10), change(1))] == [Transaction]
        assert harness.frames == []

    def test_a_resync_of_a_shape_concerns_all_its_subscriptions(self) -> None:
        harness = Harness()
        harness.live()
        harness.session.add("q", Interest("projects", rows=False), harness.now)
        harness.subscribed("2")
        frame = resync("", "slot_lost", at(9))
        del frame["id"]
        assert [e.subscription for e in harness.receive(frame) if isinstance(e, Resync)] == ["p", "q"]

    def test_a_new_epoch_resyncs_and_goes_on_in_it(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        harness.up(at(1, OTHER_EPOCH))
        harness.subscribed("2", position=at(1, OTHER_EPOCH))
        assert harness.receive(resync("2", "epoch_changed", at(1, OTHER_EPOCH))) == [
            Resync("p", "epoch_changed", at(1, OTHER_EPOCH))
        ]
        told = harness.transaction(at(1, OTHER_EPOCH), at(2, OTHER_EPOCH), change(1))
        assert [type(e) for e in told] == [Transaction]

    def test_a_new_epoch_without_the_resync_that_is_due_is_told_all_the_same(self) -> None:
        harness = Harness()
        harness.live(at(5))
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        harness.up(at(1, OTHER_EPOCH))
        harness.subscribed("2", position=at(1, OTHER_EPOCH))
        told = harness.transaction(at(1, OTHER_EPOCH), at(2, OTHER_EPOCH), change(1))
        assert [type(e) for e in told] == [Resync, Progress]

    def test_an_epoch_that_changes_in_mid_stream_without_a_resync_ends_the_link(self) -> None:
        harness = Harness()
        harness.live(at(5))
        assert harness.transaction(at(5), at(6, OTHER_EPOCH), change(1)) == []
        assert harness.session.must_disconnect == "the stream went over to another epoch without a resync"

    def test_an_epoch_that_changes_in_mid_stream_with_resyncs_goes_on(self) -> None:
        harness = Harness()
        wire = harness.live(at(5))
        harness.receive(resync(wire, "slot_lost", at(1, OTHER_EPOCH)))
        told = harness.transaction(at(1, OTHER_EPOCH), at(2, OTHER_EPOCH), change(1))
        assert [type(e) for e in told] == [Transaction]

    def test_changed_columns_are_told_before_the_resync(self) -> None:
        harness = Harness()
        wire = harness.live(rows=True)
        (event,) = harness.subscribed(wire, shape=8, position=at(3))
        assert isinstance(event, Subscribed)
        assert event.shape == 8
        harness.receive({**resync(wire, "schema_changed", at(3)), "shape": 8})
        harness.at_deadline()
        assert [frame["type"] for frame in harness.frames] == ["unsubscribe", "subscribe"]

    def test_a_dropped_table_is_asked_for_again_in_case_it_comes_back(self) -> None:
        harness = Harness()
        wire = harness.live(rows=True)
        harness.receive(resync(wire, "table_dropped", at(3)))
        waits = []
        for _ in range(3):
            began = harness.now
            harness.at_deadline()
            waits.append(harness.now - began)
            (asked,) = [frame for frame in harness.frames if frame["type"] != "heartbeat"]
            assert asked["type"] == "subscribe"
            error = {
                "type": "error",
                "code": "unknown_channel",
                "id": asked["id"],
                "message": "no such channel",
            }
            assert harness.receive(error) == []
        assert waits == [0.5, 1, 2]
        harness.at_deadline()
        (asked,) = [frame for frame in harness.frames if frame["type"] != "heartbeat"]
        assert [type(e) for e in harness.subscribed(asked["id"], shape=4)] == [Subscribed]

    @pytest.mark.parametrize(
        "code", ["unknown_channel", "unknown_column", "invalid_filter", "too_many_subscriptions"]
    )
    def test_a_refused_subscription_is_told_and_not_asked_for_again(self, code: str) -> None:
        harness = Harness()
        harness.session.add("p", Interest("project"), harness.now)
        harness.up()
        error = {"type": "error", "code": code, "id": "1", "message": "no"}
        assert harness.receive(error) == [Refused("p", code, "no")]
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        assert harness.open()["subscriptions"] == []

    def test_a_failed_snapshot_is_tried_again_later(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects"), harness.now)
        harness.up()
        harness.subscribed("1")
        harness.session.take_frames()
        harness.receive(
            {"type": "error", "code": "snapshot_failed", "id": "1", "message": "too many connections"}
        )
        assert harness.frames == [{"type": "unsubscribe", "id": "1"}]
        harness.at_deadline()
        assert harness.now == 1000.5
        assert harness.frames == [{"type": "subscribe", "id": "2", "channel": "projects", "snapshot": True}]

    def test_a_position_that_the_server_cannot_read_means_a_resync(self) -> None:
        harness = Harness()
        harness.session.add("p", Interest("projects", since="from an old file"), harness.now)
        harness.up()
        error = {"type": "error", "code": "invalid_position", "id": "1", "message": "no position"}
        assert harness.receive(error) == [Resync("p", "position_unknown", None)]
        harness.session.take_frames()
        harness.at_deadline()
        assert harness.frames == [{"type": "subscribe", "id": "2", "channel": "projects", "snapshot": True}]

    def test_other_errors_are_passed_on(self) -> None:
        harness = Harness()
        harness.up()
        error = {"type": "error", "code": "rate_limited", "message": "slow down"}
        assert harness.receive(error) == [ServerError("rate_limited", "slow down")]
        unknown = {"type": "error", "code": "unknown_subscription", "id": "9", "message": "none"}
        assert harness.receive(unknown) == []

    def test_a_server_of_another_version_is_final(self) -> None:
        harness = Harness()
        harness.open()
        harness.receive(
            {"type": "error", "code": "unsupported_version", "message": "this server speaks version 2"}
        )
        assert harness.session.closed


class TestLanes:
    def test_each_lane_speaks_for_its_own_subscription_only(self) -> None:
        harness = Harness()
        for name in ("a", "b"):
            harness.session.add(name, Interest("projects", rows=False), harness.now)
        harness.open()
        harness.session.frame_received({"type": "welcome", "heartbeat_seconds": 15.0}, harness.now, None)
        harness.subscribed("1", position=at(1), lane="1")
        harness.subscribed("2", position=at(1), lane="2")
        (event,) = harness.transaction(at(1), at(5), change(5), lane="1")
        assert isinstance(event, Transaction)
        assert list(event.changes) == ["a"]
        assert harness.receive(heartbeat(at(3)), lane="2") == [Progress(at(3), "b")]
        (event,) = harness.transaction(at(1), at(5), change(5), lane="2")
        assert isinstance(event, Transaction)
        assert list(event.changes) == ["b"]
        harness.session.link_lost(harness.now, 1006, "")
        harness.now += 1
        assert [entry["since"] for entry in harness.open()["subscriptions"]] == [at(5), at(5)]


def test_the_state_says_itself_in_one_line() -> None:
    harness = Harness()
    harness.session.link_opening(harness.now)
    harness.session.link_lost(harness.now, None, "connection refused")
    state = harness.session.state(harness.now)
    assert state.describe(harness.now) == "reconnecting: connection refused, next attempt in 0 s"
    harness.now += 1
    harness.up(at(5))
    (ping,) = harness.frames
    harness.now += 0.012
    harness.receive({"type": "heartbeat", "id": ping["id"], "position": at(5)})
    assert harness.session.state(harness.now).describe(harness.now) == "connected: 12 ms"


class Server:
    """A server in short: a history, links that queue, and everything that may go wrong between them."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.head = 1
        self.rows: dict[int, set[int]] = {0: set(), 1: set()}  # shape → keys
        self.states: dict[int, dict[int, frozenset[int]]] = {0: {1: frozenset()}, 1: {1: frozenset()}}
        self.history: list[tuple[int, list[Frame]]] = []
        self.queue: list[Frame] = []
        self.watching: dict[str, int] = {}
        self.base = 1
        self.oldest = 1
        self.reading: list[
            tuple[str, int, set[int], int]
        ] = []  # snapshots: wire id, shape, keys sent, begun at

    def commit(self) -> None:
        self.head += 1
        changes = []
        for shape in self.random.sample((0, 1), self.random.randint(0, 2)):
            key = self.random.randrange(8)
            op = "DELETE" if key in self.rows[shape] else "INSERT"
            self.rows[shape] ^= {key}
            changes.append({"shape": shape, "op": op, "id": f"{self.head}-{shape}", "key": {"id": key}})
        for shape, keys in self.rows.items():
            self.states[shape][self.head] = frozenset(keys)
        self.history.append((self.head, changes))
        self.tell(self.head, changes)

    def tell(self, number: int, changes: list[Frame]) -> None:
        mine = [each for each in changes if each["shape"] in self.watching.values()]
        if mine:
            frame: Frame = {
                "type": "transaction",
                "base": at(self.base),
                "position": at(number),
                "txid": number,
            }
            self.queue.append({**frame, "timestamp": "", "changes": mine})
            self.base = number

    def receive(self, frame: Frame) -> None:
        if frame["type"] == "hello":
            self.queue, self.watching, self.base, self.reading = [], {}, self.head, []
            welcome: Frame = {
                "type": "welcome",
                "epoch": EPOCH,
                "position": at(self.head),
                "heartbeat_seconds": 15.0,
            }
            self.queue.append({**welcome, "state": "live"})
            self.subscribe(frame["subscriptions"])
        elif frame["type"] == "subscribe":
            self.subscribe([frame])
        elif frame["type"] == "unsubscribe":
            self.watching.pop(frame["id"], None)
            self.base = self.head
            self.queue.append({"type": "unsubscribed", "id": frame["id"]})
        else:
            self.queue.append({"type": "heartbeat", "id": frame["id"], "position": at(self.head)})

    def subscribe(self, entries: list[Frame]) -> None:
        resumed = [int(entry["since"][17:], 16) for entry in entries if "since" in entry]
        oldest = min(resumed, default=self.head)
        lost = oldest < self.oldest
        for entry in entries:
            shape = int(entry["channel"])
            self.watching[entry["id"]] = shape
            position = at(oldest if "since" in entry and not lost else self.head)
            frame = {"type": "subscribed", "id": entry["id"], "shape": shape, "channel": entry["channel"]}
            self.queue.append(
                {**frame, "schema": "", "table": "", "columns": [], "key": ["id"], "position": position}
            )
            if "since" in entry and lost:
                self.resync(entry["id"], "log_expired")
        if resumed and not lost:
            self.base = oldest
            for number, changes in self.history:
                if number > oldest:
                    self.tell(number, changes)
            self.base = self.head
        for entry in entries:
            if entry.get("snapshot"):
                shape = int(entry["channel"])
                sent = set(
                    self.random.sample(
                        sorted(self.rows[shape]), self.random.randint(0, len(self.rows[shape]))
                    )
                )
                self.reading = [each for each in self.reading if each[1] != shape]  # begun anew for all
                self.reading.append((entry["id"], shape, sent, self.head))
                self.queue.append(snapshot(shape, 0, *sent))

    def finish_reading(self) -> None:
        """Complete a snapshot, at any position since it began: what came after has been told already."""
        if self.reading:
            _, shape, sent, begun = self.reading.pop(0)
            number = self.random.randint(begun, self.head)
            keys = self.states[shape][number]
            self.queue.append(
                snapshot(shape, 1, *(keys - sent), deleted=sorted(sent - keys), last=at(number))
            )

    def repeat(self) -> None:
        """Deliver a transaction again."""
        sent = [frame for frame in self.queue if frame["type"] == "transaction"]
        if sent:
            self.queue.append(self.random.choice(sent))

    def resync(self, wire: str, reason: str) -> None:
        self.queue.append({
            "type": "resync", "id": wire, "shape": self.watching[wire], "channel": "", "reason": reason,
            "after_ms": 100, "position": at(self.head),
        })  # fmt: skip


class Copy:
    """What an application makes of a subscription's events."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self.loading: set[int] = set()
        self.ids: set[str] = set()
        self.valid = False

    def take(self, name: str, event: Event) -> None:
        if isinstance(event, SnapshotChunk) and event.subscription == name:
            self.loading = set() if event.chunk == 0 else self.loading
            self.loading -= {key["id"] for key in event.deleted}
            self.loading |= {row["id"] for row in event.rows}
            if event.last:
                self.keys, self.valid = self.loading, True
        elif isinstance(event, Resync) and event.subscription == name:
            self.valid = False
        elif isinstance(event, Transaction):
            for each in event.changes.get(name, ()):
                assert each["id"] not in self.ids, "told twice"
                self.ids.add(each["id"])
                (self.keys.add if each["op"] == "INSERT" else self.keys.remove)(each["key"]["id"])


# How often each comes: links live long enough for every other thing to happen on one.
ACTIONS = {
    "commit": 8, "deliver": 12, "read": 4, "repeat": 2, "cut": 2, "add": 3, "since": 2, "remove": 1, "resync": 1,
    "forget": 0.3,
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_rows_equal_the_servers_at_every_position_over_any_number_of_links(seed: int) -> None:
    source = random.Random(seed)
    server = Server(source)
    harness = Harness()
    copies: dict[str, Copy] = {}

    def settle(*, up_to: int) -> None:
        for frame in harness.session.take_frames():
            server.receive(frame)
        for _ in range(min(up_to, len(server.queue))):
            harness.session.frame_received(server.queue.pop(0), harness.now)
            for event in harness.session.take_events():
                for name, copy in copies.items():
                    copy.take(name, event)
            assert harness.session.must_disconnect is None
            position = harness.session.state(harness.now).position
            for name, copy in copies.items():
                own = harness.session.position_of(name)
                if copy.valid and own is not None:
                    assert frozenset(copy.keys) == server.states[int(name[0])][int(own[17:], 16)]
            assert position is None or position <= at(server.head)

    def connect() -> None:
        harness.session.link_opening(harness.now)
        harness.session.link_opened(harness.now, "websocket", None)

    connect()
    for step in range(120):
        harness.now += 0.2
        (action,) = source.choices(list(ACTIONS), list(ACTIONS.values()))
        if action == "commit":
            server.commit()
        elif action == "deliver":
            settle(up_to=source.randint(1, 8))
        elif action == "cut":
            harness.session.link_lost(harness.now, 1006, "")
            connect()
        elif action == "add" and len(copies) < 4:
            name = f"{source.randrange(2)}-{step}"
            copies[name] = Copy()
            harness.session.add(name, Interest(name[0]), harness.now)
        elif action == "since" and len(copies) < 4:
            name = f"{source.randrange(2)}-{step}"
            number = source.randint(1, server.head)
            copies[name] = Copy()
            copies[name].keys, copies[name].valid = set(server.states[int(name[0])][number]), True
            harness.session.add(name, Interest(name[0], since=at(number)), harness.now)
        elif action == "remove" and copies:
            name = source.choice(list(copies))
            del copies[name]
            harness.session.remove(name)
        elif action == "resync" and server.watching:
            server.resync(source.choice(list(server.watching)), "slow_client")
        elif action == "forget":
            server.oldest = source.randint(server.oldest, server.head)
        harness.session.tick(harness.now)
    for _ in range(10):
        harness.now += 1
        harness.session.tick(harness.now)
        server.finish_reading()
        settle(up_to=10_000)
    for name, copy in copies.items():
        assert copy.valid
        assert copy.keys == server.rows[int(name[0])]
