"""The Python client: connection, session, transports, live rows, mutations.

    async with rowcast.connect("http://127.0.0.1:8000") as rc:
        projects = await rc.live("projects", order_by="name").ready()

The one rule of this room: what the application sees comes from the stream and from its own pending mutations,
and from nothing else. Of the rest of Rowcast it imports only `errors`.

Beside what is named here there are `rowcast.client.sync` for code without `await`, `rowcast.client.cache` for answers
of the application's own API, and `rowcast.client.adapters` for toolkits.
"""

from rowcast.client.client import Client, connect
from rowcast.client.events import ServerError
from rowcast.client.handlers import Handlers
from rowcast.client.live import Change, LiveRows
from rowcast.client.mutations import MUTATION_HEADER, Answer, MutationHandle, RejectedError
from rowcast.client.outputs import MutationState, SubscriptionState
from rowcast.client.overlay import Delete, Insert, Mutation, Strategy, Update
from rowcast.client.rows import Row
from rowcast.client.state import ConnectionState
from rowcast.errors import ClientError

__all__ = [
    "MUTATION_HEADER",
    "Answer",
    "Change",
    "Client",
    "ClientError",
    "ConnectionState",
    "Delete",
    "Handlers",
    "Insert",
    "LiveRows",
    "Mutation",
    "MutationHandle",
    "MutationState",
    "RejectedError",
    "Row",
    "ServerError",
    "Strategy",
    "SubscriptionState",
    "Update",
    "connect",
]
