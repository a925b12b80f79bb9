"""COPY … TO STDOUT, drained from the socket.

The one rule of this room: it can be cancelled at any time, and then the connection is good for nothing but its end.
psycopg waits once for every row, and when it is cancelled it asks the server to cancel and waits for the answer,
which a dead server never gives.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from typing import Any, Final

import psycopg
from psycopg import errors as pg_errors, pq

from rowcast.capture.connection import duplicate_socket

# Decoding this much takes some ten milliseconds: the longest that a full stream keeps the event loop to itself.
_SLICE_BYTES: Final = 256 * 1024


async def copy_out(
    connection: psycopg.AsyncConnection[Any], query: bytes, seconds: float
) -> AsyncGenerator[list[bytes]]:
    """The copy data, in lists of what was there together.

    Args:
        seconds: How long the server may take between two answers.

    Raises:
        psycopg.Error: The query failed, or the connection did.
    """
    pgconn = connection.pgconn
    with duplicate_socket(connection) as duplicate:
        pgconn.send_query(query)
        while pgconn.flush():
            await _until_ready(duplicate, seconds, write=True)
        await _result(pgconn, duplicate, seconds, pq.ExecStatus.COPY_OUT)
        while True:
            messages: list[bytes] = []
            size_bytes = 0
            while size_bytes < _SLICE_BYTES:
                length, data = pgconn.get_copy_data(1)
                if length > 0:
                    messages.append(bytes(data))
                    size_bytes += length
                elif length < 0:
                    await _result(pgconn, duplicate, seconds, pq.ExecStatus.COMMAND_OK)
                    pgconn.get_result()
                    yield messages
                    return
                elif messages:
                    break
                else:
                    await _until_ready(duplicate, seconds)
                    pgconn.consume_input()
            yield messages


async def _result(
    pgconn: pq.abc.PGconn, duplicate: socket.socket, seconds: float, expected: pq.ExecStatus
) -> None:
    while pgconn.is_busy():
        await _until_ready(duplicate, seconds)
        pgconn.consume_input()
    result = pgconn.get_result()
    if result is None or result.status != expected:
        raise psycopg.OperationalError("no answer") if result is None else pg_errors.error_from_result(result)


async def _until_ready(duplicate: socket.socket, seconds: float, *, write: bool = False) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(duplicate, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        raise psycopg.OperationalError(
            f"PostgreSQL has not answered for {seconds:.0f} seconds: the connection is dead"
        ) from None
    finally:
        remove(duplicate)
