"""A small server in the tests' own hands: speaks the full form over real WebSockets, and does as it is told.

It keeps one table of rows per channel and the history of transactions; everything that a server may lawfully do to
a client can be made to happen at a chosen moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

EPOCH = "5e1f0c6a9d3b2e47"
Frame = dict[str, Any]


def position(number: int, epoch: str = EPOCH) -> str:
    return f"{epoch}-{number:016x}"


@dataclass(eq=False)
class Client:
    """One connection as the server sees it."""

    socket: ServerConnection
    number: int
    base: str = ""
    received: list[Frame] = field(default_factory=list)
    watching: dict[str, str] = field(default_factory=dict)  # id → channel

    async def send(self, frame: Frame) -> None:
        await self.socket.send(msgspec.json.encode(frame), text=True)


class ScriptedServer:
    """Tables are created by the first row that is committed; all have the columns `id`, the key, and `name`."""

    def __init__(self, *, heartbeat_seconds: float = 15.0) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self.epoch = EPOCH
        self.head = 1
        self.history: list[tuple[str, list[Frame], list[str]]] = []
        self.rows: dict[str, dict[int, Frame]] = {"projects": {}, "jobs": {}}
        self.clients: list[Client] = []
        self.tokens: set[str] | None = None
        self.snapshot_gate = asyncio.Event()
        self.snapshot_gate.set()
        self.committed: set[str] = set()  # mutations of which it knows when it is asked
        self.silent = False  # answers nothing, accepts everything
        self.http_status: http.HTTPStatus | None = None
        self.on_frame: Callable[[Client, Frame], bool] = lambda _client, _frame: False
        self._server: Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}/ws"

    @property
    def port(self) -> int:
        return self._port

    @property
    def open(self) -> list[Client]:
        return [client for client in self.clients if client.socket.state.name == "OPEN"]

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self._port,
            process_request=self._answer,
            ping_interval=None,
            compression=None,
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self, code: int = 1001) -> None:
        if self._server is not None:
            self._server.close(code=code)
            await self._server.wait_closed()
            self._server = None

    async def commit(self, *changes: tuple[str, str, Frame], confirms: tuple[str, ...] = ()) -> str:
        """Commit changes (operation, channel, row) and deliver them."""
        self.head += 1
        at = position(self.head, self.epoch)
        frames: list[Frame] = []
        for index, (operation, channel, row) in enumerate(changes):
            table = self.rows.setdefault(channel, {})
            change: Frame = {
                "channel": channel,
                "op": operation,
                "id": f"{at}-{index:08x}",
                "key": {"id": row["id"]},
            }
            if operation == "DELETE":
                table.pop(row["id"], None)
            else:
                table[row["id"]] = change["new"] = {"name": None, **table.get(row["id"], {}), **row}
            frames.append(change)
        self.history.append((at, frames, list(confirms)))
        for client in self.open:
            await self._tell(client, at, frames, list(confirms))
        return at

    async def _tell(self, client: Client, at: str, changes: list[Frame], confirms: list[str]) -> None:
        watched = set(client.watching.values())
        mine = [{"shape": self._shape(c["channel"]), **c} for c in changes if c["channel"] in watched]
        if (mine or confirms) and not self.silent:
            frame = {
                "type": "transaction", "base": client.base, "position": at, "txid": int(at[-8:], 16),
                "timestamp": "2026-11-21T09:30:00.123456Z", "changes": mine, "confirms": confirms,
            }  # fmt: skip
            client.base = at
            with contextlib.suppress(ConnectionClosed):
                await client.send(frame)

    def _shape(self, channel: str) -> int:
        return list(self.rows).index(channel) + 1

    async def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.http_status is not None:
            return connection.respond(self.http_status, "refused by the script\n")
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        client = Client(socket, len(self.clients))
        self.clients.append(client)
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                frame = msgspec.json.decode(message)
                client.received.append(frame)
                if not self.silent and not self.on_frame(client, frame):
                    await self._handle(client, frame)

    async def _handle(self, client: Client, frame: Frame) -> None:
        head = position(self.head, self.epoch)
        match frame["type"]:
            case "hello":
                if self.tokens is not None and frame.get("token") not in self.tokens:
                    await client.send({"type": "error", "code": "token_invalid", "message": "no such token"})
                    await client.socket.close(4501, "token_invalid")
                    return
                client.base = head
                await client.send({
                    "type": "welcome", "version": 1, "session": f"s-{client.number}", "server": "scripted",
                    "epoch": self.epoch, "position": head, "heartbeat_seconds": self.heartbeat_seconds,
                    "state": "live",
                })  # fmt: skip
                await self._subscribe(client, frame["subscriptions"])
            case "subscribe":
                await self._subscribe(client, [frame])
            case "unsubscribe":
                client.watching.pop(frame["id"], None)
                await client.send({"type": "unsubscribed", "id": frame["id"]})
            case "heartbeat":
                await client.send({"type": "heartbeat", "id": frame["id"], "position": head})
            case "mutation":
                known = (
                    {"state": "committed", "position": head}
                    if frame["id"] in self.committed
                    else {"state": "unknown"}
                )
                await client.send({"type": "mutation", "id": frame["id"], **known})
            case "token":
                await client.send({"type": "token_accepted", "expires_in": 3600})
            case other:
                raise AssertionError(f"the client sent {other}")

    async def _subscribe(self, client: Client, entries: list[Frame]) -> None:
        head = position(self.head, self.epoch)
        oldest = min((entry["since"] for entry in entries if "since" in entry), default=head)
        resumed: list[Frame] = []
        for entry in entries:
            channel = entry["channel"]
            if channel not in self.rows:
                known = ", ".join(self.rows)
                await client.send({
                    "type": "error", "code": "unknown_channel", "id": entry["id"],
                    "message": f'there is no channel "{channel}"; known: {known}',
                })  # fmt: skip
                continue
            client.watching[entry["id"]] = channel
            foreign = "since" in entry and not entry["since"].startswith(self.epoch)
            await client.send({
                "type": "subscribed", "id": entry["id"], "shape": self._shape(channel), "channel": channel,
                "schema": "public", "table": channel, "key": ["id"],
                "columns": [{"name": "id", "type": "bigint"}, {"name": "name", "type": "text"}],
                "position": oldest if "since" in entry and not foreign else head,
            })  # fmt: skip
            if foreign:
                await client.send({
                    "type": "resync", "id": entry["id"], "shape": self._shape(channel), "channel": channel,
                    "reason": "epoch_changed", "after_ms": 0, "position": head,
                })  # fmt: skip
            elif "since" in entry:
                resumed.append(entry)
        if resumed:
            after, base = client.base, oldest
            for at, changes, confirms in self.history:
                if oldest < at <= head:
                    client.base = base
                    await self._tell(client, at, changes, confirms)
                    base = at
            client.base = after
        for entry in entries:
            if entry.get("snapshot") and entry["id"] in client.watching:
                await self._snapshot(client, entry["channel"])

    async def _snapshot(self, client: Client, channel: str) -> None:
        rows = list(self.rows[channel].values())
        at = position(self.head, self.epoch)
        half = len(rows) // 2
        frame: Frame = {"type": "snapshot", "shape": self._shape(channel)}
        await client.send({**frame, "chunk": 0, "rows": rows[:half]})
        await self.snapshot_gate.wait()
        await client.send({**frame, "chunk": 1, "rows": rows[half:], "last": True, "position": at})


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until a condition holds, looking at each turn of the event loop."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)


async def take(events: AsyncIterator[Any], kind: type, seconds: float = 5.0) -> Any:
    """The next event of a kind; others before it are skipped."""
    async with asyncio.timeout(seconds):
        while True:
            event = await anext(events)
            if isinstance(event, kind):
                return event
