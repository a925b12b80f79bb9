"""Our own WebSocket protocol class for uvicorn, on the sans-I/O layer of `websockets`.

The one rule of this room: no task, no coroutine and no timer per connection. Bytes come from the transport by
callback, frames go straight to it; one wheel in the service does what has to be done by time.

Beside uvicorn's own classes it saves the ASGI messages, the queue and the task of each connection: that is what
makes an idle connection cost some kilobytes and a delivery one system call.
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol

from rowcast.protocol.framing import WEBSOCKET
from rowcast.server.connection import ClientConnection

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from rowcast.server.service import Service

logger = logging.getLogger("rowcast.server")
# The websockets library logs every frame at DEBUG; one disabled logger for all spares a check per frame.
_silent = logging.getLogger("rowcast.server.frames")
_silent.disabled = True

# A peer that does not answer a close frame within this time has gone; websockets' own default.
_CLOSE_SECONDS: Final = 10.0


def websocket_protocol(service: Service, path: str) -> type[asyncio.Protocol]:
    """The class to give to uvicorn as `ws`, for connections to `path` of this service."""

    class RowcastWebSocket(WebSocketProtocol):
        __slots__ = ()

        def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:  # noqa: ARG002
            super().__init__(service, path, server_state.connections)

    return RowcastWebSocket


class WebSocketProtocol(asyncio.Protocol):
    """One WebSocket, from its handshake on."""

    __slots__ = (
        "_closing",
        "_connections",
        "_fragments",
        "_path",
        "_server",
        "_service",
        "_transport",
        "_websocket",
        "client",
    )

    two_way: bool = True

    def __init__(self, service: Service, path: str, connections: set[Any]) -> None:
        self._service = service
        self._path = path
        self._connections = connections
        self._websocket = ServerProtocol(max_size=service.settings.max_message_bytes, logger=_silent)
        self._fragments: list[bytes] | None = None
        self._closing = False
        self.client: ClientConnection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._connections.discard(self)
        if self.client is not None:
            self.client.lost()
            self.client = None

    def data_received(self, data: bytes) -> None:
        websocket = self._websocket
        websocket.receive_data(data)
        for event in websocket.events_received():
            if isinstance(event, Request):
                self._handshake(event)
            elif self.client is not None:
                self._frame(event, self.client)
        if websocket.writes:
            self._flush()

    def eof_received(self) -> bool:
        self._websocket.receive_eof()
        self._flush()
        return False

    def _handshake(self, request: Request) -> None:
        websocket, service = self._websocket, self._service
        path, _, _ = request.path.partition("?")
        refusal = service.refusal(request.headers.get("Origin"), request.headers.get("Host"))
        if path != self._path:
            refusal = (404, f"there is no WebSocket here: connect to {self._path}")
        if refusal is not None:
            response = websocket.reject(http.HTTPStatus(refusal[0]), refusal[1] + "\n")
        else:
            response = websocket.accept(request)
        websocket.send_response(response)
        if websocket.state is not State.OPEN:
            if isinstance(websocket.handshake_exc, InvalidHandshake):
                logger.info("WebSocket handshake refused: %s", websocket.handshake_exc)
            return
        # The parser that has read the request keeps it: a third of an idle connection. Frames need a new one, and none
        # of them is in the old one yet, because uvicorn hands over the request by itself.
        websocket.parser = Protocol.parse(websocket)
        next(websocket.parser)
        self._flush()
        self.client = ClientConnection(service, self, WEBSOCKET, service.now())
        service.connections[self.client] = None

    def _frame(self, event: object, client: ClientConnection) -> None:
        assert isinstance(event, Frame)
        opcode = event.opcode
        if opcode is Opcode.PING or opcode is Opcode.PONG:
            client.heard()
        elif opcode is Opcode.CLOSE:
            return
        elif opcode is Opcode.TEXT and event.fin:
            client.receive_text(bytes(event.data))
        elif opcode is Opcode.BINARY and event.fin:
            client.receive_binary()
        elif opcode is Opcode.CONT:
            self._continue(event, client)
        else:
            # A binary message's fragments are only counted: it is refused as a whole.
            self._fragments = [b"\0" if opcode is Opcode.BINARY else b"", bytes(event.data)]

    def _continue(self, event: Frame, client: ClientConnection) -> None:
        fragments = self._fragments
        assert fragments is not None
        fragments.append(bytes(event.data))
        if event.fin:
            self._fragments = None
            if fragments[0]:
                client.receive_binary()
            else:
                client.receive_text(b"".join(fragments))

    def _flush(self) -> None:
        """Send what the WebSocket layer itself has to say: handshake, pongs, close frames."""
        for data in self._websocket.data_to_send():
            if not data:
                self._transport.close()
            elif self.client is not None and self.client.busy:
                self.client.send(data)  # never into the middle of a message that is being written
            else:
                self._transport.write(data)
        if self._websocket.close_expected() and not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._transport.abort)

    def write(self, data: bytes | memoryview) -> None:
        self._transport.write(data)

    def ping(self) -> None:
        self._websocket.send_ping(b"")
        self._flush()

    def close(self, code: int, reason: str) -> None:
        client, self.client = self.client, None
        if client is not None:
            client.lost()
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(code, reason)
            self._flush()

    def abort(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        if self.client is not None:
            self.client.pause()

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.resume()

    def shutdown(self) -> None:
        """uvicorn is stopping."""
        if self.client is None:
            self._transport.close()
        else:
            self._service.dismiss(self.client)
