"""How messages are wrapped, as the standards read them."""

from __future__ import annotations

import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, Protocol

from rowcast.protocol.framing import EVENT_STREAM, LINE, WEBSOCKET


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_a_websocket_library_reads_our_frames(size: int) -> None:
    reader = Protocol(CLIENT, max_size=None)
    reader.receive_data(WEBSOCKET.frame(b"x" * size) + WEBSOCKET.frame(b"end"))
    first, second = reader.events_received()
    assert (first.opcode, bytes(first.data), first.fin) == (Opcode.TEXT, b"x" * size, True)  # type: ignore[union-attr]
    assert bytes(second.data) == b"end"  # type: ignore[union-attr]


def test_an_event_has_its_name_and_its_position_only_where_given() -> None:
    assert EVENT_STREAM.frame(b"{}") == b"data: {}\n\n"
    assert EVENT_STREAM.frame(b"{}", event="resync") == b"event: resync\ndata: {}\n\n"
    assert EVENT_STREAM.frame(b"{}", position="p") == b"id: p\ndata: {}\n\n"


def test_a_line_is_a_line() -> None:
    assert LINE.frame(b"{}", event="status", position="p") == b"{}\n"
