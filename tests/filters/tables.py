"""Tables for tests that need no database."""

from __future__ import annotations

from collections.abc import Mapping

from rowcast.model import Collation, Column, ColumnTraits, Table

C = Collation("C", deterministic=True, code_point_order=True, lower="ascii")
LINGUISTIC = Collation("en_US.utf8", deterministic=True, code_point_order=False, lower="simple")

_TYPES = {
    "int": (23, "integer"),
    "bigint": (20, "bigint"),
    "oid": (26, "oid"),
    "text": (25, "text"),
    "char": (1042, "character(5)"),
    "numeric": (1700, "numeric"),
    "real": (700, "real"),
    "double": (701, "double precision"),
    "bool": (16, "boolean"),
    "date": (1082, "date"),
    "timestamp": (1114, "timestamp without time zone"),
    "uuid": (2950, "uuid"),
    "json": (114, "json"),
    "jsonb": (3802, "jsonb"),
    "int[]": (1007, "integer[]"),
    "jsonb[]": (3807, "jsonb[]"),
    "inet": (869, "inet"),
    "mood": (60_000, "mood"),
}


def table(columns: Mapping[str, str], *, collation: Collation | None = C) -> Table:
    """A table with these columns, by name, of the types above."""
    return Table(
        oid=16_384,
        schema="public",
        name="things",
        columns=tuple(
            Column(
                name,
                *(_TYPES[kind][0], -1, _TYPES[kind][1]),
                to_json=bytes,
                traits=ColumnTraits(
                    collation=collation, enum_labels=("sad", "ok", "happy") if kind == "mood" else ()
                ),
            )
            for name, kind in columns.items()
        ),
        key=(0,),
        replica_identity="full",
    )


EVERYTHING = table({kind: kind for kind in _TYPES})
