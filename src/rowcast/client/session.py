"""The full form of the protocol from the client's side: frames in, frames out, deadlines out. No I/O.

One session lives as long as its connection object, over all the links (sockets) that carry it one after the
other. The one rule it keeps: while it is not closed, it is always clear what happens next and when, and there is
one plan only, however many parts of the application wish for a reconnect.

What the caller must do after each call: send what `take_frames()` returns, handle what `take_events()` returns,
and look at `must_disconnect`, `needs_token`, `must_connect(now)` and `deadline()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from rowcast.client.backoff import Backoff
from rowcast.client.events import Event, Interest, JSONObject, MutationTold, ServerError, StateChanged
from rowcast.client.state import ConnectionState, Status, TransportName
from rowcast.client.subscriptions import Output, Subscriptions

PROTOCOL_VERSION: Final = 1
WELCOME_SECONDS: Final = 10.0  # a server that cannot answer `hello` by then is better asked again elsewhere
SILENT_INTERVALS: Final = 2.5  # one lost heartbeat is no proof, two are; the half is for a slow network
STALL_INTERVALS: Final = (
    4.0  # a server under load may take long to begin a snapshot, and asking again restarts it
)
PROBE_SECONDS: Final = 3.0  # the longest that a network which came back may take for one round trip
STABLE_SECONDS: Final = (
    5.0  # a link that lived so long was a success: the next failure starts at the first step
)
WISH_SPACING_SECONDS: Final = 1.0  # wishes closer together than this are one wish
TOKEN_ATTEMPTS: Final = 3  # a provider that gave three bad tokens in a row will not give a good one
HELLO_BYTES: Final = 128 * 1024  # half of the server's limit for one frame; what exceeds it follows at once

_HEARTBEAT_SECONDS: Final = 15.0  # until `welcome` names the server's
_SLOWER_ATTEMPT: Final = 3  # after "too many messages" wait as after the third failure, up to 8 s
_TOKEN_ERRORS: Final = frozenset({"token_invalid", "token_expired"})
_FOREVER: Final = float("inf")
_CLOSE_REASONS: Final = {
    1001: "the server is shutting down",
    1006: "the connection broke off",
    1009: "a frame was over the server's size limit",
    1012: "the server restarts",
    4001: "this client did not read fast enough",
    4002: "the server heard nothing from this client",
    4003: "this client sent too many messages",
    4004: "nothing was subscribed in time",
    4500: "the server does not allow this origin",
    4501: "the server does not accept the credentials",
}


class Session:
    """See the module. All times are seconds on one monotonic clock, passed in as `now`.

    Args:
        client: Name and version for the server's logs.
        random: Returns a float in [0, 1).
        attempts: Give up after so many failed attempts in a row; None for never.
        renewable: Whether the caller can get another token when the server refuses one.
        old_rows: Whether changes carry the whole old row; for callers that do not keep rows.
        mutations: What this client's mutation ids begin with, up to their first dot: of commits that concern no
            subscription, it then hears only of those that confirm one of these. None: of all that confirm something.

    Attributes:
        must_disconnect: Why the caller must end the link now, or None.
        needs_token: The caller must get a new token and hand it to `token_received`.
    """

    def __init__(
        self,
        *,
        client: str,
        random: Callable[[], float],
        attempts: int | None = None,
        renewable: bool = False,
        old_rows: bool = False,
        mutations: str | None = None,
    ) -> None:
        self.must_disconnect: str | None = None
        self.needs_token = False
        self._paused = False
        self._client = client
        self._renewable = renewable
        self._old_rows = old_rows
        self._mutations = mutations
        self._backoff = Backoff(random, limit=attempts)
        self._output = Output()
        self._subscriptions = Subscriptions(random, self._output)
        self._link: Literal["none", "opening", "welcoming", "up", "closed"] = "none"
        self._online = True
        self._retry_at: float | None = 0.0
        self._attempted_at = -_FOREVER
        self._opened_at = 0.0
        self._welcomed_at: float | None = None
        self._goodbye_seconds: float | None = None
        self._heartbeat_seconds = _HEARTBEAT_SECONDS
        self._heartbeat_at = 0.0
        self._heard_at = 0.0
        self._probe_until = _FOREVER
        self._pings: dict[int, float] = {}
        self._next_ping = 0
        self._behind_since: float | None = None
        self._token_failures = 0
        self._token_refused = False
        self._round_trip: float | None = None
        self._state = ConnectionState("connecting")
        subscriptions = self._subscriptions
        self._handlers: dict[str, Callable[[JSONObject, str | None, float], None]] = {
            "transaction": lambda frame, lane, _: subscriptions.on_transaction(frame, lane),
            "snapshot": lambda frame, lane, _: subscriptions.on_snapshot(frame, lane),
            "subscribed": self._on_subscribed,
            "unsubscribed": lambda _, lane, __: subscriptions.on_unsubscribed(lane),
            "resync": subscriptions.on_resync,
            "heartbeat": self._on_heartbeat,
            "welcome": self._on_welcome,
            "status": self._on_status,
            "mutation": self._on_mutation,
            "token_accepted": self._on_token_accepted,
            "token_expiring": self._on_token_expiring,
            "goodbye": self._on_goodbye,
            "error": self._on_error,
        }

    # What the application wishes.

    def add(self, subscription: str, interest: Interest, now: float) -> None:
        """Subscribe, under an id of the caller's choice that no other subscription has."""
        self._subscriptions.add(subscription, interest)
        if self._link in {"welcoming", "up"}:
            self._subscriptions.ask(subscription, now)

    def remove(self, subscription: str) -> None:
        """Unsubscribe; nothing more is told to it."""
        self._subscriptions.remove(subscription)

    def reconnect(self, now: float, reason: str) -> None:
        """Somebody has cause to think that trying now is worth it: the network or the user came back.

        Wishes are merged: while an attempt is under way there is nothing to do, a link that is up is probed
        rather than dropped, and a waiting attempt is brought forward, but not closer to the last than a second.
        """
        if self._link == "up":
            if self._probe_until == _FOREVER:
                self._probe_until = now + PROBE_SECONDS
                self._ping(now)
        elif self._link == "none" and self._online:
            retry_at = max(now, self._attempted_at + WISH_SPACING_SECONDS)
            if self._retry_at is None or retry_at < self._retry_at:
                self._backoff.reset()
                self._retry_at = retry_at
                self._tell(now, self._waiting_status(), reason)

    def set_online(self, now: float, *, online: bool) -> None:
        """The network is there, or is not: without it nothing is tried."""
        if online == self._online or self._link == "closed":
            return
        self._online = online
        if online:
            self.reconnect(now, "the network is back")
        else:
            self._end("none", "there is no network")
            self._tell(now, "offline", "there is no network")

    def close(self, now: float, reason: str = "closed by the application") -> None:
        """End for good."""
        if self._link != "closed":
            self._end("closed", reason)
            self._tell(now, "closed", reason)

    def refetch(self, subscription: str, now: float) -> None:
        """Take a new snapshot for a subscription; until it has come, nothing else is told to it."""
        self._subscriptions.refetch(subscription)
        if self._link in {"welcoming", "up"}:
            self._subscriptions.ask(subscription, now)

    # What the caller asks.

    def ask_mutation(self, mutation: str) -> bool:
        """Ask what became of a mutation; returns whether there is a link that can carry the question."""
        can_ask = self._link == "up" and self._state.transport == "websocket"
        if can_ask:
            self._output.frames.append({"type": "mutation", "id": mutation})
        return can_ask

    @property
    def closed(self) -> bool:
        return self._link == "closed"

    @property
    def welcomed(self) -> bool:
        """Whether there is a link and the server has answered on it."""
        return self._link == "up"

    @property
    def unanswered(self) -> bool:
        """Whether there is a link and the server has not answered on it."""
        return self._link == "welcoming"

    def must_connect(self, now: float) -> bool:
        """Whether a link is to be opened now."""
        return self._link == "none" and self._retry_at is not None and self._retry_at <= now

    def deadline(self) -> float | None:
        """When `tick()` must be called at the latest, or a link opened; None: not before something happens."""
        if self._link == "up":
            silent_at = (
                _FOREVER if self._paused else self._heard_at + SILENT_INTERVALS * self._heartbeat_seconds
            )
            return min(self._heartbeat_at, silent_at, self._probe_until, self._subscriptions.deadline())
        if self._link == "welcoming":
            return self._opened_at + WELCOME_SECONDS
        return self._retry_at if self._link == "none" else None

    def position_of(self, subscription: str) -> str | None:
        """Up to where a subscription has been told everything; None before anything was."""
        return self._subscriptions.position_of(subscription)

    def take_frames(self) -> list[JSONObject]:
        """What must be sent now, in this order."""
        frames, self._output.frames = self._output.frames, []
        return frames

    def take_events(self) -> list[Event]:
        """What the application must be told now, in this order, in one step."""
        events, self._output.events = self._output.events, []
        return events

    def state(self, now: float) -> ConnectionState:
        """How the connection is doing at this moment."""
        position, server_position = self._subscriptions.position, self._subscriptions.server_position
        self._measure_lag(now)
        return msgspec.structs.replace(
            self._state,
            round_trip_seconds=self._round_trip,
            position=position,
            server_position=server_position,
            lag_seconds=0.0 if self._behind_since is None else now - self._behind_since,
        )

    # What happened to the link.

    def link_opening(self, now: float) -> None:
        """An attempt begins."""
        self._link = "opening"
        self._attempted_at = now
        self._retry_at = None
        self.must_disconnect = None
        self.needs_token = False
        self._tell(now, self._waiting_status(), self._state.reason)

    def link_opened(self, now: float, transport: TransportName, token: str | None) -> bool:
        """A link is open, the first or in place of another: everything is asked for in one `hello`.

        Returns:
            False if no link is wanted any more; end it then.
        """
        if self._link in {"none", "closed"}:
            return False
        self._end("welcoming", None)
        self._opened_at = now
        self._state = msgspec.structs.replace(self._state, transport=transport)
        hello: JSONObject = {"type": "hello", "version": PROTOCOL_VERSION, "client": self._client}
        if token is not None:
            hello["token"] = token
        if self._old_rows:
            hello["old_rows"] = True
        if self._mutations is not None:
            hello["mutations"] = self._mutations
        entries = self._subscriptions.ask_all(now)
        room, fitting = HELLO_BYTES, 0
        while fitting < len(entries) and (room := room - len(msgspec.json.encode(entries[fitting]))) >= 0:
            fitting += 1
        hello["subscriptions"] = entries[:fitting]
        self._output.frames = [hello, *({"type": "subscribe", **entry} for entry in entries[fitting:])]
        return True

    def link_lost(self, now: float, code: int | None, reason: str) -> None:
        """The link ended, or could not be opened. `code` is the close code where there was one."""
        if self._link in {"none", "closed"}:
            return
        if self._welcomed_at is not None and now - self._welcomed_at >= STABLE_SECONDS:
            self._backoff.reset()
        words = self.must_disconnect or _CLOSE_REASONS.get(code or 0, "")
        reason = f"{words}: {reason}" if words and reason not in {"", words} else words or reason
        goodbye_seconds, counted = self._goodbye_seconds, self._token_refused
        self._end("none", None)
        if code == 4501 and not counted:
            self._refuse_token(now, reason)
        elif code is not None and 4500 <= code <= 4999 and code != 4501:
            self.close(now, reason)
        if self._link == "closed":
            return
        if code == 4003:
            self._backoff.attempt = max(self._backoff.attempt, _SLOWER_ATTEMPT)
        delay = self._backoff.next_delay()
        if goodbye_seconds is not None and delay is not None:
            delay = goodbye_seconds
        if delay is None:
            attempts = self._backoff.attempt
            self._tell(
                now, "offline", f"gave up after {attempts} attempts ({reason}); reconnect() tries again"
            )
        else:
            self._retry_at = now + delay
            self._tell(now, "reconnecting", reason)

    def pause(self) -> None:
        """The caller does not read from the link for now: silence proves nothing."""
        self._paused = True

    def resume(self, now: float) -> None:
        """The caller reads again."""
        self._paused = False
        self._heard_at = now

    def token_received(self, token: str) -> None:
        """A new token, because `needs_token` was set."""
        self.needs_token = False
        if self._link == "up":
            self._output.frames.append({"type": "token", "token": token})

    def frame_received(self, frame: JSONObject, now: float, lane: str | None = None) -> None:
        """A frame of the server's, on a lane of its own where it speaks for one subscription only."""
        self._heard_at = now
        self._probe_until = _FOREVER
        handler = self._handlers.get(frame.get("type", ""))
        if handler is None:
            return
        try:
            handler(frame, lane, now)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.must_disconnect = (
                f"the server sent a {frame['type']} frame that cannot be understood ({error!r})"
            )
        if self._subscriptions.broken is not None:
            self.must_disconnect = self._subscriptions.broken

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._link == "welcoming" and now >= self._opened_at + WELCOME_SECONDS:
            self.must_disconnect = f"no welcome within {WELCOME_SECONDS:.0f} s"
        if self._link != "up":
            return
        if self._paused:
            self._heard_at = now
            self._probe_until = _FOREVER
        if now >= self._heard_at + SILENT_INTERVALS * self._heartbeat_seconds:
            self.must_disconnect = f"nothing heard from the server for {now - self._heard_at:.0f} s"
        elif now >= self._probe_until:
            self.must_disconnect = f"no answer within {PROBE_SECONDS:.0f} s"
        else:
            self._subscriptions.ask_due(now)
            if now >= self._heartbeat_at:
                self._ping(now)
                self._measure_lag(now)
                self._subscriptions.find_stalled(now, STALL_INTERVALS * self._heartbeat_seconds)
                self.must_disconnect = self._subscriptions.broken

    # Frames that concern the link. What concerns subscriptions goes on to `subscriptions`.

    def _on_welcome(self, frame: JSONObject, lane: str | None, now: float) -> None:
        self._link = "up"
        self._welcomed_at = now
        self._heartbeat_seconds = float(frame["heartbeat_seconds"])
        if "position" in frame:  # a transport that polls knows none before it has polled
            self._subscriptions.on_welcome(frame, lane)
        self._ping(now)
        self._tell_server_state(now, frame.get("state", "live"), "")

    def _on_subscribed(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        self._token_failures = 0
        self._subscriptions.on_subscribed(frame, lane)

    def _on_heartbeat(self, frame: JSONObject, lane: str | None, now: float) -> None:
        sent_at = self._pings.pop(frame.get("id", 0), None)
        if sent_at is not None:
            self._round_trip = now - sent_at
        if "position" in frame:
            self._subscriptions.on_position(frame["position"], lane)

    def _on_status(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        self._tell_server_state(now, frame["state"], frame.get("reason", ""))

    def _on_mutation(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        self._output.events.append(MutationTold(frame["id"], frame["state"], frame.get("position")))

    def _on_token_accepted(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        self._token_failures = 0

    def _on_token_expiring(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        self.needs_token = self._renewable

    def _on_goodbye(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        self._goodbye_seconds = frame["after_ms"] / 1000

    def _on_error(self, frame: JSONObject, lane: str | None, now: float) -> None:  # noqa: ARG002
        code, message = frame["code"], frame["message"]
        if code in _TOKEN_ERRORS:
            self._refuse_token(now, f"{_CLOSE_REASONS[4501]}: {message}")
        elif code == "unsupported_version":
            self.close(now, message)
        elif not self._subscriptions.on_error(frame, now):
            self._output.events.append(ServerError(code, message))

    # Details.

    def _end(self, link: Literal["none", "welcoming", "closed"], reason: str | None) -> None:
        """End the present link, if there is one, and forget what belonged to it."""
        if reason is not None and self._link in {"opening", "welcoming", "up"}:
            self.must_disconnect = reason
        else:
            self.must_disconnect = None
        self._link = link
        self._retry_at = self._welcomed_at = self._goodbye_seconds = self._round_trip = self._behind_since = (
            None
        )
        self._probe_until = _FOREVER
        self._pings.clear()
        self._token_refused = self.needs_token = False
        self._output.frames = []
        self._subscriptions.link_ended()
        if link != "welcoming":
            self._state = msgspec.structs.replace(self._state, transport=None)

    def _refuse_token(self, now: float, reason: str) -> None:
        """The credentials are not good: get others, or give up when that has not helped."""
        self._token_refused = True
        self._token_failures += 1
        if not self._renewable or self._token_failures >= TOKEN_ATTEMPTS:
            self.close(now, reason)
        else:
            self.needs_token = self._link == "up"

    def _ping(self, now: float) -> None:
        self._heartbeat_at = now + self._heartbeat_seconds
        self._next_ping += 1
        self._pings = {number: at for number, at in self._pings.items() if at > now - 60}
        self._pings[self._next_ping] = now
        self._output.frames.append({"type": "heartbeat", "id": self._next_ping})

    def _measure_lag(self, now: float) -> None:
        position, server_position = self._subscriptions.position, self._subscriptions.server_position
        if position is None or server_position is None or position >= server_position:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now

    def _waiting_status(self) -> Status:
        return (
            "connecting"
            if self._state.status == "connecting" and self._state.attempt == 0
            else "reconnecting"
        )

    def _tell_server_state(self, now: float, state: str, reason: str) -> None:
        if state == "live":
            self._tell(now, "connected", "")
        else:
            self._tell(now, "degraded", reason or f"the server is {state}")

    def _tell(self, now: float, status: Status, reason: str) -> None:
        """Bring the record up to date, and tell the application if anything in it is new."""
        told = self._state
        self._state = msgspec.structs.replace(
            told,
            status=status,
            reason=reason,
            since=now if status != told.status else told.since,
            attempt=0 if self._link == "up" else self._backoff.attempt,
            next_attempt_at=self._retry_at,
        )
        if self._state != told:
            self._output.events.append(StateChanged(self.state(now)))
