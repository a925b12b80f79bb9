"""A subscription as a URL's query: for the transports that can only ask by address. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

from rowcast.client.events import JSONObject
from rowcast.errors import ClientError

# String literals and quoted names stay as they are, whatever stands in them.
_PARAMETER: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\d+)""")


def query_of(entry: JSONObject, **more: str | None) -> str:
    """What stands after the question mark for a `subscribe` frame's filter and columns, and for `more`."""
    query: list[tuple[str, str]] = [(name, value) for name, value in more.items() if value is not None]
    if "filter" in entry:
        query.append(("filter", entry["filter"]))
    if "where" in entry:
        query.append(("where", with_parameters(entry["where"], entry.get("params", ()))))
    if "columns" in entry:
        query.append(("columns", ",".join(entry["columns"])))
    return urlencode(query)


def with_parameters(where: str, parameters: Sequence[object]) -> str:
    """An SQL filter with its parameters as literals.

    Raises:
        ClientError: It names a parameter that there is none for.
    """

    def literal(match: re.Match[str]) -> str:
        number = match[1]
        if number is None:
            return match[0]
        if not 0 < int(number) <= len(parameters):
            raise ClientError(f"the filter {where!r} names ${number}, and there are {len(parameters)} params")
        value = parameters[int(number) - 1]
        if value is None:
            return "NULL"
        if isinstance(value, bool):
            return "TRUE" if value else "FALSE"
        if isinstance(value, int | float):
            return repr(value)
        return "'" + str(value).replace("'", "''") + "'"

    return _PARAMETER.sub(literal, where)
