"""Rowcast: the realtime layer for PostgreSQL."""

from rowcast._version import __version__

__all__ = ["__version__"]
