"""A client as a table: what follows a state and an input is worked out once, and looked up from then on.

What a client does depends on its state and on what it is told, and on nothing else in the world. There are some hundred
times fewer states of clients than of worlds, so nearly every step of a world finds its client's step in the table.

The one rule of this room: an input says all that the client is told. It is a tuple that can be compared: the method's
name and the arguments; for `receive`, the events in short.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable
from typing import Any, TypeAlias

from tests.client.scope import BrokenRuleError, Client, Rows, Write, written

from rowcast.client.events import (
    Event,
    Progress,
    Resync,
    SnapshotChunk,
    StateChanged,
    Subscribed,
    Transaction,
)
from rowcast.client.outputs import AskStatus, Output, Refetch, SendMutation
from rowcast.client.overlay import Delete, Insert, Patch, Update
from rowcast.client.rows import Key
from rowcast.client.state import ConnectionState

EPOCH = "5e1f0c6a9d3b2e47"
COLUMNS = (("id", "bigint"), ("a", "text"), ("b", "text"))
TICK_SECONDS = 1000.0

Input: TypeAlias = tuple[Hashable, ...]
# What the client asks for: "send" or "ask" with a mutation's number, "refetch" with 0.
Request: TypeAlias = tuple[str, int]


def at(number: int) -> str:
    return f"{EPOCH}-{number:016x}"


class ClientState:
    """A client as it is at one moment; it is never changed.

    Attributes:
        number: Equal for equal states, and for no others.
        shown: The visible rows, those of made-up keys under the server's.
        writers: Whose writes they show.
    """

    __slots__ = ("_following", "_table", "_ticks", "client", "number", "shown", "unsettled", "writers")

    def __init__(self, table: Table, client: Client, ticks: int, number: int) -> None:
        self.client = client
        self.number = number
        self.shown = _under_real_keys(written(client.visible()))
        self.writers = frozenset(writer for _, a, b in self.shown for writer in (a, b))
        self.unsettled = client.unsettled()
        self._table = table
        self._ticks = ticks
        self._following: dict[Input, tuple[ClientState, tuple[Request, ...]]] = {}

    def after(self, told: Input, ticks: int) -> tuple[ClientState, tuple[Request, ...]]:
        """What the client is after an input at a time, and what it asks for.

        Raises:
            BrokenRuleError: It shows a row twice then.
        """
        key = (ticks, *told)
        following = self._following.get(key)
        if following is None:
            client: Client = pickle.loads(pickle.dumps(self.client, pickle.HIGHEST_PROTOCOL))
            outputs = _perform(client, told, ticks * TICK_SECONDS)
            requests = tuple(request for output in outputs if (request := _request(output)) is not None)
            following = self._following[key] = (self._table.state(client, ticks), requests)
        return following


class Table:
    """All states of a client that have been met.

    The time belongs to a state: all that waits for a word in time is overdue with the next tick, and only then.
    """

    def __init__(self, *, remember: bool = True) -> None:
        """Start empty; without `remember`, everything is worked out each time, to test that this is no different."""
        self._states: dict[object, ClientState] = {}
        self._numbers: dict[object, int] = {}
        self._remember = remember

    def state(self, client: Client, ticks: int) -> ClientState:
        mark = (client.fingerprint(), ticks)
        if mark in self._states:
            return self._states[mark]
        state = ClientState(self, client, ticks, self._numbers.setdefault(mark, len(self._numbers)))
        if self._remember:
            self._states[mark] = state
        return state


def _under_real_keys(rows: Rows) -> Rows:
    real: dict[Key, tuple[str, str]] = {}
    for key, a, b in rows:
        real_key = real_key_of(int(key[1:])) if isinstance(key, str) else key
        if real_key in real:
            raise BrokenRuleError(f"a new row stands there twice, as {key} and as {real_key}")
        real[real_key] = (a, b)
    return frozenset((key, a, b) for key, (a, b) in real.items())


def real_key_of(mutation: int) -> int:
    """The key that the server makes for the row of a mutation."""
    return 100 + mutation


def _perform(client: Client, told: Input, now: float) -> list[Output]:
    arguments: Any
    method, *arguments = told
    match method:
        case "receive":
            return client.receive([event for each in arguments for event in _events(each)])
        case "refresh":
            return client.refresh("p")
        case "tick":
            return client.tick(now)
    number, *rest = arguments
    name = f"m{number}"
    match method:
        case "mutate":
            write: Write = rest[0]
            return client.mutate(name, [_patch(number, write)], strategy=write.strategy)
        case "answered":
            keys: dict[Key, Key] = {f"t{number}": real_key_of(number)} if rest[0] else {}
            return client.answered(name, now, position=None, keys=keys)
        case "status":
            status, position = rest
            return client.status(name, status, now, position=None if position is None else at(position))
        case "rejected":
            return client.rejected(name)
        case _:
            return client.sent(name, now) if method == "sent" else client.lost(name, now)


def _events(told: Any) -> list[Event]:
    match told:
        case ("commit", number, writer, change, subscription):
            changes = {"p": [_change(*change)]} if change else {}
            confirms = (writer,) if writer.startswith("m") else ()
            if not confirms and not changes:
                return [Progress(at(number), subscription)]
            return [Transaction(at(number), number, "", changes, confirms, subscription)]
        case ("snapshot", number, rows):
            objects = [{"id": key, "a": a, "b": b} for key, a, b in sorted(rows)]
            return [SnapshotChunk("p", 0, objects, [], last=True, position=at(number))]
        case ("resync", number):
            return [Resync("p", "slow_client", at(number))]
        case ("connected",):
            return [
                StateChanged(ConnectionState("connected")),
                Subscribed("p", "rows", "public", "rows", COLUMNS, ("id",), at(0), 1),
            ]
        case _:
            return [StateChanged(ConnectionState("reconnecting"))]


def _change(operation: str, key: int, a: str, b: str) -> dict[str, Any]:
    change: dict[str, Any] = {"op": operation, "key": {"id": key}}
    return change if operation == "DELETE" else {**change, "new": {"id": key, "a": a, "b": b}}


def _patch(number: int, write: Write) -> Patch:
    name = f"m{number}"
    match write.kind:
        case "set":
            return Update("p", 1, {write.column: name})
        case "delete":
            return Delete("p", 1)
        case "insert":
            return Insert("p", 2, {"id": 2, "a": name, "b": name})
        case "create":
            return Insert("p", f"t{number}", {"id": f"t{number}", "a": name, "b": name}, temporary=True)


def _request(output: Output) -> Request | None:
    match output:
        case SendMutation(name):
            return "send", int(name[1:])
        case AskStatus(name):
            return "ask", int(name[1:])
        case Refetch():
            return "refetch", 0
        case _:
            return None
