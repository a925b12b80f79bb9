"""Two ways of showing a mutation at once that most applications use, for `exploration` to find wanting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from tests.client.scope import written

from rowcast.client.events import Event, SnapshotChunk, Transaction
from rowcast.client.outputs import AskStatus, Output, Refetch, SendMutation
from rowcast.client.overlay import Delete, Insert, Patch, Strategy
from rowcast.client.rows import BaseRows, Frame, Key, Row


class NaiveClient:
    """One slot for each row, written by mutations, stream and snapshots alike; what most applications do."""

    def __init__(self) -> None:
        self.rows = BaseRows(("id",))
        self.now = 0.0
        self.open: set[str] = set()

    def receive(self, events: Iterable[Event]) -> list[Output]:
        for event in events:
            if isinstance(event, SnapshotChunk):
                self.rows = BaseRows(("id",))
                self.rows.load(event.rows)
            elif isinstance(event, Transaction):
                self.apply(event.changes.get("p", ()))
        return []

    def apply(self, changes: Sequence[Frame]) -> None:
        self.rows.apply(changes, {}, {})

    def mutate(self, mutation: str, patches: Sequence[Patch], *, strategy: Strategy) -> list[Output]:
        self.open.add(mutation)
        for patch in patches:
            row = self.rows.rows.get(patch.key)
            if isinstance(patch, Insert):
                self.rows.rows.setdefault(patch.key, patch.row)
            elif isinstance(patch, Delete):
                self.rows.rows.pop(patch.key, None)
            elif row is not None:
                self.rows.rows[patch.key] = {**row, **patch.columns}
        return [SendMutation(mutation)]

    def sent(self, mutation: str, now: float) -> list[Output]:
        self.now = now
        return []

    def answered(
        self, mutation: str, now: float, *, position: str | None, keys: dict[Key, Key]
    ) -> list[Output]:
        self.open.discard(mutation)
        return []

    def rejected(self, mutation: str) -> list[Output]:
        self.open.discard(mutation)
        return self.undo(mutation)

    def undo(self, mutation: str) -> list[Output]:
        raise NotImplementedError

    def lost(self, mutation: str, now: float) -> list[Output]:
        return [AskStatus(mutation)]

    def status(
        self,
        mutation: str,
        status: Literal["committed", "unknown", "rejected"],
        now: float,
        *,
        position: str | None,
    ) -> list[Output]:
        if status == "unknown":
            return [SendMutation(mutation)]
        return self.answered(mutation, now, position=position, keys={})

    def refresh(self, subscription: str) -> list[Output]:
        return [Refetch(subscription)]

    def tick(self, now: float) -> list[Output]:
        self.now = now
        return []

    def visible(self) -> dict[Key, Row]:
        return self.rows.rows

    def unsettled(self) -> bool:
        return bool(self.open)

    def fingerprint(self) -> object:
        return written(self.rows.rows), self.now, frozenset(self.open)


class PatchAndIgnore(NaiveClient):
    """Patch the row, and take the stream's events for it in the next second for one's own echo; refetch on an error."""

    def __init__(self) -> None:
        super().__init__()
        self.ignored_until: dict[Key, float] = {}

    def mutate(self, mutation: str, patches: Sequence[Patch], *, strategy: Strategy) -> list[Output]:
        self.ignored_until.update((patch.key, self.now + 1.0) for patch in patches)
        return super().mutate(mutation, patches, strategy=strategy)

    def apply(self, changes: Sequence[Frame]) -> None:
        super().apply(
            [each for each in changes if self.ignored_until.get(each["key"]["id"], -1.0) <= self.now]
        )

    def undo(self, mutation: str) -> list[Output]:
        return [Refetch("p")]

    def fingerprint(self) -> object:
        return super().fingerprint(), frozenset(self.ignored_until.items())


class SnapshotRollback(NaiveClient):
    """Keep all rows as they were, patch, and put them back on an error."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: dict[str, dict[Key, Row]] = {}

    def mutate(self, mutation: str, patches: Sequence[Patch], *, strategy: Strategy) -> list[Output]:
        self.saved[mutation] = dict(self.rows.rows)
        return super().mutate(mutation, patches, strategy=strategy)

    def undo(self, mutation: str) -> list[Output]:
        self.rows.rows = self.saved[mutation]
        return []

    def fingerprint(self) -> object:
        return super().fingerprint(), frozenset((name, written(rows)) for name, rows in self.saved.items())
