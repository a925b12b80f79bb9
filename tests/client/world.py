"""A small world in which a client, the network and a database act, one action after the other; see `exploration`.

What is written is the writer's own name, so that the screen tells whose write it shows: `m0`, `m1` … are the client's
mutations, `f0`, `f1` … foreign commits, `0` is what was there at first.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, TypeAlias

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
from rowcast.client.overlay import Delete, Insert, Patch, Strategy, Update
from rowcast.client.rows import Key, Row
from rowcast.client.state import ConnectionState

EPOCH = "5e1f0c6a9d3b2e47"
COLUMNS = (("id", "bigint"), ("a", "text"), ("b", "text"))
INFINITY = 1000  # ranks above every commit: mutations that are not in the database yet
TICK_SECONDS = 1000.0


def at(number: int) -> str:
    return f"{EPOCH}-{number:016x}"


@dataclass(frozen=True)
class Write:
    """What one writer does: set a column of row 1, delete row 1, insert row 2, or insert a row whose key the server makes."""

    kind: Literal["set", "delete", "insert", "create"]
    column: str = "a"
    strategy: Strategy = "overlay"


SET_A, SET_B, DELETE = Write("set", "a"), Write("set", "b"), Write("delete")
INSERT, CREATE = Write("insert"), Write("create")


class Client(Protocol):
    """What is explored: the store, or a strategy that is to be found wanting."""

    def receive(self, events: Iterable[Event]) -> list[Output]: ...
    def mutate(self, mutation: str, patches: Sequence[Patch], *, strategy: Strategy) -> list[Output]: ...
    def sent(self, mutation: str, now: float) -> list[Output]: ...
    def answered(
        self, mutation: str, now: float, *, position: str | None, keys: dict[Key, Key]
    ) -> list[Output]: ...
    def rejected(self, mutation: str) -> list[Output]: ...
    def lost(self, mutation: str, now: float) -> list[Output]: ...
    def status(
        self,
        mutation: str,
        status: Literal["committed", "unknown", "rejected"],
        now: float,
        *,
        position: str | None,
    ) -> list[Output]: ...
    def refresh(self, subscription: str) -> list[Output]: ...
    def tick(self, now: float) -> list[Output]: ...
    def visible(self) -> dict[Key, Row]: ...
    def unsettled(self) -> bool: ...
    def fingerprint(self) -> object: ...


def writers(rows: Mapping[Key, Row]) -> object:
    return frozenset((key, row["a"], row["b"]) for key, row in rows.items())


Columns: TypeAlias = dict[str, Any]
Rows: TypeAlias = dict[Key, Columns]
Action: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Budget:
    """How often each thing may go wrong in one run."""

    refreshes: int = 1
    resyncs: int = 1
    disconnects: int = 1
    losses: int = 1
    refusals: int = 1
    timeouts: int = 1


@dataclass(frozen=True)
class Scenario:
    mutations: tuple[Write, ...]
    commits: tuple[Write, ...]
    budget: Budget = Budget()
    servers_lag: bool = True  # a reconnect may lead to a server that is behind the last one


class BrokenRuleError(AssertionError):
    """A rule does not hold; the text tells the run that leads there."""


@dataclass
class World:
    """One state of everything.

    Attributes:
        log: Writer and changes of each commit; the first is number 1.
        states: The rows after each commit; the first are those before any.
        stages: Of each mutation: where its request is.
        told: The last commit that the stream has told.
        start: Changes up to this commit are in the client's rows already.
        load: The snapshot on its way: None, "asked", or its position once the server has read it.
        held: Commits told while the snapshot was on its way.
    """

    scenario: Scenario
    client: Client
    budget: dict[str, int]
    log: list[tuple[str, list[Columns]]] = field(default_factory=list)
    states: list[Rows] = field(default_factory=lambda: [{1: {"id": 1, "a": "0", "b": "0"}}])
    stages: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    foreign: int = 0
    linked: bool = True
    told: int = 0
    start: int = 0
    load: int | Literal["asked"] | None = None
    held: list[int] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    ticks: int = 0
    written: Action | None = None

    # What can happen.

    def actions(self) -> list[Action]:
        """All that can happen next, except for orders that make no difference.

        A write at the server changes nothing that the client sees until something depends on it. Of all runs that differ
        only in how long before that it happens, the one where it happens last is enough: so after a write comes
        another write, or what depends on this one.
        """
        return [
            action
            for action in self._possible()
            if self.written is None or self._depends(action, self.written)
        ]

    def _depends(self, action: Action, written: Action) -> bool:
        name, number = action
        if written[0] == "refuse":
            return number == written[1] and name in {"answer", "lose_answer", "status"}
        match name:
            case "execute" | "commit" | "read_snapshot" | "resync" | "status":
                return True
            case "answer" | "lose_answer":
                return written == ("execute", number)
            case "tell":
                return self.told == len(self.log) - 1
            case "reconnect":
                return self.load is not None
            case _:
                return False

    def _possible(self) -> list[Action]:
        found: list[Action] = []
        budget = self.budget
        if len(self.stages) < len(self.scenario.mutations):
            found.append(("mutate", len(self.stages)))
        if self.foreign < len(self.scenario.commits):
            found.append(("commit", self.foreign))
        for number, stage in enumerate(self.stages):
            if stage == "requested":
                found.append(("execute", number))
                if budget["refusals"]:
                    found.append(("refuse", number))
                if budget["losses"]:
                    found.append(("lose_request", number))
            elif stage in {"done", "refused"}:
                found.append(("answer", number))
                if budget["losses"]:
                    found.append(("lose_answer", number))
        found.extend(("status", number) for number in self.asked)
        if self.linked:
            if self.told < len(self.log):
                found.append(("tell", 0))
            if self.load == "asked":
                found.append(("read_snapshot", 0))
            elif self.load is not None:
                found.append(("tell_snapshot", 0))
            if budget["resyncs"] and self.load is None:
                found.append(("resync", 0))
            if budget["refreshes"]:
                found.append(("refresh", 0))
            if budget["disconnects"]:
                found.append(("disconnect", 0))
        else:
            found.append(("reconnect", 0))
            if self.load is not None and self.told and self.scenario.servers_lag:
                found.append(("reconnect_to_a_server_behind", 0))
        waiting = self.client.unsettled()
        if waiting and (budget["timeouts"] or (not found and self.ticks < 6)):
            found.append(("time_out", 0))
        return found

    def perform(self, action: Action) -> None:
        name, number = action
        self.written = action if name in {"execute", "refuse", "commit"} else None
        self._obey(getattr(self, f"_{name}")(number))

    def _mutate(self, number: int) -> list[Output]:
        self.stages.append("made")
        write = self.scenario.mutations[number]
        return self.client.mutate(f"m{number}", [self._patch(number, write)], strategy=write.strategy)

    def _commit(self, number: int) -> list[Output]:
        self.foreign += 1
        self._write(f"f{number}", self.scenario.commits[number])
        return []

    def _execute(self, number: int) -> list[Output]:
        if self._position_of(f"m{number}") is None and not self._write(
            f"m{number}", self.scenario.mutations[number]
        ):
            self.stages[number] = "refused"  # its key is taken
        else:
            self.stages[number] = "done"
        return []

    def _refuse(self, number: int) -> list[Output]:
        if self._position_of(f"m{number}") is None:
            self.budget["refusals"] -= 1
            self.stages[number] = "refused"
        else:
            self.stages[number] = "done"
        return []

    def _lose_request(self, number: int) -> list[Output]:
        self.budget["losses"] -= 1
        self.stages[number] = "unseen"
        return self.client.lost(f"m{number}", self._now)

    def _lose_answer(self, number: int) -> list[Output]:
        self.budget["losses"] -= 1
        self.stages[number] += ", unanswered"
        return self.client.lost(f"m{number}", self._now)

    def _answer(self, number: int) -> list[Output]:
        if self.stages[number] == "refused":
            return self._reject(number)
        self.stages[number] = "answered"
        keys: dict[Key, Key] = (
            {f"t{number}": 100 + number} if self.scenario.mutations[number].kind == "create" else {}
        )
        return self.client.answered(f"m{number}", self._now, position=None, keys=keys)

    def _reject(self, number: int) -> list[Output]:
        self.stages[number] = "answered"
        self.rejected.append(f"m{number}")
        return self.client.rejected(f"m{number}")

    def _status(self, number: int) -> list[Output]:
        self.asked.remove(number)
        if self._position_of(f"m{number}") is not None:
            return self.client.status(f"m{number}", "committed", self._now, position=at(len(self.log)))
        if self.stages[number].startswith("refused"):
            return self._reject(number)
        return self.client.status(f"m{number}", "unknown", self._now, position=None)

    def _time_out(self, _: int) -> list[Output]:
        self.budget["timeouts"] = max(0, self.budget["timeouts"] - 1)
        self.ticks += 1
        return self.client.tick(self._now)

    def _tell(self, _: int) -> list[Output]:
        self.told += 1
        if self.load is not None:
            self.held.append(self.told)
            return self.client.receive([self._event(self.told, {})])
        return self.client.receive([self._event(self.told, {"p": self._changes(self.told)})])

    def _read_snapshot(self, _: int) -> list[Output]:
        self.load = len(self.log)
        return []

    def _tell_snapshot(self, _: int) -> list[Output]:
        assert isinstance(self.load, int)
        self.start = self.load
        rows = [dict(row) for row in self.states[self.start].values()]
        events: list[Event] = [SnapshotChunk("p", 0, rows, [], last=True, position=at(self.start))]
        for number in self.held:
            writer = self.log[number - 1][0]
            if number > self.start or writer.startswith("m"):
                events.append(self._event(number, {"p": self._changes(number)}, "p"))
        self.load = None
        self.held = []
        return self.client.receive(events)

    def _resync(self, _: int) -> list[Output]:
        self.budget["resyncs"] -= 1
        self.told = len(self.log)
        self._ask_for_a_snapshot()
        return self.client.receive([Resync("p", "slow_client", at(self.told))])

    def _refresh(self, _: int) -> list[Output]:
        self.budget["refreshes"] -= 1
        return self.client.refresh("p")

    def _disconnect(self, _: int) -> list[Output]:
        self.budget["disconnects"] -= 1
        self.linked = False
        self.held = []
        if self.load is not None:
            self.load = "asked"
        return self.client.receive([StateChanged(ConnectionState("reconnecting"))])

    def _reconnect(self, _: int) -> list[Output]:
        self.linked = True
        if self.load is not None:
            self.told = len(self.log)  # the stream begins where the server stands
        return self.client.receive(link_up())

    def _reconnect_to_a_server_behind(self, _: int) -> list[Output]:
        self.linked = True
        self.told -= 1
        self.load = self.told
        return self.client.receive(link_up())

    # Details.

    @property
    def _now(self) -> float:
        return self.ticks * TICK_SECONDS

    def _obey(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendMutation(name):
                    self.stages[int(name[1:])] = "requested"
                    self._obey(self.client.sent(name, self._now))
                case AskStatus(name):
                    if int(name[1:]) not in self.asked:
                        self.asked.append(int(name[1:]))
                case Refetch():
                    self._ask_for_a_snapshot()
                case _:
                    pass

    def _ask_for_a_snapshot(self) -> None:
        self.load = "asked"
        self.held = []

    def _patch(self, number: int, write: Write) -> Patch:
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

    def _write(self, writer: str, write: Write) -> bool:
        rows = {key: dict(row) for key, row in self.states[-1].items()}
        changes: list[Columns] = []
        if write.kind == "set" and 1 in rows:
            rows[1][write.column] = writer
            changes = [{"op": "UPDATE", "key": {"id": 1}, "new": dict(rows[1])}]
        elif write.kind == "delete" and 1 in rows:
            del rows[1]
            changes = [{"op": "DELETE", "key": {"id": 1}}]
        elif write.kind in {"insert", "create"}:
            key = 2 if write.kind == "insert" else 100 + int(writer[1:])
            if key in rows:
                return False
            rows[key] = {"id": key, "a": writer, "b": writer}
            changes = [{"op": "INSERT", "key": {"id": key}, "new": dict(rows[key])}]
        self.log.append((writer, changes))
        self.states.append(rows)
        return True

    def _changes(self, number: int) -> list[Columns]:
        return self.log[number - 1][1] if number > self.start else []

    def _event(
        self, number: int, changes: dict[str, list[Columns]], subscription: str | None = None
    ) -> Event:
        writer = self.log[number - 1][0]
        confirms = (writer,) if writer.startswith("m") else ()
        if not confirms and not changes.get("p"):
            return Progress(at(number), subscription)
        return Transaction(at(number), number, "", changes, confirms, subscription)

    def _position_of(self, writer: str) -> int | None:
        return next((number for number, (name, _) in enumerate(self.log, 1) if name == writer), None)

    # What must hold.

    def shown(self) -> Rows:
        """The visible rows, those of made-up keys under the server's."""
        rows: Rows = {}
        for key, row in self.client.visible().items():
            real = 100 + int(key[1:]) if isinstance(key, str) else key
            if real in rows:
                raise BrokenRuleError(f"a new row stands there twice, as {key} and as {real}")
            rows[real] = {**row, "id": real}
        return rows

    def rank(self, writer: str) -> int:
        """Later writes have higher ranks; what is not in the database yet is later than all that is."""
        if writer == "0":
            return 0
        return self._position_of(writer) or INFINITY + int(writer[1:])

    def check_step(self, before: Rows, after: Rows) -> None:
        """Rule 6: nothing shown is older than what was shown there before."""
        for key in before.keys() | after.keys():
            old, new = before.get(key), after.get(key)
            if old is not None and new is not None:
                for column in ("a", "b"):
                    writer = old[column]
                    if self.rank(new[column]) < self.rank(writer) and not self._is_void(writer):
                        raise BrokenRuleError(f"row {key}: {old} became {new}, which is older")
            elif old is not None and not self._may_go(key, old):
                raise BrokenRuleError(f"row {key}: {old} went though nobody has deleted it")
            elif new is not None and key == 1 and not any(name in self.rejected for name in self._deleters()):
                raise BrokenRuleError(f"row {key} came back as {new} though it is deleted")

    def _is_void(self, writer: str) -> bool:
        """Whether it was rejected, or is an insert whose key somebody else has taken."""
        taken = self._position_of(writer) is None and self.states[-1].get(2, {"a": writer})["a"] != writer
        inserts = writer.startswith("m") and self.scenario.mutations[int(writer[1:])].kind == "insert"
        return writer in self.rejected or (inserts and taken)

    def _may_go(self, key: Key, row: Columns) -> bool:
        return (
            any(name not in self.rejected for name in self._deleters())
            if key == 1
            else row["a"] in self.rejected
        )

    def _deleters(self) -> list[str]:
        """Whose writes can be why row 1 is not there."""
        mutations = enumerate(self.scenario.mutations[: len(self.stages)])
        commits = enumerate(self.scenario.commits[: self.foreign])
        return [f"m{number}" for number, write in mutations if write.kind == "delete"] + [
            f"f{number}" for number, write in commits if write.kind == "delete"
        ]

    def check_end(self) -> None:
        if self.client.unsettled():
            raise BrokenRuleError("nothing can happen any more, and a mutation is not settled")
        if self.shown() != self.states[-1]:
            raise BrokenRuleError(f"the end shows {self.shown()}, the database has {self.states[-1]}")

    # Copies and comparison.

    def copy(self) -> World:
        """Another one with the same history: what has happened is shared, what can still change is not."""
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.client = pickle.loads(pickle.dumps(self.client, pickle.HIGHEST_PROTOCOL))
        for name in ("budget", "log", "states", "stages", "asked", "held", "rejected"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def fingerprint(self) -> object:
        """Equal for worlds whose futures are the same.

        The order of past commits matters only as far as their writes can still be seen somewhere.
        """
        client = self.client.fingerprint()
        needed = self.load if isinstance(self.load, int) else len(self.log)
        back = 1 if self.told and (self.budget["disconnects"] or not self.linked) else 0  # to a server behind
        recent = min([self.told - back, needed, *(number - 1 for number in self.held)])
        seen = {
            row[column]
            for rows in (self.states[recent], self.client.visible())
            for row in rows.values()
            for column in "ab"
        }
        past = tuple(
            (number, writer) for number, (writer, _) in enumerate(self.log[:recent], 1) if writer in seen
        )
        return (
            client,
            self.written,
            past,
            frozenset(writer for writer, _ in self.log[:recent]),
            tuple(writer for writer, _ in self.log[recent:]),
            writers(self.states[recent]),
            tuple(self.stages),
            frozenset(self.asked),
            self.foreign,
            self.linked,
            self.told,
            self.start if self.start > self.told else 0,
            self.load,
            tuple(self.held),
            frozenset(self.rejected),
            tuple(self.budget.values()),
            self.ticks,
        )


def link_up() -> list[Event]:
    return [
        StateChanged(ConnectionState("connected")),
        Subscribed("p", "rows", "public", "rows", COLUMNS, ("id",), at(0), 1),
    ]


def begin(scenario: Scenario, make_client: Callable[[], Client]) -> World:
    """The world at first: connected, with the first snapshot shown."""
    budget = {each.name: getattr(scenario.budget, each.name) for each in fields(scenario.budget)}
    world = World(scenario, make_client(), budget)
    rows = [dict(row) for row in world.states[0].values()]
    world.client.receive([*link_up(), SnapshotChunk("p", 0, rows, [], last=True, position=at(0))])
    return world
