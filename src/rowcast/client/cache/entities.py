"""Which queries a table's changes concern, and what to do about it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .journal import ChangeEvent
from .keys import QueryKey, partial_match_key

# From a query's data, the changes of one table in one transaction, and the query's key, to the new data. The same object
# if it is not concerned; None if it cannot tell: the query is refetched.
Patch: TypeAlias = Callable[[Any, Sequence[ChangeEvent], QueryKey], Any]


@dataclass(frozen=True, slots=True)
class KeyFamily:
    """The queries whose keys begin alike.

    Attributes:
        prefix: How they begin.
        narrow: From a change, the beginnings of those keys that it concerns; without it, it concerns all of them.
            Think of the old row as well as of the new one: `[("tasks", row["project_id"]) for row in (change.old,
            change.new) if row]`.
    """

    prefix: QueryKey
    narrow: Callable[[ChangeEvent], Iterable[QueryKey]] | None = None


@dataclass(frozen=True, slots=True)
class PollingIntervals:
    """How often an entity's queries are refetched, in case the stream has missed something.

    Attributes:
        live_seconds: While connected, with events for it in the last half minute.
        quiet_seconds: While connected, without: a time between these two, so that clients do not come together.
        disconnected_seconds: While not connected, or when the last poll failed.
    """

    live_seconds: float = 30.0
    quiet_seconds: tuple[float, float] = (10.0, 15.0)
    disconnected_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Entity:
    """One table, as the queries know it.

    Attributes:
        table: Its channel: `projects`, or `billing.invoices`.
        families: The queries that show its rows; a plain key stands for `KeyFamily(key)`.
        patch: Brings their data up to date from a change, without asking anybody; `RowPatch` does for lists of rows.
            Without it they are invalidated. It must bear to be applied twice.
        polling: How often to poll them; None for never.
    """

    table: str
    families: Sequence[KeyFamily | QueryKey]
    patch: Patch | None = None
    polling: PollingIntervals | None = field(default_factory=PollingIntervals)

    @property
    def key_families(self) -> list[KeyFamily]:
        """The families, each as a `KeyFamily`."""
        return [one if isinstance(one, KeyFamily) else KeyFamily(one) for one in self.families]

    def concerning(self, changes: Sequence[ChangeEvent], key: QueryKey) -> Sequence[ChangeEvent]:
        """Which of the table's changes concern the query of that key."""
        families = [family for family in self.key_families if partial_match_key(key, family.prefix)]
        if any(family.narrow is None for family in families):
            return changes
        return [
            change
            for change in changes
            if any(
                partial_match_key(key, narrowed)
                for family in families
                if family.narrow is not None
                for narrowed in family.narrow(change)
            )
        ]
