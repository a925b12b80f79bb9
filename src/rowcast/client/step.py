"""One step of the store: several subscriptions and mutations change together, and the difference is told. No I/O.

The one rule of this room: what was visible is noted before it is touched, so that the outputs are the difference between
the state before the whole step and the state after it, whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rowcast.client.contents import Contents, KnownRows, VisibleRows
from rowcast.client.events import JSONObject, Refused, Resync, SnapshotChunk, Subscribed, Transaction
from rowcast.client.outputs import (
    Cause,
    Delta,
    MutationChanged,
    MutationState,
    Output,
    Ready,
    Refetch,
    SendMutation,
    SubscriptionChanged,
)
from rowcast.client.overlay import Mutation, temporary_inserts
from rowcast.client.rows import BaseRows, Before, Key, Row, RowChange, is_behind, is_comparable, key_of

# Settled mutations are kept so that late answers find them and rejected ones can be retried.
MAXIMUM_SETTLED: Final = 1000
# An answer that names its transaction may come this many transactions after it.
MAXIMUM_TXIDS: Final = 1000


class Step:
    """Changes to the contents, from the first to `finish()`, that listeners see as one."""

    __slots__ = ("_before", "_contents", "_dirty", "_first", "_moved", "_news", "_reset")

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._before: dict[str, Before] = {}
        self._moved: dict[str, dict[Key, Key]] = {}
        self._reset: set[str] = set()  # subscriptions with a new base
        self._first: list[str] = []  # of these, those whose first rows it holds
        self._dirty: dict[str, KnownRows] = {}  # their state may have changed
        self._news: list[Output] = []

    # What the session tells.

    def transaction(self, event: Transaction) -> None:
        """Apply one commit to every subscription that it concerns, and confirm the mutations that it lists."""
        contents = self._contents
        for name, changes in event.changes.items():
            known = contents.rows.get(name)
            if known is not None and changes and not self._apply(known, changes, event.position):
                self._ask(known, "incomplete_row")
        self.progress(event.position, event.subscription)
        contents.transactions[event.txid] = event.position
        if len(contents.transactions) > MAXIMUM_TXIDS:
            contents.transactions.popitem(last=False)
        if event.txid in contents.by_transaction:
            self.confirm(contents.by_transaction[event.txid], event.position)
        for mutation in event.confirms:
            entry = contents.pending.get(mutation) or contents.settling.get(mutation)
            if entry is not None:
                self._find_keys(entry, event)
            else:
                entry = contents.settled.get(mutation)  # refused by an answer, done all the same
            if entry is not None:
                self.confirm(entry, event.position)

    def progress(self, position: str, subscription: str | None) -> None:
        """Everything up to a position has been told, to one subscription or to all that are linked."""
        contents = self._contents
        if not is_behind(position, contents.told):
            contents.told = position
        for known in contents.rows.values() if subscription is None else [contents.rows.get(subscription)]:
            if known is None or not known.linked:
                continue
            if known.loading_position is not None and is_behind(known.loading_position, position):
                known.loading_position = position
            if known.valid and not is_behind(position, known.position):
                known.position = position

    def snapshot(self, event: SnapshotChunk) -> None:
        known = self._contents.rows.get(event.subscription)
        if known is None:
            return
        if event.chunk == 0:
            self._drop_load(known)
            known.loading = BaseRows(known.key_columns, len(known.columns))
        if known.loading is None:
            return
        known.loading.load(event.rows, event.deleted)
        if event.last:
            known.loading_position = event.position or ""
            self._contents.complete[known.name] = known

    def subscribed(self, event: Subscribed) -> None:
        known = self._contents.rows.get(event.subscription)
        if known is None:
            return
        key_columns = tuple(sorted(event.key))
        changed = (known.columns, known.key_columns) != (event.columns, key_columns)
        known.columns, known.key_columns = event.columns, key_columns
        if changed and known.valid and known.linked:
            self._invalidate(known, "schema_changed")  # a resync follows
        elif changed and known.valid:
            self.refetch(known.name, "schema_changed")
        known.linked = True
        known.refused = False
        self._dirty[known.name] = known

    def resync(self, event: Resync) -> None:
        known = self._contents.rows.get(event.subscription)
        if known is not None:
            self._invalidate(known, event.reason)

    def refused(self, event: Refused) -> None:
        """What may not be read any more is not shown any more."""
        known = self._contents.rows.get(event.subscription)
        if known is None:
            return
        self._invalidate(known, event.code)
        known.refused = True
        self._replace(known, BaseRows())
        self._contents.overlay.forget(known.name)

    def connection(self, *, connected: bool) -> None:
        contents = self._contents
        if connected == contents.connected:
            return
        contents.connected = connected
        if connected:
            for entry in contents.pending.values():
                if entry.queued and entry.state in {"pending", "unconfirmed"}:
                    self.change(entry, "pending")
                    self.say(SendMutation(entry.id))
        else:
            for known in contents.rows.values():
                known.linked = False
                known.reason = known.reason or "disconnected"
                self._dirty[known.name] = known

    # Mutations.

    def say(self, *outputs: Output) -> None:
        """Something else that the outputs shall hold."""
        self._news.extend(outputs)

    def change(self, entry: Mutation, state: MutationState) -> None:
        if entry.state != state:
            entry.state = state
            self.say(MutationChanged(entry.id, state, entry.error))

    def lay(self, entry: Mutation) -> None:
        """Lay a mutation's patches over everything that is there."""
        contents = self._contents
        contents.pending[entry.id] = entry
        entry.patches = [patch for patch in entry.patches if patch.subscription in contents.rows]
        contents.overlay.add(entry)
        for patch in entry.patches:
            self._touch(contents.rows[patch.subscription], patch.key)

    def reject(self, entry: Mutation) -> None:
        """Take a mutation's patches away; nobody else's change is undone."""
        for name in self._contents.overlay.subscriptions(entry):
            self._take(entry, name)
        self._contents.settling.pop(entry.id, None)
        self._settle(entry, "rejected")

    def confirm(self, entry: Mutation, position: str) -> None:
        """The base has it at a position; `finish()` takes the patches from the bases that are there."""
        if entry.state != "confirmed":
            entry.confirmed_at = position
            entry.error = None
            self._contents.settling[entry.id] = entry
            self._settle(entry, "confirmed")

    def name_commit(self, entry: Mutation, txid: int | None, position: str | None) -> None:
        """The answer names the commit: the stream's passing it will confirm, or has done so already."""
        contents = self._contents
        if txid is not None:
            contents.by_transaction[txid] = entry
            entry.txid = txid
            if txid in contents.transactions:
                self.confirm(entry, contents.transactions[txid])
        if position is not None and is_comparable(position, contents.told):
            entry.position = position
            entry.deadline = None  # it will be passed; there is nothing to ask
            contents.settling[entry.id] = entry

    def invalidate(self, entry: Mutation) -> None:
        """The answer has come: a load that begins after it has what the mutation did."""
        names = self._contents.overlay.subscriptions(entry)
        entry.waits_for = {name: self.refetch(name, "invalidated") for name in names}
        self._contents.settling[entry.id] = entry

    def refetch(self, subscription: str, reason: str) -> int:
        """See that a load begins after now, but never break one off for it; returns the load's number."""
        known = self._contents.rows[subscription]
        if known.valid:
            self._ask(known, reason)
        elif self._contents.connected:
            known.again = True
            return known.asked + 1
        else:
            known.asked += 1  # the next link begins one
        return known.asked

    def rename(self, subscription: str, key: Key, new_key: Key) -> None:
        """A key that the client had made up has become the server's."""
        known = self._contents.rows[subscription]
        self._touch(known, key)
        self._touch(known, new_key)
        self._contents.overlay.rename(subscription, key, new_key, known.key_columns)
        self._moved.setdefault(subscription, {})[new_key] = key

    # The end of the step.

    def finish(self, cause: Cause) -> list[Output]:
        """Bring everything up to date, and return what listeners and the connection must know.

        A complete snapshot that is older than the rows on the screen (a server's that lags behind the last one) is
        held back until the stream has brought it as far: no value goes backwards.
        """
        contents = self._contents
        swapped: list[KnownRows] = []
        for known in list(contents.complete.values()):
            if known.loading_position is not None and not is_behind(known.loading_position, known.position):
                self._swap(known)
                swapped.append(known)
        if contents.settling:
            self._settle_what_arrived()
        for known in swapped:
            if known.again:
                known.again = False
                self.refetch(known.name, "invalidated")
        outputs: list[Output] = []
        for name, before in self._before.items():
            known = contents.rows[name]
            for made_up in known.twins:
                before.setdefault(made_up, known.visible(made_up))
            self._refold(known, before)
            reset = name in self._reset
            changes = self._difference(known, before, reset=reset)
            if changes:
                outputs.append(Delta(name, changes, "snapshot" if reset else cause, reset, known.position))
        outputs.extend(map(Ready, self._first))
        for known in self._dirty.values():
            state = known.present_state()
            if state == "live":
                known.reason = ""
            if state != known.state:
                known.state = state
                outputs.append(SubscriptionChanged(known.name, state, known.reason))
        return outputs + self._news

    # Details.

    def _apply(self, known: KnownRows, changes: Sequence[JSONObject], position: str) -> bool:
        if known.loading is not None and known.loading_position is not None:
            return not is_behind(known.loading_position, position) or known.loading.apply(changes, {}, {})
        if not known.valid or known.position == position or is_behind(position, known.position):
            return True
        touched: Before = {}
        applied = known.base.apply(changes, touched, self._moved.setdefault(known.name, {}))
        if not applied:
            known.base.restore(touched)  # half a commit is not shown
            return False
        before = self._before.setdefault(known.name, touched)
        if before is not touched:
            for key, row in touched.items():
                before.setdefault(key, row)
        if known.overlaid:
            for key in touched.keys() & known.overlaid.keys():
                before[key] = known.overlaid[key]
            rows = known.base.rows
            self._find_twins(
                known, [(key, rows[key]) for key, old in touched.items() if old is None and key in rows]
            )
        return True

    def _touch(self, known: KnownRows, key: Key) -> None:
        self._before.setdefault(known.name, {}).setdefault(key, known.visible(key))

    def _take(self, entry: Mutation, subscription: str) -> None:
        known = self._contents.rows[subscription]
        for key in self._contents.overlay.take(entry, subscription):
            self._touch(known, key)

    def _settle(self, entry: Mutation, state: MutationState) -> None:
        contents = self._contents
        contents.pending.pop(entry.id, None)
        if entry.txid is not None:
            contents.by_transaction.pop(entry.txid, None)
        entry.deadline = None
        self.change(entry, state)
        contents.settled[entry.id] = entry
        if len(contents.settled) > MAXIMUM_SETTLED:
            contents.settled.popitem(last=False)

    def _settle_what_arrived(self) -> None:
        contents = self._contents
        for entry in list(contents.settling.values()):
            if entry.position is not None and not is_behind(contents.told, entry.position):
                self.confirm(entry, entry.position)
        while any(self._take_what_arrived(entry) for entry in contents.settling.values()):
            pass  # what lay over a patch that has gone may go now
        for entry in list(contents.settling.values()):
            if contents.overlay.subscriptions(entry):
                continue
            if entry.waits_for is not None:
                self.confirm(entry, contents.told)
            if entry.confirmed_at is not None:
                contents.settling.pop(entry.id)

    def _take_what_arrived(self, entry: Mutation) -> bool:
        """Take a mutation's patches from the bases that have it; returns whether there were any."""
        contents = self._contents
        taken = False
        for name in contents.overlay.subscriptions(entry):
            known = contents.rows[name]
            confirmed = entry.confirmed_at is not None and known.holds(entry.confirmed_at)
            reloaded = entry.waits_for is not None and known.loaded >= entry.waits_for.get(name, 0)
            if (confirmed or reloaded) and not contents.overlay.uncovers(entry, name):
                self._take(entry, name)
                taken = True
        return taken

    def _find_keys(self, entry: Mutation, event: Transaction) -> None:
        """Find the server's keys for made-up ones: the inserted rows with the values that the mutation gave."""
        for name in self._contents.overlay.subscriptions(entry):
            key_columns = self._contents.rows[name].key_columns
            inserted = [change["new"] for change in event.changes.get(name, ()) if change["op"] == "INSERT"]
            for patch in temporary_inserts(entry, name):
                given = {column: value for column, value in patch.row.items() if column not in key_columns}
                for row in inserted:
                    if key_columns and all(
                        row.get(column, value) == value for column, value in given.items()
                    ):
                        inserted.remove(row)
                        self.rename(name, patch.key, key_of(row, key_columns))
                        break

    def _ask(self, known: KnownRows, reason: str) -> None:
        self._invalidate(known, reason)
        known.asked += 1
        self.say(Refetch(known.name))

    def _find_twins(self, known: KnownRows, rows: Sequence[tuple[Key, Row]]) -> None:
        """Find rows that look like new ones with made-up keys, and hide the latter: one of them is enough to see.

        They may have been written by the mutation whose confirm comes later, or was lost in a gap, or by somebody else
        who wrote the same. So this hides, until the mutation is settled, and does nothing else.
        """
        free = [(key, row) for key, row in rows if key not in known.twins.values()]
        for patch in self._contents.overlay.temporary(known.name):
            if patch.key in known.twins:
                continue
            twin = next((each for each in free if _looks_like(each[1], patch.row, known.key_columns)), None)
            if twin is not None:
                free.remove(twin)
                known.twins[patch.key] = twin[0]
                self._moved.setdefault(known.name, {})[twin[0]] = patch.key

    def _invalidate(self, known: KnownRows, reason: str) -> None:
        known.valid = False
        known.reason = reason
        self._drop_load(known)
        self._dirty[known.name] = known

    def _drop_load(self, known: KnownRows) -> None:
        known.loading = known.loading_position = None
        self._contents.complete.pop(known.name, None)

    def _swap(self, known: KnownRows) -> None:
        base, position = known.loading, known.loading_position
        if base is None or position is None:
            return
        if self._contents.overlay.keys(known.name):
            self._find_twins(
                known, [(key, row) for key, row in base.rows.items() if key not in known.base.rows]
            )
        self._replace(known, base)
        known.position = position
        if not known.shown:
            self._first.append(known.name)
        if not is_behind(position, self._contents.told):
            self._contents.told = position
        known.shown = known.valid = True
        known.loaded = known.asked
        self._drop_load(known)

    def _replace(self, known: KnownRows, base: BaseRows) -> None:
        for key in [*VisibleRows(known), *self._contents.overlay.keys(known.name)]:
            self._touch(known, key)
        self._before.setdefault(known.name, {})
        self._reset.add(known.name)
        known.base = base
        self._dirty[known.name] = known

    def _refold(self, known: KnownRows, before: Before) -> None:
        overlay, name, overlaid = self._contents.overlay, known.name, known.overlaid
        if not overlaid and not overlay.keys(name):
            return
        for key in before:
            if not overlay.covers(name, key):
                overlaid.pop(key, None)
                known.twins.pop(key, None)
            elif known.twins.get(key) in known.base.rows:
                overlaid[key] = None
            else:
                overlaid[key] = overlay.fold(name, key, known.base.rows.get(key))

    def _difference(self, known: KnownRows, before: Before, *, reset: bool) -> list[RowChange]:
        visible = known.visible if known.overlaid else known.base.rows.get
        changes = [
            RowChange(key, old, new, key)
            for key, old in before.items()
            if (new := visible(key)) is not old and new != old
        ]
        if reset:
            rows = VisibleRows(known)
            changes.extend(RowChange(key, None, rows[key], key) for key in rows if key not in before)
        moved = self._moved.get(known.name)
        return _join_moved(changes, moved) if moved else changes


def _looks_like(row: Row, given: Row, key_columns: Sequence[str]) -> bool:
    """Whether a row of a table with a key has the values that a mutation gave for a new one."""
    return bool(key_columns) and all(
        row.get(column, value) == value for column, value in given.items() if column not in key_columns
    )


def _join_moved(changes: list[RowChange], moved: Mapping[Key, Key]) -> list[RowChange]:
    """A row that went under one key and came under another is one row whose key changed."""
    gone = {change.key: change for change in changes if change.new is None}
    joined: dict[Key, RowChange] = {}
    for change in changes:
        old = gone.get(moved.get(change.key)) if change.old is None else None
        if old is not None:
            joined[change.key] = RowChange(change.key, old.old, change.new, old.key)
            del gone[old.key]
    moved_away = {change.old_key for change in joined.values()}
    return [
        joined.get(change.key, change)
        for change in changes
        if change.key not in moved_away or change.new is not None
    ]
