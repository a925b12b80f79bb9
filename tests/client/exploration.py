"""Every order in which a client, the network and a database can act, up to a small scope, with nothing left out.

A world holds one client with one subscription, a database with its log of commits, requests on their way, and budgets
for faults. `explore()` performs every possible action in every reachable state, once (equal states are merged), and
checks in each

- rule 6: no column of a row shows an older write than before, unless the newer one's mutation was rejected, and a row
  made by a mutation stands there once, under the made-up key or under the server's;
- at the end of each run, when nothing can happen any more: every mutation is settled and the rows shown are the
  database's.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.client.world import Action, BrokenRuleError, Client, Scenario, World, begin, writers

from rowcast.client.contents import Contents
from rowcast.client.overlay import Mutation
from rowcast.client.rows import Key, Row
from rowcast.client.store import Store


class StoreClient(Store):
    """The store as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.add("p")

    def visible(self) -> dict[Key, Row]:
        return dict(self.rows("p"))

    def unsettled(self) -> bool:
        return bool(self.mutations)

    def fingerprint(self) -> object:
        return behaviour_of(self._contents)


def behaviour_of(contents: Contents) -> object:
    """A store's state as something to compare: equal if everything that can come is met in the same way.

    Left out is what only an answer that names a transaction would look at, of what is settled all but how, and what is
    computed from the rest; loads are counted from the last that came.
    """
    known = contents.rows["p"]

    def mutation(entry: Mutation) -> object:
        waits = None if entry.waits_for is None else entry.waits_for.get("p", known.loaded) - known.loaded
        return entry.id, entry.state, entry.committed, entry.position, entry.confirmed_at, waits

    patches = contents.overlay._patches.get("p", {})
    return (
        writers(known.base.rows),
        known.position,
        known.loading and writers(known.loading.rows),
        known.loading_position,
        (known.shown, known.valid, known.linked, known.again, known.asked - known.loaded),
        frozenset(known.twins.items()),
        frozenset(
            (key, tuple((owner.id, patch.key) for owner, patch in laid)) for key, laid in patches.items()
        ),
        frozenset(contents.overlay._aliases.items()),
        tuple(map(mutation, contents.pending.values())),
        frozenset(map(mutation, contents.settling.values())),
        frozenset((entry.id, entry.state) for entry in contents.settled.values()),
        contents.told,
        contents.connected,
    )


def explore(scenario: Scenario, make_client: Callable[[], Client] = StoreClient) -> tuple[int, int]:
    """Go through every run of a scenario.

    Returns:
        How many different states there are, and how many steps between them were checked.

    Raises:
        BrokenRuleError: A rule does not hold in one of them.
    """
    first = begin(scenario, make_client)
    seen = {hash(first.fingerprint())}
    stack: list[tuple[World, tuple[Action, ...]]] = [(first, ())]
    steps = 0
    while stack:
        world, run = stack.pop()
        actions = world.actions()
        path = run
        try:
            before = world.shown()
            if not actions and world.written is None:
                world.check_end()
            for action in actions:
                path = (*run, action)
                following = world.copy()
                following.perform(action)
                following.check_step(before, following.shown())
                steps += 1
                mark = hash(following.fingerprint())
                if mark not in seen:
                    seen.add(mark)
                    stack.append((following, path))
        except BrokenRuleError as broken:
            told = "\n".join(f"  {name} {number}" for name, number in path)
            raise BrokenRuleError(f"{broken}\nafter\n{told}\nin {scenario}") from None
    return len(seen), steps
