"""Rowcast: the realtime layer for PostgreSQL.

    async with rowcast.connect("http://127.0.0.1:8000") as rc:
        projects = await rc.live("projects", order_by="name").ready()

The one rule of this module: it loads nothing that is not asked for, so that a server needs no client's packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rowcast._version import __version__

if TYPE_CHECKING:
    from rowcast.client import connect
    from rowcast.contrib.confirm import confirm

__all__ = ["__version__", "confirm", "connect"]


def __getattr__(name: str) -> Any:
    if name == "connect":
        from rowcast.client import connect  # noqa: PLC0415 - see the rule above

        return connect
    if name == "confirm":
        from rowcast.contrib.confirm import confirm  # noqa: PLC0415 - see the rule above

        return confirm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
