"""Filters: two languages onto one expression tree, evaluated as PostgreSQL would, and an index over many of them.

The one rule of this room: a filter is true here for exactly the rows for which it is true in PostgreSQL. What cannot
be shown to be equal outside of PostgreSQL (the order of text under a linguistic collation, say) is refused when the
filter is bound to its table, with a sentence that says what to write instead.

    parse_postgrest, parse_sql → Expression → bind(expression, table) → BoundFilter → FilterIndex
                                                                           └→ .sql, for the snapshot's WHERE
"""

from __future__ import annotations

from rowcast.filters.bound import BoundFilter, bind
from rowcast.filters.evaluate import Outcome
from rowcast.filters.expression import Expression, conjunction, equality
from rowcast.filters.index import FilterIndex
from rowcast.filters.postgrest import parse_postgrest
from rowcast.filters.sql import parse_sql

__all__ = [
    "BoundFilter",
    "Expression",
    "FilterIndex",
    "Outcome",
    "bind",
    "conjunction",
    "equality",
    "parse_postgrest",
    "parse_sql",
]
