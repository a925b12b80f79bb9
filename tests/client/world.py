"""A small world in which a client, the network and a database act, one action after the other; see `exploration`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from tests.client.scope import BrokenRuleError, Budget, Client, Rows, Scenario, Write
from tests.client.table import ClientState, Table, real_key_of

from rowcast.client.rows import Key

INFINITY = 1000  # ranks above every commit: mutations that are not in the database yet
MAXIMUM_TICKS = 6  # one who still waits after so many, with nothing else to happen, waits for ever

FIRST_ROWS: Rows = frozenset({(1, "0", "0")})

Action: TypeAlias = tuple[str, int]
# An operation, the row's key, and who wrote its columns a and b.
Change: TypeAlias = tuple[str, int, str, str]


class Commit(NamedTuple):
    """One commit, and the rows after it."""

    writer: str
    change: Change | None
    rows: Rows


@dataclass(eq=False)
class World:
    """One state of everything. No part is ever changed in place, so that copies share them.

    Attributes:
        budget: What may still go wrong.
        log: The commits; the first is number 1.
        stages: Of each mutation: where its request is.
        asked: The mutations whose status the client wants to know.
        foreign: How many of the commits are others'.
        told: The last commit that the stream has told.
        start: Changes up to this commit are in the client's rows already.
        load: The snapshot on its way: None, "asked", or its position once the server has read it.
        held: Commits told while the snapshot was on its way.
        written: What the last action wrote at the server, see `actions()`.
    """

    scenario: Scenario
    client: ClientState
    budget: Budget
    log: tuple[Commit, ...] = ()
    stages: tuple[str, ...] = ()
    asked: frozenset[int] = frozenset()
    foreign: int = 0
    linked: bool = True
    told: int = 0
    start: int = 0
    load: int | Literal["asked"] | None = None
    held: tuple[int, ...] = ()
    rejected: frozenset[str] = frozenset()
    ticks: int = 0
    written: Action | None = None

    # What can happen.

    def actions(self) -> list[Action]:
        """All that can happen next, except for orders that make no difference.

        A write at the server changes nothing that the client sees until something depends on it. Of all runs that differ
        only in how long before that it happens, the one where it happens last is enough: so after a write comes
        another write, or what depends on this one.
        """
        written = self.written
        if written is None:
            return self._possible()
        return [action for action in self._possible() if self._depends(action, written)]

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
                if budget.refusals:
                    found.append(("refuse", number))
                if budget.losses:
                    found.append(("lose_request", number))
            elif stage in {"done", "refused"}:
                found.append(("answer", number))
                if budget.losses:
                    found.append(("lose_answer", number))
        found.extend(("status", number) for number in self.asked)
        if self.linked:
            if self.told < len(self.log):
                found.append(("tell", 0))
            if self.load == "asked":
                found.append(("read_snapshot", 0))
            elif self.load is not None:
                found.append(("tell_snapshot", 0))
            if budget.resyncs and self.load is None:
                found.append(("resync", 0))
            if budget.refreshes:
                found.append(("refresh", 0))
            if budget.disconnects:
                found.append(("disconnect", 0))
        else:
            found.append(("reconnect", 0))
            if self.load is not None and self.told and self.scenario.servers_lag:
                found.append(("reconnect_to_a_server_behind", 0))
        if self.client.unsettled and (budget.timeouts or (not found and self.ticks < MAXIMUM_TICKS)):
            found.append(("time_out", 0))
        return found

    def after(self, action: Action) -> World:
        """The world in which an action has happened."""
        following: World = object.__new__(World)
        following.__dict__.update(self.__dict__)
        name, number = action
        following.written = action if name in {"execute", "refuse", "commit"} else None
        getattr(following, f"_{name}")(number)
        return following

    def _mutate(self, number: int) -> None:
        self.stages += ("made",)
        self._tell_client("mutate", number, self.scenario.mutations[number])

    def _commit(self, number: int) -> None:
        self.foreign += 1
        self._write(f"f{number}", self.scenario.commits[number])

    def _execute(self, number: int) -> None:
        done = self._is_written(number) or self._write(f"m{number}", self.scenario.mutations[number])
        self._enter_stage(number, "done" if done else "refused")  # if its key is taken

    def _refuse(self, number: int) -> None:
        if self._is_written(number):
            self._enter_stage(number, "done")
        else:
            self.budget = self.budget._replace(refusals=self.budget.refusals - 1)
            self._enter_stage(number, "refused")

    def _lose_request(self, number: int) -> None:
        self._lose(number, "unseen")

    def _lose_answer(self, number: int) -> None:
        self._lose(number, f"{self.stages[number]}, unanswered")

    def _lose(self, number: int, stage: str) -> None:
        self.budget = self.budget._replace(losses=self.budget.losses - 1)
        self._enter_stage(number, stage)
        self._tell_client("lost", number)

    def _answer(self, number: int) -> None:
        if self.stages[number] == "refused":
            self._reject(number)
        else:
            self._enter_stage(number, "answered")
            self._tell_client("answered", number, self.scenario.mutations[number].kind == "create")

    def _reject(self, number: int) -> None:
        self._enter_stage(number, "answered")
        self.rejected |= {f"m{number}"}
        self._tell_client("rejected", number)

    def _status(self, number: int) -> None:
        self.asked -= {number}
        if self._is_written(number):
            self._tell_client("status", number, "committed", len(self.log))
        elif self.stages[number].startswith("refused"):
            self._reject(number)
        else:
            self._tell_client("status", number, "unknown", None)

    def _time_out(self, _: int) -> None:
        self.budget = self.budget._replace(timeouts=max(0, self.budget.timeouts - 1))
        self.ticks += 1
        self._tell_client("tick")

    def _tell(self, _: int) -> None:
        self.told += 1
        if self.load is not None:
            self.held += (self.told,)
        self._tell_client("receive", self._event(self.told, with_change=self.load is None))

    def _read_snapshot(self, _: int) -> None:
        self.load = len(self.log)

    def _tell_snapshot(self, _: int) -> None:
        assert isinstance(self.load, int)
        self.start = self.load
        held = [
            self._event(number, subscription="p")
            for number in self.held
            if number > self.start or self.log[number - 1].writer.startswith("m")
        ]
        self.load = None
        self.held = ()
        self._tell_client("receive", ("snapshot", self.start, self._rows_at(self.start)), *held)

    def _resync(self, _: int) -> None:
        self.budget = self.budget._replace(resyncs=self.budget.resyncs - 1)
        self.told = len(self.log)
        self._ask_for_a_snapshot()
        self._tell_client("receive", ("resync", self.told))

    def _refresh(self, _: int) -> None:
        self.budget = self.budget._replace(refreshes=self.budget.refreshes - 1)
        self._tell_client("refresh")

    def _disconnect(self, _: int) -> None:
        self.budget = self.budget._replace(disconnects=self.budget.disconnects - 1)
        self.linked = False
        self.held = ()
        if self.load is not None:
            self.load = "asked"
        self._tell_client("receive", ("disconnected",))

    def _reconnect(self, _: int) -> None:
        self.linked = True
        if self.load is not None:
            self.told = len(self.log)  # the stream begins where the server stands
        self._tell_client("receive", ("connected",))

    def _reconnect_to_a_server_behind(self, _: int) -> None:
        self.linked = True
        self.told -= 1
        self.load = self.told
        self._tell_client("receive", ("connected",))

    # Details.

    def _tell_client(self, *told: object) -> None:
        """Have the client take an input, and do what it asks for."""
        self.client, requests = self.client.after(told, self.ticks)
        for request, number in requests:
            match request:
                case "send":
                    self._enter_stage(number, "requested")
                    self._tell_client("sent", number)
                case "ask":
                    self.asked |= {number}
                case _:
                    self._ask_for_a_snapshot()

    def _enter_stage(self, number: int, stage: str) -> None:
        self.stages = (*self.stages[:number], stage, *self.stages[number + 1 :])

    def _ask_for_a_snapshot(self) -> None:
        self.load = "asked"
        self.held = ()

    def _write(self, writer: str, write: Write) -> bool:
        rows = {key: (a, b) for key, a, b in self._rows_at(len(self.log))}
        change: Change | None = None
        if write.kind in {"insert", "create"}:
            key = 2 if write.kind == "insert" else real_key_of(int(writer[1:]))
            if key in rows:
                return False
            rows[key] = (writer, writer)
            change = ("INSERT", key, writer, writer)
        elif 1 in rows:
            a, b = rows.pop(1)
            change = ("DELETE", 1, a, b)
            if write.kind == "set":
                rows[1] = (writer, b) if write.column == "a" else (a, writer)
                change = ("UPDATE", 1, *rows[1])
        self.log += (Commit(writer, change, frozenset((key, a, b) for key, (a, b) in rows.items())),)
        return True

    def _rows_at(self, number: int) -> Rows:
        return self.log[number - 1].rows if number else FIRST_ROWS

    def _event(
        self, number: int, *, with_change: bool = True, subscription: str | None = None
    ) -> tuple[object, ...]:
        commit = self.log[number - 1]
        change = commit.change if with_change and number > self.start else None
        return "commit", number, commit.writer, change, subscription

    def _is_written(self, mutation: int) -> bool:
        return self._position_of(f"m{mutation}") is not None

    def _position_of(self, writer: str) -> int | None:
        return next((number for number, commit in enumerate(self.log, 1) if commit.writer == writer), None)

    # What must hold.

    def rank(self, writer: str) -> int:
        """Later writes have higher ranks; what is not in the database yet is later than all that is."""
        if writer == "0":
            return 0
        return self._position_of(writer) or INFINITY + int(writer[1:])

    def check_after(self, before: World) -> None:
        """Rule 6: nothing shown is older than what was shown there before."""
        if self.client.shown == before.client.shown:
            return
        old_rows = {key: (a, b) for key, a, b in before.client.shown}
        new_rows = {key: (a, b) for key, a, b in self.client.shown}
        for key in old_rows.keys() | new_rows.keys():
            old, new = old_rows.get(key), new_rows.get(key)
            if old is not None and new is not None:
                for old_writer, new_writer in zip(old, new, strict=True):
                    if self.rank(new_writer) < self.rank(old_writer) and not self._is_void(old_writer):
                        raise BrokenRuleError(f"row {key}: {old} became {new}, which is older")
            elif old is not None and not self._may_go(key, old[0]):
                raise BrokenRuleError(f"row {key}: {old} went though nobody has deleted it")
            elif new is not None and key == 1 and not any(name in self.rejected for name in self._deleters()):
                raise BrokenRuleError(f"row {key} came back as {new} though it is deleted")

    def _is_void(self, writer: str) -> bool:
        """Whether it was rejected, or is an insert whose key somebody else has taken."""
        if writer in self.rejected:
            return True
        inserts = writer.startswith("m") and self.scenario.mutations[int(writer[1:])].kind == "insert"
        taken = any(key == 2 and a != writer for key, a, _ in self._rows_at(len(self.log)))
        return inserts and taken and self._position_of(writer) is None

    def _may_go(self, key: Key, writer: str) -> bool:
        if key == 1:
            return any(name not in self.rejected for name in self._deleters())
        return writer in self.rejected

    def _deleters(self) -> list[str]:
        """Whose writes can be why row 1 is not there."""
        mutations = enumerate(self.scenario.mutations[: len(self.stages)])
        commits = enumerate(self.scenario.commits[: self.foreign])
        return [f"m{number}" for number, write in mutations if write.kind == "delete"] + [
            f"f{number}" for number, write in commits if write.kind == "delete"
        ]

    def check_end(self) -> None:
        if self.client.unsettled:
            raise BrokenRuleError("nothing can happen any more, and a mutation is not settled")
        shown, rows = self.client.shown, self._rows_at(len(self.log))
        if shown != rows:
            raise BrokenRuleError(f"the end shows {sorted(shown)}, the database has {sorted(rows)}")

    # Comparison.

    def fingerprint(self) -> object:
        """Equal for worlds whose futures are the same.

        The order of past commits matters only as far as their writes can still be seen somewhere.
        """
        log, told, held, load = self.log, self.told, self.held, self.load
        # The earliest commit that the client may yet be told; a server behind the last one tells one more again.
        recent = told - 1 if told and (self.budget.disconnects or not self.linked) else told
        if load is not None and load != "asked" and load < recent:
            recent = load
        if held and held[0] <= recent:
            recent = held[0] - 1
        rows = self._rows_at(recent)
        seen = self.client.writers.union(*rows)
        past = [commit.writer for commit in log[:recent]]
        return (
            self.client.number,
            self.written,
            tuple([(number, writer) for number, writer in enumerate(past) if writer in seen]),
            frozenset(past),
            tuple([commit.writer for commit in log[recent:]]),
            rows,
            self.stages,
            self.asked,
            self.foreign,
            self.linked,
            told,
            self.start if self.start > told else 0,
            load,
            held,
            self.rejected,
            self.budget,
            self.ticks,
        )


def begin(scenario: Scenario, make_client: Callable[[], Client], *, remember: bool = True) -> World:
    """The world at first: connected, with the first snapshot shown."""
    client = Table(remember=remember).state(make_client(), 0)
    client, _ = client.after(("receive", ("connected",), ("snapshot", 0, FIRST_ROWS)), 0)
    return World(scenario, client, scenario.budget)
