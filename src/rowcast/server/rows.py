"""`/v1/rows/{channel}`: the rows of a shape over plain HTTP, at an exact position.

The one rule of this room: the answer's position is the stream's. `since` with it continues exactly there, and
`If-None-Match` with it is answered 304 only if not one row of the shape has changed.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from rowcast.errors import ProtocolError
from rowcast.hub import Request, Subscriber
from rowcast.model import Position, parse_position
from rowcast.protocol.forms import PLAIN
from rowcast.protocol.frames import parse_request
from rowcast.protocol.framing import LINE
from rowcast.server.asgi import cors_headers
from rowcast.server.kept_rows import FrozenRows
from rowcast.server.query import SELECTION, Query
from rowcast.server.service import Service

# Below the 30 to 60 s after which proxies give up on an answer.
_MAX_WAIT_SECONDS: Final = 25.0
# A reader of pages comes for the next one within this time, or begins anew.
_KEEP_SECONDS: Final = 60.0
# Results kept for readers of pages; the rows themselves are shared with the snapshot.
_MAX_KEPT: Final = 64
_PARAMETERS: Final = SELECTION | {"wait", "limit", "cursor"}
# Rows of a page that says by its cursor that it is one, and not how many it wants.
_PAGE_ROWS: Final = 1000


class _Bell:
    """A sink that only says that something came."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    def send(self, data: bytes) -> None:  # noqa: ARG002
        self.rung.set()

    def ring(self, *_: object) -> None:
        self.rung.set()


@dataclass(slots=True)
class _Pages:
    """A result that is being read page by page."""

    position: Position
    batches: Iterator[list[bytes]]
    rest: list[bytes]
    page: int
    used: float


class RowsEndpoint:
    """Rows of a channel, whole, as lines, or in pages."""

    def __init__(self, service: Callable[[], Service]) -> None:
        self._service = service
        self._kept: dict[str, _Pages] = {}

    async def answer(self, http: HttpRequest) -> Response:
        """Answer a GET."""
        service = self._service()
        headers = dict(http.headers)
        refusal = service.refusal(headers.get("origin"), headers.get("host"))
        if refusal is None and not service.ready:
            refusal = (503, service.state.reason or "the server is starting")
        if refusal is not None:
            return JSONResponse({"error": refusal[1]}, refusal[0])
        try:
            response = await self._rows(service, http)
        except ProtocolError as error:
            status = {"unknown_channel": 404, "snapshot_failed": 503, "cursor_expired": 410}.get(
                error.code, 400
            )
            response = JSONResponse({"error": str(error), "code": error.code}, status)
        response.headers["cache-control"] = "no-cache"
        response.raw_headers += cors_headers(service, headers)
        return response

    async def _rows(self, service: Service, http: HttpRequest) -> Response:
        query = Query(http.scope["query_string"], _PARAMETERS)
        limit, wait_seconds, cursor = query.limit(), query.wait_seconds(), query.text("cursor")
        if cursor is not None:
            return self._next_page(service, cursor, limit or _PAGE_ROWS)
        request = parse_request({"channel": http.path_params["channel"], **query.selection()})
        service.hub.describe(request)  # refuses what does not fit
        known = _known(http.headers.get("if-none-match"))
        if known is None or not wait_seconds:
            await service.snapshots.caught_up()
        if known is not None and not await _changed(service, request, known, wait_seconds):
            return Response(status_code=304, headers={"etag": f'"{known}"'})
        frozen = await service.snapshots.frozen(request)
        if limit is not None:
            pages = _Pages(frozen.position, frozen.batches(), [], 0, service.now())
            return self._page(service, pages, limit)
        headers = {"etag": f'"{frozen.position}"', "rowcast-position": frozen.position}
        if "ndjson" in http.headers.get("accept", ""):
            return StreamingResponse(_lines(frozen), headers=headers, media_type="application/x-ndjson")
        return StreamingResponse(_document(frozen), headers=headers, media_type="application/json")

    def _next_page(self, service: Service, cursor: str, limit: int) -> Response:
        name, _, page = cursor.partition(".")
        pages = self._kept.pop(name, None)
        if pages is None or page != str(pages.page):
            raise ProtocolError("cursor_expired", "this cursor has expired: begin again without one")
        return self._page(service, pages, limit, name)

    def _page(self, service: Service, pages: _Pages, limit: int, name: str | None = None) -> Response:
        rows = pages.rest
        while len(rows) < limit:
            batch = next(pages.batches, None)
            if batch is None:
                break
            rows.extend(batch)
        pages.rest = rows[limit:]
        following = b""
        if pages.rest or (len(rows) >= limit and self._more(pages)):
            name = name or secrets.token_hex(8)
            pages.page += 1
            pages.used = service.now()
            self._keep(name, pages)
            following = b',"next":"%s.%d"' % (name.encode(), pages.page)
        body = b'{"position":"%s","rows":[%s]%s}' % (
            pages.position.encode(),
            b",".join(rows[:limit]),
            following,
        )
        return Response(body, headers={"etag": f'"{pages.position}"'}, media_type="application/json")

    @staticmethod
    def _more(pages: _Pages) -> bool:
        for batch in pages.batches:
            if batch:
                pages.rest = batch
                return True
        return False

    def _keep(self, name: str, pages: _Pages) -> None:
        oldest = pages.used - _KEEP_SECONDS
        self._kept = {each: kept for each, kept in self._kept.items() if kept.used >= oldest}
        while len(self._kept) >= _MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = pages


async def _changed(service: Service, request: Request, known: Position, wait_seconds: float) -> bool:
    """Whether a row of the shape, in its columns, has changed after `known`, or changes within the time."""
    hub = service.hub
    if hub.resumable(known) is not None:
        return True
    bell = _Bell()
    subscriber = Subscriber(bell, PLAIN, LINE, bell.ring, bell.ring)
    subscription = hub.subscribe(subscriber, replace(request, only_changed=True))
    try:
        hub.replay(subscriber, [subscription], known)
        if wait_seconds and not bell.rung.is_set():
            try:
                async with asyncio.timeout(min(wait_seconds, _MAX_WAIT_SECONDS)):
                    await bell.rung.wait()
            except TimeoutError:
                return False
        return bell.rung.is_set()
    finally:
        hub.leave(subscriber)


async def _document(frozen: FrozenRows) -> AsyncIterator[bytes]:
    yield b'{"position":"%s","rows":[' % frozen.position.encode()
    separator = b""
    for rows in frozen.batches():
        if rows:
            yield separator + b",".join(rows)
            separator = b","
            await asyncio.sleep(0)
    yield b"]}"


async def _lines(frozen: FrozenRows) -> AsyncIterator[bytes]:
    for rows in frozen.batches():
        if rows:
            yield b"\n".join(itertools.chain(rows, (b"",)))
            await asyncio.sleep(0)


def _known(header: str | None) -> Position | None:
    """The position in an If-None-Match header; None where there is none of ours."""
    try:
        return None if header is None else parse_position(header.strip().removeprefix("W/").strip('"'))
    except ValueError:
        return None
