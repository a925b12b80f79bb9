"""How each transport wraps a message. No I/O.

Frames to clients are neither masked nor compressed, so their bytes can be shared by all who get them.
"""

from __future__ import annotations

from typing import Final


class WebSocketFraming:
    """One unmasked text frame (RFC 6455, section 5.2)."""

    name: str = "websocket"

    def frame(self, message: bytes, *, event: str = "", position: str = "") -> bytes:  # noqa: ARG002
        size = len(message)
        if size < 126:
            return b"\x81" + size.to_bytes(1) + message
        if size < 65536:
            return b"\x81\x7e" + size.to_bytes(2) + message
        return b"\x81\x7f" + size.to_bytes(8) + message


class EventStreamFraming:
    """One event of a `text/event-stream` (HTML standard, section 9.2). JSON holds no raw line break."""

    name: str = "event-stream"

    def frame(self, message: bytes, *, event: str = "", position: str = "") -> bytes:
        head = b"event: %s\n" % event.encode() if event else b""
        if position:
            head += b"id: %s\n" % position.encode()
        return b"%sdata: %s\n\n" % (head, message)


class LineFraming:
    """One line a message: for transports that send each message by itself, and for NDJSON."""

    name: str = "line"

    def frame(self, message: bytes, *, event: str = "", position: str = "") -> bytes:  # noqa: ARG002
        return message + b"\n"


WEBSOCKET: Final = WebSocketFraming()
EVENT_STREAM: Final = EventStreamFraming()
LINE: Final = LineFraming()
