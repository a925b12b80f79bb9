"""Rowcast's own clients as subscribers of a campaign: `stream()`, `live()`, and the process `rowcast mirror`.

The one rule of this room: they are used as an application uses them; what they show goes into a journal as it is.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections import Counter
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from tests.cli.processes import Process
from tests.faults.journal import Journal, same_epoch
from tests.faults.oracle import JSONRow, Key, canonical, plain

from rowcast.client import Change, Client, LiveRows
from rowcast.client.stream import Progress, Resync, SnapshotChunk, Subscribed, Transaction, stream

_LOOKS_SECONDS: Final = 0.15  # between two looks into a mirror's file, at most
_LATEST_SECONDS: Final = 10.0  # a change is told within one step of the event loop
_NUMBERS: Final = ("numeric", "double")


class Follower(Protocol):
    """A subscriber that can be put to sleep and woken."""

    name: str
    failure: BaseException | None

    @property
    def journals(self) -> list[Journal]: ...

    @property
    def awake(self) -> bool: ...

    def wake(self) -> None: ...

    async def sleep(self) -> None: ...

    async def refresh(self) -> None:
        """Bring the journals up to what is shown now."""
        ...


class TaskFollower:
    """One that is a task while it is awake."""

    def __init__(self, name: str, url: str, journal: Journal) -> None:
        self.name = name
        self.url = url
        self.journal = journal
        self.failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def journals(self) -> list[Journal]:
        return [self.journal]

    @property
    def awake(self) -> bool:
        return self._task is not None

    def wake(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._guarded())

    async def sleep(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def refresh(self) -> None:
        pass

    async def _guarded(self) -> None:
        try:
            await self.run()
        except Exception as error:  # noqa: BLE001 - it is raised at the barrier
            self.failure = error

    async def run(self) -> None:
        raise NotImplementedError


class StreamFollower(TaskFollower):
    """Folds `stream()` as its documentation says; goes on from its position when it wakes."""

    async def run(self) -> None:
        journal = self.journal
        columns: tuple[str, ...] = ()
        rows: dict[Key, JSONRow] = {}
        bag: Counter[str] = Counter()
        events = stream(
            self.url,
            journal.table.name,
            **journal.filter.wire,
            columns=journal.columns,
            since=None if journal.invalid else journal.position,
            snapshot=True,
        )
        async with aclosing(events):
            async for event in events:
                match event:
                    case Subscribed():
                        columns = tuple(name for name, _ in event.columns)
                    case SnapshotChunk():
                        if event.chunk == 0:
                            rows, bag = {}, Counter()
                        if journal.table.key:
                            for key in event.deleted:
                                rows.pop(journal.key_of(key), None)
                            rows.update((journal.key_of(row), plain(row)) for row in event.rows)
                        else:
                            bag.subtract(map(canonical, event.deleted))
                            bag.update(map(canonical, event.rows))
                        if event.position is not None:
                            whole = [json.loads(row) for row in bag.elements()]
                            journal.load(event.position, columns, list(rows.values()) or whole)
                    case Transaction():
                        if not journal.invalid:
                            journal.apply(
                                event.position, [plain(change) for change in event.changes], event.txid
                            )
                        if journal.invalid:
                            return await self.run()  # a large value of a row that it has not: all rows anew
                    case Progress():
                        journal.move_to(event.position)
                    case Resync():
                        journal.forget(event.reason)
                    case _:
                        pass
        return None


class LiveFollower(TaskFollower):
    """Keeps a list by the changes that `live()` tells, and compares it with what `live()` shows."""

    def __init__(self, name: str, url: str, journal: Journal) -> None:
        super().__init__(name, url, journal)
        self._rows: list[JSONRow] = []
        self._differs_since = 0.0
        self._refresh: asyncio.Event = asyncio.Event()
        self._refreshed: asyncio.Event = asyncio.Event()

    async def run(self) -> None:
        journal = self.journal
        async with Client(self.url) as client:
            live = client.live(
                journal.table.name,
                **journal.filter.wire,
                columns=journal.columns,
                order_by=("org",) if journal.columns is None else (),
            )
            async with live:
                changes = live.changes()
                coming = asyncio.ensure_future(anext(changes))
                refreshing = asyncio.ensure_future(self._refresh.wait())
                try:
                    while True:
                        await asyncio.wait([coming, refreshing], return_when=asyncio.FIRST_COMPLETED)
                        if coming.done():
                            self._take(coming.result())
                            coming = asyncio.ensure_future(anext(changes))
                        elif refreshing.done():
                            self._refresh.clear()
                            refreshing = asyncio.ensure_future(self._refresh.wait())
                            self._compare(live)
                            self._refreshed.set()
                finally:
                    for task in (coming, refreshing):
                        task.cancel()
                    await asyncio.wait([coming, refreshing])
                    await changes.aclose()

    def _compare(self, live: LiveRows[Any]) -> None:
        """Compare the two lists; a change may be on its way to here, but not for long."""
        now = asyncio.get_running_loop().time()
        if self._rows != live.rows:
            self._differs_since = self._differs_since or now
            if now - self._differs_since > _LATEST_SECONDS:
                raise AssertionError(f"{self.name}: the changes do not lead to the rows")
            return
        self._differs_since = 0.0
        if live.state != "live":
            return
        if same_epoch(live.position, self.journal.position):
            self.journal.move_to(live.position)
        else:
            self._load(live.position)  # all rows anew, and the same as before

    def _take(self, change: Change[Any]) -> None:
        self._differs_since = 0.0
        journal = self.journal
        touched = [row for _, row in (*change.inserted, *change.updated, *change.removed)]
        touched += [row for _, _, row in change.moved]
        touched += [
            self._rows[index] for index, *_ in (*change.updated, *change.moved) if index < len(self._rows)
        ]
        change.apply_to(self._rows)
        if change.restart or change.reset or not journal.table.key:
            self._load(change.position)
            return
        rows = [plain(row) for row in self._rows]
        by_key = {journal.key_of(row): row for row in rows}
        if len(by_key) != len(rows):
            raise AssertionError(f"{self.name}: a key is there twice")
        journal.show(
            change.position, {key: by_key.get(key) for key in (journal.key_of(plain(row)) for row in touched)}
        )

    def _load(self, position: str) -> None:
        rows = [plain(row) for row in self._rows]
        self.journal.load(position, tuple(rows[0]) if rows else (), rows)

    async def refresh(self) -> None:
        if self._task is not None and not self._task.done():
            self._refreshed.clear()
            self._refresh.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._refreshed.wait()


class MirrorFollower:
    """`rowcast mirror` as a process, killed to put it to sleep; its file is looked into at any moment."""

    def __init__(self, name: str, url: str, journal: Journal, folder: Path) -> None:
        self.name = name
        self.url = url
        self.journal = journal
        self.failure: BaseException | None = None
        self.path = folder / f"{name.replace(' ', '-')}.sqlite"
        self._process: Process | None = None
        self._looking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._chance = random.Random(name)
        self.said: list[str] = []  # on standard error

    @property
    def journals(self) -> list[Journal]:
        return [self.journal]

    @property
    def awake(self) -> bool:
        return self._process is not None

    def wake(self) -> None:
        if self._process is None:
            wire = [part for name, value in self.journal.filter.wire.items() for part in (f"--{name}", value)]
            self._process = Process("mirror", self.url, self.journal.table.name, *wire, "--to", self.path)
            self.said = self._process.errors
            self._looking = asyncio.create_task(self._look_often())

    async def sleep(self) -> None:
        """Kill it, at whatever moment this is."""
        process, self._process = self._process, None
        looking, self._looking = self._looking, None
        if process is not None and looking is not None:
            process.send(9)
            await asyncio.to_thread(process.wait)
            await asyncio.to_thread(process.__exit__, None, None, None)
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            await self.refresh()

    async def refresh(self) -> None:
        if self._process is not None and self._process.ended_within(0):
            self.failure = AssertionError(f"{self.name} has ended: {self._process.error_text()}")
        async with self._turn:  # what is seen later is written down later
            found = await asyncio.to_thread(self._look)
            if found is not None:
                position, columns, rows = found
                if position != self.journal.position:
                    self.journal.load(position, columns, rows)

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(self._chance.random() * _LOOKS_SECONDS)
            await self.refresh()

    def _look(self) -> tuple[str, tuple[str, ...], list[JSONRow]] | None:
        """Position and rows, in one transaction."""
        if not self.path.exists():
            return None
        database = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=5, isolation_level=None)
        try:
            database.execute("BEGIN")
            [(position, schema)] = database.execute("SELECT position, schema FROM _rowcast")
            kinds: list[tuple[str, str]] = json.loads(schema)["columns"]
            rows = [
                {name: _as_json(kind, value) for (name, kind), value in zip(kinds, row, strict=True)}
                for row in database.execute(f"SELECT * FROM {self.journal.table.name}")
            ]
        except (sqlite3.OperationalError, ValueError):  # not made yet
            return None
        finally:
            database.close()
        return position, tuple(name for name, _ in kinds), rows


def _as_json(kind: str, value: Any) -> Any:
    """A value of the mirror as JSON had it."""
    if value is None:
        return None
    if kind == "boolean":
        return bool(value)
    if kind.startswith(_NUMBERS):
        return plain(float(value))
    return plain(json.loads(value)) if kind == "jsonb" or kind.endswith("[]") else value
