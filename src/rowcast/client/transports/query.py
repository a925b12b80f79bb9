"""A subscription as a URL's query: for the transports that can only ask by address. No I/O."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec

from rowcast.client.events import JSONObject


def query_of(entry: JSONObject, **more: str | None) -> str:
    """What stands after the question mark for a `subscribe` frame's filter and columns, and for `more`."""
    fields = {
        **more,
        "filter": entry.get("filter"),
        "where": entry.get("where"),
        "params": msgspec.json.encode(entry["params"]).decode() if "params" in entry else None,
        "columns": ",".join(entry["columns"]) if "columns" in entry else None,
    }
    return urlencode([(name, value) for name, value in fields.items() if value is not None])
