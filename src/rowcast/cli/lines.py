"""What `rowcast tail` prints for an event: one line of JSON, or one line for people. No I/O.

The one rule of this room: the rows of a snapshot are printed when it is complete, in one piece, so that whoever
reads never takes half of it for the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec
from rich.text import Text

from rowcast.client.events import JSONObject
from rowcast.client.stream import Resync, SnapshotChunk, StateChanged, StreamEvent, Subscribed, Transaction

_COLORS: Final = {
    "INSERT": "green",
    "UPDATE": "yellow",
    "DELETE": "red",
    "TRUNCATE": "bold red",
    "SNAPSHOT": "cyan",
}
_VALUE_CHARACTERS: Final = 60  # a long text would push the columns after it off the screen

encode: Final = msgspec.json.Encoder(decimal_format="number").encode


@dataclass(slots=True)
class Rows:
    """The rows of a snapshot while its chunks arrive.

    Attributes:
        key: Names of the key's columns; empty for a table without one, whose rows may be equal.
    """

    key: tuple[str, ...] = ()
    _rows: dict[bytes, list[JSONObject]] = field(default_factory=dict[bytes, list[JSONObject]])

    def add(self, chunk: SnapshotChunk) -> None:
        """Take a chunk."""
        if chunk.chunk == 0:
            self._rows = {}
        for row in chunk.deleted:
            same = self._rows.get(self._identity(row))
            if same:
                same.pop()
        for row in chunk.rows:
            if self.key:
                self._rows[self._identity(row)] = [row]
            else:
                self._rows.setdefault(self._identity(row), []).append(row)

    def take(self) -> list[JSONObject]:
        """All rows, once; they are forgotten here."""
        rows, self._rows = self._rows, {}
        return [row for same in rows.values() for row in same]

    def _identity(self, row: JSONObject) -> bytes:
        return encode([row[name] for name in self.key] if self.key else row)


class Lines(Protocol):
    """Turns events into what is printed."""

    def of(self, event: StreamEvent) -> Iterator[bytes | Text]: ...


class JSONLines:
    """One message a line: changes as in the plain form of docs/protocol.md, and what else there is to tell."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._about: JSONObject = {}
        self._rows = Rows()

    def of(self, event: StreamEvent) -> Iterator[bytes | Text]:
        """The lines of an event, without line ends."""
        if isinstance(event, Transaction):
            stamp = {"position": event.position, "txid": event.txid, "timestamp": event.timestamp}
            for change in event.changes:
                told = {name: change[name] for name in ("key", "new", "old", "id") if name in change}
                yield encode({"op": change["op"], **self._about, **told, **stamp})
        elif isinstance(event, Subscribed):
            self._about = {"table": event.table, "schema": event.schema, "channel": self._channel}
            self._rows.key = event.key
            yield self._message("subscribed", position=event.position)
        elif isinstance(event, SnapshotChunk):
            self._rows.add(event)
            if event.last:
                yield from self._snapshot(event)
        elif isinstance(event, Resync):
            yield self._message("resync", reason=event.reason, position=event.position)
        elif isinstance(event, StateChanged):
            yield self._message("status", state=event.state.status, reason=event.state.reason)

    def _snapshot(self, chunk: SnapshotChunk) -> Iterator[bytes]:
        rows = self._rows.take()
        for row in rows:
            key = {"key": {name: row[name] for name in self._rows.key}} if self._rows.key else {}
            yield encode({"op": "SNAPSHOT", **self._about, **key, "new": row, "position": chunk.position})
        yield self._message("snapshot", rows=len(rows), last=True, position=chunk.position)

    def _message(self, kind: str, **fields: Any) -> bytes:
        return encode({"type": kind, "channel": self._channel, **fields})


class PrettyLines:
    """One line a change: time, operation, table, key, and the columns that changed."""

    def __init__(self) -> None:
        self._table = ""
        self._rows = Rows()
        self._status = ""

    def of(self, event: StreamEvent) -> Iterator[bytes | Text]:
        """The lines of an event."""
        if isinstance(event, Transaction):
            time = datetime.fromisoformat(event.timestamp).astimezone().strftime("%H:%M:%S.%f")[:-3]
            for change in event.changes:
                yield self._change(time, change)
        elif isinstance(event, Subscribed):
            self._table = event.table if event.schema == "public" else f"{event.schema}.{event.table}"
            self._rows.key = event.key
            yield Text(f"watching {self._table}", style="dim")
        elif isinstance(event, SnapshotChunk):
            self._rows.add(event)
            if event.last:
                rows = self._rows.take()
                for row in rows:
                    key = {name: row[name] for name in self._rows.key}
                    yield self._change("", {"op": "SNAPSHOT", "key": key, "new": row})
                yield Text(f"{len(rows)} rows at {event.position}", style="dim")
        elif isinstance(event, Resync):
            yield Text(f"resync: changes are missing from here ({event.reason})", style="bold magenta")
        elif isinstance(event, StateChanged) and event.state.status != self._status:
            self._status = event.state.status
            yield Text(": ".join(filter(None, (event.state.status, event.state.reason))), style="dim")

    def _change(self, time: str, change: JSONObject) -> Text:
        operation: str = change["op"]
        key: JSONObject = change.get("key") or {}
        new: JSONObject = change.get("new") or {}
        old: JSONObject = change.get("old") or {}
        line = Text.assemble(
            (f"{time:12} ", "dim"),
            (f"{operation:8} ", _COLORS[operation]),
            (self._table, "bold"),
            *((f" {name}={_shown(value)}", "cyan") for name, value in key.items()),
        )
        if operation == "UPDATE":
            for name, value in new.items():
                if name not in old:
                    if name not in key:
                        line.append(f"  {name}: ", "dim").append(_shown(value))
                elif old[name] != value:
                    line.append(f"  {name}: ", "dim").append(_shown(old[name]), "red").append(" → ", "dim")
                    line.append(_shown(value), "green")
        else:
            for name, value in (new or old).items():
                if name not in key:
                    line.append(f"  {name}: ", "dim").append(_shown(value))
        return line


def _shown(value: Any) -> str:
    text = encode(value).decode()
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"
