"""A real server in the test's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

from rowcast.server import Addresses, Rowcast, serve


@asynccontextmanager
async def running(
    rowcast: Rowcast, *, app: ASGIApp | None = None, mounted_at: str = ""
) -> AsyncGenerator[Addresses]:
    """Run a server while the block runs: `async with running(Rowcast(database_url=dsn, port=0)) as addresses`.

    Raises:
        RowcastError: It could not start, or its capture ended for good.
    """
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(
        serve(rowcast, app=app, mounted_at=mounted_at, on_ready=ready.set_result, stop=stop)
    )
    waits: list[asyncio.Future[Any]] = [task, ready]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield ready.result()
    finally:
        stop.set()
        await task
