"""A link over plain HTTP: each subscription's rows are asked for in a long poll, one after the other.

The one rule of this room: an answer is a whole snapshot at its position. It replaces what there was, so nothing
is missed for good; what happened between two answers is not told change by change.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from rowcast.client.decoding import decode_frame
from rowcast.client.events import JSONObject
from rowcast.client.state import TransportName
from rowcast.client.transports import Endpoints, LinkEndedError, refusal
from rowcast.client.transports.query import query_of

_CONNECT_SECONDS: Final = 10.0  # as for a WebSocket
WAIT_SECONDS: Final = 20.0  # proxies close silent requests after 30 s or more; the session, after 37 s
_PAUSE_SECONDS: Final = 0.5  # between two polls of a table that changes all the time
_REFUSALS: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND})


class PollingLink:
    """See `rowcast.client.transports.Link`."""

    name: TransportName = "polling"

    def __init__(self, endpoints: Endpoints, token: str | None) -> None:
        headers = dict(endpoints.headers)
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=WAIT_SECONDS + _CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        self._http = endpoints.http
        # One answer a subscription waits here at most: a task puts its own before it asks for the next.
        self._frames: asyncio.Queue[tuple[JSONObject, str | None] | LinkEndedError] = asyncio.Queue()
        self._polls: dict[str, asyncio.Task[None]] = {}
        self._tables: asyncio.Task[dict[str, JSONObject]] | None = None
        self._next_shape = -1  # below zero: the server's own numbers are above

    async def send(self, frame: JSONObject) -> None:
        """Only what begins or ends a subscription has an effect."""
        match frame["type"]:
            case "hello":
                self._tables = asyncio.create_task(self._read_tables())
                for entry in frame["subscriptions"]:
                    self._begin(entry)
            case "subscribe":
                self._begin(frame)
            case "unsubscribe":
                poll = self._polls.pop(frame["id"], None)
                if poll is not None:
                    poll.cancel()
            case _:
                pass

    async def receive(self) -> tuple[JSONObject, str | None]:
        received = await self._frames.get()
        if isinstance(received, LinkEndedError):
            raise received
        return received

    async def close(self, *, politely: bool) -> None:  # noqa: ARG002 - there is nothing to wait for
        tasks: list[asyncio.Task[Any]] = [*self._polls.values()]
        if self._tables is not None:
            tasks.append(self._tables)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _read_tables(self) -> dict[str, JSONObject]:
        """What a `subscribed` frame tells of each table; this request stands for the handshake as well."""
        try:
            response = await self._get("/v1/channels", {})
            if response.status_code != HTTPStatus.OK:
                raise refusal(response.status_code)
            tables: dict[str, JSONObject] = {
                each["channel"]: each for each in decode_frame(response.content)["channels"]
            }
        except LinkEndedError as error:
            await self._frames.put(error)
            raise
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            ended = LinkEndedError(
                f"no list of channels, but something else: {error!r}", failure="unsuitable"
            )
            await self._frames.put(ended)
            raise ended from error
        await self._frames.put(({"type": "welcome", "heartbeat_seconds": 15.0}, None))
        return tables

    def _begin(self, entry: JSONObject) -> None:
        self._polls[entry["id"]] = asyncio.create_task(self._poll(entry, self._next_shape))
        self._next_shape -= 1

    async def _poll(self, entry: JSONObject, shape: int) -> None:
        name: str = entry["id"]
        try:
            if self._tables is None:
                raise LinkEndedError("a subscription before hello")
            tables = await asyncio.shield(self._tables)
            known: str | None = entry.get("since")
            announced = False
            while True:
                headers = {} if known is None else {"If-None-Match": f'"{known}"'}
                query = query_of(entry, wait=None if known is None else f"{WAIT_SECONDS:.0f}")
                response = await self._get(f"/v1/rows/{quote(entry['channel'], safe='')}?{query}", headers)
                if response.status_code in _REFUSALS and (error := _error(response, name)) is not None:
                    await self._frames.put((error, name))
                    return
                if response.status_code == HTTPStatus.NOT_MODIFIED:
                    await self._frames.put(({"type": "heartbeat"}, name))
                    continue
                if response.status_code != HTTPStatus.OK:
                    raise refusal(response.status_code)
                answer = decode_frame(response.content)
                known = answer["position"]
                if not announced:
                    await self._frames.put((_subscribed(entry, shape, answer, tables), name))
                    announced = True
                snapshot = {"type": "snapshot", "shape": shape, "chunk": 0, "last": True, "replaces": True}
                await self._frames.put(({**snapshot, "rows": answer["rows"], "position": known}, name))
                await asyncio.sleep(_PAUSE_SECONDS)
        except LinkEndedError as error:
            await self._frames.put(error)
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            await self._frames.put(LinkEndedError(f"an answer that cannot be understood: {error!r}"))

    async def _get(self, path: str, headers: dict[str, str]) -> httpx.Response:
        try:
            return await self._client.get(f"{self._http}{path}", headers=headers)
        except httpx.ConnectError as error:
            raise LinkEndedError(str(error), failure="away") from error
        except httpx.HTTPError as error:
            raise LinkEndedError(str(error) or type(error).__name__) from error


def _subscribed(
    entry: JSONObject, shape: int, answer: JSONObject, tables: dict[str, JSONObject]
) -> JSONObject:
    channel: str = entry["channel"]
    table = tables.get(channel) or tables[channel.partition(":")[0]]
    wanted = entry.get("columns")
    columns = [
        column
        for column in table["columns"]
        if wanted is None or column["name"] in wanted or column["name"] in table["key"]
    ]
    return {
        "type": "subscribed",
        "id": entry["id"],
        "shape": shape,
        "channel": channel,
        "schema": table["schema"],
        "table": table["table"],
        "columns": columns,
        "key": table["key"],
        "position": entry.get("since") or answer["position"],
    }


def _error(response: httpx.Response, name: str) -> JSONObject | None:
    """The server's refusal of a subscription, as the frame that it would have been; None if it is not the server's."""
    try:
        answer = decode_frame(response.content)
        return {"type": "error", "id": name, "code": answer["code"], "message": answer["error"]}
    except (msgspec.DecodeError, KeyError):
        return None
