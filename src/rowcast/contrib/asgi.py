"""Middleware for FastAPI, Starlette and any other ASGI application.

    app.add_middleware(MutationMiddleware)

From then on `rowcast.confirm(connection)` needs no id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from rowcast.contrib.context import MUTATION_HEADER, carrying

_Scope: TypeAlias = MutableMapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App: TypeAlias = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_HEADER: Final = MUTATION_HEADER.lower().encode()


class MutationMiddleware:
    """Makes the header `Rowcast-Mutation` the `current_mutation()` of each request.

    Args:
        app: The application.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == _HEADER), None)
        with carrying(header):
            await self._app(scope, receive, send)
