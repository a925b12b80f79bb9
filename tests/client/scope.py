"""What is explored: who writes what, how often things may go wrong, and what a client must be able to do.

What is written is the writer's own name, so that the screen tells whose write it shows: `m0`, `m1` … are the client's
mutations, `f0`, `f1` … foreign commits, `0` is what was there at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from rowcast.client.events import Event
from rowcast.client.outputs import Output
from rowcast.client.overlay import Patch, Strategy
from rowcast.client.rows import Key, Row

# One row: its key, and who wrote its columns a and b.
Written: TypeAlias = tuple[Key, str, str]
Rows: TypeAlias = frozenset[Written]


def written(rows: Mapping[Key, Row]) -> Rows:
    return frozenset((key, row["a"], row["b"]) for key, row in rows.items())


class Write(NamedTuple):
    """What one writer does: set a column of row 1, delete row 1, insert row 2, or insert a row whose key the server makes."""

    kind: Literal["set", "delete", "insert", "create"]
    column: str = "a"
    strategy: Strategy = "overlay"


SET_A, SET_B, DELETE = Write("set", "a"), Write("set", "b"), Write("delete")
INSERT, CREATE = Write("insert"), Write("create")


class Budget(NamedTuple):
    """How often each thing may go wrong in one run."""

    refreshes: int = 1
    resyncs: int = 1
    disconnects: int = 1
    losses: int = 1
    refusals: int = 1
    timeouts: int = 1


class Scenario(NamedTuple):
    mutations: tuple[Write, ...]
    commits: tuple[Write, ...]
    budget: Budget = Budget()
    servers_lag: bool = True  # a reconnect may lead to a server that is behind the last one


class BrokenRuleError(AssertionError):
    """A rule does not hold; the text tells the run that leads there."""


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
