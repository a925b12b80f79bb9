"""The server: ASGI application, WebSocket protocol class, Server-Sent Events."""

from rowcast.server.app import Rowcast
from rowcast.server.run import Addresses, run, serve

__all__ = ["Addresses", "Rowcast", "run", "serve"]
