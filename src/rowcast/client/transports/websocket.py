"""A link over one WebSocket, with the library `websockets`.

The one rule of this room: liveness is the session's business. Its heartbeats notice a dead peer, so the library's
own pings are off and nothing here has a timer but opening and closing.
"""

from __future__ import annotations

import asyncio
from typing import Final, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from rowcast._version import __version__
from rowcast.client.decoding import decode_frame
from rowcast.client.events import JSONObject
from rowcast.client.state import TransportName
from rowcast.client.transports import Endpoints, LinkEndedError, refusal

_OPEN_SECONDS: Final = 10.0  # the library's own default; a TLS handshake over a bad mobile network takes some
_CLOSE_SECONDS: Final = (
    1.0  # long enough for a server that listens, and nobody waits longer to quit a program
)
_QUEUE_FRAMES: Final = 256  # frames decoded ahead of the session; a burst then costs one wake-up, not sixteen
_NO_CLOSE_FRAME: Final = 1006

_encode = msgspec.json.Encoder().encode


class WebSocketLink:
    """See `rowcast.client.transports.Link`."""

    name: TransportName = "websocket"

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    @classmethod
    async def open(cls, endpoints: Endpoints, *, max_frame_bytes: int) -> Self:
        """Connect.

        Raises:
            LinkEndedError: The server is away, or what answers speaks no WebSocket.
        """
        try:
            return cls(
                await connect(
                    endpoints.websocket,
                    additional_headers=endpoints.headers,
                    user_agent_header=f"rowcast-python/{__version__}",
                    compression=None,
                    open_timeout=_OPEN_SECONDS,
                    close_timeout=_CLOSE_SECONDS,
                    ping_interval=None,
                    max_size=max_frame_bytes,
                    max_queue=_QUEUE_FRAMES,
                )
            )
        except InvalidStatus as error:
            raise refusal(error.response.status_code) from error
        except (InvalidHandshake, InvalidMessage, EOFError) as error:
            raise LinkEndedError(str(error) or "the handshake broke off") from error
        except TimeoutError as error:
            raise LinkEndedError(f"no answer within {_OPEN_SECONDS:.0f} s") from error
        except OSError as error:
            raise LinkEndedError(
                error.strerror or str(error) or type(error).__name__, failure="away"
            ) from error

    async def send(self, frame: JSONObject) -> None:
        try:
            await self._socket.send(_encode(frame), text=True)
        except ConnectionClosed as error:
            raise self._ended(error) from error

    async def receive(self) -> tuple[JSONObject, str | None]:
        try:
            return decode_frame(await self._socket.recv(decode=False)), None
        except ConnectionClosed as error:
            raise self._ended(error) from error
        except msgspec.DecodeError as error:
            raise LinkEndedError(f"the server sent a frame that is not a JSON object: {error}") from error

    async def close(self, *, politely: bool) -> None:
        if politely:
            await self._socket.close()
        else:
            self._socket.transport.abort()
            await asyncio.shield(self._socket.wait_closed())

    @staticmethod
    def _ended(error: ConnectionClosed) -> LinkEndedError:
        received = error.rcvd
        if received is None:
            return LinkEndedError("", code=_NO_CLOSE_FRAME)
        return LinkEndedError(received.reason, code=received.code)
