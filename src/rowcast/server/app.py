"""The ASGI application: what `rowcast serve` runs, and what mounts in yours.

rowcast = Rowcast(database_url="postgresql://…")
app = FastAPI(lifespan=rowcast.lifespan)
app.mount("/realtime", rowcast)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from rowcast.capture import Capture
from rowcast.capture.choice import choose_capture
from rowcast.errors import ConfigurationError
from rowcast.model import Table
from rowcast.server import metrics
from rowcast.server.asgi import EventStreamEndpoint, WebSocketEndpoint, cors_headers
from rowcast.server.rows import RowsEndpoint
from rowcast.server.service import Service
from rowcast.settings import Settings

logger = logging.getLogger("rowcast.server")

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]

_NOT_RUNNING = (
    "Rowcast is not running: a mounted application's lifespan is not called by Starlette or FastAPI. "
    "Write app = FastAPI(lifespan=rowcast.lifespan) beside app.mount(…, rowcast), or, where the application has "
    "a lifespan already, lifespan=rowcast.wrap(your_lifespan)."
)


class Rowcast:
    """The realtime server as an ASGI application.

    Args:
        settings: All settings as one object; or give them by name (see docs/settings.md).

    Raises:
        ConfigurationError: A setting is wrong, or there is no database to listen to.
    """

    def __init__(self, settings: Settings | None = None, **values: Any) -> None:
        if settings is not None and values:
            raise ConfigurationError("give either a Settings object or single settings, not both")
        self.settings = settings or Settings(**values)
        self._service: Service | None = None
        self._app: ASGIApp = Starlette(
            routes=[
                WebSocketRoute("/ws", WebSocketEndpoint(lambda: self.service)),
                Route("/sse", EventStreamEndpoint(lambda: self.service)),
                Route("/v1/rows/{channel:path}", RowsEndpoint(lambda: self.service).answer),
                Route("/v1/channels", self._channels),
                *([Route("/metrics", self._metrics)] if self.settings.metrics else []),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
            ],
        )

    @property
    def service(self) -> Service:
        """The running service.

        Raises:
            ConfigurationError: The lifespan has not been entered; the text says how to.
        """
        if self._service is None:
            raise ConfigurationError(_NOT_RUNNING)
        return self._service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _serve_lifespan(self.lifespan(self), receive, send)
        elif self._service is None and scope["type"] == "http":
            logger.error("%s", _NOT_RUNNING)
            await PlainTextResponse(_NOT_RUNNING + "\n", 503)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncGenerator[None]:  # noqa: ARG002 - the signature that frameworks call
        """Run the service while the application runs: `FastAPI(lifespan=rowcast.lifespan)`."""
        service = self.prepare()
        await service.start()
        try:
            yield
        finally:
            service.say_goodbye()
            await service.stop()
            self._service = None

    def wrap(self, inner: Lifespan) -> Lifespan:
        """Combine with a lifespan that the application has already: `FastAPI(lifespan=rowcast.wrap(mine))`."""

        @asynccontextmanager
        async def both(app: Any) -> AsyncGenerator[Any]:
            async with self.lifespan(app), inner(app) as state:
                yield state

        return both

    def prepare(self) -> Service:
        """Make the service, without starting it; `lifespan` does this by itself."""
        if self._service is None:
            self._service = Service(self.settings, make_capture(self.settings))
        return self._service

    async def _channels(self, request: Request) -> Response:
        service = self.service
        tables: Mapping[str, Table] = service.hub.channels if service.ready else {}
        listed = [
            {
                "channel": name,
                "schema": table.schema,
                "table": table.name,
                "columns": [{"name": column.name, "type": column.type_name} for column in table.columns],
                "key": [table.columns[index].name for index in table.key],
            }
            for name, table in sorted(tables.items())
            if name == table.channel
        ]
        headers = cors_headers(service, dict(request.headers))
        return _json({"channels": listed}, 200, headers)

    async def _metrics(self, request: Request) -> Response:  # noqa: ARG002 - the signature of an endpoint
        return Response(metrics.render(self.service), media_type="text/plain; version=0.0.4")

    async def _healthz(self, request: Request) -> Response:  # noqa: ARG002 - the signature of an endpoint
        return JSONResponse({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:  # noqa: ARG002 - the signature of an endpoint
        state = self.service.state
        live = state.state == "live" and not self.service.stopping
        return JSONResponse(
            {"status": state.state, "reason": state.reason, "position": state.position}, 200 if live else 503
        )


def make_capture(settings: Settings) -> Capture:
    """The capture that the settings ask for.

    Raises:
        ConfigurationError: There is no database to listen to.
    """
    if not settings.database_url_direct:
        raise ConfigurationError(
            "there is no database to listen to: give --dsn postgresql://…, or set DATABASE_URL"
        )
    return choose_capture(settings)


def _json(content: Any, status: int, headers: list[tuple[bytes, bytes]]) -> Response:
    response = JSONResponse(content, status)
    response.raw_headers += headers
    return response


async def _serve_lifespan(context: AbstractAsyncContextManager[None], receive: Receive, send: Send) -> None:
    """The ASGI lifespan protocol over a context manager."""
    await receive()
    try:
        async with context:
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except Exception as error:
        logger.exception("the service could not start")
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        raise
    await send({"type": "lifespan.shutdown.complete"})
