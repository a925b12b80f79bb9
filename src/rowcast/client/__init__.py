"""The Python client: connection, session, transports, live rows, mutations.

The one rule of this room: what the application sees comes from the stream and from its own pending mutations,
and from nothing else. Of the rest of Rowcast it imports only `errors`.
"""
