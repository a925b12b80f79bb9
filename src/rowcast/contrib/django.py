"""Middleware for Django: put "rowcast.contrib.django.MutationMiddleware" into MIDDLEWARE.

From then on `rowcast.confirm(django.db.connection)` needs no id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from rowcast.contrib.context import MUTATION_HEADER, carrying


class _Headers(Protocol):
    def get(self, name: str, /) -> str | None: ...


class _Request(Protocol):
    @property
    def headers(self) -> _Headers: ...


class MutationMiddleware:
    """Makes the header `Rowcast-Mutation` the `current_mutation()` of each request, sync or async.

    Args:
        get_response: Django's: what answers the request.
    """

    sync_capable: ClassVar = True
    async_capable: ClassVar = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        self._async = iscoroutinefunction(get_response)  # pyright: ignore[reportDeprecated] - what Django marks with
        if self._async:
            markcoroutinefunction(self)

    def __call__(self, request: _Request) -> Any:
        """Answer a request."""
        if self._async:
            return self._answer_async(request)
        with carrying(request.headers.get(MUTATION_HEADER)):
            return self._get_response(request)

    async def _answer_async(self, request: _Request) -> Any:
        answer: Awaitable[Any]
        with carrying(request.headers.get(MUTATION_HEADER)):
            answer = self._get_response(request)
            return await answer
