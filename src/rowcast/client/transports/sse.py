"""A link over Server-Sent Events: one event stream for each subscription.

The one rule of this room: if one of the streams ends, the link has ended. So a subscription never goes on while
another is silently left behind; the next link resumes them all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

import httpx
import msgspec

from rowcast.client.decoding import decode_frame
from rowcast.client.events import JSONObject
from rowcast.client.state import TransportName
from rowcast.client.transports import Endpoints, LinkEndedError, refusal
from rowcast.client.transports.query import query_of

_CONNECT_SECONDS: Final = 10.0  # as for a WebSocket
_QUEUE_FRAMES: Final = 256  # beyond it the streams are not read, so that the server holds back
_NAMED: Final = frozenset({"subscribed", "resync", "error"})  # frames that carry their subscription's id


class EventStreamLink:
    """See `rowcast.client.transports.Link`. Round trips are not measured: nothing can be sent."""

    name: TransportName = "sse"

    def __init__(self, endpoints: Endpoints, token: str | None) -> None:
        headers = {**endpoints.headers, "Accept": "text/event-stream", "Cache-Control": "no-store"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        # Silence is judged by the session.
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=None, pool=None)
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        self._http = endpoints.http
        self._frames: asyncio.Queue[tuple[JSONObject, str | None] | LinkEndedError] = asyncio.Queue(
            _QUEUE_FRAMES
        )
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._welcomed = False
        self._mutations: str | None = None

    async def send(self, frame: JSONObject) -> None:
        """Only what opens or ends a stream has an effect."""
        match frame["type"]:
            case "hello":
                self._mutations = frame.get("mutations")
                if not frame["subscriptions"]:
                    self._streams[""] = asyncio.create_task(self._greet())
                for entry in frame["subscriptions"]:
                    self._open(entry)
            case "subscribe":
                self._open(frame)
            case "unsubscribe":
                stream = self._streams.pop(frame["id"], None)
                if stream is not None:
                    stream.cancel()
            case _:
                pass

    async def receive(self) -> tuple[JSONObject, str | None]:
        received = await self._frames.get()
        if isinstance(received, LinkEndedError):
            raise received
        return received

    async def close(self, *, politely: bool) -> None:  # noqa: ARG002 - there is nothing to wait for
        streams = list(self._streams.values())
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await self._client.aclose()

    async def _greet(self) -> None:
        """Without a stream, see at least that the server is there."""
        try:
            response = await self._client.get(f"{self._http}/healthz")
        except httpx.ConnectError as error:
            await self._frames.put(LinkEndedError(str(error), failure="away"))
        except httpx.HTTPError as error:
            await self._frames.put(LinkEndedError(str(error) or type(error).__name__))
        else:
            if response.status_code == HTTPStatus.OK:
                self._welcomed = True
                await self._frames.put(({"type": "welcome", "heartbeat_seconds": 15.0}, None))
            else:
                await self._frames.put(refusal(response.status_code))

    def _open(self, entry: JSONObject) -> None:
        self._streams[entry["id"]] = asyncio.create_task(self._follow(entry))

    async def _follow(self, entry: JSONObject) -> None:
        name: str = entry["id"]
        query = query_of(
            entry,
            channel=entry["channel"],
            form="full",
            since=entry.get("since"),
            snapshot="true" if entry.get("snapshot") else None,
            only_changed="true" if entry.get("only_changed") else None,
            mutations=self._mutations,
        )
        try:
            async with self._client.stream("GET", f"{self._http}/sse?{query}") as response:
                if response.status_code == HTTPStatus.BAD_REQUEST:
                    text = (await response.aread()).decode(errors="replace")
                    frame = {"type": "error", "id": name, "code": "invalid_frame", "message": text}
                    await self._frames.put((frame, name))
                    return
                kind = response.headers.get("Content-Type", "")
                if response.status_code != HTTPStatus.OK:
                    raise refusal(response.status_code)
                if not kind.startswith("text/event-stream"):
                    raise LinkEndedError(
                        f"no event stream, but {kind or 'something unnamed'}", failure="unsuitable"
                    )
                async for data in _events(response.aiter_bytes()):
                    await self._take(decode_frame(data), name)
            raise LinkEndedError("the event stream ended")
        except LinkEndedError as error:
            ended = error
        except httpx.ConnectError as error:
            ended = LinkEndedError(str(error), failure="away")
        except (httpx.HTTPError, httpx.StreamError, msgspec.DecodeError) as error:
            ended = LinkEndedError(str(error) or type(error).__name__)
        await self._frames.put(ended)

    async def _take(self, frame: JSONObject, name: str) -> None:
        kind = frame.get("type")
        if kind == "welcome":
            if self._welcomed:
                return  # each stream has one, and the session waits for the first
            self._welcomed = True
        elif kind in _NAMED:
            frame["id"] = name  # over a stream of its own the server calls it by its channel
        await self._frames.put((frame, name))


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event of an event stream that ends its lines with LF."""
    rest = b""
    data: list[bytes] = []
    async with contextlib.aclosing(chunks):  # type: ignore[type-var]
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                elif not line and data:
                    yield b"\n".join(data)
                    data = []
