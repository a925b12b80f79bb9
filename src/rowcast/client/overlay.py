"""Pending mutations, and how they show over the base. No I/O.

The one rule of this room: `visible = fold(pending mutations in order, base)`. A mutation is never merged into
anything; it lies over the base until the stream has it or the server refuses it, and taking it away leaves exactly
what would be there without it.

Patches are per column: an update hides nothing but the columns it sets. Folded over a row

    insert   shows its row where there is none; where there is one already, that one is newer
    update   sets its columns where there is a row, and brings no row back that has gone
    delete   hides the row
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from rowcast.client.outputs import MutationState
from rowcast.client.rows import Key, Row

# overlay: shown at once.  stream-only: shown when the stream tells it; the rows count as pending until then.
# invalidate: shown at once, and a new snapshot is taken when the server has answered, for applications whose
# transactions do not confirm. That is as good as the snapshot is new: a server that lags behind the database may give
# one without the mutation, and its value shows a moment later again.
Strategy: TypeAlias = Literal["overlay", "stream-only", "invalidate"]

# A key that the client made up is asked for by what was rendered with it, which does not outlive the next thousand.
MAXIMUM_ALIASES: Final = 1000


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row.

    Attributes:
        temporary: The key is made up by the client; the server will make the real one.
    """

    subscription: str
    key: Key
    row: Row
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """New values for some columns of a row; not of its key."""

    subscription: str
    key: Key
    columns: Row


@dataclass(frozen=True, slots=True)
class Delete:
    """A row goes."""

    subscription: str
    key: Key


Patch: TypeAlias = Insert | Update | Delete


@dataclass(slots=True, eq=False)
class Mutation:
    """One call of the application's, from when it was made until it is confirmed or rejected.

    Attributes:
        id: Made by the client; the same at every attempt.
        queued: Sent only while connected; otherwise it waits.
        attempts: How often it was sent.
        error: What the application gave with the rejection.
        committed: The server's status answer said that it happened.
        txid: Of its transaction, where the answer named it.
        position: A position at or after its commit, where the answer named one.
        confirmed_at: Where the stream confirmed it. Its patches stay on subscriptions that are not there yet.
        waits_for: For `invalidate`, once answered: the number of the load of each subscription that will hold it.
        deadline: When it counts as unconfirmed, or is asked for again.
    """

    id: str
    patches: list[Patch]
    strategy: Strategy = "overlay"
    queued: bool = False
    state: MutationState = "pending"
    attempts: int = 0
    error: Any = None
    committed: bool = False
    txid: int | None = None
    position: str | None = None
    confirmed_at: str | None = None
    waits_for: dict[str, int] | None = None
    deadline: float | None = None


class Overlay:
    """The patches of all pending mutations, in the order in which the mutations were made."""

    __slots__ = ("_aliases", "_patches")

    def __init__(self) -> None:
        self._patches: dict[str, dict[Key, list[tuple[Mutation, Patch]]]] = {}
        self._aliases: dict[tuple[str, Key], Key] = {}

    def add(self, mutation: Mutation) -> None:
        """Lay a mutation's patches over everything that is there."""
        mutation.patches = [
            replace(patch, key=self.resolve(patch.subscription, patch.key)) for patch in mutation.patches
        ]
        for patch in mutation.patches:
            by_key = self._patches.setdefault(patch.subscription, {})
            by_key.setdefault(patch.key, []).append((mutation, patch))

    def take(self, mutation: Mutation, subscription: str) -> set[Key]:
        """Take a mutation's patches away from one subscription; returns the keys that they were on."""
        by_key = self._patches.get(subscription, {})
        touched = {key for key, patches in by_key.items() if any(owner is mutation for owner, _ in patches)}
        for key in touched:
            by_key[key] = [entry for entry in by_key[key] if entry[0] is not mutation]
            if not by_key[key]:
                del by_key[key]
        return touched

    def uncovers(self, mutation: Mutation, subscription: str) -> bool:
        """Whether without a mutation something older would show: an earlier mutation's value for the same.

        A later mutation can be confirmed before an earlier one, if they overtook each other on their way, or if the
        earlier one's confirm was lost in a gap. Then the later one stays, so that no value goes backwards.
        """
        by_key = self._patches.get(subscription, {})
        for key in dict.fromkeys(
            patch.key for patch in mutation.patches if patch.subscription == subscription
        ):
            earlier: list[Patch] = []
            for owner, patch in by_key.get(key, ()):
                if owner is not mutation:
                    earlier += [] if owner.strategy == "stream-only" else [patch]
                elif any(_covers(patch, other) for other in earlier):
                    return True
        return False

    def forget(self, subscription: str) -> None:
        """The subscription has ended: nothing lies over it any more."""
        self._patches.pop(subscription, None)

    def fold(self, subscription: str, key: Key, row: Row | None) -> Row | None:
        """What is visible under a key whose base row (or None) is given."""
        for mutation, patch in self._patches.get(subscription, {}).get(key, ()):
            if mutation.strategy == "stream-only":
                continue
            if isinstance(patch, Insert):
                row = patch.row if row is None else row
            elif isinstance(patch, Update):
                row = None if row is None else {**row, **patch.columns}
            else:
                row = None
        return row

    def covers(self, subscription: str, key: Key) -> bool:
        """Whether any patch is on the key."""
        return key in self._patches.get(subscription, {})

    def keys(self, subscription: str) -> Iterable[Key]:
        """All keys of a subscription that patches are on."""
        return self._patches.get(subscription, {}).keys()

    def temporary(self, subscription: str) -> Iterator[Insert]:
        """The new rows of a subscription whose keys the server has yet to make."""
        for patches in self._patches.get(subscription, {}).values():
            for mutation, patch in patches:
                if isinstance(patch, Insert) and patch.temporary and mutation.strategy != "stream-only":
                    yield patch

    def subscriptions(self, mutation: Mutation) -> list[str]:
        """Where patches of a mutation still lie, in the order of its patches."""
        return list(
            dict.fromkeys(
                patch.subscription
                for patch in mutation.patches
                if any(
                    owner is mutation
                    for owner, _ in self._patches.get(patch.subscription, {}).get(patch.key, ())
                )
            )
        )

    def pending(self, subscription: str, key: Key) -> list[Mutation]:
        """The mutations with patches on a row, oldest first."""
        entries = self._patches.get(subscription, {}).get(self.resolve(subscription, key), ())
        return list(dict.fromkeys(mutation for mutation, _ in entries))

    def resolve(self, subscription: str, key: Key) -> Key:
        """The server's key of a row whose key the client had made up; any other key as it is."""
        return self._aliases.get((subscription, key), key)

    def rename(self, subscription: str, key: Key, new_key: Key, key_columns: Sequence[str]) -> None:
        """A row's made-up key has become the server's: all patches on it follow."""
        self._aliases[subscription, key] = new_key
        if len(self._aliases) > MAXIMUM_ALIASES:
            del self._aliases[next(iter(self._aliases))]
        by_key = self._patches.get(subscription, {})
        parts = new_key if isinstance(new_key, tuple) else (new_key,)
        renamed: list[tuple[Mutation, Patch]] = []
        for mutation, patch in by_key.pop(key, ()):
            new_patch: Patch = replace(patch, key=new_key)
            if isinstance(new_patch, Insert):
                new_patch = replace(
                    new_patch,
                    row={**new_patch.row, **dict(zip(key_columns, parts, strict=False))},
                    temporary=False,
                )
            mutation.patches = [new_patch if each is patch else each for each in mutation.patches]
            renamed.append((mutation, new_patch))
        if renamed:
            by_key[new_key] = renamed + by_key.get(new_key, [])


def _covers(later: Patch, earlier: Patch) -> bool:
    if isinstance(later, Update):
        return isinstance(earlier, Update) and not later.columns.keys().isdisjoint(earlier.columns.keys())
    return isinstance(earlier, Delete if isinstance(later, Insert) else Insert)


def temporary_inserts(mutation: Mutation, subscription: str) -> list[Insert]:
    """A mutation's new rows whose keys the server has yet to make."""
    return [
        patch
        for patch in mutation.patches
        if isinstance(patch, Insert) and patch.temporary and patch.subscription == subscription
    ]
