"""uvicorn's HTTP protocol class, with an end to handshakes that never come.

uvicorn times out between two requests of a connection, but not before the first one: a peer that sends half a
request line, or nothing, would keep its connection for ever.
"""

# pyright: reportUnknownMemberType=false, reportUntypedBaseClass=false
from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def http_protocol(handshake_seconds: float) -> type[asyncio.Protocol]:
    """The class to give to uvicorn as `http`: a first request that takes longer than this ends the connection."""
    # Which of uvicorn's classes it is depends on whether httptools is installed; both have what is used here.
    base = cast("Any", AutoHTTPProtocol)

    class ImpatientHTTPProtocol(base):  # type: ignore[misc, valid-type]
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._deadline = asyncio.get_running_loop().call_later(handshake_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # Either the request has begun its answer, or the connection belongs to a WebSocket now.
            if self.cycle is not None or self.transport.get_protocol() is not self:
                self._request_has_come()

        def connection_lost(self, exc: Exception | None) -> None:
            self._request_has_come()
            super().connection_lost(exc)

        def _request_has_come(self) -> None:
            deadline, self._deadline = self._deadline, None
            if deadline is not None:
                deadline.cancel()

    return ImpatientHTTPProtocol
