"""What toolkits need of the client, one module a toolkit, each with its own optional dependency.

The one rule of this room: an adapter shows what live rows say and keeps nothing of its own.
"""
