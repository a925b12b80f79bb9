"""Every order in which a client, the network and a database can act, up to a small scope, with nothing left out.

A world holds one client with one subscription, a database with its log of commits, requests on their way, and budgets
for faults. `explore()` performs every possible action in every reachable state, once (equal states are merged), and
checks in each

- rule 6: no column of a row shows an older write than before, unless the newer one's mutation was rejected, and a row
  made by a mutation stands there once, under the made-up key or under the server's;
- at the end of each run, when nothing can happen any more: every mutation is settled and the rows shown are the
  database's.

Three things make the product of all of it small enough, and none of them leaves a run out:

- A write at the server is performed as late as possible (`World.actions`): before, it changes nothing that anybody
  could see, so the order of such a write and of what does not depend on it makes no difference.
- Worlds are equal if their futures are (`World.fingerprint`, `behaviour_of`): what has happened counts only as far as
  something that is yet to come can show it.
- The client is worked out once for each of its own states and inputs (`table`). That rests on its states' being compared
  rightly, which is tested: without the table the numbers of states and steps are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tests.client.scope import BrokenRuleError, Client, Scenario, written
from tests.client.world import Action, World, begin

from rowcast.client.contents import Contents
from rowcast.client.overlay import Mutation
from rowcast.client.rows import Key, Row
from rowcast.client.store import Store

# The actions that lead to a state: those before, and the last one.
Run: TypeAlias = "tuple[()] | tuple[Run, Action]"


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
        written(known.base.rows),
        known.position,
        known.loading and written(known.loading.rows),
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


def explore(
    scenario: Scenario,
    make_client: Callable[[], Client] = StoreClient,
    *,
    remember: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Go through every run of a scenario.

    States that have been seen are known by 64-bit hashes, to have room for many: of 20 million, two different ones have
    the same with a probability of 1 to 90,000, and then one of them is not gone on from.

    Args:
        scenario: What may happen.
        make_client: Makes the client that is explored.
        remember: See `Table`.
        progress: Called every million steps with the number of states and of steps.

    Returns:
        How many different states there are, and how many steps between them were checked.

    Raises:
        BrokenRuleError: A rule does not hold in one of them.
    """
    first = begin(scenario, make_client, remember=remember)
    seen = {hash(first.fingerprint())}
    stack: list[tuple[World, Run]] = [(first, ())]
    steps = 0
    while stack:
        world, run = stack.pop()
        actions = world.actions()
        path = run
        try:
            if not actions and world.written is None:
                world.check_end()
            for action in actions:
                path = (run, action)
                following = world.after(action)
                following.check_after(world)
                steps += 1
                mark = hash(following.fingerprint())
                if mark not in seen:
                    seen.add(mark)
                    stack.append((following, path))
                if progress is not None and steps % 1_000_000 == 0:
                    progress(len(seen), steps)
        except BrokenRuleError as broken:
            raise BrokenRuleError(f"{broken}\nafter\n{_told(path)}\nin {scenario}") from None
    return len(seen), steps


def _told(run: Run) -> str:
    actions: list[str] = []
    while run:
        run, (name, number) = run
        actions.append(f"  {name} {number}")
    return "\n".join(reversed(actions))
