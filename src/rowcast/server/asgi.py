"""The same connections under any ASGI server: WebSockets as ASGI messages, and Server-Sent Events.

The one rule of this room: an ASGI server's only word about a slow client is that `send` has not returned. So each
connection has one task that sends, one piece is on its way at a time, and everything else waits in the
connection's own bounded queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from rowcast.errors import ProtocolError
from rowcast.model import parse_position
from rowcast.protocol.frames import checked_mutations
from rowcast.protocol.framing import EVENT_STREAM, LINE
from rowcast.protocol.native import Form
from rowcast.server.connection import ClientConnection
from rowcast.server.query import SELECTION, Query
from rowcast.server.service import Service

_PARAMETERS: Final = SELECTION | {
    "channel",
    "only_changed",
    "since",
    "snapshot",
    "form",
    "mutations",
    "token",
}
_FORMS: Final[Mapping[str, Form]] = {"plain": "plain", "full": "full"}


class AsgiTransport:
    """Hands framed bytes from a connection to the task that sends them, one piece at a time."""

    def __init__(self, *, two_way: bool) -> None:
        self.two_way = two_way
        self.connection: ClientConnection | None = None
        self.closed: tuple[int, str] | None = None
        self._piece: list[bytes | memoryview] = []
        self._wake = asyncio.Event()

    def write(self, data: bytes | memoryview) -> None:
        self._piece.append(data)
        if self.connection is not None:
            self.connection.pause()
        self._wake.set()

    def ping(self) -> None:
        """ASGI has no pings: servers send their own."""
        if self.connection is not None:
            self.connection.heard()

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)
        self._wake.set()

    def abort(self) -> None:
        self.close(1011, "")

    async def drain(self, send: Callable[[bytes], Any]) -> None:
        """Send what is written until the connection is closed. `send` is a coroutine function for one piece."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._piece:
                piece, self._piece = self._piece, []
                await send(b"".join(piece))
                if self.connection is not None:
                    self.connection.resume()
            if self.closed is not None:
                return


class WebSocketEndpoint:
    """`/ws` where the ASGI server owns the WebSocket: slower than our own class, otherwise equal."""

    def __init__(self, service: Callable[[], Service]) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service()
        await receive()  # websocket.connect
        headers = _headers(scope)
        refusal = service.refusal(headers.get("origin"), headers.get("host"))
        if refusal is not None:
            await _refuse(scope, send, *refusal)
            return
        await send({"type": "websocket.accept"})
        transport = AsgiTransport(two_way=True)
        connection = transport.connection = ClientConnection(service, transport, LINE, service.now())
        service.connections[connection] = None

        buffer = bytearray()

        async def send_lines(piece: bytes) -> None:
            buffer.extend(piece)
            *messages, rest = bytes(buffer).split(b"\n")
            buffer[:] = rest
            for message in messages:
                await send({"type": "websocket.send", "text": message.decode()})

        await _run(
            connection,
            transport.drain(send_lines),
            _receive_messages(receive, connection, service.settings.max_message_bytes),
        )
        if transport.closed is not None:
            code, reason = transport.closed
            await _quietly(send, {"type": "websocket.close", "code": code, "reason": reason})


class EventStreamEndpoint:
    """`/sse`: the stream as Server-Sent Events."""

    def __init__(self, service: Callable[[], Service]) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service()
        headers = _headers(scope)
        refusal = service.refusal(headers.get("origin"), headers.get("host"))
        if refusal is None and scope["method"] != "GET":
            refusal = (405, "an event stream is read with GET")
        mutations: str | None = None
        form: Form = "plain"
        wishes: list[dict[str, object]] = []
        try:
            query = Query(scope["query_string"], _PARAMETERS)
            mutations = checked_mutations(query.text("mutations"))
            form, wishes = _wishes(query, headers.get("last-event-id"))
        except ProtocolError as error:
            refusal = refusal or (400, str(error))
        if refusal is not None:
            await JSONResponse({"error": refusal[1]}, refusal[0])(scope, receive, send)
            return
        transport = AsgiTransport(two_way=False)
        connection = transport.connection = ClientConnection(service, transport, EVENT_STREAM, service.now())
        service.connections[connection] = None
        fields = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            *cors_headers(service, headers),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        connection.open(form, wishes, mutations)

        async def send_body(piece: bytes) -> None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        await _run(connection, transport.drain(send_body), _receive_disconnect(receive))
        await _quietly(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _run(connection: ClientConnection, sending: Any, receiving: Any) -> None:
    """Run both directions until one ends; then the connection is over."""
    tasks = [asyncio.ensure_future(sending), asyncio.ensure_future(receiving)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        connection.lost()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _quietly(send: Send, message: Message) -> None:
    try:
        await send(message)
    except (OSError, RuntimeError):  # the client has gone already; servers tell it in either way
        return


async def _receive_messages(receive: Receive, connection: ClientConnection, max_bytes: int) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        if text is None:
            connection.receive_binary()
        elif len(text) > max_bytes:
            connection.drop(1009, "the message is too large")
        else:
            connection.receive_text(text.encode())


async def _receive_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _wishes(query: Query, last_event: str | None) -> tuple[Form, list[dict[str, object]]]:
    """The query as the form and the subscriptions that a WebSocket client would have named.

    Args:
        last_event: The position in a returning EventSource's header: it goes before what the address says.

    Raises:
        ProtocolError: The query cannot be understood; the text says what to write.
    """
    channels = query.all("channel")
    if not channels:
        raise ProtocolError("invalid_frame", "name what to watch: /sse?channel=projects")
    common = query.selection()
    if common and len(channels) > 1:
        raise ProtocolError(
            "invalid_frame", f"{next(iter(common))} belongs to one channel: open a stream for each"
        )
    common["only_changed"] = query.switch("only_changed")
    since, snapshot = query.text("since"), query.switch("snapshot")
    if since and snapshot:
        raise ProtocolError("invalid_frame", "snapshot and since exclude each other: write one of them")
    if last_event or since:
        try:
            common["since"] = parse_position(last_event or since or "")
        except ValueError as error:
            raise ProtocolError("invalid_position", f"since: {error}") from None
    else:
        common["snapshot"] = snapshot
    form = _FORMS.get(query.text("form") or "plain")
    if form is None:
        raise ProtocolError("invalid_frame", f"form is plain or full, not {query.text('form')}")
    return form, [{"id": channel, "channel": channel, **common} for channel in channels]


def cors_headers(service: Service, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """What lets a page of an allowed origin read an answer."""
    origin = headers.get("origin")
    if origin is None or not service.allows(origin, headers.get("host")):
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", b"ETag"),
        (b"vary", b"Origin"),
    ]


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _refuse(scope: Scope, send: Send, status: int, message: str) -> None:
    """Refuse a WebSocket with an HTTP answer where the server can, else by closing it."""
    if "websocket.http.response" in scope.get("extensions", {}):
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": message.encode() + b"\n"})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
