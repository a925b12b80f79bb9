"""A client that follows docs/protocol.md to the letter and keeps a journal of everything that it showed.

The one rule of this room: nothing here uses Rowcast, and nothing is forgiven: a frame that contradicts the page
fails the campaign, and so does a `base` beyond what was told, for nothing is lost on a connection that holds.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tests.faults.journal import Journal, WrongError
from tests.faults.oracle import JSONRow, canonical
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

_EPOCH_DIGITS: Final = 16
_SILENT_INTERVALS: Final = 2.5  # as the server counts
_RECONNECT_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 5.0  # a lost question is asked again
# What may befall a reading of rows without anything being wrong: links and servers that end, columns that go.
_PASSING_REASONS: Final = (
    "connection",
    "terminating",
    "the table changes faster than it can be read",
    "does not exist",
    "starting up",
    "shutting down",
    "recovery mode",
    "timeout",
    "SSL",
    "capture was closed",
    "deadlock detected",  # among writers, with the reader in the same queue
)


@dataclass(slots=True)
class Subscription:
    """One subscription on the connection.

    Attributes:
        wire: Its id on this connection; a new one each time it is asked for, so that late frames find nobody.
        start: Changes up to here are in the rows already.
        loading: The rows of the chunks so far; None while no snapshot is under way.
        held: Transactions that came between chunks.
        due: When to ask again, in the loop's time; None while there is nothing to ask.
    """

    journal: Journal
    wire: str = ""
    shape: int | None = None
    columns: tuple[str, ...] = ()
    start: str = ""
    asked: bool = False
    loading: dict[Any, JSONRow] | None = None
    loading_bag: Counter[str] = field(default_factory=Counter)
    chunk: int = 0
    held: list[tuple[str, list[dict[str, Any]], int]] = field(default_factory=list)
    due: float | None = None


class StrictClient:
    """One connection with its subscriptions; keeps itself connected while it is awake."""

    def __init__(self, name: str, url: str, journals: Sequence[Journal]) -> None:
        self.name = name
        self.url = url
        self.subscriptions = [Subscription(journal) for journal in journals]
        self.told = ""  # the position of this connection, raised by every frame
        self.connects = 0
        self.failure: BaseException | None = None
        self.log: list[str] = []
        self.recent: deque[str] = deque(maxlen=80)
        self._names = 0
        self._left: set[str] = set()  # subscriptions that it has asked to end
        self._reading = asyncio.Event()
        self._reading.set()
        self._task: asyncio.Task[None] | None = None
        self._link: ClientConnection | None = None

    @property
    def journals(self) -> list[Journal]:
        return [each.journal for each in self.subscriptions]

    @property
    def awake(self) -> bool:
        return self._task is not None

    def wake(self) -> None:
        """Connect, resuming what there is."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def sleep(self) -> None:
        """Disconnect, and keep rows and positions."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def hold(self, seconds: float) -> None:
        """Do not read for a time."""
        self._reading.clear()
        await asyncio.sleep(seconds)
        self._reading.set()

    async def reload(self, number: int) -> None:
        """Ask for new rows of one subscription."""
        if self._link is not None:
            with suppress(ConnectionClosed):
                await self._leave(self._link, self.subscriptions[number % len(self.subscriptions)], 0.0)

    async def refresh(self) -> None:
        """The journals are always up to date."""

    async def _run(self) -> None:
        try:
            while True:
                with suppress(OSError, ConnectionClosed, TimeoutError, InvalidHandshake, EOFError):
                    await self._connection()
                for each in self.subscriptions:
                    each.shape, each.loading, each.held, each.due, each.asked = None, None, [], None, False
                self._link = None
                await asyncio.sleep(_RECONNECT_SECONDS)
        except Exception as error:  # noqa: BLE001 - it is raised at the barrier
            self.failure = WrongError(f"{error!r}, after:\n    " + "\n    ".join(self.recent))

    async def _connection(self) -> None:
        # A small queue: who does not read here holds the server back through the socket.
        async with connect(
            self.url,
            max_size=None,
            max_queue=4,
            open_timeout=5,
            ping_interval=None,
            close_timeout=0.2,
            compression=None,
        ) as link:
            self.connects += 1
            self._link = link
            self.told = ""
            self._left.clear()
            entries = [self._entry(each) for each in self.subscriptions]
            await link.send(json.dumps({"type": "hello", "version": 1, "subscriptions": entries}))
            async with asyncio.timeout(5):
                welcome = json.loads(await link.recv())
            if welcome["type"] != "welcome":
                raise WrongError(f"{self.name}: {welcome} in place of welcome")
            heartbeat: float = welcome["heartbeat_seconds"]
            beating = asyncio.create_task(self._beat(link, heartbeat))
            try:
                while True:
                    await self._reading.wait()
                    async with asyncio.timeout(heartbeat * _SILENT_INTERVALS):
                        text = await link.recv()
                    await self._receive(link, json.loads(text))
            finally:
                beating.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed, OSError):
                    await beating

    async def _beat(self, link: ClientConnection, heartbeat: float) -> None:
        """Signs of life, and what is due."""
        loop = asyncio.get_running_loop()
        beat_at = 0.0
        while True:
            if loop.time() >= beat_at:
                beat_at = loop.time() + heartbeat
                await link.send('{"type":"heartbeat","id":1}')
            for each in self.subscriptions:
                if each.due is not None and loop.time() >= each.due:
                    if each.asked:  # and not answered
                        await self._unsubscribe(link, each.wire)
                    entry = self._entry(each)
                    await link.send(json.dumps({"type": "subscribe", **entry}))
            await asyncio.sleep(0.05)

    def _entry(self, each: Subscription) -> dict[str, Any]:
        self._names += 1
        each.wire, each.shape, each.loading, each.held = f"s{self._names}", None, None, []
        each.asked = True
        each.due = asyncio.get_running_loop().time() + _ANSWER_SECONDS
        journal = each.journal
        entry: dict[str, Any] = {"id": each.wire, "channel": journal.table.name, **journal.filter.wire}
        if journal.columns is not None:
            entry["columns"] = list(journal.columns)
        if journal.invalid:
            entry["snapshot"] = True
        else:
            entry["since"] = journal.position
        return entry

    async def _leave(self, link: ClientConnection, each: Subscription, seconds: float) -> None:
        """Ask for the rows anew, after a while."""
        each.journal.invalid = True
        wire, each.wire, each.shape, each.loading, each.held = each.wire, "", None, None, []
        each.asked = False
        each.due = asyncio.get_running_loop().time() + seconds
        await self._unsubscribe(link, wire)

    async def _unsubscribe(self, link: ClientConnection, wire: str) -> None:
        self._left.add(wire)
        await link.send(json.dumps({"type": "unsubscribe", "id": wire}))

    async def _receive(self, link: ClientConnection, message: dict[str, Any]) -> None:
        self.recent.append(f"{asyncio.get_running_loop().time():.3f} {_summary(message)}")
        match message["type"]:
            case "subscribed":
                self._subscribed(message)
            case "snapshot":
                self._snapshot(message)
            case "transaction":
                await self._transaction(link, message)
            case "heartbeat":
                for each in self.subscriptions:
                    if each.shape is not None:
                        each.journal.move_to(message["position"])
            case "resync":
                for each in self._named(message):
                    self.log.append(f"{each.journal.name}: resync, {message['reason']}")
                    each.journal.forget(message["reason"])
                    await self._leave(link, each, min(message["after_ms"] / 1000, 1.0))
            case "error":
                await self._error(link, message)
            case "unsubscribed":
                self._left.discard(message["id"])
            case "status" | "goodbye":
                pass
            case other:
                raise WrongError(f"{self.name}: a frame of type {other}")
        if "position" in message and message["type"] != "welcome":
            self.told = (
                max(self.told, message["position"]) if self._same_epoch(message) else message["position"]
            )
        for each in self.subscriptions:
            if each.journal.invalid and each.shape is not None and each.due is None:
                await self._leave(link, each, 0.0)  # a transaction that was held could not be applied

    def _same_epoch(self, message: dict[str, Any]) -> bool:
        return bool(self.told[:_EPOCH_DIGITS] == message["position"][:_EPOCH_DIGITS])

    def _named(self, message: dict[str, Any]) -> list[Subscription]:
        return [each for each in self.subscriptions if each.wire == message["id"]]

    def _subscribed(self, message: dict[str, Any]) -> None:
        for each in self._named(message):
            each.shape = message["shape"]
            each.columns = tuple(column["name"] for column in message["columns"])
            position = message["position"]
            journal = each.journal
            if journal.invalid:
                each.start = position
                continue
            each.due = None
            each.start = journal.position
            if position > journal.position or position[:_EPOCH_DIGITS] != journal.position[:_EPOCH_DIGITS]:
                # What lies between is not told: a resync has to follow, and until then the rows say nothing.
                journal.invalid = True
                each.due = asyncio.get_running_loop().time() + _ANSWER_SECONDS

    def _snapshot(self, message: dict[str, Any]) -> None:
        for each in self.subscriptions:
            if each.shape != message["shape"] or not each.journal.invalid or not each.asked:
                continue
            if message["chunk"] == 0:
                each.loading, each.loading_bag, each.chunk = {}, Counter(), 0
            if each.loading is None or message["chunk"] != each.chunk:
                if message["chunk"] > 0 and each.loading is None:
                    continue  # of a snapshot that began before it was asked for
                raise WrongError(f"{each.journal.name}: chunk {message['chunk']} after {each.chunk - 1}")
            each.chunk += 1
            each.due = asyncio.get_running_loop().time() + _ANSWER_SECONDS
            if each.journal.table.key:
                for key in message.get("deleted", ()):
                    each.loading.pop(each.journal.key_of(key), None)
                for row in message["rows"]:
                    each.loading[each.journal.key_of(row)] = row
            else:
                each.loading_bag.subtract(map(canonical, message.get("deleted", ())))
                each.loading_bag.update(map(canonical, message["rows"]))
            if message.get("last"):
                self._finish(each, message["position"])

    @staticmethod
    def _finish(each: Subscription, position: str) -> None:
        assert each.loading is not None
        journal = each.journal
        if min(each.loading_bag.values(), default=0) < 0:
            raise WrongError(f"{journal.name}: a snapshot takes away rows that it has not")
        rows = list(each.loading.values()) or [json.loads(row) for row in each.loading_bag.elements()]
        for row in rows:
            if set(row) != set(each.columns):
                raise WrongError(f"{journal.name}: a row of a snapshot has {sorted(row)}, not {each.columns}")
        journal.load(position, each.columns, rows)
        each.loading, each.due, each.start = None, None, position
        held, each.held = each.held, []
        for at, changes, txid in held:
            if at > position and not journal.invalid:
                journal.apply(at, changes, txid)

    async def _transaction(self, link: ClientConnection, message: dict[str, Any]) -> None:
        position = message["position"]
        if message["base"] > self.told:
            raise WrongError(f"{self.name}: base {message['base']} lies beyond {self.told}")
        for each in self.subscriptions:
            if each.shape is None:
                continue
            changes = [change for change in message["changes"] if change["shape"] == each.shape]
            journal = each.journal
            if journal.invalid:
                if changes and each.asked:
                    each.held.append((position, changes, message["txid"]))
            elif position > max(each.start, journal.position):
                if changes:
                    journal.apply(position, changes, message["txid"])
                    if bool(journal.invalid):
                        await self._leave(link, each, 0.0)
                else:
                    journal.move_to(position)

    async def _error(self, link: ClientConnection, message: dict[str, Any]) -> None:
        code, text, wire = message["code"], message["message"], message.get("id", "")
        passing = code == "snapshot_failed" and any(reason in text for reason in _PASSING_REASONS)
        for each in self.subscriptions:
            if each.wire and each.wire == wire:
                self.log.append(f"{each.journal.name}: {code}: {text}")
                if not passing:
                    raise WrongError(f"{each.journal.name} ({each.journal.filter.wire}): {message}")
                await self._leave(link, each, 0.2)
                return
        if not (code == "unknown_subscription" or (passing and wire in self._left)):
            raise WrongError(f"{self.name}: {message}")


def _summary(message: dict[str, Any]) -> str:
    """A frame in one line, for a failure's text."""
    parts = [
        f"{name} {message[name]}"
        for name in ("id", "shape", "chunk", "last", "base", "position", "txid", "reason", "code", "message")
        if name in message
    ]
    if "rows" in message:
        parts.append(f"{len(message['rows'])} rows")
    parts.extend(
        f"{change['op']} {change['shape']} {list(change.get('key', {}).values())}"
        for change in message.get("changes", ())[:20]
    )
    return f"{message['type']}: {', '.join(parts)}"
