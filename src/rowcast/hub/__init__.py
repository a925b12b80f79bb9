"""Shapes, routing and fan-out: each change is matched once per shape and encoded once per audience."""

from rowcast.hub.audience import Audience, Form, Framing, Outlet, Sink, TransactionHeader
from rowcast.hub.hub import Hub
from rowcast.hub.shape import EncodedChange, Shape
from rowcast.hub.subscription import Request, Subscriber, Subscription

__all__ = [
    "Audience",
    "EncodedChange",
    "Form",
    "Framing",
    "Hub",
    "Outlet",
    "Request",
    "Shape",
    "Sink",
    "Subscriber",
    "Subscription",
    "TransactionHeader",
]
