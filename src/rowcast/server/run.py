"""Running the server on its own: uvicorn, with our WebSocket protocol class and a shutdown that says goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from rowcast.errors import ConfigurationError
from rowcast.server.app import Rowcast
from rowcast.server.handshake import http_protocol
from rowcast.server.service import Service
from rowcast.server.websocket import websocket_protocol

# uvicorn's default of 100 makes 2,000 clients that come back at once wait 7 to 17 s for SYN retries.
_BACKLOG: Final = 4096
# Longer than the service's own flush time, so that connections end by themselves.
_SHUTDOWN_SECONDS: Final = 8


@dataclass(slots=True, frozen=True)
class Addresses:
    """Where a running server is reached."""

    http: str
    websocket: str
    events: str


def run(
    rowcast: Rowcast,
    *,
    app: ASGIApp | None = None,
    mounted_at: str = "",
    on_ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then say goodbye to every client and return. See `serve`."""
    loop_factory = uvicorn.Config(rowcast, log_config=None).get_loop_factory()
    # The code of all modules stays until the end: half of what the garbage collector would look through in its long
    # passes, while every client waits.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(rowcast, app=app, mounted_at=mounted_at, on_ready=on_ready))


async def serve(
    rowcast: Rowcast,
    *,
    app: ASGIApp | None = None,
    mounted_at: str = "",
    on_ready: Callable[[Addresses], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until told to stop, then say goodbye to every client and return.

    Args:
        rowcast: The realtime application.
        app: An application that has `rowcast` mounted in it; `rowcast` itself without one.
        mounted_at: The path where it is mounted, such as `/realtime`.
        on_ready: Called once with the addresses, when the capture is live and subscriptions begin.
        stop: Set it to end the server. Without it, SIGINT and SIGTERM do.

    Raises:
        ConfigurationError: The port is taken.
        RowcastError: The database cannot be captured from; the text says how to mend it.
    """
    settings = rowcast.settings
    listener = _listen(settings.host, settings.port)
    service = rowcast.prepare()
    config = uvicorn.Config(
        app or rowcast,
        http=http_protocol(settings.handshake_seconds),
        ws=websocket_protocol(service, f"{mounted_at}/ws"),
        backlog=_BACKLOG,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    server = _Server(config, service, signals=stop is None)
    watching = [
        asyncio.create_task(_announce(service, on_ready, _addresses(listener, settings.host, mounted_at))),
        asyncio.create_task(_end(server, service.failed)),
    ]
    if stop is not None:
        watching.append(asyncio.create_task(_end(server, stop)))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    if service.failure is not None:
        raise service.failure


async def _announce(
    service: Service, on_ready: Callable[[Addresses], None] | None, addresses: Addresses
) -> None:
    await service.live.wait()
    if on_ready is not None:
        on_ready(addresses)


async def _end(server: _Server, event: asyncio.Event) -> None:
    await event.wait()
    server.should_exit = True


def _addresses(listener: socket.socket, host: str, mounted_at: str) -> Addresses:
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host in ("0.0.0.0", "") else host  # noqa: S104 - shown only
    return Addresses(
        f"http://{shown}:{port}/",
        f"ws://{shown}:{port}{mounted_at}/ws",
        f"http://{shown}:{port}{mounted_at}/sse",
    )


class _Server(uvicorn.Server):
    """uvicorn's server, with a goodbye to every client before connections are closed."""

    def __init__(self, config: uvicorn.Config, service: Service, *, signals: bool) -> None:
        super().__init__(config)
        self._service = service
        self._signals = signals

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals() if self._signals else contextlib.nullcontext():
            yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.say_goodbye()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # At once: until one of them listens, several sockets may be bound to one port.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or stop what holds it"
        ) from error
    listener.setblocking(False)
    return listener
