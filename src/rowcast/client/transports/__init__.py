"""What carries frames between session and server: a WebSocket, event streams, or polling.

The one rule of this room: a link either delivers every frame in order or ends with `LinkEndedError`. Whatever
carries them, the session sees the frames of the full form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from rowcast.client.events import JSONObject
from rowcast.client.ladder import Failure
from rowcast.client.state import TransportName
from rowcast.errors import ClientError

__all__ = ["Endpoints", "Link", "LinkEndedError", "open_link", "refusal"]


class LinkEndedError(ClientError):
    """A link ended, or could not be opened.

    Attributes:
        reason: What the other side or the network said.
        code: The close code where there was one; 4501 also for credentials refused before there was a link.
        failure: Why there is no link, where it could not be opened.
    """

    def __init__(self, reason: str, *, code: int | None = None, failure: Failure = "broken") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.failure: Failure = failure


def refusal(status: int) -> LinkEndedError:
    """What an HTTP status other than the hoped-for one says about the link."""
    if status in {401, 403}:
        hint = ", as it does too where nothing of Rowcast's is at this path" if status == 403 else ""
        return LinkEndedError(f"the server answered {status}{hint}", code=4501, failure="away")
    # A gateway says these while what stands behind it restarts.
    gone = status in {429, 502, 503, 504}
    return LinkEndedError(f"the server answered {status}", failure="away" if gone else "unsuitable")


class Link(Protocol):
    """One open link."""

    name: TransportName

    async def send(self, frame: JSONObject) -> None:
        """Send a frame of the client's.

        Raises:
            LinkEndedError: The link is gone.
        """
        ...

    async def receive(self) -> tuple[JSONObject, str | None]:
        """The next frame, and the lane that it came on. Cancelling loses no frame.

        Raises:
            LinkEndedError: There will be no more.
        """
        ...

    async def close(self, *, politely: bool) -> None:
        """End it. Politely waits a moment for the other side; a link that is dead gets no such moment."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a server is to be found, from the one address that the user gave.

    Any of these name the same server: http://host/realtime, ws://host/realtime, ws://host/realtime/ws.
    """

    websocket: str
    http: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str] | None = None) -> Endpoints:
        """Take a server's address apart.

        Raises:
            ClientError: It is not one.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in {"http", "https", "ws", "wss"} or not parts.hostname:
            raise ClientError(f"{url!r} is no server's address: write http://host:port, or ws://host:port/ws")
        secure = parts.scheme in {"https", "wss"}
        path = parts.path.rstrip("/").removesuffix("/ws")
        return cls(
            urlunsplit(("wss" if secure else "ws", parts.netloc, f"{path}/ws", parts.query, "")),
            urlunsplit(("https" if secure else "http", parts.netloc, path, "", "")),
            dict(headers or {}),
        )


async def open_link(
    transport: TransportName, endpoints: Endpoints, token: str | None, *, max_frame_bytes: int
) -> Link:
    """Open a link.

    Raises:
        LinkEndedError: It could not be opened.
        ClientError: The library that it needs is not installed.
    """
    # Each transport needs a library of its own: imported when used, so that one is enough.
    try:
        if transport == "websocket":
            from rowcast.client.transports.websocket import WebSocketLink  # noqa: PLC0415

            return await WebSocketLink.open(endpoints, max_frame_bytes=max_frame_bytes)
        if transport == "sse":
            from rowcast.client.transports.sse import EventStreamLink  # noqa: PLC0415

            return EventStreamLink(endpoints, token)
        from rowcast.client.transports.polling import PollingLink  # noqa: PLC0415

        return PollingLink(endpoints, token)
    except ModuleNotFoundError as error:
        raise ClientError(
            f'the client needs the package {error.name}: pip install "rowcast[client]"'
        ) from error
